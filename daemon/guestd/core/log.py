"""Logging to stderr and to systemd's journal: one event per line.

Guests choose names, paths and other text that ends up in log events. It is escaped and bounded, so that a guest cannot
forge a line, move a terminal's cursor or fill the disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

import structlog

from guestd.core.text import escape_controls

# A traceback is our own text; only values quoted in it may come from a guest.
TRACEBACK_CHARS = 20_000
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure_logging() -> None:
    """Log for people in a terminal, as JSON lines elsewhere, with syslog priorities when the journal reads stderr."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    priorities: list[structlog.typing.Processor] = [add_priority] if is_journal() else []
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            escape_event,
            renderer,
            *priorities,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=lambda *_: _Stderr(),
    )


class _Stderr:
    """Writes log lines to stderr, and drops one that cannot be written: a full disk there must not end guestd."""

    def msg(self, line: str) -> None:
        """Write a line."""
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


def is_journal() -> bool:
    """Whether stderr is systemd's journal. Source: systemd.exec(5), JOURNAL_STREAM."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def add_priority(_: object, level: str, line: Any) -> Any:
    """Prefix a line with its syslog priority, which the journal strips; the last structlog processor."""
    return f"<{_PRIORITIES.get(level, 6)}>{line}"


def format_error_line(text: str) -> str:
    """Format an error that is printed without structlog; with a priority when the journal reads stderr."""
    return f"<3>{text}" if is_journal() else text


def escape_event(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape every text of an event; a structlog processor."""
    for key, value in event.items():
        if key == "exception":
            # Indented, so that no line of a traceback can pass for a log event.
            event[key] = "\n".join(f"    {escape_controls(line)}" for line in str(value)[:TRACEBACK_CHARS].split("\n"))
        elif isinstance(value, str):
            event[key] = escape_controls(value)
    return event
