"""Writes deploy/grafana/dashboards from tools/docs/panels.py with Grafana's SDK: `python -m tools.docs.dashboards`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as models
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLink,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)
from tools.docs.panels import BOARDS, VARIABLES, Board, Panel

DIRECTORY = Path(__file__).parents[2] / "deploy/grafana/dashboards"
STORE = DataSourceRef(type_val="grafana-postgresql-datasource", uid="guestd-store")
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="guestd-prometheus")
_BUILDERS: dict[str, Any] = {
    "timeseries": timeseries.Panel, "stat": stat.Panel, "table": table.Panel, "bargauge": bargauge.Panel
}  # fmt: skip
_SPANS = {"timeseries": (12, 8), "stat": (6, 4), "table": (24, 9), "bargauge": (12, 8)}


class SqlQuery(dict[str, Any]):
    """A query to the store, in the format of Grafana's PostgreSQL data source; the SDK has no model of it."""

    def __init__(self, panel: Panel) -> None:
        shape = "time_series" if panel.kind == "timeseries" else "table"
        super().__init__(
            refId="A", datasource={"type": STORE.type_val, "uid": STORE.uid}, rawQuery=True, editorMode="code",
            format=shape, rawSql=panel.sql,
        )  # fmt: skip


def render_dashboard(board: Board) -> str:
    """The JSON of a dashboard."""
    builder = (
        dashboard.Dashboard(f"guestd: {board.title}")
        .uid(board.uid)
        .tags(["guestd"])
        .refresh("30s")
        .time(board.since, "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(_LinkToOtherDashboards())
    )
    for name in board.variables:
        builder = builder.with_variable(_variable(name))
    for panel in board.panels:
        builder = builder.with_panel(_panel(panel))
    written = json.loads(json.dumps(builder.build(), cls=JSONEncoder))
    positions = _positions(board)
    for panel, each in zip(board.panels, written["panels"], strict=True):
        each["gridPos"] = next(positions)
        if panel.sql:
            each["targets"] = [SqlQuery(panel)]
    return json.dumps(written, indent=1, sort_keys=True) + "\n"


def _positions(board: Board) -> Iterator[dict[str, int]]:
    """The position of each panel: from left to right, in rows of 24 units."""
    left = top = height_of_row = 0
    for panel in board.panels:
        width, height = _SPANS[panel.kind]
        if left + width > 24:
            left, top, height_of_row = 0, top + height_of_row, 0
        yield {"x": left, "y": top, "w": width, "h": height}
        left, height_of_row = left + width, max(height, height_of_row)


class _LinkToOtherDashboards(Builder[DashboardLink]):
    """A menu of the other dashboards that keeps the time range and the variables."""

    def build(self) -> DashboardLink:
        """The interface of the SDK's builders."""
        return DashboardLink(
            title="guestd", type_val=DashboardLinkType.DASHBOARDS, icon="external link", tooltip="", tags=["guestd"],
            as_dropdown=True, target_blank=False, include_vars=True, keep_time=True,
        )  # fmt: skip


def _variable(name: str) -> Any:
    label, question = VARIABLES[name]
    variable = dashboard.QueryVariable(name).label(label).query(question).refresh(VariableRefresh.ON_DASHBOARD_LOAD)
    if question.startswith("label_values"):
        return variable.datasource(PROMETHEUS).include_all(True).multi(True).all_value(".*")
    return variable.datasource(STORE)


def _panel(panel: Panel) -> Any:
    builder = _BUILDERS[panel.kind]().title(panel.title).unit(panel.unit)
    builder = builder.datasource(STORE if panel.sql else PROMETHEUS)
    if panel.kind == "timeseries":
        builder = builder.min(0).legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(models.LegendDisplayMode.LIST)
            .placement(models.LegendPlacement.BOTTOM)
        )
    if panel.warns_at is not None or panel.alarms_at is not None:
        builder = builder.thresholds(_thresholds(panel))
    if panel.promql:
        query = prometheus.Dataquery().expr(panel.promql).legend_format(panel.legend).datasource(PROMETHEUS).ref_id("A")
        builder = builder.with_target(query)
    if panel.links_to:
        url = f"/d/{panel.links_to}?var-machine=${{__data.fields.id}}&${{__url_time_range}}"
        builder = builder.data_links([dashboard.DashboardLink("This machine").url(url)])
    return builder


def _thresholds(panel: Panel) -> Any:
    steps = [Threshold(value=None, color="green")]
    if panel.warns_at is not None:
        steps.append(Threshold(value=panel.warns_at, color="orange"))
    if panel.alarms_at is not None:
        steps.append(Threshold(value=panel.alarms_at, color="red"))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def main() -> None:
    """Write every dashboard."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for board in BOARDS:
        (DIRECTORY / f"{board.uid}.json").write_text(render_dashboard(board))


if __name__ == "__main__":
    main()
