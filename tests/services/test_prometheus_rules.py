"""The rules of deploy/prometheus, by Prometheus' own checker."""

import yaml
from tools.prometheus import promtool

from fix_daemon import REPOSITORY

RULES = REPOSITORY / "deploy/prometheus"


def test_promtool_takes_the_rules() -> None:
    status, said = promtool("check", "rules", str(RULES / "rules.yml"))
    assert status == 0, said
    assert "SUCCESS" in said


def test_each_alert_fires_when_it_should_and_nothing_else_with_it() -> None:
    status, said = promtool("test", "rules", str(RULES / "tests.yml"))
    assert status == 0, said


def test_what_compose_mounts_is_there() -> None:
    services = yaml.safe_load((REPOSITORY / "deploy/compose.yaml").read_text())["services"]
    mounted = [each.split(":")[0] for service in services.values() for each in service.get("volumes", [])]
    paths = [REPOSITORY / "deploy" / each for each in mounted if each.startswith("./")]
    assert len(paths) >= 4
    assert [path for path in paths if not path.exists()] == []


def test_prometheus_takes_the_configuration_that_compose_gives_it() -> None:
    status, said = promtool("check", "config", "--syntax-only", str(RULES / "prometheus.yml"))
    assert status == 0, said
