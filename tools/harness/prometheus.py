"""A private Prometheus in one directory, for tests and benches: Debian's, unpacked by tools/harness/get-packages.

DIRECTORY/prometheus.yml   what it scrapes
DIRECTORY/data             its database
DIRECTORY/log              its log
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.harness.packages import unpacked
from tools.harness.ports import free_port
from tools.harness.waiting import eventually

START_SECONDS = 90.0


def promtool(*arguments: str, text: str = "") -> tuple[int, str]:
    """Exit status and output of Prometheus' own checker."""
    program = unpacked("prometheus") / "usr/bin/promtool"
    done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """One server that scrapes `targets` (host:port) every `interval_seconds`, with the rules of `rule_files`."""

    def __init__(
        self, directory: Path, targets: Sequence[str], *, interval_seconds: int = 1, rule_files: Sequence[Path] = ()
    ) -> None:
        self._directory = directory
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir()
        configuration = {
            "global": {"scrape_interval": f"{interval_seconds}s", "evaluation_interval": f"{interval_seconds}s"},
            "rule_files": [str(file) for file in rule_files],
            "scrape_configs": [{"job_name": "guestd", "static_configs": [{"targets": list(targets)}]}],
        }
        (directory / "prometheus.yml").write_text(json.dumps(configuration))  # which is YAML

    def start(self) -> None:
        """Start it, and wait until it answers; it ends with us."""
        program = unpacked("prometheus") / "usr/bin/prometheus"
        options = {
            "config.file": self._directory / "prometheus.yml",
            "storage.tsdb.path": self._directory / "data",
            "web.listen-address": f"127.0.0.1:{self._port}",
        }
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", program, *(f"--{name}={value}" for name, value in options.items())],
                stdout=log, stderr=log,
            )  # fmt: skip
        process = self._process
        eventually(lambda: self._answers() or process.poll() is not None, "Prometheus answers", START_SECONDS)
        assert process.poll() is None, (self._directory / "log").read_text()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an instant query gives: a metric and a value each."""
        result: list[dict[str, Any]] = self._api("query", query=expression)["result"]
        return result

    def query_range(self, expression: str, *, seconds: float, step_seconds: float) -> list[dict[str, Any]]:
        """What it gave over the last seconds: a metric and [time, value] pairs each."""
        now = time.time()
        span = {"start": f"{now - seconds}", "end": f"{now}", "step": f"{step_seconds}"}
        result: list[dict[str, Any]] = self._api("query_range", query=expression, **span)["result"]
        return result

    def targets(self) -> list[dict[str, Any]]:
        """Each target with its health and how long its last scrape took."""
        active: list[dict[str, Any]] = self._api("targets")["activeTargets"]
        return active

    def _api(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
