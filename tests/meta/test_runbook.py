"""Alerts, their cases, their runbook and the metrics that they ask for: what one names the others have."""

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
# Prometheus' own, and what guestd.store.rollups makes at a scrape.
OTHERS = {"up", "process_start_time_seconds", "guestd_store_alarms"}


def sections() -> dict[str, str]:
    """The runbook's, by their titles."""
    return dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))


def test_each_alert_has_a_section_and_each_section_an_alert() -> None:
    assert sections().keys() == ALERTS.keys()


@pytest.mark.parametrize("name", ALERTS)
def test_a_section_says_what_to_type(name: str) -> None:
    assert re.search(r"^```sh\n.+?^```\n\n.+", sections()[name], re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_leads_to_its_section_and_says_whom_it_is_about(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    assert annotations["runbook"] == f"docs/runbook.md#{name.lower()}"
    assert "$labels" in annotations["summary"] or "$value" in annotations["summary"]
    assert ALERTS[name]["labels"]["severity"] in ("critical", "warning")


def test_each_alert_has_a_case_and_one_says_when_none_fires() -> None:
    cases = [_fires(case) for case in TESTS]
    assert sorted(cases) == sorted([*ALERTS, ""])


def _fires(case: dict[str, Any]) -> str:
    """The alert that a case is of; empty: none fires."""
    (asked,) = case["promql_expr_test"]
    return "".join(re.findall(r'alertname="(\w+)"', str(asked["exp_samples"])))


def test_rules_ask_for_metrics_that_are_served() -> None:
    families = list(Telemetry().registry.collect())
    served = {family.name for family in families} | {sample.name for family in families for sample in family.samples}
    served |= {f"{name}_total" for name in served}
    served |= {family.name for family in LatestSamples().build_families({}, datetime.now(UTC))}
    expressions = " ".join(rule["expr"] for group in RULES["groups"] for rule in group["rules"])
    asked = set(re.findall(r"\b(?:guestd?|libvirt|instance:guestd|process|up)(?:[_:]\w+)*\b", expressions))
    asked = {name for name in asked if "_" in name or name == "up"} - {"up"}
    assert {name for name in asked if name not in served | RECORDED | OTHERS} == set()
