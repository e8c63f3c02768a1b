"""The six errors of guestd. Each says who acts; a bug is not among them and is not caught."""

from __future__ import annotations


class ConfigError(Exception):
    """The operator must change something: `__main__` prints it and exits with 78, no restart."""


class SchemaMismatch(ConfigError):
    """Database and code disagree; the message names the command to run."""


class SourceLost(Exception):
    """A peer went away: `retrying` backs off and tries again."""


class BadFrame(Exception):
    """A guest sent what cannot become rows: `writer` quarantines the frame and goes on.

    `reason` is one of a closed set, for counting; the message says what was wrong.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreUnavailable(Exception):
    """The database cannot take rows now: `writer` keeps the same rows and tries again later."""


class RowsRejected(Exception):
    """The database will never take these rows: `writer` halves the batch until the frame is found."""
