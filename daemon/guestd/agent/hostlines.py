"""Bytes from the host in, its lines out. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from guestd.wire.line import SYNTAX_ERRORS

# The host's lines are short; a longer one is not for us and is not kept.
HOST_LINE_LIMIT_BYTES = 64 * 1024


class HostLine(msgspec.Struct, frozen=True):
    """One line from the host; the other fields of other types are ignored."""

    type: str
    boot_id: str = ""
    seq: int = 0
    mark: str = ""
    resend: bool = False


_host_line = msgspec.json.Decoder(HostLine)


def pass_through(line: bytes) -> bytes:
    """The unsigned line itself."""
    return line


class HostLines:
    """Splits what the host writes into lines; a line over the limit is dropped up to its newline.

    `unwrap` returns the content of a line (of a signed one: its payload), or None for a line to ignore.
    """

    def __init__(
        self, unwrap: Callable[[bytes], bytes | None] = pass_through, limit_bytes: int = HOST_LINE_LIMIT_BYTES
    ) -> None:
        self._unwrap = unwrap
        self._limit_bytes = limit_bytes
        self._partial = b""
        self._dropping = False

    def feed(self, chunk: bytes) -> list[HostLine]:
        """Take the next bytes; return the lines completed by them that are objects with a type."""
        *ended, rest = chunk.split(b"\n")
        lines = []
        for part in ended:
            line = self._partial + part
            if not self._dropping and len(line) <= self._limit_bytes:
                lines.append(line)
            self._partial, self._dropping = b"", False
        self._partial += rest
        if len(self._partial) > self._limit_bytes:
            self._partial, self._dropping = b"", True
        read = [self._unwrap(line) for line in lines if line]
        return [parsed for line in read if line is not None and (parsed := _parsed(line)) is not None]


def _parsed(line: bytes) -> HostLine | None:
    try:
        return _host_line.decode(line)
    except SYNTAX_ERRORS:
        return None
