"""What every suite of ./dev bench has: a summary, arguments, a measurement, and figures that are kept as JSON.

A suite is a module `suite_NAME` whose docstring begins with `./dev bench NAME: SUMMARY.` and whose `main` calls `run`.
As a program this module lists the suites.
"""

import argparse
import ast
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.harness.waiting import NotInTime

Figures = Mapping[str, Any]


def run(
    document: str | None,
    add_options: Callable[[argparse.ArgumentParser], None],
    measure: Callable[[argparse.Namespace], Figures],
) -> None:
    """Parse the arguments, measure, and write the figures as JSON. `document` is the suite's docstring."""
    name, summary = _title(document or "")
    parser = argparse.ArgumentParser(
        prog=f"./dev bench {name}", description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--json", type=Path, default=Path(f"bench-{name}.json"), help="where the figures are written")
    arguments = parser.parse_args()
    try:
        figures = measure(arguments)
    except NotInTime as exc:
        raise SystemExit(f"{parser.prog}: {exc}") from None
    kept = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    _write(arguments.json, {"suite": name, **measured(), "arguments": kept, **figures})


def add_load_options(parser: argparse.ArgumentParser, *, guests: int, messages: int, processes: int = 100) -> None:
    """The options of a suite that stores the messages of many guests."""
    parser.add_argument("--guests", type=int, default=guests, help="simulated guests")
    parser.add_argument("--messages", type=int, default=messages, help="messages of each guest")
    add_processes_option(parser, processes)


def add_processes_option(parser: argparse.ArgumentParser, default: int = 100) -> None:
    """How large a message is."""
    parser.add_argument("--processes", type=int, default=default, help="processes in each message")


def add_rounds_option(parser: argparse.ArgumentParser, default: int = 5) -> None:
    """How often a measurement is repeated."""
    parser.add_argument("--rounds", type=int, default=default, help="repetitions; the figures are medians")


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure over the rounds."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def quantile(values: Iterable[float], part: float) -> float:
    """The value below which this part of the values lies; the highest for 1."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(part * len(ranked)))]


def print_figures(figures: Mapping[str, float]) -> None:
    """One figure a line."""
    for name, value in figures.items():
        print(f"{name:>34} {value:14,.4g}", flush=True)


def print_row(head: object, values: Iterable[object], *, width: int = 14) -> None:
    """One row of a table: its name, and cells of one width."""
    cells = (f"{value:,.3f}" if isinstance(value, float) else str(value) for value in values)
    print(f"{head!s:>34}" + "".join(f"{cell:>{width}}" for cell in cells), flush=True)


def _title(document: str) -> tuple[str, str]:
    name, _, summary = document.partition("\n")[0].partition(": ")
    return name.removeprefix("./dev bench "), summary


def measured() -> dict[str, str]:
    """The date, the commit and the machine of a measurement."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "hardware": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
    }


def _write(file: Path, figures: Figures) -> None:
    file.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"figures written to {file}")


def main() -> None:
    """List the suites, one a line."""
    for file in sorted(Path(__file__).parent.glob("suite_*.py")):
        name, summary = _title(ast.get_docstring(ast.parse(file.read_text())) or "")
        print(f"{name:<12} {summary.removesuffix('.')}")


if __name__ == "__main__":
    main()
