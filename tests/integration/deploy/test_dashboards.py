"""Every panel of the dashboards has data: its query runs on a real store or a real Prometheus and returns rows."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from tools.docs.dashboards import DIRECTORY, PROMETHEUS, STORE, render_dashboard
from tools.docs.panels import BOARDS, VARIABLES, Board, Panel, fill_in_macros
from tools.harness.prometheus import Prometheus
from tools.harness.waiting import eventually

from support.daemon import REPOSITORY, Daemon, add_machine, execute, metrics_line, rows

PROCESSES = [{"id": 7, "name": "nginx", "cpu_usage_percent": 3.0, "memory_usage_kb": 1024}]
SYSTEM: dict[str, Any] = {
    "disk": {
        "usage_stats": [{"mount_point": "/", "total_gb": 10.0, "used_gb": 4.0, "available_gb": 6.0}],
        "io_stats": {"read_bytes_per_sec": 1.0, "write_bytes_per_sec": 2.0},
    },
    "network": {"interfaces": [{"name": "eth0", "bytes_received": 10.0, "bytes_sent": 20.0}]},
    "processes": PROCESSES,
    "windows_services": [{"name": "sshd", "display_name": "OpenSSH", "state": "Running", "start_mode": "Auto"}],
}
APPLICATION = {"exe_path": "/usr/bin/editor", "name": "Editor", "version": "1"}
ROWS = (
    """INSERT INTO "Department" ("name") VALUES ('Physics')""",
    'UPDATE "Machine" SET "departmentId" = (SELECT "id" FROM "Department" LIMIT 1), "cpuCores" = 2, "ramGB" = 4',
    """INSERT INTO "NWFilter" ("name", "internalName", "uuid") VALUES ('web', 'web', gen_random_uuid())""",
    """INSERT INTO "ProcessFleetHour" VALUES (date_trunc('hour', now()) - INTERVAL '1 hour', 'nginx', 1, 3, 1024)""",
    """INSERT INTO "ReconcileEvent" ("name", "action", "reason", "outcome") VALUES ('web', 'define', 'new', 'done')""",
)


def panels(*, by: str) -> list[tuple[Board, Panel]]:
    """All panels with a query in one language: `sql` or `promql`."""
    return [(board, panel) for board in BOARDS for panel in board.panels if getattr(panel, by)]


def named(value: object) -> str:
    return value.uid if isinstance(value, Board) else getattr(value, "title", "")


@dataclass(frozen=True)
class Observed:
    """A store, a guestd and a Prometheus, after one guest has sent good lines and a bad one."""

    dsn: str
    machine_id: UUID
    prometheus: Prometheus


@pytest.fixture
def observed(daemon: Daemon, directory: Path) -> Iterator[Observed]:
    machine_id = add_machine(daemon.dsn)
    guest = daemon.guest(machine_id)
    execute(daemon.dsn, *ROWS)
    daemon.start()
    prometheus = Prometheus(directory / "prometheus", [daemon.url().removeprefix("http://")])
    try:
        prometheus.start()
        line = json.loads(metrics_line(**SYSTEM))
        line["data"]["applications"] = [APPLICATION]
        guest.write(json.dumps(line).encode() + b"\nno json\n" + metrics_line(**SYSTEM))
        eventually(lambda: rows(daemon.dsn, 'SELECT 1 FROM "QuarantinedFrame"'), "the bad line is set aside")
        yield Observed(daemon.dsn, machine_id, prometheus)
    finally:
        prometheus.stop()


def test_every_panel_has_data(observed: Observed) -> None:
    silent = []
    for board, panel in panels(by="sql"):
        if not rows(observed.dsn, fill_in_macros(panel.sql, observed.machine_id, hours=6).replace("%", "%%")):
            silent.append((board.uid, panel.title))
    assert silent == []
    for board, panel in panels(by="promql"):
        expression = panel.promql.replace("$instance", ".*")
        eventually(functools.partial(observed.prometheus.query, expression), f"{board.uid}: {panel.title}")


def test_the_variables_have_values(observed: Observed) -> None:
    _, question = VARIABLES["machine"]
    assert rows(observed.dsn, question)
    eventually(lambda: observed.prometheus.query("guestd_build_info"), "an instance to choose")


@pytest.mark.parametrize("board", BOARDS, ids=named)
def test_the_committed_dashboards_are_what_the_tool_writes(board: Board) -> None:
    assert (DIRECTORY / f"{board.uid}.json").read_text() == render_dashboard(board)


@pytest.mark.parametrize("board", BOARDS, ids=named)
def test_grafanas_model_reads_a_dashboard_without_loss(board: Board) -> None:
    written = json.loads(render_dashboard(board))
    read = json.loads(json.dumps(Dashboard.from_json(written), cls=JSONEncoder))
    assert read == written


@pytest.mark.parametrize("board", BOARDS, ids=named)
def test_panels_do_not_overlap_and_use_a_provisioned_data_source(board: Board) -> None:
    written = json.loads(render_dashboard(board))
    places = [each["gridPos"] for each in written["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    uids = {target["datasource"]["uid"] for each in written["panels"] for target in each["targets"]}
    provisioned = yaml.safe_load((REPOSITORY / "deploy/grafana/provisioning/datasources/guestd.yml").read_text())
    assert uids <= {each["uid"] for each in provisioned["datasources"]} == {STORE.uid, PROMETHEUS.uid}


def test_a_ratio_of_what_guests_report_is_bounded() -> None:
    """A guest may report more in use than there is, and nothing at all."""
    ratios = [panel for board in BOARDS for panel in board.panels if panel.unit.startswith("percent")]
    guests = [panel for panel in ratios if "/" in panel.sql or " / guest_" in panel.promql]
    assert guests
    for panel in guests:
        assert "least(" in panel.sql or "clamp_max(" in panel.promql, panel.title
        assert "nullif(" in panel.sql or "> 0)" in panel.promql, panel.title


def test_links_lead_to_existing_dashboards() -> None:
    uids = {board.uid for board in BOARDS}
    assert {panel.links_to for board in BOARDS for panel in board.panels if panel.links_to} <= uids
    assert all(set(board.variables) <= VARIABLES.keys() for board in BOARDS)
