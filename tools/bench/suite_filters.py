"""./dev bench filters: the cost of a reconcile run without changes.

On a private server; libvirt's XML is written by the suite, because libvirt's own work is not measured: many filters of
many rules that include each other, machines that use them, and no change. A run reads the rows, compiles them, parses
the XML and plans: once with an empty cache, and once with the cache of the run before.
"""

import argparse
import asyncio
import statistics
import time
from itertools import pairwise
from pathlib import Path

import psycopg
from tools.bench.measuring import keep, own_store

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
    """Measure, print the table, write the JSON."""
    arguments = _arguments()
    with own_store(arguments.machines) as (dsn, _):
        _fill(dsn, arguments)
        uncached, cached = asyncio.run(_measure_both(dsn, arguments.runs))
    counts = f"{arguments.filters} filters, {arguments.filters * arguments.rules} rules, {arguments.machines} machines"
    print(f"CPU of a run over {counts}, ms, median of {arguments.runs}")
    print(f"{'':<12}{'uncached':>10}{'cached':>12}")
    for step in (*STEPS, "in sum"):
        print(f"{step:<12}{uncached[step]:>10.1f}{cached[step]:>12.1f}")
    keep(arguments.json, "filters", vars(arguments) | {"json": None, "uncached": uncached, "cached": cached})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench filters", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--filters", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--rules", type=int, default=10, help="of each filter (default: 10)")
    parser.add_argument("--machines", type=int, default=100, help="all of them on this host (default: 100)")
    parser.add_argument("--runs", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--json", type=Path, default=Path("bench-filters.json"), help="where the figures go")
    return parser.parse_args()


def _fill(dsn: str, arguments: argparse.Namespace) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute('DELETE FROM "NWFilter"')
        connection.execute(FILTERS, (arguments.filters,))
        connection.execute(RULES, (arguments.rules,))
        connection.execute(REFERENCES, ())
        connection.execute(MACHINES, ())


async def _measure_both(dsn: str, count: int) -> tuple[dict[str, float], dict[str, float]]:
    return await _measure_runs(dsn, count, None), await _measure_runs(dsn, count, FilterCache())


async def _measure_runs(dsn: str, count: int, cache: FilterCache | None) -> dict[str, float]:
    """Milliseconds of CPU by step, with one cache for all runs, or with an empty one for each."""
    xml = _as_libvirt_prints(await read_store_snapshot(dsn))
    samples = [await _measure_run(dsn, xml, FilterCache() if cache is None else cache) for _ in range(count + 1)]
    # The first run has nothing in its cache yet.
    medians = {step: statistics.median(each[number] for each in samples[1:]) for number, step in enumerate(STEPS)}
    return medians | {"in sum": sum(medians.values())}


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
