"""Bytes in, frames out: lines ended by LF, bounded in size, resynchronising at the next line end.

A CR alone ends a line where another message follows it. Pure: no socket, no clock. A line over the size limit is not
kept in memory; its size and its first bytes are reported, so that it can be counted and, when its sender numbers its
lines, acknowledged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Long enough for the header of a numbered line (docs/wire.md), short enough to store for every channel.
HEAD_BYTES = 256
# What may stand around a message and is no part of it: white space, control characters (a NUL that ends each message,
# RFC 7464's record separator), a byte order mark.
BLANK = bytes(range(33)) + b"\xef\xbb\xbf"
_BLANK_LINES = re.compile(rb"(?:[\0-\x09\x0b-\x20\xef\xbb\xbf]*+\n)++")
# A CR alone ends a line between two messages. Elsewhere it may be part of a broken text, which is repaired: these bytes
# do not occur in one, where a quote is escaped.
_CR_END, _LF_END = b'}\r{"', b'}\n{"'
_CR_END_BEGUN = (b"}\r{", b"}\r", b"}")


@dataclass(frozen=True, slots=True)
class Oversize:
    """A line over the size limit, of which only the first bytes were kept."""

    head: bytes
    size_bytes: int


class Framer:
    """Splits the byte stream of one channel into lines."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._partial = bytearray()
        self._size_bytes = 0
        self._held = b""  # the last bytes, where what follows says whether a line ends in them

    @property
    def pending_bytes(self) -> int:
        """Bytes of the incomplete line."""
        return self._size_bytes + len(self._held)

    @property
    def kept_bytes(self) -> int:
        """Bytes of it that are in memory."""
        return len(self._partial) + len(self._held)

    def feed(self, chunk: bytes) -> list[bytes | Oversize]:
        """Add the next bytes; return the lines that they complete, without line ends and without blank lines."""
        if self._held:
            chunk = self._held + chunk
        if b"\r" in chunk:
            chunk = chunk.replace(_CR_END, _LF_END)
        self._held = next((begun for begun in _CR_END_BEGUN if chunk.endswith(begun)), b"")
        if self._held:
            chunk = chunk[: -len(self._held)]
        lines: list[bytes | Oversize] = []
        begin = 0
        # Faster than `split`, which looks at each byte of a long line by itself.
        while (end := chunk.find(b"\n", begin)) >= 0:
            part, begin = chunk[begin:end], end + 1
            line = part if self._is_whole(part) else self._completed(part)
            if isinstance(line, Oversize) or line.strip(BLANK):
                lines.append(line)
            elif (blank_lines := _BLANK_LINES.match(chunk, begin)) is not None:
                begin = blank_lines.end()
        self._extend(chunk[begin:])
        return lines

    def take_rest(self) -> bytes | Oversize | None:
        """Take what has arrived of a line that will not be completed; None if nothing has."""
        held, self._held = self._held, b""
        line = self._completed(held)
        return line if isinstance(line, Oversize) or line.strip(BLANK) else None

    def _is_whole(self, part: bytes) -> bool:
        """Whether it is a complete line, as most are; these are passed on without a copy."""
        return not self._size_bytes and len(part) <= self._limit_bytes

    def _completed(self, part: bytes) -> bytes | Oversize:
        self._extend(part)
        return self._take()

    def _extend(self, part: bytes) -> None:
        self._size_bytes += len(part)
        if self._size_bytes <= self._limit_bytes:
            self._partial += part
        elif len(self._partial) > HEAD_BYTES:
            del self._partial[HEAD_BYTES:]
        else:
            self._partial += part[: HEAD_BYTES - len(self._partial)]

    def _take(self) -> bytes | Oversize:
        line, size_bytes = bytes(self._partial), self._size_bytes
        self._partial.clear()
        self._size_bytes = 0
        return Oversize(line[:HEAD_BYTES], size_bytes) if size_bytes > self._limit_bytes else line
