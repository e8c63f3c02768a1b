"""guestd as an operator runs it: a process with a configuration file, watched from outside; and guests to feed it."""

import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tools.harness.waiting import eventually

T = TypeVar("T")
_SAMPLES = itertools.count(1)
REPOSITORY = Path(__file__).resolve().parents[2]


def command(program: str, *arguments: str) -> list[str]:
    """How to start one of our programs."""
    return [sys.executable, "-m", program, *arguments]


def environment() -> dict[str, str]:
    """What our programs need of it: this checkout, and no store but the one that they are given."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GUESTD_")}
    return kept | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "daemon"), str(REPOSITORY / "schema")])}


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command with pipes for what it prints; killed at the end if it still runs."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def faketime_library() -> Path:
    """The library that gives a program another clock, to be preloaded."""
    prefix = Path(subprocess.check_output([REPOSITORY / "tools/harness/get-packages", "faketime"], text=True).strip())
    (library,) = prefix.glob("usr/lib/*/faketime/libfaketimeMT.so.1")
    return library


def add_machine(dsn: str, machine_id: UUID | None = None) -> UUID:
    """A Machine row, with the template that it must refer to."""
    machine_id = machine_id or uuid4()
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute('SELECT "id" FROM "MachineTemplate" LIMIT 1').fetchone()
        if row is None:
            row = connection.execute(
                """INSERT INTO "MachineTemplate" ("name", "cores", "ram", "storage") VALUES ('t', 1, 1, 1)
                RETURNING "id" """
            ).fetchone()
        assert row is not None
        connection.execute(
            """INSERT INTO "Machine" ("id", "name", "internalName", "status", "templateId", "os")
            VALUES (%s, 'm', %s, 'running', %s, 'linux')""",
            (machine_id, str(machine_id), row[0]),
        )
    return machine_id


def execute(dsn: str, *statements: str) -> None:
    """Run statements that give nothing."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rows(dsn: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """What a query gives."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement.encode(), parameters or None).fetchall()


def metrics_line(timestamp: str = "2025-10-01T12:00:30.125000000+00:00", **changes: object) -> bytes:
    """A D1 message of one process and one port, ended by a newline; its time is long past, so receivedAt is used.

    Each is another one, by a field that nobody reads: the same bytes with the same time would be the same sample.
    """
    system = {
        "cpu": {"usage_percent": 7.5, "cores_usage": [5.0, 10.0], "temperature": None},
        "memory": {"total_kb": 4194304, "used_kb": 1048576, "available_kb": 3145728},
        "disk": {"usage_stats": [], "io_stats": {"read_bytes_per_sec": 1}},
        "network": {"interfaces": []},
        "system": {"uptime_seconds": 3600, "load_average": None},
        "processes": [{"id": 812, "name": "sshd", "cpu_usage_percent": 0.4, "memory_usage_kb": 9216}],
        "ports": [{"port": 22, "protocol": "TCP", "state": "Listen", "process_id": 812, "is_listening": True}],
        "windows_services": [],
    } | changes
    sample = next(_SAMPLES)
    message = {"type": "metrics", "timestamp": timestamp, "sample": sample, "data": {"system": system}}
    return json.dumps(message).encode() + b"\n"


def metrics_lines(count: int) -> bytes:
    """So many of them."""
    return b"".join(metrics_line() for _ in range(count))


