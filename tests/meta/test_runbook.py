"""Alerts, their test cases, their runbook sections and the metrics in their expressions match."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from guestd.telemetry.guests import LatestSamples
from guestd.telemetry.registry import Telemetry

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
TESTS = yaml.safe_load((ROOT / "deploy/prometheus/tests.yml").read_text())["tests"]
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
# Prometheus' own metrics, and those that guestd.store.rollups adds to a scrape.
OTHERS = {"up", "process_start_time_seconds", "guestd_store_alarms"}


def sections() -> dict[str, str]:
    """The sections of the runbook by title."""
    return dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))


def test_each_alert_has_a_section_and_each_section_an_alert() -> None:
    assert sections().keys() == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_a_section_has_commands_and_an_explanation(name: str) -> None:
    assert re.search(r"^```sh\n.+?^```\n\n.+", sections()[name], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_links_to_its_section_and_names_its_subject(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    assert annotations["runbook"] == f"docs/runbook.md#{name.lower()}"
    assert "$labels" in annotations["summary"] or "$value" in annotations["summary"]
    assert ALERTS[name]["labels"]["severity"] in ("critical", "warning")


def test_each_alert_has_a_case_and_one_case_fires_none() -> None:
    cases = [_firing_alert(case) for case in TESTS]
    assert sorted(cases) == sorted([*ALERTS, ""])


def _firing_alert(case: dict[str, Any]) -> str:
    """The alert that fires in a case; empty if none does."""
    (test,) = case["promql_expr_test"]
    return "".join(re.findall(r'alertname="(\w+)"', str(test["exp_samples"])))


def test_the_rules_use_metrics_that_exist() -> None:
    families = list(Telemetry().registry.collect())
    existing = {family.name for family in families} | {sample.name for family in families for sample in family.samples}
    existing |= {f"{name}_total" for name in existing}
    existing |= {family.name for family in LatestSamples().build_families({}, datetime.now(UTC))}
    expressions = " ".join(rule["expr"] for group in RULES["groups"] for rule in group["rules"])
    used = set(re.findall(r"\b(?:guestd?|libvirt|instance:guestd|process|up)(?:[_:]\w+)*\b", expressions))
    used = {name for name in used if "_" in name or name == "up"} - {"up"}
    assert {name for name in used if name not in existing | RECORDED | OTHERS} == set()
