"""Which machines the store knows, as last heard; sources ask before they accept from a channel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from uuid import UUID


class Roster:
    """None until the store was reached for the first time: then nobody is turned away, the spool keeps what comes."""

    def __init__(self) -> None:
        self.named: Mapping[str, UUID] | None = None
        """By internal name, which is the name of the domain."""
        self._machines: frozenset[UUID] = frozenset()
        self.changed = asyncio.Event()
        # The store has answered, or could not be reached: nothing is gained by waiting for it any longer.
        self.tried = asyncio.Event()

    def replace(self, named: Mapping[str, UUID]) -> None:
        """The store's answer, by internal name; wakes whoever waits for `changed` when it differs."""
        self.tried.set()
        if named != self.named:
            self.named = named
            self._machines = frozenset(named.values())
            self.changed.set()

    def knows(self, machine_id: UUID) -> bool:
        """Whether frames of this machine may be accepted."""
        return self.named is None or machine_id in self._machines
