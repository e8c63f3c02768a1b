"""Whether the host that registers under a name is the one that has registered before. Pure.

Two hosts that use one name, one after the other (a cloned image, a mistyped libvirt.host_name), would take each other's
leases for their own, and start what runs on the other.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

_UNKNOWN = "none"


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """What tells this host from others; each is empty where it is not known.

    `uuid` is libvirt's of the host, `machine` a hash of its machine ID (`hash_machine_id`), `boot` that of its kernel.
    """

    uuid: str
    machine: str
    boot: str

    def __str__(self) -> str:
        return f"{self.uuid or _UNKNOWN}/{self.machine or _UNKNOWN}"


@dataclass(frozen=True, slots=True)
class StoredHost:
    """What the store has of the host of this name. `has_earlier_leases`: of a boot that is known and not this one."""

    identity: str | None
    boot: str | None
    has_earlier_leases: bool


def find_conflict(stored: StoredHost, ours: HostIdentity) -> str | None:
    """Find why this host may be another one than that of the store; None if it is the same, or the first one."""
    if stored.identity is None:
        # From before a guestd stored it.
        is_doubtful = ours.boot and stored.has_earlier_leases
        return "it has leases of an earlier boot and no identity" if is_doubtful else None
    if stored.identity == str(ours) or is_renamed(stored, ours):
        return None
    return f"its identity is {stored.identity}"


def is_renamed(stored: StoredHost, ours: HostIdentity) -> bool:
    """Whether libvirt has another UUID for the same host: one that it makes up when it starts."""
    if stored.identity is None or not ours.machine or not ours.boot:
        return False
    uuid, _, machine = stored.identity.partition("/")
    return (machine, stored.boot) == (ours.machine, ours.boot) and uuid != (ours.uuid or _UNKNOWN)


def hash_machine_id(machine_id: str) -> str:
    """Hash a machine ID, which is not to be shown to others (man machine-id); empty for one that is not set."""
    if len(machine_id) != 32:
        return ""
    return hmac.new(machine_id.encode(), b"guestd host identity", hashlib.sha256).hexdigest()[:16]
