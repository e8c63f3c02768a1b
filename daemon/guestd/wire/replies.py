"""What guestd says to a guest: the host's lines of docs/wire.md, without their newline. Pure.

Case matters: `Metrics` is a command and has a capital, what is answered has none.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

# Asks for a sample at once.
COLLECT = b'{"type":"Metrics"}'


class _KeepAlive(Struct):
    sequence_number: Annotated[int, Meta(ge=0, le=2**32 - 1)]


_keep_alive = msgspec.json.Decoder(_KeepAlive)


def ack(boot_id: str, seq: int, mark: str | None) -> bytes:
    """Tells our agent that everything up to `seq`, whose mark this is, is safe."""
    return b"%s}" % _ack(boot_id, seq, mark)


def resend(boot_id: str, seq: int, mark: str | None) -> bytes:
    """Asks our agent for everything after `seq` again."""
    return b'%s,"resend":true}' % _ack(boot_id, seq, mark)


def _ack(boot_id: str, seq: int, mark: str | None) -> bytes:
    told = b'{"type":"ack","boot_id":"%s","seq":%d' % (boot_id.encode(), seq)
    return b'%s,"mark":"%s"' % (told, mark.encode()) if mark else told


def reply(message_type: str, line: bytes, now: datetime) -> bytes | None:
    """The answer to a guest's message of another type than metrics; None when it wants none or cannot be read."""
    timestamp = now.isoformat(timespec="milliseconds")
    if message_type == "ping":
        return msgspec.json.encode({"type": "pong", "timestamp": timestamp})
    if message_type != "keep_alive":
        return None
    try:
        sequence_number = _keep_alive.decode(line).sequence_number
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return msgspec.json.encode(
        {"type": "keep_alive_response", "sequence_number": sequence_number, "timestamp": timestamp}
    )
