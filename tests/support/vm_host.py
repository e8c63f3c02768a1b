"""One host: domains of libvirt's test driver, a real store, and the VM reconciler of their machines."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
from prometheus_client import CollectorRegistry
from psycopg.conninfo import make_conninfo
from tools.harness.waiting import eventually

from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import VmMetrics
from guestd.vms.model import VmPolicy
from guestd.vms.reconciler import SEND_SECONDS, UNKNOWN_HOST, VmReconciler
from guestd.vms.service import read_host_machine
from support.daemon import add_machine, rows
from support.libvirt import domain_xml, own_connection, running, uri_of

T = TypeVar("T")
# The reconciler has exactly the rights of the daemon.
WRITER = "-c role=guestd_writer"


class Host:
    """One host: domains of the test driver, and the reconciler of their machines."""

    def __init__(
        self,
        dsn: str,
        hypervisor: Hypervisor,
        name: str = "host",
        settle_seconds: float = 0.0,
        send_seconds: float = SEND_SECONDS,
        reports_file: Path | None = None,
        **changes: Any,
    ) -> None:
        self.dsn = dsn
        self.hypervisor = hypervisor
        self._registry = CollectorRegistry()
        policy: dict[str, Any] = {
            "host_id": UNKNOWN_HOST, "is_converging": True, "may_destroy": False, "shutdown_seconds": 1.0,
            "channel_names": ("org.infinibay.agent",), "most_changes": 10, "most_changes_share": 0.5,
            "host_boot": "boot 1",
            # As guestd's verbs have it, which the tests run on the same host.
            "host_machine": read_host_machine(hypervisor.uri),
        }  # fmt: skip
        self.reconciler = VmReconciler(
            hypervisor,
            dsn=make_conninfo(dsn, options=WRITER),
            host_name=name,
            policy=VmPolicy(**policy | changes),
            metrics=VmMetrics(self._registry),
            settle_seconds=settle_seconds,
            send_seconds=send_seconds,
            reports_file=reports_file,
        )

    @property
    def runs(self) -> float:
        """Completed reconcile runs."""
        return self._registry.get_sample_value("guestd_vms_pass_seconds_count") or 0

    @property
    def written(self) -> float:
        """Planned writes."""
        return sum(map(self.count_written, ("Claim", "SetStatus", "KeepGraphics", "KeepFacts")))

    def count_written(self, kind: str) -> float:
        """Planned writes of one kind."""
        return self._registry.get_sample_value("guestd_vms_written_total", {"kind": kind}) or 0

    @property
    def lost(self) -> float:
        """How often the reconciler lost libvirt or the store."""
        return self._registry.get_sample_value("guestd_vms_lost_total") or 0

    @property
    def reports(self) -> list[str]:
        """Open issues."""
        return sorted(map(str, self.reconciler._reports))

    def count_actions(self, action: str, outcome: str = "done") -> float:
        """Actions that had this outcome."""
        labels = {"action": action, "outcome": outcome}
        return self._registry.get_sample_value("guestd_vms_actions_total", labels) or 0

    @property
    def has_acted(self) -> bool:
        """Whether there was any action with any outcome."""
        actions = (family for family in self._registry.collect() if family.name == "guestd_vms_actions")
        return any(family.samples for family in actions)

    def domain(self, name: str) -> Any:
        return own_connection(self.hypervisor).lookupByName(name)

    def machine(self, name: str) -> dict[str, Any]:
        """A machine's row, as MachineState shows it."""
        names = ("status", "state", "hostName", "domainState", "domainReason", "channel", "problem", "isDrifted")
        columns = ", ".join(f'"{each}"' for each in names)
        found = rows(self.dsn, f'SELECT {columns} FROM "MachineState" WHERE "internalName" = %s', name)
        return dict(zip(names, found[0], strict=True))

    async def eventually(self, get: Callable[[], T], what: str) -> T:
        """Poll without blocking the event loop."""
        return await asyncio.to_thread(eventually, get, what, 60)

    async def becomes(self, name: str, **expected: Any) -> None:
        def is_so() -> bool:
            return expected.items() <= self.machine(name).items()

        try:
            await self.eventually(is_so, str(expected))
        except AssertionError:
            raise AssertionError(f"{expected} is not in {self.machine(name)}; {self.reconciler.error}") from None

    async def another_run(self, count: int = 2) -> None:
        """Wait for this many complete reconcile runs."""
        for _ in range(count):
            expected = self.runs + 1
            self.reconciler._wake.set()
            await self.eventually(partial(self._has_run, expected), "a run")

    def _has_run(self, times: float) -> bool:
        return self.runs >= times


@asynccontextmanager
async def reconciling(host: Host) -> AsyncIterator[Host]:
    async with running(host.hypervisor), reconciling_connected(host):
        yield host


@asynccontextmanager
async def reconciling_connected(host: Host) -> AsyncIterator[Host]:
    """Reconcile with a hypervisor that is connected: the test driver has its domains anew for each connection."""
    tasks = [asyncio.create_task(host.reconciler.run()), asyncio.create_task(host.reconciler.watch_desired_state())]
    try:
        await host.eventually(lambda: host.runs or host.reconciler.error not in (None, "not started yet"), "a run")
        yield host
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def add(dsn: str, name: str, status: str = "off", **columns: object) -> UUID:
    """A Machine of this internalName."""
    machine_id = add_machine(dsn)
    values = {"internalName": name, "status": status} | columns
    with psycopg.connect(dsn, autocommit=True) as connection:
        for column, value in values.items():
            connection.execute(f'UPDATE "Machine" SET "{column}" = %s WHERE "id" = %s'.encode(), (value, machine_id))
    return machine_id


def hypervisor_with(directory: Path, *names: str, devices: str = "") -> Hypervisor:
    domains = [domain_xml(name, number, devices=devices) for number, name in enumerate(names, 1)]
    return Hypervisor(uri_of(directory / f"{uuid4()}.xml", domains), VmMetrics())


def set_desired(dsn: str, name: str, desired: str | None) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute('UPDATE "Machine" SET "desiredStatus" = %s WHERE "internalName" = %s', (desired, name))


def events(dsn: str, name: str) -> list[tuple[Any, ...]]:
    return rows(
        dsn, 'SELECT "action", "reason", "outcome" FROM "ReconcileEvent" WHERE "name" = %s ORDER BY "occurredAt"', name
    )
