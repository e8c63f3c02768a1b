"""Fixtures live in plugins, one concern each; this is the list."""

import signal

pytest_plugins = [
    "fix_daemon",
    "fix_booted",
    "fix_faults",
    "fix_broker",
    "fix_filters",
    "fix_lab",
    "fix_nwfilter",
    "fix_store",
    "fix_wire",
]


def pytest_configure() -> None:
    """A run that is cancelled ends like one that is interrupted: fixtures stop what they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
