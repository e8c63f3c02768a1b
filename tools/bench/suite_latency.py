"""./dev bench latency: a steady fleet, and how long its samples are on their way, under one load after the other.

Simulated guests report at an interval for a while; guestd is watched from outside and asked for its own figures. From
the guest's line to its row: the time in the line, which is taken when it is written, and the time that the server's
commit record of its row bears; both are of this machine's clock. Each load has a guestd and a store of its own.
"""

import argparse
import time
from pathlib import Path

from tools.bench.fleet import fleet, let_pass, on_their_way, resident_megabytes, stored_until
from tools.bench.measuring import cpu_seconds, eventually, guestd, keep, metric, own_store, samples
from tools.bench.plot import plotted


def main() -> None:
    """Run the fleet under every load, print the table, write the JSON and, if asked, the picture."""
    arguments = _arguments()
    loads = []
    for interval in arguments.intervals:
        loads.append({"interval_seconds": interval, **_under_load(interval, arguments)})
        print(f"every {interval} s", *(f"{name:>28} {value:12.3f}" for name, value in loads[-1].items()), sep="\n")
    kept = vars(arguments) | {"json": str(arguments.json), "plot": str(arguments.plot or "")}
    keep(arguments.json, "latency", {"arguments": kept, "loads": loads})
    if arguments.plot:
        _plot(arguments.plot, loads, arguments.guests)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench latency", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument(
        "--intervals", type=float, nargs="+", default=[10.0], help="seconds between two messages (default: 10)"
    )
    parser.add_argument("--processes", type=int, default=100, help="in each message (default: 100)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path, default=Path("bench-latency.json"), help="where the figures go")
    parser.add_argument("--plot", type=Path, help="draw latency against load into this SVG")
    return parser.parse_args()


def _under_load(interval: float, arguments: argparse.Namespace) -> dict[str, float]:
    with own_store(arguments.guests, track_commit_timestamp="on") as (dsn, directory):
        channels = directory / "c"
        channels.mkdir()
        with (
            fleet(channels, arguments.guests, interval_seconds=interval, processes=arguments.processes),
            guestd(dsn, channels) as (pid, url),
        ):
            eventually(lambda: metric(url, "guestd_channels_connected") == arguments.guests, "all connected", 300)
            # What the first comers wrote before they were connected, and all that is made once, is behind us then.
            let_pass(interval)
            return _watched(pid, url, dsn, interval, arguments.seconds)


def _watched(pid: int, url: str, dsn: str, interval: float, watch_seconds: float) -> dict[str, float]:
    before, cpu_before, began = samples(url), cpu_seconds(pid), time.time()
    let_pass(watch_seconds)
    ended, cpu_used = time.time(), cpu_seconds(pid) - cpu_before
    after, seconds = samples(url), ended - began
    rows = sum(after[name] - before.get(name, 0) for name in after if name.startswith("guestd_rows_written_total"))
    resident, peak = resident_megabytes(pid), resident_megabytes(pid, "VmHWM")
    # Lines that were written in that time are all committed in the end, or the quantile would leave out the slowest.
    let_pass(interval)
    eventually(lambda: stored_until(dsn) > ended, "all of that time is stored", 300)
    median, p99, slowest = on_their_way(dsn, began, ended)
    return {
        "resident_megabytes": resident,
        "peak_resident_megabytes": peak,
        "cpu_cores": cpu_used / seconds,
        "frames_per_second": (after["guestd_frames_accepted_total"] - before["guestd_frames_accepted_total"]) / seconds,
        "rows_per_second": rows / seconds,
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
