"""./dev bench reconcile: what the VM reconciler costs when nothing changes, and how soon a row follows an event.

On libvirt's test driver and a private server (fsync on), with the reconciler in this process:

1. idle: reconcile runs over many machines with nothing to do, each with its own snapshot of libvirt. CPU is that of
   this process, all threads, which includes the test driver. Rows written are counted by the server, without the
   heartbeat (one row of Host every 10 s).
2. events: domains are suspended and resumed at random, one after the other; from before the call until another
   connection, which polls every millisecond, sees the row. (Shutoff is debounced for 3 s and not measured.)
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import structlog
from prometheus_client import Histogram
from tools.bench.server import SEED, own_store
from tools.bench.suite import print_row, quantile, run

from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import VmMetrics
from guestd.vms.model import VmPolicy
from guestd.vms.reconciler import VmReconciler

WRITTEN = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables WHERE relname = ANY(%s)"
OURS = ["Machine", "MachineDomain", "MachineConfiguration", "ReconcileEvent"]


def main() -> None:
    """Measure both."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machines", type=int, default=1000, help="machines of the idle runs")
    parser.add_argument("--runs", type=int, default=50, help="idle reconcile runs")
    parser.add_argument("--domains", type=int, default=100, help="domains that are suspended and resumed")
    parser.add_argument("--events", type=int, default=500, help="events, one after the other")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with own_store(arguments.machines) as (dsn, _):
        idle = asyncio.run(_idle(dsn, arguments))
    with own_store(arguments.domains) as (dsn, _):
        events = asyncio.run(_events(dsn, arguments))
    print_row("machines", [idle["machines"]])
    print_row("guestd's CPU a run, ms: median, max", [idle["cpu_ms"], idle["cpu_ms_highest"]])
    print_row("time of a run, ms: median", [idle["wall_ms"]])
    print_row("rows written in all runs", [idle["rows_written"]])
    print_row("domains", [events["domains"]])
    print_row("event to row, ms: median, p99, max", events["ms"])
    return {"idle": idle, "events": events}


class _RunSignal(Histogram):
    """The duration of reconcile runs; sets an event at the end of each."""

    def __init__(self, event: asyncio.Event) -> None:
        super().__init__("reconcile_seconds", "Duration of one run.", registry=None)
        self._event = event

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        super().observe(amount, exemplar)
        self._event.set()


class _Host:
    """A host with a running domain for every machine of the store, and its VM reconciler."""

    def __init__(self, dsn: str, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self._run_ended = asyncio.Event()
        policy = VmPolicy(UUID(int=0), True, False, 60.0, ("org.infinibay.agent",), 10, 0.5)
        metrics = VmMetrics()
        metrics.reconcile_seconds = _RunSignal(self._run_ended)
        self.reconciler = VmReconciler(hypervisor, dsn=dsn, host_name="bench", policy=policy, metrics=metrics)

    async def another_run(self) -> None:
        """Wake the reconciler, as a change of the desired state does, and wait for the end of its run."""
        self._run_ended.clear()
        self.reconciler._wake.set()  # noqa: SLF001 -- from outside this takes a changed row, and the run would not be idle
        await self._run_ended.wait()


@asynccontextmanager
async def _running_host(dsn: str, directory: Path) -> AsyncIterator[_Host]:
    with psycopg.connect(dsn) as connection:
        names = [name for (name,) in connection.execute('SELECT "internalName" FROM "Machine" ORDER BY "id"')]
    node = directory / "node.xml"
    node.write_text("<node>" + "".join(_domain(name, number) for number, name in enumerate(names, 1)) + "</node>")
    driver = Hypervisor(f"test://{node}", VmMetrics())
    host = _Host(dsn, driver)
    tasks = [asyncio.create_task(driver.run()), asyncio.create_task(host.reconciler.run())]
    try:
        claimed = 'SELECT count(*) FROM "MachineDomain"'
        with psycopg.connect(dsn, autocommit=True) as connection:
            while connection.execute(claimed).fetchone() != (len(names),):
                await host.another_run()
        yield host
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _domain(name: str, number: int) -> str:
    return f"""<domain type='test'><name>{name}</name><uuid>{UUID(int=number)}</uuid>
    <memory unit='KiB'>1048576</memory><vcpu>1</vcpu><os><type>hvm</type></os>
    <devices><channel type='unix'><source mode='bind' path='/run/{number}'/>
    <target type='virtio' name='org.infinibay.agent'/></channel>
    <graphics type='vnc' port='{5900 + number % 1000}' autoport='no' listen='127.0.0.1'/></devices></domain>"""


async def _idle(dsn: str, arguments: argparse.Namespace) -> dict[str, Any]:
    cpu_ms: list[float] = []
    wall_ms: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        async with _running_host(dsn, Path(directory)) as host:
            for _ in range(3):
                await host.another_run()
            written = _written(dsn)
            for _ in range(arguments.runs):
                cpu, wall = time.process_time(), time.perf_counter()
                await host.another_run()
                cpu_ms.append((time.process_time() - cpu) * 1000)
                wall_ms.append((time.perf_counter() - wall) * 1000)
    return {
        "machines": arguments.machines,
        "runs": arguments.runs,
        "cpu_ms": statistics.median(cpu_ms),
        "cpu_ms_highest": max(cpu_ms),
        "wall_ms": statistics.median(wall_ms),
        "rows_written": _written(dsn) - written,
    }


def _written(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        # A session reports its rows when it has been idle for a second, or has ended.
        connection.execute("SELECT pg_sleep(1.5)")
        connection.execute("SELECT pg_stat_force_next_flush()")
        row = connection.execute(WRITTEN, (OURS,)).fetchone()
    assert row is not None
    return int(row[0])


async def _events(dsn: str, arguments: argparse.Namespace) -> dict[str, Any]:
    dice = random.Random(SEED)
    took_ms = []
    with tempfile.TemporaryDirectory() as directory:
        async with _running_host(dsn, Path(directory)) as host:
            connection = host.hypervisor._connection  # noqa: SLF001 -- its domains exist in no other
            domains = await asyncio.to_thread(connection.listAllDomains)
            is_running = dict.fromkeys(range(len(domains)), True)
            with psycopg.connect(dsn, autocommit=True) as store:
                for _ in range(arguments.events):
                    number = dice.randrange(len(domains))
                    domain, name = domains[number], domains[number].name()
                    call = domain.suspend if is_running[number] else domain.resume
                    is_running[number] = not is_running[number]
                    expected = "running" if is_running[number] else "suspended"
                    took_ms.append(await asyncio.to_thread(_until_seen, store, call, name, expected))
    return {
        "domains": arguments.domains,
        "events": arguments.events,
        "ms": [quantile(took_ms, part) for part in (0.5, 0.99, 1.0)],
    }


def _until_seen(store: psycopg.Connection[Any], call: Any, name: str, expected: str) -> float:
    """Milliseconds from the call to the row."""
    began = time.perf_counter()
    call()
    status = 'SELECT "status" FROM "Machine" WHERE "internalName" = %s'
    while store.execute(status, (name,)).fetchone() != (expected,):
        time.sleep(0.001)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
