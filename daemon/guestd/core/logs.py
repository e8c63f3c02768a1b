"""What is said on stderr and to systemd: one event a line, whatever words of a guest are in it.

Guests choose names, paths and claims that end up in errors. Nothing of theirs can begin a line of its own, move a
terminal's cursor, or fill the disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from guestd.core.text import harmless

# A traceback is ours; only what is quoted in it may be a guest's.
TRACEBACK_CHARS = 20_000
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure() -> None:
    """Readable in a terminal, JSON lines anywhere else; with their priority where the journal reads them."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    priorities: list[structlog.typing.Processor] = [with_priority] if is_journal() else []
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            all_harmless,
            renderer,
            *priorities,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def is_journal() -> bool:
    """Whether stderr is systemd's journal. Source: systemd.exec(5), JOURNAL_STREAM."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def with_priority(_: object, level: str, line: Any) -> Any:
    """A line with its syslog priority in front, which the journal takes off; a structlog processor, the last."""
    return f"<{_PRIORITIES.get(level, 6)}>{line}"


def error_line(text: str) -> str:
    """A line that is printed and not logged, for whoever reads stderr."""
    return f"<3>{text}" if is_journal() else text


def all_harmless(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Every text of an event; a structlog processor."""
    for key, value in event.items():
        if key == "exception":
            # Its lines are kept, and none of them can be taken for one of the log's own.
            event[key] = "\n".join(f"    {harmless(line)}" for line in str(value)[:TRACEBACK_CHARS].split("\n"))
        elif isinstance(value, str):
            event[key] = harmless(value)
    return event
