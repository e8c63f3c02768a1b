"""The machines that the store knows, with their settings, as last read; sources and the writer consult it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from guestd.core.config import CommandLines


@dataclass(frozen=True, slots=True)
class RegisteredMachine:
    """A row of Machine. `command_lines` None: the host's setting applies."""

    machine_id: UUID
    internal_name: str
    command_lines: CommandLines | None = None
    is_collected: bool = True


class MachineRegistry:
    """Accepts every machine until the store has answered for the first time: the spool keeps the frames."""

    def __init__(self) -> None:
        self.ids_by_name: Mapping[str, UUID] | None = None
        """By internal name, which is the name of the domain; None until the store has answered."""
        self._by_id: Mapping[UUID, RegisteredMachine] = {}
        self.changed = asyncio.Event()
        # Set when the store has answered or could not be reached: waiting any longer gains nothing.
        self.attempted = asyncio.Event()
        self.loaded = asyncio.Event()
        self._error: str | None = None

    def replace(self, machines: Iterable[RegisteredMachine]) -> None:
        """Store the machines just read; sets `changed` if they differ from the previous ones."""
        by_id = {machine.machine_id: machine for machine in machines}
        if self.ids_by_name is None or by_id != self._by_id:
            self.ids_by_name = {machine.internal_name: machine.machine_id for machine in by_id.values()}
            self._by_id = by_id
            self.changed.set()
        self._error = None
        self.attempted.set()
        self.loaded.set()

    def note_failure(self, error: str) -> None:
        """Note that the store could not be read; the machines stay as last read."""
        self._error = error
        self.attempted.set()

    @property
    def problem(self) -> str | None:
        """Why the machines could not be read; None when the last attempt succeeded, and before the first."""
        return self._error

    def get_domain_names(self) -> dict[UUID, str]:
        """Get the name of each machine's domain."""
        return {machine.machine_id: machine.internal_name for machine in tuple(self._by_id.values())}

    @property
    def count(self) -> int:
        """Number of machines that the store knows."""
        return len(self._by_id)

    def knows(self, machine_id: UUID) -> bool:
        """Whether frames of this machine are accepted."""
        return self.ids_by_name is None or machine_id in self._by_id

    def collects(self, machine_id: UUID) -> bool:
        """Whether metrics of this machine are collected; true for a machine that is not known."""
        machine = self._by_id.get(machine_id)
        return machine is None or machine.is_collected

    def get_command_lines(self, machine_id: UUID) -> CommandLines | None:
        """Get how the machine's command lines are stored; None: the host's setting applies."""
        machine = self._by_id.get(machine_id)
        return None if machine is None else machine.command_lines
