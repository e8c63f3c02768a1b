"""Logs: whatever a guest's words are, an event is one line and moves no cursor."""

import io
import json

import structlog
from hypothesis import given
from hypothesis import strategies as st

from guestd.core.log import escape_event
from guestd.core.text import TEXT_CHARS, escape_controls

HOSTILE = "\x1b[2J\x1b]0;title\x07\r\nguestd is well\x9b31m\u2028\u202e\x00"


@given(st.text(st.characters(), max_size=50))
def test_escaped_text_cannot_start_a_line_or_move_the_cursor(text: str) -> None:
    shown = escape_controls(HOSTILE + text)
    assert shown.isprintable() or not any(ord(each) < 32 or 127 <= ord(each) < 160 for each in shown)
    assert len(shown.splitlines()) == 1
    shown.encode()


def test_a_long_text_is_cut_with_its_length() -> None:
    assert escape_controls("x" * 5000) == "x" * TEXT_CHARS + "... (5000 characters)"
    assert escape_controls("naïve") == "naïve"


def log_hostile(renderer: structlog.typing.Processor) -> str:
    stream = io.StringIO()
    processors: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, escape_event, renderer]
    log = structlog.wrap_logger(structlog.PrintLogger(stream), processors=processors)
    exc = ValueError(HOSTILE)
    log.error("a frame was refused", error=str(exc), reason=HOSTILE, exc_info=exc)
    return stream.getvalue()


def test_a_terminal_shows_a_guests_escapes_as_text() -> None:
    shown = log_hostile(structlog.dev.ConsoleRenderer(colors=False))
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert not any(line.startswith("guestd is well") for line in shown.splitlines())


def test_a_json_line_holds_a_guests_escapes_as_text() -> None:
    (line,) = log_hostile(structlog.processors.JSONRenderer()).splitlines()
    assert "\x1b" not in json.loads(line)["reason"]
    assert json.loads(line)["error"].startswith("\\x1b[2J")
