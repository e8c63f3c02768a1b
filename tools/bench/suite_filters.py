"""./dev bench filters: what it costs to find that libvirt has what the store says.

On a private server, with libvirt's answers written by ourselves, as it would print them, for libvirt's own work is not
guestd's: many filters of many rules that include each other, machines that use them, and nothing changed. A pass reads
the rows, compiles them, reads the XML and plans. It is made anew each time, and with the memory of the pass before.
"""

import argparse
import asyncio
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from tools.bench.measuring import keep, own_store

from guestd.filters.cache import Memory
from guestd.filters.desired import Rows, asked
from guestd.filters.plan import Guard, Seen, plan, wished
from guestd.filters.store import read_rows
from guestd.filters.xml import write

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
        anew, remembered = asyncio.run(_both(dsn, arguments.passes))
    counts = f"{arguments.filters} filters, {arguments.filters * arguments.rules} rules, {arguments.machines} machines"
    print(f"CPU of a pass over {counts}, ms, median of {arguments.passes}")
    print(f"{'':<12}{'anew':>10}{'remembered':>12}")
    for step in (*STEPS, "in sum"):
        print(f"{step:<12}{anew[step]:>10.1f}{remembered[step]:>12.1f}")
    keep(arguments.json, "filters", vars(arguments) | {"json": None, "anew": anew, "remembered": remembered})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench filters", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--filters", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--rules", type=int, default=10, help="of each filter (default: 10)")
    parser.add_argument("--machines", type=int, default=100, help="all of them on this host (default: 100)")
    parser.add_argument("--passes", type=int, default=20, help="of each kind (default: 20)")
    parser.add_argument("--json", type=Path, default=Path("bench-filters.json"), help="where the figures go")
    return parser.parse_args()


def _fill(dsn: str, arguments: argparse.Namespace) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute('DELETE FROM "NWFilter"')
        connection.execute(FILTERS, (arguments.filters,))
        connection.execute(RULES, (arguments.rules,))
        connection.execute(REFERENCES, ())
        connection.execute(MACHINES, ())


async def _both(dsn: str, count: int) -> tuple[dict[str, float], dict[str, float]]:
    return await _passes(dsn, count, None), await _passes(dsn, count, Memory())


async def _passes(dsn: str, count: int, memory: Memory | None) -> dict[str, float]:
    """Milliseconds of CPU by step, with one memory for all passes, or with none."""
    xml = _as_libvirt_prints(await read_rows(dsn))
    taken = [await _pass(dsn, xml, Memory() if memory is None else memory) for _ in range(count + 1)]
    # The first of them remembers nothing yet.
    medians = {step: statistics.median(each[place] for each in taken[1:]) for place, step in enumerate(STEPS)}
    return medians | {"in sum": sum(medians.values())}


def _as_libvirt_prints(rows: Rows) -> list[str]:
    wanted = wished(asked(rows), [machine.id for machine in rows.machines])
    return [write(each) for each in wanted.filters.values()]


async def _pass(dsn: str, xml: list[str], memory: Memory) -> list[float]:
    moments = [time.process_time()]
    rows = await read_rows(dsn, memory)
    moments.append(time.process_time())
    found = asked(rows, memory)
    moments.append(time.process_time())
    seen = Seen({each.name: each for each in map(memory.read, xml)})
    moments.append(time.process_time())
    made: Any = plan(wished(found, [machine.id for machine in rows.machines]), seen, Guard(20))
    moments.append(time.process_time())
    memory.end_pass()
    if made.actions or made.reports:
        raise SystemExit(f"a quiet pass has something to do: {made}")
    return [(after - before) * 1000 for before, after in pairwise(moments)]


if __name__ == "__main__":
    main()
