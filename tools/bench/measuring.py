"""What the suites of ./dev bench share: a private server, a guestd on it, and how figures are read and kept."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from prometheus_client.parser import text_string_to_metric_families
from tools.harness.cluster import Cluster, create_database, prefix

from guestd.simulator import machine_ids
from gueststore import contract
from gueststore.migrations import migrate

SERVER_SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "4GB", "checkpoint_timeout": "15min"}
SEED = 1


@contextmanager
def own_store(guests: int, **server_settings: str) -> Iterator[tuple[str, Path]]:
    """A migrated database with the fleet's machines on a private server, fsync on; its DSN and a directory."""
    directory = Path(tempfile.mkdtemp(prefix="guestd-bench-"))
    directory.chmod(0o755)
    cluster = Cluster(directory / "store", prefix=prefix(), settings=SERVER_SETTINGS | server_settings)
    try:
        cluster.start()
        create_database(cluster.dsn("postgres"), "bench")
        migrate(cluster.dsn("bench"))
        _add_machines(cluster.dsn("bench"), guests)
        yield cluster.dsn("bench"), directory
    finally:
        cluster.stop()
        shutil.rmtree(directory)


def _add_machines(dsn: str, guests: int) -> None:
    with psycopg.connect(dsn) as connection:
        template = connection.execute(
            """INSERT INTO "MachineTemplate" ("name", "cores", "ram", "storage") VALUES ('bench', 1, 1, 1)
            RETURNING "id" """
        ).fetchone()
        assert template is not None
        connection.cursor().executemany(
            """INSERT INTO "Machine" ("id", "name", "internalName", "status", "templateId", "os")
            VALUES (%s, 'bench', %s, 'running', %s, 'linux')""",
            [(machine_id, str(machine_id), template[0]) for machine_id in machine_ids(guests, SEED)],
        )


def truncate(dsn: str) -> None:
    """Forget what guests sent, and what is known of their spools."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name in [*(table.name for table in contract.SERIES), "ApplicationUsage", "WindowsService"]:
            connection.execute(f'TRUNCATE "{name}" CASCADE'.encode())
        connection.execute('TRUNCATE "IngestLedger"')
        connection.execute("CHECKPOINT")


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
    with log.open("wb") as said, subprocess.Popen(command, stderr=said) as process:
        try:
            eventually(lambda: '"metrics"' in log.read_text() or process.poll() is not None, "guestd is up")
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


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all threads, as the operating system accounts for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_cpu_seconds(directory: Path) -> float:
    """The same of `own_store`'s server: its main process, those that it has, and those that have ended."""
    main = int((directory / "store/data/postmaster.pid").read_text().split()[0])
    tick_seconds = 1 / os.sysconf("SC_CLK_TCK")
    used_ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = int(stat.parent.name), stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # ended meanwhile
            continue
        if pid == main:
            used_ticks += sum(map(int, fields[11:15]))
        elif int(fields[1]) == main:
            used_ticks += sum(map(int, fields[11:13]))
    return used_ticks * tick_seconds


def eventually(look: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Poll until it is so; SystemExit says what did not come."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds} s: {what}")
        time.sleep(0.01)


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
            _, said = spy.communicate()
    if not file.exists():
        raise SystemExit(f"no profile, for py-spy must be allowed to trace (root is): {said.strip()}")


def keep(file: Path, suite: str, figures: dict[str, Any]) -> None:
    """Write the figures as JSON, with what they were measured on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    measured_on = {
        "suite": suite,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "hardware": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}",
    }
    file.write_text(json.dumps(measured_on | figures, indent=2) + "\n")
    print(f"written to {file}")
