"""./dev bench latency: seconds from a guest's line to its row, of a steady fleet, at one load after the other.

Simulated guests report at an interval for a while; guestd is watched from outside. From the guest's line to its row:
the time in the line, which is taken when it is written, and the time in the server's commit record of its row; both
are of this machine's clock. Each load has a guestd and a store of its own.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from tools.bench.daemon import all_connected, guestd, resident_megabytes, samples, usage
from tools.bench.fleet import fleet, line_to_row_seconds, stored_until
from tools.bench.plot import plotted
from tools.bench.server import own_store
from tools.bench.suite import add_processes_option, print_figures, run
from tools.harness.waiting import eventually, wait_seconds


def main() -> None:
    """Run the fleet at every load; draw a plot if one is asked for."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guests", type=int, default=1000, help="simulated guests")
    parser.add_argument(
        "--intervals",
        type=float,
        nargs="+",
        default=[10.0],
        help="seconds between two messages of a guest, a load each",
    )
    add_processes_option(parser)
    parser.add_argument("--seconds", type=float, default=60, help="how long each load is measured")
    parser.add_argument("--plot", type=Path, help="draw latency against load into this SVG")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    loads = []
    for interval in arguments.intervals:
        figures = _under_load(interval, arguments)
        print(f"every {interval} s")
        print_figures(figures)
        loads.append({"interval_seconds": interval, **figures})
    if arguments.plot:
        _plot(arguments.plot, loads, arguments.guests)
    return {"loads": loads}


def _under_load(interval: float, arguments: argparse.Namespace) -> dict[str, float]:
    with own_store(arguments.guests, track_commit_timestamp="on") as (dsn, directory):
        channels = directory / "c"
        channels.mkdir()
        with (
            fleet(channels, arguments.guests, interval_seconds=interval, processes=arguments.processes),
            guestd(dsn, channels) as (pid, url),
        ):
            all_connected(url, arguments.guests)
            # Lines that were written before their guest was connected, and work that is done once, are over then.
            wait_seconds(interval)
            return _watched(pid, url, dsn, interval, arguments.seconds)


def _watched(pid: int, url: str, dsn: str, interval: float, watch_seconds: float) -> dict[str, float]:
    before, began = samples(url), time.time()
    with usage(pid) as used:
        wait_seconds(watch_seconds)
    after, ended = samples(url), time.time()
    rows = sum(after[name] - before.get(name, 0) for name in after if name.startswith("guestd_rows_written_total"))
    resident, peak = resident_megabytes(pid), resident_megabytes(pid, "VmHWM")
    # Lines that were written in that time are all committed in the end, or the quantile would leave out the slowest.
    wait_seconds(interval)
    eventually(lambda: stored_until(dsn) > ended, "all lines of that time are stored", 300)
    median, p99, slowest = line_to_row_seconds(dsn, began, ended)
    frames = after["guestd_frames_accepted_total"] - before["guestd_frames_accepted_total"]
    return {
        "resident_megabytes": resident,
        "peak_resident_megabytes": peak,
        "cpu_cores": used.cores,
        "frames_per_second": frames / used.seconds,
        "rows_per_second": rows / used.seconds,
        "line_to_row_p50_seconds": median,
        "line_to_row_p99_seconds": p99,
        "line_to_row_slowest_seconds": slowest,
        "frames_in_spool_at_the_end": after["guestd_spool_frames"],
    }


def _plot(file: Path, loads: list[dict[str, float]], guests: int) -> None:
    loads = sorted(loads, key=lambda load: load["rows_per_second"])
    rates = [load["rows_per_second"] for load in loads]
    with plotted(file, f"From line to row, {guests:,} guests", x="rows/s", y="seconds") as axes:
        for name, label in (("p50", "median"), ("p99", "99th percentile"), ("slowest", "slowest")):
            axes.plot(rates, [load[f"line_to_row_{name}_seconds"] for load in loads], marker="o", label=label)


if __name__ == "__main__":
    main()
