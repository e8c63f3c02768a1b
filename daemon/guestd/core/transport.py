"""How a frame reaches guestd."""

from __future__ import annotations

from enum import Enum


class Transport(Enum):
    """The transport of a frame. MQTT may deliver long after the guest sent it, virtio-serial does not."""

    VIRTIO = "virtio"
    MQTT = "mqtt"
