"""One sample of this machine as a message body."""

from __future__ import annotations

import time

from guestd.agent.applications import ApplicationWatch
from guestd.agent.machine import MachineWatch
from guestd.agent.parts import Parts
from guestd.agent.payload import Application, Body, Content, Process, System, fit, rfc3339
from guestd.agent.processes import ProcessWatch, list_ports
from guestd.agent.programs import ProgramFiles
from guestd.agent.services import SYSTEMCTL_SECONDS, list_services


class Collector:
    """Takes samples; `most_processes` None: all of them, else so many of the busiest.

    To make one takes as long as a sample: it reads the counters from which the first rates are computed.
    """

    def __init__(self, applications: ApplicationWatch, most_processes: int | None, parts: Parts) -> None:
        self._applications = applications
        self._most_processes = most_processes
        self._parts = parts
        self._machine = MachineWatch(parts)
        self._processes = ProcessWatch(parts)
        self._program_files = ProgramFiles(parts)
        self._observed_at: float | None = None

    def body(self) -> bytes:
        """This machine now, as a JSON object that fits a line. A part that cannot be read is empty and named."""
        now_s, monotonic = time.time(), time.monotonic()
        elapsed = 0.0 if self._observed_at is None else monotonic - self._observed_at
        self._observed_at = monotonic
        observed = self._processes.observe()
        processes = observed or []
        system = System(
            cpu=self._machine.cpu(),
            memory=self._machine.memory(),
            disk=self._machine.disk(),
            network=self._machine.network(),
            system=self._machine.system(),
            processes=processes[: self._most_processes],
            ports=self._parts.read("ports", lambda: list_ports(processes, self._fail_ports), []),
            windows_services=self._parts.read("services", list_services, [], 2 * SYSTEMCTL_SECONDS),
        )
        applications = self._list_applications(observed, now_s, elapsed)
        content = Content(system, applications)
        return fit(Body(rfc3339(now_s), content, self._parts.end_sample()))

    def _list_applications(self, processes: list[Process] | None, now_s: float, elapsed: float) -> list[Application]:
        """All applications; none, and no use of any, in a sample without processes."""
        if processes is None:
            self._parts.fail("applications", "the processes could not be read")
            return []
        applications = self._applications.observe(processes, self._processes.programs, now_s, elapsed)
        self._program_files.describe(applications, self._applications.list_files())
        return applications

    def _fail_ports(self, reason: str) -> None:
        self._parts.fail("ports", reason)
