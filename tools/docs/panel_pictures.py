"""Draws the data of the dashboards' main panels into docs/pictures: `python -m tools.docs.panel_pictures`.

Simulated guests report for some minutes to a real guestd and store, which a real Prometheus scrapes; each panel runs
the query that Grafana runs. The pictures show the data of a panel, not how Grafana draws it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psycopg
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tools.bench.daemon import guestd
from tools.bench.fleet import fleet
from tools.bench.server import own_store
from tools.docs.panels import FLEET, HEALTH, MACHINE, Board, Panel, fill_in_macros
from tools.harness.prometheus import Prometheus
from tools.harness.waiting import eventually, wait_seconds

DIRECTORY = Path(__file__).parents[2] / "docs/pictures"
GUESTS, INTERVAL_SECONDS, WATCHED_SECONDS = 12, 5.0, 150.0
PANELS_A_BOARD, MOST_LINES = 6, 8
Lines = Mapping[str, Sequence[tuple[datetime, float]]]


def main() -> None:
    """Watch a fleet for a while, draw it."""
    DIRECTORY.mkdir(exist_ok=True)
    with own_store(GUESTS) as (dsn, directory):
        channels = directory / "c"
        channels.mkdir()
        with (
            fleet(channels, GUESTS, interval_seconds=INTERVAL_SECONDS, processes=20),
            guestd(dsn, channels) as (_, url),
        ):
            prometheus = Prometheus(
                directory / "prometheus", [url.removeprefix("http://").removesuffix("/metrics")], interval_seconds=5
            )
            prometheus.start()
            try:
                _watch_and_draw(dsn, prometheus)
            finally:
                prometheus.stop()


def _watch_and_draw(dsn: str, prometheus: Prometheus) -> None:
    full = f"count(guest_cpu_usage_ratio) == {GUESTS}"
    eventually(lambda: bool(prometheus.query(full)), "all guests have reported", 300)
    wait_seconds(WATCHED_SECONDS)
    # Keep text as text, and make the file depend on the data only.
    style = mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "guestd", "font.size": 8})
    with psycopg.connect(dsn) as connection, style:
        (machine,) = connection.execute('SELECT "id" FROM "Machine" ORDER BY "name" LIMIT 1').fetchall()
        for board in (FLEET, MACHINE, HEALTH):
            asked = [
                (panel, _of_store(connection, panel, machine[0]) if panel.sql else _of(prometheus, panel))
                for panel in board.panels
                if panel.kind == "timeseries"
            ]
            drawn = [(panel, lines) for panel, lines in asked if any(len(line) > 1 for line in lines.values())]
            if drawn:
                _draw(board, drawn[:PANELS_A_BOARD])


def _of_store(connection: psycopg.Connection[Any], panel: Panel, machine_id: object) -> Lines:
    """Lines by name: one for each numeric column, or for each value of `metric`, as Grafana reads them."""
    cursor = connection.execute(fill_in_macros(panel.sql, machine_id, hours=1).replace("%", "%%").encode())
    names = [column.name for column in cursor.description or ()]
    found: dict[str, list[tuple[datetime, float]]] = defaultdict(list)
    for row in cursor:
        values = dict(zip(names, row, strict=True))
        at, metric = values.pop("time"), values.pop("metric", None)
        for name, value in values.items():
            if value is not None:
                found[name if metric is None else f"{metric} {name}"].append((at, float(value)))
    return found


def _of(prometheus: Prometheus, panel: Panel) -> Lines:
    """Lines by the label that the panel's legend names."""
    found: dict[str, list[tuple[datetime, float]]] = defaultdict(list)
    asked = panel.promql.replace("$instance", ".*")
    for line in prometheus.query_range(asked, seconds=WATCHED_SECONDS, step_seconds=5):
        label = line["metric"].get(panel.legend.strip("{}"), "")
        found[label] += [(datetime.fromtimestamp(at, UTC), float(value)) for at, value in line["values"]]
    return found


def _draw(board: Board, drawn: Sequence[tuple[Panel, Lines]]) -> None:
    figure = Figure(figsize=(10, 2.1 * ((len(drawn) + 1) // 2)), layout="constrained")
    places = figure.subplots((len(drawn) + 1) // 2, 2, squeeze=False).flat
    for place, (panel, lines) in zip(places, drawn, strict=False):
        _plot(place, panel, lines)
    for place in list(places)[len(drawn) :]:
        place.set_axis_off()
    figure.suptitle(board.title)
    figure.savefig(DIRECTORY / f"{board.uid}.svg", metadata={"Date": None})


def _plot(place: Axes, panel: Panel, lines: Lines) -> None:
    busiest = sorted(lines, key=lambda name: -max((value for _, value in lines[name]), default=0))[:MOST_LINES]
    for name in busiest:
        # Lines start at different times: draw seconds since the first point of each.
        first = min(at for at, _ in lines[name])
        place.plot([(at - first).total_seconds() for at, _ in lines[name]], [value for _, value in lines[name]],
                   label=name[:24], linewidth=1)  # fmt: skip
    place.set_title(panel.title)
    place.set_xlabel("s")
    place.set_ylabel(panel.unit)
    place.set_ylim(bottom=0)
    if any(busiest):
        place.legend(fontsize=5, loc="upper left")


if __name__ == "__main__":
    main()
