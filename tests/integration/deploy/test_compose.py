"""deploy/compose.yaml, as far as it can be checked without containers: no test runs docker."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.docs.dashboards import PROMETHEUS, STORE
from tools.harness.broker import BrokerError, prefix
from tools.harness.ports import free_port
from tools.harness.prometheus import promtool
from tools.harness.waiting import eventually

from support.daemon import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROVISIONED = DEPLOY / "grafana/provisioning"


def mounts() -> list[tuple[str, str, str]]:
    """(service, source, target) of each mount."""
    return [(name, *each.split(":")[:2]) for name, service in SERVICES.items() for each in service.get("volumes", [])]


def test_every_mounted_file_exists() -> None:
    files = [DEPLOY / source for _, source, _ in mounts() if source.startswith("./")]
    assert len(files) >= 4
    assert [path for path in files if not path.exists()] == []
    volumes = {source for _, source, _ in mounts() if not source.startswith("./")}
    assert volumes == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_fixed_version_and_listens_on_loopback(name: str) -> None:
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+(-\w+)?", SERVICES[name]["image"])
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


def test_prometheus_accepts_its_configuration() -> None:
    status, output = promtool("check", "config", "--syntax-only", str(DEPLOY / "prometheus/prometheus.yml"))
    assert status == 0, output


def test_grafana_gets_every_variable_that_its_provisioning_uses() -> None:
    (sources,) = [yaml.safe_load(file.read_text()) for file in (PROVISIONED / "datasources").glob("*.yml")]
    assert {source["uid"] for source in sources["datasources"]} == {STORE.uid, PROMETHEUS.uid}
    used = set(re.findall(r"\$(\w+)", yaml.safe_dump(sources)))
    assert used <= SERVICES["grafana"]["environment"].keys()
    (boards,) = [yaml.safe_load(file.read_text()) for file in (PROVISIONED / "dashboards").glob("*.yml")]
    (provider,) = boards["providers"]
    assert provider["options"]["path"] in [target for name, _, target in mounts() if name == "grafana"]


def test_a_real_mosquitto_accepts_its_configuration() -> None:
    try:
        program = prefix() / "usr/sbin/mosquitto"
    except BrokerError as exc:
        pytest.skip(str(exc))
    with tempfile.TemporaryDirectory(prefix="guestd-") as name:
        own = Path(name)
        own.chmod(0o777)
        (own / "passwords").touch()
        text = (DEPLOY / "mosquitto/mosquitto.conf").read_text()
        # Where the container has them; it listens to all of its own network.
        text = text.replace("/mosquitto/data", name).replace("/mosquitto/config", str(DEPLOY / "mosquitto"))
        (own / "mosquitto.conf").write_text(text.replace("listener 1883", f"listener {free_port()} 127.0.0.1"))
        with (own / "log").open("wb") as log:
            broker = subprocess.Popen([program, "-v", "-c", own / "mosquitto.conf"], stdout=log, stderr=log)
        try:
            eventually(lambda: "running" in (own / "log").read_text() or broker.poll() is not None, "it runs")
            assert broker.poll() is None, (own / "log").read_text()
            assert "Error" not in (own / "log").read_text()
        finally:
            broker.terminate()
            broker.wait(60)
