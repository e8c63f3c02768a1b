"""Text that may hold a guest's bytes, made safe to show."""

from __future__ import annotations

import re

TEXT_CHARS = 1_000
# Control characters, line separators, and what turns the direction of writing.
_HARMFUL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """A text on one line, with control characters as escapes, bounded."""
    shown = _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), text[:TEXT_CHARS])
    return shown if len(text) <= TEXT_CHARS else f"{shown}... ({len(text)} characters)"


def printable(text: str) -> str:
    """Text that may hold a guest's bytes, with control characters, and all that is not ASCII, as escapes."""
    return text.encode("unicode_escape").decode("ascii")
