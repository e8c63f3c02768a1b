"""The part of `./dev bench filters` in a real libvirt: the first run, runs without a change, and edits.

1. first: one run that defines all filters in a libvirt that has none.
2. unchanged: full runs in which nothing has changed, each with its own snapshot of libvirt. CPU of this process.
3. edits: one rule after the other is changed while the reconciler runs; from the commit until another connection, which
   polls every two milliseconds, sees the filter changed in libvirt.
"""

import asyncio
import random
import statistics
import time
from functools import partial
from typing import Any
from uuid import UUID

import libvirt
import psycopg
from tools.bench.suite import print_row, quantile
from tools.harness.waiting import eventually, wait_seconds

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


def measure(dsn: str, uri: str, *, runs: int, edits: int) -> dict[str, Any]:
    """Measure all three with the filters of this store, print the table, return the figures."""
    first_seconds, cpu_ms = asyncio.run(_measure_runs(dsn, uri, runs))
    edits_ms = asyncio.run(_measure_edits(dsn, uri, edits))
    print_row("first run, s", [first_seconds])
    print_row("CPU of an unchanged run, ms", ("median", "max"))
    print_row("", (statistics.median(cpu_ms), max(cpu_ms)))
    print_row("from commit to libvirt, ms", ("median", "p99"))
    print_row("", (quantile(edits_ms, 0.5), quantile(edits_ms, 0.99)))
    return {"first_seconds": first_seconds, "unchanged_cpu_ms": cpu_ms, "edits_ms": edits_ms}


async def _measure_runs(dsn: str, uri: str, count: int) -> tuple[float, list[float]]:
    driver = FilterDriver(uri, VmMetrics())
    cpu_ms = []
    async with driver.connect(), open_filter_store(dsn, name=HOST, uri=uri, version="bench") as store:
        runs = FilterRuns(driver, store, PERMISSIONS, assume_kernel_unchanged)
        began = time.monotonic()
        result = await runs.run_full()
        first_seconds = time.monotonic() - began
        if result.in_force != len(result.steps) or result.held:
            raise SystemExit(f"not all is in force: {result.in_force} of {result.desired}: {result.reports[:3]}")
        for _ in range(count):
            before = time.process_time()
            if (await runs.run_full()).steps:
                raise SystemExit("a run without a change has done something")
            cpu_ms.append((time.process_time() - before) * 1000)
    return first_seconds, cpu_ms


async def _measure_edits(dsn: str, uri: str, count: int) -> list[float]:
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
        return await asyncio.to_thread(_edit_one_by_one, dsn, uri, count)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _edit_one_by_one(dsn: str, uri: str, count: int) -> list[float]:
    dice, took_ms = random.Random(SEED), list[float]()
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
            is_there = partial(_has, watching, name, mark)
            eventually(is_there, f"{name} has changed", 60, every_seconds=0.002)
            took_ms.append((time.monotonic() - began) * 1000)
            wait_seconds(dice.uniform(0.2, 0.6))
    watching.close()
    return took_ms


def _has(libvirt_connection: Any, name: str, mark: str) -> bool:
    return mark in libvirt_connection.nwfilterLookupByName(name).XMLDesc()
