"""./dev bench apply: the cost of installing filters in libvirt, of runs without changes, and of an edit.

On a private server (fsync on) and a private libvirtd (root only), with many filters that include each other:

1. first: one run that defines all of them in an empty libvirt.
2. quiet: full runs without changes, each with its own snapshot of libvirt. CPU is that of this process.
3. edits: rules are changed, one after the other, while the reconciler runs; from the commit to the moment at which
   another connection, which polls every two milliseconds, sees the change in libvirt.
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

from guestd.filters.apply import FilterRuns, assume_kernel_unchanged
from guestd.filters.diff import Permissions
from guestd.filters.driver import FilterDriver
from guestd.filters.plan import Guard
from guestd.filters.reconciler import FilterReconciler
from guestd.filters.store import open_filter_store
from guestd.telemetry.registry import FilterMetrics, VmMetrics

PERMISSIONS = Permissions(Guard(20, 0.5), "report")
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
            first_seconds, cpu_ms = asyncio.run(_measure_runs(dsn, lab.uri, arguments))
            edits_ms = sorted(asyncio.run(_measure_edits(dsn, lab.uri, arguments)))
        finally:
            lab.down()
    highest = edits_ms[min(len(edits_ms) - 1, len(edits_ms) * 99 // 100)]
    print(f"{arguments.filters} filters, {arguments.filters * arguments.rules} rules")
    print(f"{'first application':<44}{first_seconds:>10.1f} s")
    print(f"{'CPU of a quiet run, median and highest':<44}{statistics.median(cpu_ms):>10.0f} ms {max(cpu_ms):>8.0f} ms")
    median = statistics.median(edits_ms)
    print(f"{'from commit to libvirt, median and p99':<44}{median:>10.0f} ms {highest:>8.0f} ms")
    figures = {"first_seconds": first_seconds, "quiet_cpu_ms": cpu_ms, "edits_ms": edits_ms}
    keep(arguments.json, "apply", vars(arguments) | {"json": None} | figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench apply", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--filters", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--rules", type=int, default=10, help="of each filter (default: 10)")
    parser.add_argument("--runs", type=int, default=20, help="quiet ones (default: 20)")
    parser.add_argument("--edits", type=int, default=200, help="one after the other (default: 200)")
    parser.add_argument("--json", type=Path, default=Path("bench-apply.json"), help="where the figures go")
    return parser.parse_args()


async def _measure_runs(dsn: str, uri: str, arguments: argparse.Namespace) -> tuple[float, list[float]]:
    driver = FilterDriver(uri, VmMetrics())
    cpu_ms = []
    async with driver.connect(), open_filter_store(dsn, name=HOST, uri=uri, version="bench") as store:
        runs = FilterRuns(driver, store, PERMISSIONS, assume_kernel_unchanged)
        began = time.monotonic()
        result = await runs.run_full()
        first_seconds = time.monotonic() - began
        if result.in_force != len(result.steps) or result.held:
            raise SystemExit(f"not all is in force: {result.in_force} of {result.desired}: {result.reports[:3]}")
        for _ in range(arguments.runs):
            before = time.process_time()
            if (await runs.run_full()).steps:
                raise SystemExit("a quiet run has done something")
            cpu_ms.append((time.process_time() - before) * 1000)
    return first_seconds, cpu_ms


async def _measure_edits(dsn: str, uri: str, arguments: argparse.Namespace) -> list[float]:
    """Milliseconds of each."""
    reconciler = FilterReconciler(
        FilterDriver(uri, VmMetrics()), dsn=dsn, host_name=HOST, permissions=PERMISSIONS, interval_seconds=30.0,
        find_flushed=assume_kernel_unchanged, metrics=FilterMetrics(),
    )  # fmt: skip
    tasks = [asyncio.create_task(reconciler.run()), asyncio.create_task(reconciler.watch_edits())]
    try:
        while reconciler.error is not None:  # noqa: ASYNC110 -- the first run sets no event
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        return await asyncio.to_thread(_edit_one_by_one, dsn, uri, arguments.edits)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _edit_one_by_one(dsn: str, uri: str, count: int) -> list[float]:
    dice, samples_ms = random.Random(SEED), []
    watching: Any = libvirt.openReadOnly(uri)
    with psycopg.connect(dsn, autocommit=True) as connection:
        statement = 'SELECT rule."id", filter."internalName" FROM "FWRule" AS rule JOIN "NWFilter" AS filter'
        rules: list[tuple[UUID, str]] = connection.execute(
            f'{statement} ON filter."id" = rule."nwFilterId" ORDER BY 2, 1'.encode()
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
            samples_ms.append((time.monotonic() - began) * 1000)
            time.sleep(dice.uniform(0.2, 0.6))
    watching.close()
    return samples_ms


if __name__ == "__main__":
    main()
