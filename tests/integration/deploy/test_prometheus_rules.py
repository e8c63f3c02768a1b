"""The rules of deploy/prometheus, checked by Prometheus' own promtool."""

from tools.harness.prometheus import promtool

from support.daemon import REPOSITORY

RULES = REPOSITORY / "deploy/prometheus"


def test_promtool_accepts_the_rules() -> None:
    status, output = promtool("check", "rules", str(RULES / "rules.yml"))
    assert status == 0, output
    assert "SUCCESS" in output


def test_each_alert_fires_when_it_should_and_no_other_alert_with_it() -> None:
    status, output = promtool("test", "rules", str(RULES / "tests.yml"))
    assert status == 0, output
