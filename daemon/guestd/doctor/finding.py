"""What a check says: a subject, whether it is well, and what to do about it where it is not."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Level = Literal["well", "warning", "fault"]


class Finding(Struct, frozen=True, kw_only=True):
    """One line of the doctor's. `fix` is empty where there is nothing to do."""

    subject: str
    level: Level
    text: str
    fix: str = ""


def ok(subject: str, text: str) -> Finding:
    """As it should be."""
    return Finding(subject=subject, level="well", text=text)


def warning(subject: str, text: str, fix: str) -> Finding:
    """guestd works, and something is lost or will be."""
    return Finding(subject=subject, level="warning", text=text, fix=fix)


def fault(subject: str, text: str, fix: str) -> Finding:
    """guestd cannot do its work, or not all of it."""
    return Finding(subject=subject, level="fault", text=text, fix=fix)
