"""A simulated guest's process table: most processes are idle, a few are busy, some start and end.

The fixed part of a process is rendered once, and only busy processes are rendered again, so that a message of a hundred
processes costs about as much as one of ten.
"""

from __future__ import annotations

from random import Random

import msgspec

from guestd.simulator.profiles import KIB_PER_MIB, Profile, Program

BUSY_SHARE = 10
BUSY_MAX_CPU_PERCENT = 40.0
READ_STEP_BYTES = 65536
# Once in this many messages, on average, a process ends and another starts.
CHURN_MESSAGES = 3

_MOVING = b'%s"cpu_usage_percent":%.1f,"memory_usage_kb":%d,"disk_read_bytes":%d,"disk_write_bytes":%d,"status":"%s"}'


class Process:
    """One process and its JSON."""

    __slots__ = (
        "_memory_kib",
        "_read_bytes",
        "_statuses",
        "_still",
        "_written_bytes",
        "pid",
        "program",
        "rendered",
    )

    def __init__(self, pid: int, parent: int, program: Program, start_s: int, statuses: tuple[str, str]) -> None:
        self.pid = pid
        self.program = program
        still = {
            "id": pid,
            "parent_id": parent,
            "name": program.name,
            "executable_path": program.path,
            "command_line": f"{program.path} {program.arguments}".rstrip(),
            "start_time": start_s,
        }
        self._still = msgspec.json.encode(still)[:-1] + b","
        self._memory_kib = program.memory_mib * KIB_PER_MIB + pid % KIB_PER_MIB
        self._read_bytes = program.memory_mib * READ_STEP_BYTES
        self._written_bytes = 0
        self._statuses = (statuses[0].encode(), statuses[1].encode())
        self.rest()

    def rest(self) -> None:
        """Do nothing until the next message."""
        self._render(0.0, self._statuses[0])

    def work(self, random: Random) -> None:
        """Use some CPU, memory and disk."""
        self._memory_kib = max(KIB_PER_MIB, int(self._memory_kib * random.uniform(0.98, 1.02)))
        self._read_bytes += int(random.random() * READ_STEP_BYTES)
        self._written_bytes += int(random.random() * READ_STEP_BYTES)
        self._render(random.random() ** 3 * BUSY_MAX_CPU_PERCENT, self._statuses[1])

    def _render(self, cpu_percent: float, status: bytes) -> None:
        amounts = (cpu_percent, self._memory_kib, self._read_bytes, self._written_bytes)
        self.rendered = _MOVING % (self._still, *amounts, status)


class ProcessTable:
    """All processes of a guest; `step` moves them on by one message."""

    def __init__(self, profile: Profile, random: Random, size: int, boot_s: int) -> None:
        self._profile = profile
        self._random = random
        self._boot_s = boot_s
        self._next_pid = 1
        self._processes: list[Process] = []
        self._working: list[Process] = []
        for number in range(size):
            resident = number < len(profile.programs)
            program = profile.programs[number] if resident else random.choice(profile.helpers)
            self._processes.append(self._start(program, boot_s + number))

    @property
    def listening(self) -> list[tuple[int, Process]]:
        """Listening ports, each with its process."""
        return [(port, process) for process in self._processes for port in process.program.listens]

    @property
    def main(self) -> list[Process]:
        """Processes that run for the life of the guest."""
        return self._processes[: len(self._profile.programs)]

    def step(self, now_s: int) -> None:
        """Let some processes work and others rest; now and then a process ends and another starts."""
        for process in self._working:
            process.rest()
        resident = len(self._profile.programs)
        if len(self._processes) > resident and self._random.randrange(CHURN_MESSAGES) == 0:
            place = self._random.randrange(resident, len(self._processes))
            self._processes[place] = self._start(self._random.choice(self._profile.helpers), now_s)
        busy = max(1, len(self._processes) // BUSY_SHARE)
        self._working = self._random.sample(self._processes, busy)
        for process in self._working:
            process.work(self._random)

    def rendered(self) -> bytes:
        """The table as a JSON array."""
        return b"[%s]" % b",".join([process.rendered for process in self._processes])

    def _start(self, program: Program, start_s: int) -> Process:
        parent = 0 if self._next_pid == 1 else 1
        process = Process(self._next_pid, parent, program, start_s, self._profile.statuses)
        self._next_pid += self._random.randrange(1, 9)
        return process
