"""Which machines the store knows, as last heard; sources ask before they accept from a channel."""

from __future__ import annotations

import asyncio
from uuid import UUID


class Roster:
    """None until the store was reached for the first time: then nobody is turned away, the spool keeps what comes."""

    def __init__(self) -> None:
        self.machines: frozenset[UUID] | None = None
        self.changed = asyncio.Event()
        # The store has answered, or could not be reached: nothing is gained by waiting for it any longer.
        self.tried = asyncio.Event()

    def replace(self, machines: frozenset[UUID]) -> None:
        """The store's answer; wakes whoever waits for `changed` when it differs."""
        self.tried.set()
        if machines != self.machines:
            self.machines = machines
            self.changed.set()

    def knows(self, machine_id: UUID) -> bool:
        """Whether frames of this machine may be accepted."""
        return self.machines is None or machine_id in self.machines
