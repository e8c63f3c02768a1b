"""./dev bench scale: what a row costs guestd, and rows stored a second, with few guests and with many.

What `./dev bench ingest` measures end to end, with 10, 100, 1,000 and 10,000 guests in turns and the same number of
messages in total. Each guest has sent a message before the clock starts: a new guest's first message costs more.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import psycopg
from tools.bench.daemon import all_connected, guestd, resident_megabytes, usage
from tools.bench.feeder import feeder, lines_of
from tools.bench.plot import plotted
from tools.bench.server import count, own_store, truncate
from tools.bench.suite import add_processes_option, add_rounds_option, medians, print_figures, run
from tools.harness.waiting import eventually

from gueststore import contract

ROWS = "SELECT " + " + ".join(f'(SELECT count(*) FROM "{table.name}")' for table in contract.SERIES)


def main() -> None:
    """Run the rounds; draw a plot if one is asked for."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guests", type=int, nargs="+", default=[10, 100, 1000, 10_000], help="simulated guests")
    parser.add_argument("--messages", type=int, default=10_000, help="messages of all guests in total")
    add_processes_option(parser)
    add_rounds_option(parser)
    parser.add_argument("--plot", type=Path, help="draw rows/s against guests into this SVG")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rounds: list[dict[int, dict[str, float]]] = []
    with own_store(max(arguments.guests)) as (dsn, directory):
        for number in range(1, arguments.rounds + 1):
            print(f"round {number}", flush=True)
            rounds.append({guests: _round(dsn, directory, guests, arguments) for guests in arguments.guests})
    median = {guests: medians([each[guests] for each in rounds]) for guests in arguments.guests}
    for guests, figures in median.items():
        print(f"{guests:,} guests")
        print_figures(figures)
    costs = [figures["cpu_us_per_row"] for figures in median.values()]
    print(f"most to least expensive row: {max(costs) / min(costs):.2f}")
    if arguments.plot:
        with plotted(arguments.plot, "Bytes on sockets to COMMIT, as fast as it goes", x="guests", y="rows/s") as axes:
            rates = [figures["rows_per_second"] for figures in median.values()]
            axes.plot(arguments.guests, rates, marker="o", label="guestd")
            axes.set_xscale("log")
    return {"medians": median, "rounds": rounds}


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
        all_connected(url, guests)
        go.release()
        eventually(lambda: count(connection) >= guests, "each guest's first message is stored", 300)
        rows, frames = count(connection, ROWS), guests + sum(feed.count(b"\n") for feed in rest.values())
        with usage(pid) as used:
            go.release()
            eventually(lambda: count(connection) >= frames, "all is stored", 600, every_seconds=0.01)
        rows = count(connection, ROWS) - rows
        return {
            "rows_per_second": rows / used.seconds,
            "cpu_us_per_row": used.cpu_seconds / rows * 1e6,
            "resident_megabytes": resident_megabytes(pid),
        }


if __name__ == "__main__":
    main()
