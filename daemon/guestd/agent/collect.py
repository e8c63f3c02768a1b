"""One sample of this machine as a message body."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from guestd.agent.applications import ApplicationWatch
from guestd.agent.machine import MachineWatch, memory
from guestd.agent.payload import Body, Content, System, fit
from guestd.agent.processes import ProcessWatch, list_ports
from guestd.agent.services import list_services


class Collector:
    """Takes samples; `most_processes` None: all of them, else so many of the busiest."""

    def __init__(self, applications: ApplicationWatch, most_processes: int | None) -> None:
        self._applications = applications
        self._most_processes = most_processes
        self._machine = MachineWatch()
        self._processes = ProcessWatch()
        self._observed_at: float | None = None

    def body(self) -> bytes:
        """This machine now, as a JSON object that fits a line."""
        now_s, monotonic = time.time(), time.monotonic()
        elapsed = 0.0 if self._observed_at is None else monotonic - self._observed_at
        self._observed_at = monotonic
        processes = self._processes.observe()
        system = System(
            cpu=self._machine.cpu(),
            memory=memory(),
            disk=self._machine.disk(),
            network=self._machine.network(),
            system=self._machine.system(),
            processes=processes[: self._most_processes],
            ports=list_ports(processes),
            windows_services=list_services(),
        )
        applications = self._applications.observe(processes, now_s, elapsed)
        timestamp = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds")
        return fit(Body(timestamp, Content(system, applications)))
