"""The store: its contract with the daemon, its migrations and its seed."""
