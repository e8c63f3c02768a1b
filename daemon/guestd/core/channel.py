"""The kinds of channels by which a frame reaches guestd."""

from __future__ import annotations

from enum import Enum


class Channel(Enum):
    """How a frame came: what that tells of the time between its making and its receipt."""

    VIRTIO = "virtio"
    MQTT = "mqtt"
