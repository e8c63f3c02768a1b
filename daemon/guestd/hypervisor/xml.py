"""Parse what libvirt prints, which is not always XML, and not always complete.

Pure. libvirt prints the name of a filter as it is (measured on 9.0): `R&D`, `it's` and `a<b` make the text of that
filter malformed, and that of every filter and domain that names it. Such names are escaped here. Of an object that
cannot be read all the same, libvirt still lists name, uuid and state: only that object is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import escape

# Each is one line of libvirt's: names hold line breaks only as spaces. No part of a pattern crosses a line break: a
# description of many empty lines would take minutes, and block every thread meanwhile.
_RAW_NAMES = (
    re.compile(r"^([ \t]*<filterref filter=')(.*)('/?>)$", re.MULTILINE),
    re.compile(r"^([ \t]*<filter name=')(.*?)('(?: chain='[^'\n]*')?(?: priority='[^'\n]*')?/?>)$", re.MULTILINE),
)
_APOSTROPHE = {"'": "&apos;"}


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why one object of libvirt cannot be read."""

    reason: str


def parse_xml(text: str) -> ElementTree.Element:
    """The root element of what libvirt prints. ValueError where it is malformed.

    A raw name can leave the text well-formed (`a' b='c`). So where a name holds what an escaped one does not,
    libvirt has escaped none.
    """
    is_raw = any("'" in found[2] or "<" in found[2] for pattern in _RAW_NAMES for found in pattern.finditer(text))
    try:
        return ElementTree.fromstring(_escape_names(text) if is_raw else text)  # noqa: S314 -- libvirt wrote it
    except ElementTree.ParseError as exc:
        problem = exc
    try:
        return ElementTree.fromstring(_escape_names(text))  # noqa: S314 -- as above
    except ElementTree.ParseError:
        raise ValueError(f"libvirt's XML is malformed: {problem}") from None


def _escape_names(text: str) -> str:
    for pattern in _RAW_NAMES:
        text = pattern.sub(lambda found: f"{found[1]}{escape(found[2], _APOSTROPHE)}{found[3]}", text)
    return text


def parse_count(text: str | None, maximum: int) -> int:
    """A number from 0 to `maximum`; 0, which stands for unknown, where the text is anything else."""
    digits = (text or "").strip()
    if not digits.isascii() or not digits.isdigit() or len(digits) > len(str(maximum)):
        return 0
    return number if (number := int(digits)) <= maximum else 0
