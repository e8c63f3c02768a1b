"""The lines that guestd sends to a guest (docs/wire.md), without their newline. Pure.

The case matters: the command `Metrics` has a capital letter, replies have none.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from guestd.wire.line import SYNTAX_ERRORS

# Requests a sample immediately.
COLLECT = b'{"type":"Metrics"}'


class _KeepAlive(Struct):
    sequence_number: Annotated[int, Meta(ge=0, le=2**32 - 1)]


_keep_alive = msgspec.json.Decoder(_KeepAlive)


def ack(boot_id: str, seq: int, mark: str | None) -> bytes:
    """Acknowledges to our agent all lines up to `seq`, whose mark is `mark`."""
    return b"%s}" % _ack(boot_id, seq, mark)


def resend(boot_id: str, seq: int, mark: str | None) -> bytes:
    """Asks our agent to resend all lines after `seq`."""
    return b'%s,"resend":true}' % _ack(boot_id, seq, mark)


def _ack(boot_id: str, seq: int, mark: str | None) -> bytes:
    fields = b'{"type":"ack","boot_id":"%s","seq":%d' % (boot_id.encode(), seq)
    return b'%s,"mark":"%s"' % (fields, mark.encode()) if mark else fields


def reply(message_type: str, line: bytes, now: datetime) -> bytes | None:
    """The reply to a message that is not metrics; None when it needs no reply or cannot be decoded."""
    timestamp = now.isoformat(timespec="milliseconds")
    if message_type == "ping":
        return msgspec.json.encode({"type": "pong", "timestamp": timestamp})
    if message_type != "keep_alive":
        return None
    try:
        sequence_number = _keep_alive.decode(line).sequence_number
    except SYNTAX_ERRORS:
        return None
    return msgspec.json.encode(
        {"type": "keep_alive_response", "sequence_number": sequence_number, "timestamp": timestamp}
    )
