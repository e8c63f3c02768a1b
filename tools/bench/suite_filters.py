"""./dev bench filters: what a filter reconcile run costs, and how long filters and edits take to reach libvirt.

Many filters of many rules that include each other, on a private server (fsync on):

1. without libvirt: runs in which nothing has changed, with libvirt's XML written by ourselves, since libvirt's own work
   is not guestd's. A run reads the rows, compiles them, reads the XML and plans; without a cache, and with the cache of
   the run before. CPU of this process.
2. in libvirt (tools/bench/filters_in_libvirt.py), on the lab's private libvirtd (root only): the first run, which
   defines all filters; runs in which nothing has changed; edits of one rule after the other.
"""

import argparse
import asyncio
import statistics
import time
from itertools import pairwise
from typing import Any

import psycopg
import structlog
from tools.bench.lab import own_lab
from tools.bench.server import own_store
from tools.bench.suite import print_row, run
from tools.harness.lab import obstacle

from guestd.filters.cache import FilterCache
from guestd.filters.desired import build_desired, compile_rows
from guestd.filters.plan import Guard, plan_filters
from guestd.filters.snapshot import ObservedFilters, StoreSnapshot
from guestd.filters.store import read_store_snapshot
from guestd.filters.xml import render_filter

STEPS = ("rows", "compiling", "reading XML", "plan")
FILTERS = """INSERT INTO "NWFilter" ("name", "internalName", "uuid", "chain", "priority", "type", "stateMatch")
SELECT 'bench ' || each, 'ibay-bench' || each, gen_random_uuid(), 'root', 0, 'generic', TRUE
FROM generate_series(1, %s) AS each"""
RULES = """INSERT INTO "FWRule" ("nwFilterId", "action", "direction", "priority", "protocol", "srcIpAddr", "srcIpMask",
    "dstPortStart", "dstPortEnd", "state", "comment")
SELECT filter."id", 'accept', 'in', 500, 'tcp', '10.0.' || each || '.0', '255.255.255.0', each * 10, each * 10 + 5,
    '{"new": true, "established": true}', 'rule ' || each
FROM "NWFilter" AS filter, generate_series(1, %s) AS each"""
# In groups of ten, each of which includes the next two.
REFERENCES = """INSERT INTO "FilterReference" ("sourceFilterId", "targetFilterId")
SELECT one."id", other."id"
FROM "NWFilter" AS one, "NWFilter" AS other, generate_series(1, 2) AS step
WHERE substr(one."internalName", 11)::integer %% 10 < 8
    AND other."internalName" = 'ibay-bench' || (substr(one."internalName", 11)::integer + step)"""
MACHINES = """INSERT INTO "VMNWFilter" ("vmId", "nwFilterId")
SELECT machine."id", filter."id" FROM
    (SELECT "id", row_number() OVER (ORDER BY "id") AS number FROM "Machine") AS machine
    JOIN "NWFilter" AS filter ON filter."internalName" = 'ibay-bench' || machine.number"""


def main() -> None:
    """Measure without libvirt, and in libvirt where a lab can be started."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filters", type=int, default=1000, help="filters")
    parser.add_argument("--rules", type=int, default=10, help="rules of each filter")
    parser.add_argument("--machines", type=int, default=100, help="machines on this host, without libvirt")
    parser.add_argument("--runs", type=int, default=20, help="runs of each kind")
    parser.add_argument("--edits", type=int, default=200, help="edits, one after the other, in libvirt")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    print(f"{arguments.filters} filters, {arguments.filters * arguments.rules} rules, {arguments.machines} machines")
    with own_store(arguments.machines) as (dsn, _):
        _add_filters(dsn, arguments)
        with psycopg.connect(dsn) as connection:
            connection.execute(MACHINES, ())
        uncached, cached = asyncio.run(_measure_both(dsn, arguments.runs))
    print_row("CPU of a run, ms, median", ("uncached", "cached"))
    for step in (*STEPS, "in total"):
        print_row(step, (uncached[step], cached[step]))
    figures: dict[str, Any] = {"uncached": uncached, "cached": cached}
    if (lack := obstacle()) is not None:
        print(f"in libvirt: left out: {lack}")
        return figures
    from tools.bench import filters_in_libvirt  # noqa: PLC0415 -- libvirt's bindings are not on every host

    with own_store(1) as (dsn, _), own_lab() as lab:
        _add_filters(dsn, arguments)
        return figures | filters_in_libvirt.measure(dsn, lab.uri, runs=arguments.runs, edits=arguments.edits)


def _add_filters(dsn: str, arguments: argparse.Namespace) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute('DELETE FROM "NWFilter"')
        connection.execute(FILTERS, (arguments.filters,))
        connection.execute(RULES, (arguments.rules,))
        connection.execute(REFERENCES, ())


async def _measure_both(dsn: str, count: int) -> tuple[dict[str, float], dict[str, float]]:
    return await _measure_runs(dsn, count, None), await _measure_runs(dsn, count, FilterCache())


async def _measure_runs(dsn: str, count: int, cache: FilterCache | None) -> dict[str, float]:
    """Milliseconds of CPU by step, with one cache for all runs, or with an empty one for each."""
    xml = _as_libvirt_prints(await read_store_snapshot(dsn))
    samples = [await _measure_run(dsn, xml, FilterCache() if cache is None else cache) for _ in range(count + 1)]
    # The first run has nothing in its cache yet.
    medians = {step: statistics.median(each[number] for each in samples[1:]) for number, step in enumerate(STEPS)}
    return medians | {"in total": sum(medians.values())}


def _as_libvirt_prints(rows: StoreSnapshot) -> list[str]:
    desired = build_desired(compile_rows(rows), [machine.id for machine in rows.machines])
    return [render_filter(each) for each in desired.filters.values()]


async def _measure_run(dsn: str, xml: list[str], cache: FilterCache) -> list[float]:
    moments = [time.process_time()]
    rows = await read_store_snapshot(dsn, cache)
    moments.append(time.process_time())
    compiled = compile_rows(rows, cache)
    moments.append(time.process_time())
    observed = ObservedFilters({each.name: each for each in map(cache.parse_filter, xml)})
    moments.append(time.process_time())
    plan = plan_filters(build_desired(compiled, [machine.id for machine in rows.machines]), observed, Guard(20))
    moments.append(time.process_time())
    cache.end_run()
    if plan.actions or plan.reports:
        raise SystemExit(f"a run without changes has something to do: {plan}")
    return [(after - before) * 1000 for before, after in pairwise(moments)]


if __name__ == "__main__":
    main()
