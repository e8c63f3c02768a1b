"""Escaping of text that may contain a guest's bytes, for logs and terminals."""

from __future__ import annotations

from gueststore.text import escape

TEXT_CHARS = 1_000


def escape_controls(text: str) -> str:
    """Put text on one line with all that is not printable escaped, at most TEXT_CHARS of it."""
    shown = escape(text[:TEXT_CHARS])
    return shown if len(text) <= TEXT_CHARS else f"{shown}... ({len(text)} characters)"


def escape_to_ascii(text: str) -> str:
    """Escape control characters and everything that is not ASCII."""
    return text.encode("unicode_escape").decode("ascii")
