"""The seven exceptions that guestd raises and handles. Each names who acts.

A bug is none of them: it costs the task in which it is raised a delay (`guestd.core.supervision`).
"""

from __future__ import annotations


class ConfigError(Exception):
    """The operator must change something: guestd prints the message and exits with 78; systemd does not restart it."""


class SchemaMismatch(ConfigError):
    """The database's schema is not the one this guestd needs; the message names the command to run."""


class SourceLost(Exception):
    """The connection to a peer (libvirt, broker, channel) is lost: `run_with_retry` reconnects after a backoff."""


class SpoolLost(Exception):
    """The spool's file cannot be used any more: guestd exits; the next start opens it, or sets it aside if damaged."""


class BadFrame(Exception):
    """A guest's frame cannot become rows: the writer quarantines it and continues.

    `reason` is one of a closed set (a metric label); the message describes the fault.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreUnavailable(Exception):
    """The database cannot take rows now: the writer keeps the batch and retries."""


class RowsRejected(Exception):
    """The database will never accept these rows: the writer halves the batch until it finds the frame."""
