"""The store: its contract with the daemon, its migrations, its seed and its read API."""
