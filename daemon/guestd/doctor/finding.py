"""The result of a check: a subject, a level, a text, and a fix if one is needed."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Level = Literal["ok", "warning", "fault"]


class Finding(Struct, frozen=True, kw_only=True):
    """One line of `guestd doctor`. `fix` is empty if nothing needs to be done."""

    subject: str
    level: Level
    text: str
    fix: str = ""


def ok(subject: str, text: str) -> Finding:
    """Report that nothing is wrong."""
    return Finding(subject=subject, level="ok", text=text)


def warning(subject: str, text: str, fix: str) -> Finding:
    """Report that guestd works, but data is lost or will be."""
    return Finding(subject=subject, level="warning", text=text, fix=fix)


def fault(subject: str, text: str, fix: str) -> Finding:
    """Report that guestd cannot do its work, or not all of it."""
    return Finding(subject=subject, level="fault", text=text, fix=fix)
