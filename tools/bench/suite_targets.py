"""./dev bench targets: every figure of guestd's speed that has a target, beside that target, from one command.

Runs the suites that measure them one after the other, each as its own command would be, and reads what they wrote. That
takes about 40 minutes; nothing else should run beside it. A suite that fails is named, and the others are run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.suite import add_rounds_option, run

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure of the table, and what it should be: at least, or at most, so much."""

    figure: str
    measured: float
    least: float | None = None
    most: float | None = None

    @property
    def target(self) -> str:
        """The bound in words."""
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"

    @property
    def is_met(self) -> bool:
        """Whether the figure is on the right side of its bound."""
        return (self.least is None or self.measured >= self.least) and (self.most is None or self.measured <= self.most)


@dataclass(frozen=True)
class Suite:
    """One command: its suite, its arguments, and the rows that its figures give."""

    name: str
    arguments: Sequence[str]
    rows: Callable[[Figures], Iterator[Row]]


# Names in the figures of peers: the ways in which the platform's backend writes, which have a target of their own.
_BACKENDS_WAYS = ("prisma", "one statement", "upserts")


def _ingest(figures: Figures) -> Iterator[Row]:
    yield Row("end to end, ratio to the server's own COPY", figures["median"]["ratio"], least=0.9)
    yield Row("CPU of guestd a row, all of it, us", figures["median"]["guestd_cpu_us_per_row"], most=1.6)


def _peers(figures: Figures) -> Iterator[Row]:
    rates = dict(figures["rows_per_second"])
    own = rates.pop("guestd")
    yield Row("without sockets and spool, ratio to encoded COPY", own / rates.pop("encoded COPY"), least=0.95)
    for name, rate in rates.items():
        yield Row(f"times as fast as {name}", own / rate, least=50 if name.lower() in _BACKENDS_WAYS else 1)


def _scale(figures: Figures) -> Iterator[Row]:
    costs = [each["cpu_us_per_row"] for each in figures["medians"].values()]
    yield Row("CPU a row at 10 to 10,000 guests, most to least expensive", max(costs) / min(costs), most=1.15)


def _latency(figures: Figures) -> Iterator[Row]:
    (load,) = figures["loads"]
    yield Row("line written to row visible, 1,000 guests, median s", load["line_to_row_p50_seconds"], most=0.3)
    yield Row("the same, 99th percentile s", load["line_to_row_p99_seconds"], most=1)
    yield Row("resident with 1,000 guests, MB", load["resident_megabytes"], most=150)


def _many_guests(figures: Figures) -> Iterator[Row]:
    (load,) = figures["loads"]
    yield Row("resident with 10,000 guests, MB", load["resident_megabytes"], most=400)


def _recovery(figures: Figures) -> Iterator[Row]:
    yield Row("idle with 1,000 quiet guests, cores", figures["figures"]["idle_cpu_cores"], most=0.01)
    yield Row("start to READY with 1 GB in the spool, s", figures["figures"]["start_to_ready_seconds"], most=2)
    yield Row("drain after 10 minutes, times real time", figures["figures"]["times_real_time"], least=10)


def _suites(rounds: int) -> Sequence[Suite]:
    times = ("--rounds", str(rounds))
    many = ("--guests", "10000", "--intervals", "30", "--processes", "20")
    return (
        Suite("ingest", times, _ingest),
        Suite("peers", times, _peers),
        Suite("latency", (), _latency),
        Suite("latency", many, _many_guests),
        Suite("recovery", times, _recovery),
        Suite("scale", times, _scale),
    )


def main() -> None:
    """Run the suites, print the table; exit 1 where a suite failed."""
    run(__doc__, add_rounds_option, _measure)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rows: list[Row] = []
    failed = []
    for suite in _suites(arguments.rounds):
        print("+ ./dev bench", suite.name, *suite.arguments, flush=True)
        try:
            rows += suite.rows(_figures(suite))
        except (subprocess.CalledProcessError, OSError, ValueError, KeyError) as exc:
            failed.append(f"{suite.name} ({type(exc).__name__}: {exc})")
    print(f"\n{'figure':<56} {'target':>14} {'measured':>10}")
    for row in rows:
        print(f"{row.figure:<56} {row.target:>14} {row.measured:10.3f} {'met' if row.is_met else 'missed'}")
    if failed:
        raise SystemExit("these suites failed, and their rows are missing: " + "; ".join(failed))
    table = [{"figure": row.figure, "target": row.target, "measured": row.measured, "met": row.is_met} for row in rows]
    return {"rows": table}


def _figures(suite: Suite) -> Figures:
    """What a suite wrote. Raises CalledProcessError when it failed, OSError or ValueError when it wrote no figures."""
    with tempfile.TemporaryDirectory(prefix="guestd-bench-") as directory:
        file = Path(directory) / "figures.json"
        subprocess.run(
            [sys.executable, "-m", f"tools.bench.suite_{suite.name}", *suite.arguments, "--json", str(file)], check=True
        )
        figures: Figures = json.loads(file.read_text())
        return figures


if __name__ == "__main__":
    main()
