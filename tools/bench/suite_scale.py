"""./dev bench scale: what a row costs guestd, and how many a second it stores, with few guests and with many.

What `./dev bench ingest` measures end to end, with 10, 100, 1,000 and 10,000 guests in turns, as many messages
in sum each. A guest has sent a message before the clock runs: what a new guest costs once is not of its rows.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psycopg
from tools.bench.feeder import feeder, lines_of
from tools.bench.fleet import resident_megabytes
from tools.bench.measuring import cpu_seconds, eventually, guestd, keep, metric, own_store, truncate
from tools.bench.plot import plotted

from gueststore import contract

COMMITTED = 'SELECT coalesce(sum("committedSeq"), 0) FROM "IngestLedger"'
ROWS = "SELECT " + " + ".join(f'(SELECT count(*) FROM "{table.name}")' for table in contract.SERIES)


def main() -> None:
    """Run the rounds, print the table, write the JSON and, if asked, the picture."""
    arguments = _arguments()
    rounds: list[dict[int, dict[str, float]]] = []
    with own_store(max(arguments.guests)) as (dsn, directory):
        for number in range(1, arguments.rounds + 1):
            rounds.append({guests: _round(dsn, directory, guests, arguments) for guests in arguments.guests})
            for guests, figures in rounds[-1].items():
                said = ", ".join(f"{name} {value:,.2f}" for name, value in figures.items())
                print(f"round {number}, {guests:,} guests: {said}", flush=True)
    medians = {
        guests: {name: statistics.median(each[guests][name] for each in rounds) for name in rounds[0][guests]}
        for guests in arguments.guests
    }
    costs = [figures["cpu_us_per_row"] for figures in medians.values()]
    for guests, figures in medians.items():
        print(f"{guests:>8,} guests", *(f"{name} {value:,.2f}" for name, value in figures.items()), sep="   ")
    print(f"dearest row to cheapest: {max(costs) / min(costs):.2f}")
    kept = vars(arguments) | {"json": str(arguments.json), "plot": str(arguments.plot or "")}
    keep(arguments.json, "scale", {"arguments": kept, "medians": medians, "rounds": rounds})
    if arguments.plot:
        with plotted(arguments.plot, "Bytes on sockets to COMMIT, as fast as it goes", x="guests", y="rows/s") as axes:
            rates = [figures["rows_per_second"] for figures in medians.values()]
            axes.plot(arguments.guests, rates, marker="o", label="guestd")
            axes.set_xscale("log")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--guests", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--messages", type=int, default=10_000, help="of all guests in sum (default: 10,000)")
    parser.add_argument("--processes", type=int, default=100, help="in each message (default: 100)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("bench-scale.json"), help="where the figures go")
    parser.add_argument("--plot", type=Path, help="draw rows/s against guests into this SVG")
    return parser.parse_args()


def _round(dsn: str, directory: Path, guests: int, arguments: argparse.Namespace) -> dict[str, float]:
    truncate(dsn)
    channels = Path(tempfile.mkdtemp(prefix="c", dir=directory))
    lines = lines_of(guests, 1 + max(1, arguments.messages // guests), arguments.processes)
    first = {machine_id: feed[: feed.index(b"\n") + 1] for machine_id, feed in lines.items()}
    rest = {machine_id: feed[len(first[machine_id]) :] for machine_id, feed in lines.items()}
    with (
        feeder(channels, first, rest) as go,
        guestd(dsn, channels) as (pid, url),
        psycopg.connect(dsn, autocommit=True) as connection,
    ):
        eventually(lambda: metric(url, "guestd_channels_connected") == guests, "all channels connected", 300)
        go.release()
        eventually(lambda: _counted(connection, COMMITTED) >= guests, "each guest's first message is stored", 300)
        rows, cpu_before, began = _counted(connection, ROWS), cpu_seconds(pid), time.perf_counter()
        go.release()
        frames = guests + sum(feed.count(b"\n") for feed in rest.values())
        eventually(lambda: _counted(connection, COMMITTED) >= frames, "all is stored", 600)
        seconds, cpu = time.perf_counter() - began, cpu_seconds(pid) - cpu_before
        rows = _counted(connection, ROWS) - rows
        return {
            "rows_per_second": rows / seconds,
            "cpu_us_per_row": cpu / rows * 1e6,
            "resident_megabytes": resident_megabytes(pid),
        }


def _counted(connection: psycopg.Connection[tuple[int]], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    main()
