"""./dev bench scrape: how long a real Prometheus takes to scrape one guestd that reads 1,000 guests.

Simulated guests report at an interval; Prometheus scrapes every two seconds and says itself how long each scrape took.
Whether ingest waits for scrapes: the mean from receipt to commit, for an interval without any and with them.
"""

import argparse
import time
from pathlib import Path

from tools.bench.fleet import fleet
from tools.bench.measuring import eventually, guestd, keep, metric, own_store, samples
from tools.harness.prometheus import Prometheus


def main() -> None:
    """Run the fleet, scrape it, print the table, write the JSON."""
    arguments = _arguments()
    with own_store(arguments.guests) as (dsn, directory):
        channels = directory / "c"
        channels.mkdir()
        with (
            fleet(channels, arguments.guests, interval_seconds=arguments.interval, processes=20),
            guestd(dsn, channels) as (_, url),
        ):
            figures = _scraped(url, directory, arguments)
    for name, value in figures.items():
        print(f"{name:>28} {value:12.3f}")
    keep(arguments.json, "scrape", {"arguments": vars(arguments) | {"json": str(arguments.json)}, "figures": figures})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench scrape", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--guests", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=30, help="seconds between two messages of a guest")
    parser.add_argument("--scrapes", type=int, default=30)
    parser.add_argument("--json", type=Path, default=Path("bench-scrape.json"), help="where the figures go")
    return parser.parse_args()


def _scraped(url: str, directory: Path, arguments: argparse.Namespace) -> dict[str, float]:
    eventually(lambda: metric(url, "guestd_channels_connected") == arguments.guests, "all channels connected", 300)
    target = url.removeprefix("http://").removesuffix("/metrics")
    accepted = metric(url, "guestd_frames_accepted_total")
    full_round = arguments.guests + accepted
    eventually(lambda: metric(url, "guestd_frames_accepted_total") >= full_round, "a round of all guests", 300)
    before = _committed(url)
    time.sleep(arguments.interval)
    unscraped, before = _mean_lag_seconds(before, _committed(url)), _committed(url)
    prometheus = Prometheus(directory / "prometheus", [target], interval_seconds=2)
    prometheus.start()
    try:
        shown = f"count(guest_cpu_usage_ratio) == {arguments.guests}"
        eventually(lambda: bool(prometheus.query(shown)), "all guests have reported", 300)
        enough = f"count_over_time(guest_cpu_usage_ratio[{4 * arguments.scrapes}s]) >= {arguments.scrapes}"
        eventually(lambda: bool(prometheus.query(f"count({enough}) == {arguments.guests}")), "enough scrapes", 600)
        window = f"[{2 * arguments.scrapes}s]"
        names = {
            "scrape_p50_seconds": f"quantile_over_time(0.5, scrape_duration_seconds{window})",
            "scrape_p99_seconds": f"quantile_over_time(0.99, scrape_duration_seconds{window})",
            "samples_a_scrape": "scrape_samples_scraped",
        }
        said = {name: float(prometheus.query(expression)[0]["value"][1]) for name, expression in names.items()}
        scraped = _mean_lag_seconds(before, _committed(url))
        return said | {"mean_lag_unscraped_seconds": unscraped, "mean_lag_scraped_seconds": scraped}
    finally:
        prometheus.stop()


def _committed(url: str) -> tuple[float, float]:
    """Sum of seconds and number, of all batches so far."""
    page = samples(url)
    return page["guestd_receive_to_commit_seconds_sum"], page["guestd_receive_to_commit_seconds_count"]


def _mean_lag_seconds(before: tuple[float, float], after: tuple[float, float]) -> float:
    return (after[0] - before[0]) / max(1.0, after[1] - before[1])


if __name__ == "__main__":
    main()
