"""A guestd process for a suite of ./dev bench: its metrics, its processor time and its profile."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tools.harness.waiting import eventually


@contextmanager
def guestd(dsn: str, channels: Path, more_tables: str = "", virtio: str = "") -> Iterator[tuple[int, str]]:
    """A guestd on these channels; gives its process id and the address of its metrics.

    `more_tables` and `virtio` (lines of that table) are more of its configuration.
    """
    configuration, spool = channels.with_suffix(".toml"), channels.with_suffix(".spool")
    configuration.write_text(
        f'[store]\ndsn = "{dsn}"\n[spool]\ndirectory = "{spool}"\n[virtio]\ndirectory = "{channels}"\n{virtio}'
        f"[telemetry]\nlisten_port = 0\n{more_tables}"
    )
    log = channels.with_suffix(".log")
    command = [sys.executable, "-m", "guestd", "run", "--config", str(configuration)]
    with log.open("wb") as output, subprocess.Popen(command, stderr=output) as process:
        try:
            eventually(
                lambda: '"metrics"' in log.read_text() or process.poll() is not None, "guestd is up", every_seconds=0.01
            )
            if process.poll() is not None:
                raise SystemExit(f"guestd did not start: {log.read_text()}")
            yield (
                process.pid,
                next(json.loads(each)["metrics"] for each in log.read_text().splitlines() if "metrics" in each),
            )
        finally:
            process.terminate()


def metric(url: str, name: str) -> float:
    """One sample of /metrics, 0 when it is not there."""
    return samples(url).get(name, 0.0)


def samples(url: str) -> dict[str, float]:
    """All samples of /metrics by name, labelled ones as name{value}."""
    with urllib.request.urlopen(url, timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def all_connected(url: str, guests: int) -> None:
    """Wait until guestd is connected to so many channels."""
    eventually(lambda: metric(url, "guestd_channels_connected") == guests, "all channels are connected", 300)


@dataclass
class Usage:
    """What a span of time cost; complete when the span has ended."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def cores(self) -> float:
        """Processor time for each second."""
        return self.cpu_seconds / self.seconds


@contextmanager
def usage(pid: int) -> Iterator[Usage]:
    """Time and a process's processor time from here to the end of the block."""
    measured = Usage()
    cpu_before, began = cpu_seconds(pid), time.perf_counter()
    yield measured
    measured.seconds = time.perf_counter() - began
    measured.cpu_seconds = cpu_seconds(pid) - cpu_before


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads, as the operating system accounts for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_megabytes(pid: int, key: str = "VmRSS") -> float:
    """Memory of a process that is in RAM; `VmHWM` for the highest so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


@contextmanager
def profiled(pid: int, file: Path | None) -> Iterator[None]:
    """Draw what a process does meanwhile as a flame graph into this SVG, if one is named; all its threads."""
    if file is None:
        yield
        return
    file.unlink(missing_ok=True)
    command = ["py-spy", "record", "--pid", str(pid), "--threads", "--output", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as spy:
        try:
            yield
        finally:
            spy.send_signal(signal.SIGINT)
            _, errors = spy.communicate()
    if not file.exists():
        raise SystemExit(f"no profile, for py-spy must be allowed to trace (root is): {errors.strip()}")
