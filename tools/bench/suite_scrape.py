"""./dev bench scrape: how long a real Prometheus takes to scrape one guestd that reads 1,000 guests.

Simulated guests report at an interval; Prometheus scrapes every two seconds and itself records how long each scrape
took. Whether scrapes delay ingest: the mean from receipt to commit, for an interval without any and with them.
"""

import argparse
from pathlib import Path
from typing import Any

from tools.bench.daemon import all_connected, guestd, metric, samples
from tools.bench.fleet import fleet
from tools.bench.server import own_store
from tools.bench.suite import print_figures, run
from tools.harness.prometheus import Prometheus
from tools.harness.waiting import eventually, wait_seconds


def main() -> None:
    """Run the fleet, and scrape it."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guests", type=int, default=1000, help="simulated guests")
    parser.add_argument("--interval", type=float, default=30, help="seconds between two messages of a guest")
    parser.add_argument("--scrapes", type=int, default=30, help="scrapes that are measured")


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with own_store(arguments.guests) as (dsn, directory):
        channels = directory / "c"
        channels.mkdir()
        with (
            fleet(channels, arguments.guests, interval_seconds=arguments.interval, processes=20),
            guestd(dsn, channels) as (_, url),
        ):
            figures = _scraped(url, directory, arguments)
    print_figures(figures)
    return {"figures": figures}


def _scraped(url: str, directory: Path, arguments: argparse.Namespace) -> dict[str, float]:
    all_connected(url, arguments.guests)
    target = url.removeprefix("http://").removesuffix("/metrics")
    accepted = metric(url, "guestd_frames_accepted_total")
    full_round = arguments.guests + accepted
    eventually(lambda: metric(url, "guestd_frames_accepted_total") >= full_round, "a round of all guests", 300)
    before = _committed(url)
    wait_seconds(arguments.interval)
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
        scrapes = {name: float(prometheus.query(expression)[0]["value"][1]) for name, expression in names.items()}
        scraped = _mean_lag_seconds(before, _committed(url))
        return scrapes | {"mean_lag_unscraped_seconds": unscraped, "mean_lag_scraped_seconds": scraped}
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
