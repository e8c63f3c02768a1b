"""./dev bench scale: what a steady fleet costs one guestd: memory, CPU, and how long a sample is on its way.

Simulated guests (a process of their own) report at an interval for a while; guestd is watched from outside and asked
for its own figures.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tools.measuring import SEED, cpu_seconds, eventually, guestd, keep, metric, own_store, samples


def main() -> None:
    """Run the fleet, print the table, write the JSON."""
    arguments = _arguments()
    with own_store(arguments.guests) as (dsn, directory):
        channels = directory / "c"
        fleet = [sys.executable, "-m", "guestd", "simulate", "--directory", str(channels), "--seed", str(SEED)]
        fleet += ["--guests", str(arguments.guests), "--interval", str(arguments.interval)]
        fleet += ["--processes", str(arguments.processes)]
        channels.mkdir()
        with subprocess.Popen(fleet, stderr=subprocess.DEVNULL) as simulated, guestd(dsn, channels) as (pid, url):
            try:
                figures = _watched(pid, url, arguments)
            finally:
                simulated.terminate()
    for name, value in figures.items():
        print(f"{name:>28} {value:12.3f}")
    keep(arguments.json, "scale", {"arguments": vars(arguments) | {"json": str(arguments.json)}, "figures": figures})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench scale", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=10, help="seconds between two messages of a guest")
    parser.add_argument("--processes", type=int, default=100, help="in each message (default: 100)")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path, default=Path("bench-scale.json"), help="where the figures go")
    return parser.parse_args()


def _watched(pid: int, url: str, arguments: argparse.Namespace) -> dict[str, float]:
    eventually(lambda: metric(url, "guestd_channels_connected") == arguments.guests, "all channels connected", 120)
    before, cpu_before, started = samples(url), cpu_seconds(pid), time.monotonic()
    eventually(lambda: time.monotonic() - started >= arguments.seconds, "the end", arguments.seconds + 10)
    seconds, cpu_used = time.monotonic() - started, cpu_seconds(pid) - cpu_before
    after = samples(url)
    rows = sum(after[name] - before.get(name, 0) for name in after if name.startswith("guestd_rows_written_total"))
    return {
        "resident_megabytes": _status_kib(pid, "VmRSS") / 1024,
        "peak_resident_megabytes": _status_kib(pid, "VmHWM") / 1024,
        "cpu_cores": cpu_used / seconds,
        "frames_per_second": (after["guestd_frames_accepted_total"] - before["guestd_frames_accepted_total"]) / seconds,
        "rows_per_second": rows / seconds,
        "batch_lag_p50_seconds_at_most": _quantile(before, after, 0.5),
        "batch_lag_p99_seconds_at_most": _quantile(before, after, 0.99),
        "frames_in_spool_at_the_end": after["guestd_spool_frames"],
    }


def _quantile(before: dict[str, float], after: dict[str, float], part: float) -> float:
    """The upper bound of the bucket that the quantile of receive-to-commit times is in."""
    prefix = "guestd_receive_to_commit_seconds_bucket{"
    counts = {
        float(name[len(prefix) : -1]): after[name] - before.get(name, 0) for name in after if name.startswith(prefix)
    }
    return min(bound for bound, count in counts.items() if count >= part * max(counts.values()))


def _status_kib(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