class Guest:
    """The guest's side of a channel: a unix socket that is served as QEMU serves it, one client at a time."""

    def __init__(self, directory: Path, machine_id: UUID) -> None:
        self.path = directory / f"{machine_id}.socket"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._listener.settimeout(90)
        self._connection: socket.socket | None = None
        self._received = b""

    def connection(self) -> socket.socket:
        """Wait for guestd to connect."""
        if self._connection is None:
            self._connection, _ = self._listener.accept()
            self._connection.settimeout(90)
        return self._connection

    def has_a_connection(self) -> bool:
        """Whether guestd has connected, without waiting for it."""
        return self._connection is not None or bool(select.select([self._listener], [], [], 0)[0])

    def write(self, content: bytes) -> None:
        """Send bytes."""
        self.connection().sendall(content)

    def read_line(self) -> bytes:
        """The next line that guestd sends, its request for a sample left out."""
        while (line := self.read_any_line()) == b'{"type":"Metrics"}':
            pass
        return line

    def read_any_line(self) -> bytes:
        """The next line that guestd sends."""
        while b"\n" not in self._received:
            chunk = self.connection().recv(4096)
            assert chunk, "guestd closed the channel"
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def hang_up(self) -> None:
        """Close the connection, keep the socket."""
        self.connection().close()
        self._connection = None

    def leave(self) -> None:
        """The machine is destroyed: connection and socket go."""
        if self._connection is not None:
            self._connection.close()
        self._listener.close()
        self.path.unlink(missing_ok=True)


# Exit statuses of a program whose native code fails.
CRASHES = tuple(-number for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT))


class Daemon:
    """One guestd with directories of its own; may be started again after it ended."""

    def __init__(self, directory: Path, dsn: str, log_name: str = "guestd.log") -> None:
        self.directory = directory
        self.dsn = dsn
        self.channels = directory / "channels"
        self.spool = directory / "spool"
        self.port = 0
        self.wrapper: list[str] = []
        self.spool_max_bytes = 2**30
        self.virtio_lines = ""
        self.store_lines = ""
        self.telemetry_lines = ""
        self.more_tables = ""
        self.log = directory / log_name
        self.process: subprocess.Popen[bytes] | None = None
        self.guests: list[Guest] = []
        self.channels.mkdir(exist_ok=True)

    def guest(self, machine_id: UUID | None = None) -> Guest:
        """A guest with a channel of its own; of a new machine when none is named."""
        guest = Guest(self.channels, machine_id or add_machine(self.dsn))
        self.guests.append(guest)
        return guest

    def start(self) -> None:
        """Start it; does not wait."""
        configuration = self.directory / "guestd.toml"
        configuration.write_text(
            f'[store]\ndsn = "{self.dsn}"\n{self.store_lines}'
            f'[spool]\ndirectory = "{self.spool}"\nmax_bytes = {self.spool_max_bytes}\n'
            f'[virtio]\ndirectory = "{self.channels}"\n{self.virtio_lines}[telemetry]\nlisten_port = {self.port}\n'
            f"{self.telemetry_lines}"
            f"{self.more_tables}"
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *command("guestd", "run", "--config", str(configuration))],
                stderr=log,
                env=environment(),
            )

    def logged(self) -> list[dict[str, Any]]:
        """The log so far, an object a line; lines that are no JSON, or not whole on a full disk, under `text`."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) if line.startswith("{") and line.endswith("}") else {"text": line} for line in lines]

    def url(self) -> str:
        """Where it serves its pages; waits until it does."""

        def found() -> str | None:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            return next((str(line["metrics"]) for line in self.logged() if "metrics" in line), None)

        url = eventually(found, "guestd is up")
        assert url is not None
        return url.removesuffix("/metrics")

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page."""
        try:
            with urllib.request.urlopen(self.url() + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample; 0 when it is not there."""
        for family in text_string_to_metric_families(self.page("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0

    def ended(self) -> int | None:
        """Its exit status when it has ended."""
        assert self.process is not None
        return self.process.poll()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        return self._ended(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL; its exit status."""
        return self._ended(signal.SIGKILL)

    def _ended(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose name leaves room for a socket's."""
    path = Path(tempfile.mkdtemp(prefix="guestd-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def daemon(directory: Path, dsn: str) -> Iterator[Daemon]:
    """A guestd for a database of this test's own; not started yet."""
    daemon = Daemon(directory, dsn)
    yield daemon
    crashed = daemon.process is not None and daemon.process.poll() in CRASHES
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.kill()
    for guest in daemon.guests:
        guest.leave()
    # A test that only reads the store may not have noticed.
    assert not crashed, f"guestd crashed, status {daemon.ended()}: {daemon.log.read_text()[-2000:]}"
