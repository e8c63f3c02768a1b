"""How values of rows go into binary COPY: keys and times dumped once for all rows of a message, and unix seconds.

The rows of one message share one machine and one time, as the very same objects; whoever dumps such an object again
gets what came of it before. A process's start comes as the number that the guest wrote: making a datetime of it costs
more than it does to have this in Python (docs/benchmarks.md).
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from uuid import UUID

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_UNIX_MICROSECONDS = int(_EPOCH.timestamp()) * 1_000_000
_int8 = struct.Struct(">q").pack


class _RawJsonb(Dumper):
    """JSON that is bytes already: a version byte and the text."""

    oid = psycopg.adapters.types["jsonb"].oid
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return b"\x01" + obj


class _Moment(Dumper):
    """A time, or unix seconds as a guest wrote them."""

    oid = psycopg.adapters.types["timestamptz"].oid
    format = Format.BINARY
    _last: datetime | None = None
    _dumped = b""

    def dump(self, obj: datetime | float) -> bytes:
        if obj is self._last:
            return self._dumped
        if isinstance(obj, float):
            return _int8(round(obj * 1_000_000) - _EPOCH_UNIX_MICROSECONDS)
        since = obj - _EPOCH
        self._last = obj
        self._dumped = _int8((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)
        return self._dumped


class _Key(Dumper):
    """A UUID."""

    oid = psycopg.adapters.types["uuid"].oid
    format = Format.BINARY
    _last: UUID | None = None
    _dumped = b""

    def dump(self, obj: UUID) -> bytes:
        if obj is not self._last:
            self._last, self._dumped = obj, obj.bytes
        return self._dumped


def put_on(connection: psycopg.AsyncConnection[object]) -> None:
    """Let COPY on this connection use them, for columns whose types are set; parameters of queries are not touched."""
    for dumper in (_RawJsonb, _Moment, _Key):
        connection.adapters.register_dumper(None, dumper)
