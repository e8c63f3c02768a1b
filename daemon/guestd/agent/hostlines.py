"""The host's bytes in, its lines out. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

# The host's lines are short; a longer one is not for us and is not kept.
HOST_LINE_LIMIT_BYTES = 64 * 1024


class HostLine(msgspec.Struct, frozen=True):
    """One line from the host; what other lines carry beside `type` is not looked at."""

    type: str
    boot_id: str = ""
    seq: int = 0
    mark: str = ""
    resend: bool = False


_host_line = msgspec.json.Decoder(HostLine)


def as_it_is(line: bytes) -> bytes:
    """A line that is in no wrapping."""
    return line


class HostLines:
    """Cuts what the host writes into lines; a line over the limit is dropped up to its newline.

    `opened` gives what a line is to be read as (a signed one is in a wrapping), None when it is not to be heard.
    """

    def __init__(
        self, opened: Callable[[bytes], bytes | None] = as_it_is, limit_bytes: int = HOST_LINE_LIMIT_BYTES
    ) -> None:
        self._opened = opened
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
        read = [self._opened(line) for line in lines if line]
        return [parsed for line in read if line is not None and (parsed := _parsed(line)) is not None]


def _parsed(line: bytes) -> HostLine | None:
    try:
        return _host_line.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
