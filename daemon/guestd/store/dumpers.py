"""Dumpers of psycopg for binary COPY: JSON bytes, UUIDs, and times as datetime or unix seconds.

The rows of a message share the same machine and time objects: the dumped bytes of the last object are used again. The
start of a process is the number that the guest sent, because a datetime would take longer (docs/benchmarks.md).
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
    """JSON as bytes: a version byte and the text."""

    oid = psycopg.adapters.types["jsonb"].oid
    format = Format.BINARY

    def dump(self, obj: bytes) -> bytes:
        return b"\x01" + obj


class _Moment(Dumper):
    """A datetime, or unix seconds as a guest sent them."""

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


def register_dumpers(connection: psycopg.AsyncConnection[object]) -> None:
    """Register the dumpers for COPY on this connection, for columns with set types; query parameters do not change."""
    for dumper in (_RawJsonb, _Moment, _Key):
        connection.adapters.register_dumper(None, dumper)
