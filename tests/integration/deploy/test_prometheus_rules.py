"""The rules of deploy/prometheus, by Prometheus' own checker."""

from tools.harness.prometheus import promtool

from support.daemon import REPOSITORY

RULES = REPOSITORY / "deploy/prometheus"


def test_promtool_takes_the_rules() -> None:
    status, said = promtool("check", "rules", str(RULES / "rules.yml"))
    assert status == 0, said
    assert "SUCCESS" in said


def test_each_alert_fires_when_it_should_and_nothing_else_with_it() -> None:
    status, said = promtool("test", "rules", str(RULES / "tests.yml"))
    assert status == 0, said
