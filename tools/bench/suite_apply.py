"""./dev bench apply: what it takes to put filters into libvirt, to keep them there, and to follow an edit.

On a private server (fsync on) and a private libvirtd (root only), with many filters that include each other:

1. first: one pass that puts all of them into a libvirt that has none.
2. quiet: full passes in which nothing has changed, each with its own look at libvirt. CPU is that of this process.
3. edits: a rule is changed, one after the other, while the loop runs; from the commit to the moment at which another
   connection, which asks every two milliseconds, sees the filter changed in libvirt.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
import psycopg
import structlog
from tools.bench.measuring import keep, own_store
from tools.bench.suite_filters import FILTERS, REFERENCES, RULES
from tools.harness.lab import Lab

from guestd.filters.apply import Outcome, Passes, nothing_flushed
from guestd.filters.diff import Allowed
from guestd.filters.driver import NWFilters
from guestd.filters.plan import Guard
from guestd.filters.reconciler import Counters, FilterLoop
from guestd.filters.store import filter_store
from guestd.telemetry.registry import VmMetrics

ALLOWED = Allowed(Guard(20, 0.5), "report")
HOST = "bench"
SEED = 1


def main() -> None:
    """Measure all three, print the table, write the JSON."""
    arguments = _arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with own_store(1) as (dsn, _), tempfile.TemporaryDirectory(prefix="guestd-lab-") as state:
        with psycopg.connect(dsn) as connection:
            connection.execute(FILTERS, (arguments.filters,))
            connection.execute(RULES, (arguments.rules,))
            connection.execute(REFERENCES, ())
        lab = Lab(Path(state))
        lab.up("setpriv", "--pdeathsig", "KILL")
        try:
            first_seconds, cpu_ms = asyncio.run(_passes(dsn, lab.uri, arguments))
            edits_ms = sorted(asyncio.run(_edits(dsn, lab.uri, arguments)))
        finally:
            lab.down()
    highest = edits_ms[min(len(edits_ms) - 1, len(edits_ms) * 99 // 100)]
    print(f"{arguments.filters} filters, {arguments.filters * arguments.rules} rules")
    print(f"{'first application':<44}{first_seconds:>10.1f} s")
    print(
        f"{'CPU of a quiet pass, median and highest':<44}{statistics.median(cpu_ms):>10.0f} ms {max(cpu_ms):>8.0f} ms"
    )
    median = statistics.median(edits_ms)
    print(f"{'from commit to libvirt, median and p99':<44}{median:>10.0f} ms {highest:>8.0f} ms")
    figures = {"first_seconds": first_seconds, "quiet_cpu_ms": cpu_ms, "edits_ms": edits_ms}
    keep(arguments.json, "apply", vars(arguments) | {"json": None} | figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench apply", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--filters", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--rules", type=int, default=10, help="of each filter (default: 10)")
    parser.add_argument("--passes", type=int, default=20, help="quiet ones (default: 20)")
    parser.add_argument("--edits", type=int, default=200, help="one after the other (default: 200)")
    parser.add_argument("--json", type=Path, default=Path("bench-apply.json"), help="where the figures go")
    return parser.parse_args()


async def _passes(dsn: str, uri: str, arguments: argparse.Namespace) -> tuple[float, list[float]]:
    driver = NWFilters(uri, VmMetrics())
    cpu_ms = []
    async with driver.connected(), filter_store(dsn, name=HOST, uri=uri, version="bench") as store:
        passes = Passes(driver, store, ALLOWED, nothing_flushed)
        began = time.monotonic()
        outcome = await passes.full()
        first_seconds = time.monotonic() - began
        if outcome.in_force != len(outcome.done) or outcome.held:
            raise SystemExit(f"not all is in force: {outcome.in_force} of {outcome.wanted}: {outcome.reports[:3]}")
        for _ in range(arguments.passes):
            before = time.process_time()
            if (await passes.full()).done:
                raise SystemExit("a quiet pass has done something")
            cpu_ms.append((time.process_time() - before) * 1000)
    return first_seconds, cpu_ms


async def _edits(dsn: str, uri: str, arguments: argparse.Namespace) -> list[float]:
    """Milliseconds of each."""
    passed = asyncio.Event()

    def tell(_: Outcome, __: float) -> None:
        passed.set()

    loop = FilterLoop(
        NWFilters(uri, VmMetrics()), dsn=dsn, host_name=HOST, allowed=ALLOWED, interval_seconds=30.0,
        flushed=nothing_flushed, counters=Counters(passed=tell, lost=lambda: None),
    )  # fmt: skip
    tasks = [asyncio.create_task(loop.run()), asyncio.create_task(loop.watch_edits())]
    try:
        await passed.wait()
        await asyncio.sleep(1)
        return await asyncio.to_thread(_edit_one_by_one, dsn, uri, arguments.edits)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _edit_one_by_one(dsn: str, uri: str, count: int) -> list[float]:
    dice, taken = random.Random(SEED), []
    watching: Any = libvirt.openReadOnly(uri)
    with psycopg.connect(dsn, autocommit=True) as connection:
        asked = 'SELECT rule."id", filter."internalName" FROM "FWRule" AS rule JOIN "NWFilter" AS filter'
        rules: list[tuple[UUID, str]] = connection.execute(
            f'{asked} ON filter."id" = rule."nwFilterId" ORDER BY 2, 1'.encode()
        ).fetchall()
        for number in range(count):
            rule_id, name = dice.choice(rules)
            mark = f"edit {number}"
            connection.execute('UPDATE "FWRule" SET "comment" = %s WHERE "id" = %s', (mark, rule_id))
            began = time.monotonic()
            while mark not in watching.nwfilterLookupByName(name).XMLDesc():
                time.sleep(0.002)
                if time.monotonic() - began > 60:
                    raise SystemExit(f"{name} did not change within a minute")
            taken.append((time.monotonic() - began) * 1000)
            time.sleep(dice.uniform(0.2, 0.6))
    watching.close()
    return taken


if __name__ == "__main__":
    main()
