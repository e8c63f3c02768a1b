"""Escaping of text that may contain a guest's bytes, for logs and terminals."""

from __future__ import annotations

import re

TEXT_CHARS = 1_000
# Control characters, line separators, characters that change the writing direction, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """Put text on one line with control characters escaped, at most TEXT_CHARS of it."""
    shown = _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text[:TEXT_CHARS])
    return shown if len(text) <= TEXT_CHARS else f"{shown}... ({len(text)} characters)"


def escape_to_ascii(text: str) -> str:
    """Escape control characters and everything that is not ASCII."""
    return text.encode("unicode_escape").decode("ascii")
