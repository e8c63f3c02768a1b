"""Which virtio-serial channels to open and close. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID


@dataclass(frozen=True, slots=True)
class ChannelSocket:
    """One socket file. Inode and creation time distinguish it from an earlier or later file of the same name."""

    machine_id: UUID
    path: Path
    inode: int
    created_ns: int


@dataclass(frozen=True, slots=True)
class Open:
    """Start reading."""

    channel: ChannelSocket


@dataclass(frozen=True, slots=True)
class Close:
    """Stop reading: the socket is gone or was replaced, or the store no longer has the machine."""

    channel: ChannelSocket


def plan_channels(
    desired: Mapping[UUID, ChannelSocket], running: Mapping[UUID, ChannelSocket]
) -> tuple[Open | Close, ...]:
    """The actions that lead from the channels that are read to the desired ones; closing comes first."""
    closing = [Close(channel) for key, channel in running.items() if desired.get(key) != channel]
    opening = [Open(channel) for key, channel in desired.items() if running.get(key) != channel]
    return (*closing, *opening)
