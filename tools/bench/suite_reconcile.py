"""./dev bench reconcile: what the VM loop costs when nothing happens, and how soon a row tells what does.

On libvirt's test driver and a private server (fsync on), with the loop in this process:

1. quiet: passes over many machines with nothing to do, each with its own look at libvirt. CPU is that of this process,
   all threads; the test driver, which lives in it, is counted with it. Rows written are counted by the server; the sign
   of life, one row of Host every 10 s, is not among them.
2. events: domains are suspended and resumed at random, one after the other; from before the call to the moment at which
   another connection, which asks every millisecond, sees the row. (Off is another matter: it is believed when it has
   lasted for 3 s.)
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
from tools.bench.measuring import keep, own_store

from guestd.hypervisor.connection import Hypervisor
from guestd.telemetry.registry import VmMetrics
from guestd.vms.plan import VmPolicy
from guestd.vms.reconciler import VmReconciler

SEED = 1
WRITTEN = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables WHERE relname = ANY(%s)"
OURS = ["Machine", "MachineDomain", "MachineConfiguration", "ReconcileEvent"]


def main() -> None:
    """Measure both, print the tables, write the JSON."""
    arguments = _arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with own_store(arguments.machines) as (dsn, _):
        quiet = asyncio.run(_quiet(dsn, arguments))
    with own_store(arguments.domains) as (dsn, _):
        events = asyncio.run(_events(dsn, arguments))
    print(f"{'a pass over':<34}{quiet['machines']:>10} machines")
    print(f"{'CPU of guestd, median and highest':<34}{quiet['cpu_ms']:>10.1f} ms {quiet['cpu_ms_highest']:>10.1f} ms")
    print(f"{'time, median':<34}{quiet['wall_ms']:>10.1f} ms")
    print(f"{'rows written in all passes':<34}{quiet['rows_written']:>10}")
    print(f"{'from event to row, domains':<34}{events['domains']:>10}")
    print(f"{'median, 99th percentile, highest':<34}" + "".join(f"{each:>10.1f} ms" for each in events["ms"]))
    keep(arguments.json, "reconcile", {"quiet": quiet, "events": events})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench reconcile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", type=int, default=1000, help="of the quiet passes (default: 1000)")
    parser.add_argument("--passes", type=int, default=50, help="quiet ones (default: 50)")
    parser.add_argument("--domains", type=int, default=100, help="to which something happens (default: 100)")
    parser.add_argument("--events", type=int, default=500, help="one after the other (default: 500)")
    parser.add_argument("--json", type=Path, default=Path("bench-reconcile.json"), help="where the figures go")
    return parser.parse_args()


class _Signalling(Histogram):
    """The duration of reconcile runs; sets an event at the end of each."""

    def __init__(self, event: asyncio.Event) -> None:
        super().__init__("reconcile_seconds", "Duration of one run.", registry=None)
        self._event = event

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        super().observe(amount, exemplar)
        self._event.set()


class _Kept:
    """A host with a running domain for every machine of the store, and the loop that keeps them."""

    def __init__(self, dsn: str, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self._has_passed = asyncio.Event()
        policy = VmPolicy(UUID(int=0), True, False, 60.0, ("org.infinibay.agent",))
        metrics = VmMetrics()
        metrics.reconcile_seconds = _Signalling(self._has_passed)
        self.loop = VmReconciler(hypervisor, dsn=dsn, host_name="bench", policy=policy, metrics=metrics)

    async def another_pass(self) -> None:
        """Wake the loop, as a wish does, and wait for the end of its pass."""
        self._has_passed.clear()
        self.loop._wake.set()  # noqa: SLF001 -- from outside this takes a row of the store, which is no quiet pass
        await self._has_passed.wait()


@asynccontextmanager
async def _kept(dsn: str, directory: Path) -> AsyncIterator[_Kept]:
    with psycopg.connect(dsn) as connection:
        names = [name for (name,) in connection.execute('SELECT "internalName" FROM "Machine" ORDER BY "id"')]
    node = directory / "node.xml"
    node.write_text("<node>" + "".join(_domain(name, number) for number, name in enumerate(names, 1)) + "</node>")
    driver = Hypervisor(f"test://{node}", VmMetrics())
    kept = _Kept(dsn, driver)
    tasks = [asyncio.create_task(driver.run()), asyncio.create_task(kept.loop.run())]
    try:
        claimed = 'SELECT count(*) FROM "MachineDomain"'
        with psycopg.connect(dsn, autocommit=True) as connection:
            while connection.execute(claimed).fetchone() != (len(names),):
                await kept.another_pass()
        yield kept
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


async def _quiet(dsn: str, arguments: argparse.Namespace) -> dict[str, Any]:
    cpu_ms, wall_ms = [], []
    with tempfile.TemporaryDirectory() as directory:
        async with _kept(dsn, Path(directory)) as kept:
            for _ in range(3):
                await kept.another_pass()
            written = _written(dsn)
            for _ in range(arguments.passes):
                cpu, wall = time.process_time(), time.perf_counter()
                await kept.another_pass()
                cpu_ms.append((time.process_time() - cpu) * 1000)
                wall_ms.append((time.perf_counter() - wall) * 1000)
    return {
        "machines": arguments.machines,
        "passes": arguments.passes,
        "cpu_ms": statistics.median(cpu_ms),
        "cpu_ms_highest": max(cpu_ms),
        "wall_ms": statistics.median(wall_ms),
        "rows_written": _written(dsn) - written,
    }


def _written(dsn: str) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        # A session tells of its rows when it has been idle for a second, or has ended.
        connection.execute("SELECT pg_sleep(1.5)")
        connection.execute("SELECT pg_stat_force_next_flush()")
        row = connection.execute(WRITTEN, (OURS,)).fetchone()
    assert row is not None
    return int(row[0])


async def _events(dsn: str, arguments: argparse.Namespace) -> dict[str, Any]:
    chance = random.Random(SEED)
    taken_ms = []
    with tempfile.TemporaryDirectory() as directory:
        async with _kept(dsn, Path(directory)) as kept:
            connection = kept.hypervisor._connection  # noqa: SLF001 -- its domains exist in no other
            domains = await asyncio.to_thread(connection.listAllDomains)
            is_running = dict.fromkeys(range(len(domains)), True)
            with psycopg.connect(dsn, autocommit=True) as store:
                for _ in range(arguments.events):
                    number = chance.randrange(len(domains))
                    domain, name = domains[number], domains[number].name()
                    call = domain.suspend if is_running[number] else domain.resume
                    is_running[number] = not is_running[number]
                    wanted = "running" if is_running[number] else "suspended"
                    taken_ms.append(await asyncio.to_thread(_until_seen, store, call, name, wanted))
    ranked = sorted(taken_ms)
    return {
        "domains": arguments.domains,
        "events": arguments.events,
        "ms": [statistics.median(ranked), ranked[int(len(ranked) * 0.99)], ranked[-1]],
    }


def _until_seen(store: psycopg.Connection[Any], call: Any, name: str, wanted: str) -> float:
    """Milliseconds from the call to the row."""
    began = time.perf_counter()
    call()
    question = 'SELECT "status" FROM "Machine" WHERE "internalName" = %s'
    while store.execute(question, (name,)).fetchone() != (wanted,):
        time.sleep(0.001)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
