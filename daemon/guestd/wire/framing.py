"""Bytes in, frames out: lines ended by LF, bounded in size, resynchronising at the next line end.

A CR alone ends a line behind a metrics message. Pure: no socket, no clock. A line over the size limit is not kept in
memory; its size and its first bytes are reported, so that it can be counted and, when its sender numbers its lines,
acknowledged.
"""

from __future__ import annotations

from dataclasses import dataclass

# Long enough for the header of a numbered line (docs/wire.md), short enough to store for every channel.
HEAD_BYTES = 256
# What may stand around a message and is no part of it: white space, control characters (a NUL that ends each message,
# RFC 7464's record separator), a byte order mark.
BLANK = bytes(range(33)) + b"\xef\xbb\xbf"


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
        self._tail = b""  # the last bytes of the chunk before

    @property
    def pending_bytes(self) -> int:
        """Bytes of the incomplete line."""
        return self._size_bytes

    def feed(self, chunk: bytes) -> list[bytes | Oversize]:
        """Add the next bytes; return the lines that they complete, without line ends and without blank lines."""
        if b"\r" in chunk:
            chunk = self._with_line_ends(chunk)
        self._tail = chunk[-2:] if len(chunk) > 1 else (self._tail + chunk)[-2:]
        lines: list[bytes | Oversize] = []
        begin = 0
        # Faster than `split`, which looks at each byte of a long line by itself.
        while (end := chunk.find(b"\n", begin)) >= 0:
            start, begin = begin, end + 1
            if start == end and not self._size_bytes:
                continue
            part = chunk[start:end]
            line = part if self._is_whole(part) else self._completed(part)
            if isinstance(line, Oversize) or line.strip(BLANK):
                lines.append(line)
        self._extend(chunk[begin:])
        return lines

    def _with_line_ends(self, chunk: bytes) -> bytes:
        """The chunk with LF for a CR that ends a metrics message; elsewhere it may be part of a broken text."""
        return (self._tail + chunk).replace(b"}}\r", b"}}\n")[len(self._tail) :]

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
