"""guestd: reads guest metrics and writes them, exactly once, to TimescaleDB."""

__version__ = "0.1.0"
