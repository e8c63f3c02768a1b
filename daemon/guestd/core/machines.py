"""Which machines the store knows and what is set for each, as last heard: sources and the writer ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from guestd.core.config import CommandLines


@dataclass(frozen=True, slots=True)
class RegisteredMachine:
    """What the store says of one machine. `command_lines` None: as the host's setting says."""

    machine_id: UUID
    internal_name: str
    command_lines: CommandLines | None = None
    is_collected: bool = True


class MachineRegistry:
    """None until the store was reached for the first time: then nobody is turned away, the spool keeps what comes."""

    def __init__(self) -> None:
        self.named: Mapping[str, UUID] | None = None
        """By internal name, which is the name of the domain."""
        self._members: Mapping[UUID, RegisteredMachine] = {}
        self.changed = asyncio.Event()
        # The store has answered, or could not be reached: nothing is gained by waiting for it any longer.
        self.tried = asyncio.Event()
        self.known = asyncio.Event()

    def replace(self, members: Iterable[RegisteredMachine]) -> None:
        """The store's answer; wakes whoever waits for `changed` when it differs."""
        by_id = {member.machine_id: member for member in members}
        if self.named is None or by_id != self._members:
            self.named = {member.internal_name: member.machine_id for member in by_id.values()}
            self._members = by_id
            self.changed.set()
        self.tried.set()
        self.known.set()

    def domains(self) -> dict[UUID, str]:
        """The names of the machines' domains, by machine."""
        return {member.machine_id: member.internal_name for member in tuple(self._members.values())}

    @property
    def machines(self) -> int:
        """How many machines the store knows."""
        return len(self._members)

    def knows(self, machine_id: UUID) -> bool:
        """Whether frames of this machine may be accepted."""
        return self.named is None or machine_id in self._members

    def collects(self, machine_id: UUID) -> bool:
        """Whether they are wanted; of a machine that is not known nobody has said no."""
        member = self._members.get(machine_id)
        return member is None or member.is_collected

    def command_lines(self, machine_id: UUID) -> CommandLines | None:
        """How the machine's command lines are kept; None: as the host's setting says."""
        member = self._members.get(machine_id)
        return None if member is None else member.command_lines
