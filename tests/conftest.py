"""Fixtures live in plugins, one concern each; this is the list."""

pytest_plugins = ["fix_daemon", "fix_store"]
