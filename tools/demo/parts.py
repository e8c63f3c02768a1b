"""What a demo starts and stops: processes of guestd, a database, a PostgreSQL server of its own, a directory.

    CACHE/demo         our own server, kept between demos but stopped
    CACHE/demo.json    what is running now, so that any later command can stop it
    CACHE/demo.lock    held by a demo for as long as it lives

Everything is recorded before or as it is started, so that `./dev demo --stop` or the next demo can stop a demo that was
kept or killed.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import msgspec
import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from tools.harness.cluster import Cluster, create_database, prefix

T = TypeVar("T")

# guestd drains its spool for up to ten seconds; a process that still runs after this time is killed.
STOP_SECONDS = 15.0
TAIL_LINES = 15


class DemoError(Exception):
    """The demo failed; the message is for the person who started it."""


class Process(msgspec.Struct):
    """A process that was started; `created` (unix seconds) distinguishes it from a later one with the same pid."""

    name: str
    pid: int
    created: float


class State(msgspec.Struct):
    """All that a demo created. `server` is the DSN of a server that is not the demo's own, else None."""

    directory: str
    database: str
    server: str | None
    processes: list[Process] = []


class Parts:
    """The running parts of one demo, recorded in a file."""

    def __init__(self, cache: Path, state: State) -> None:
        self._cache = cache
        self._state = state
        self._children: dict[str, psutil.Popen] = {}
        self._write()

    @property
    def directory(self) -> Path:
        """A directory of this demo alone: configuration, sockets, spool, logs."""
        return Path(self._state.directory)

    def start_store(self) -> str:
        """Start the demo's own server unless another is named, create the database, and return its DSN."""
        server = self._state.server or self._start_own_server()
        _drop_database(server, self._state.database)  # left by a crash
        create_database(server, self._state.database)
        return make_conninfo(server, dbname=self._state.database)

    def _start_own_server(self) -> str:
        cluster = _own_cluster(self._cache)
        cluster.start()
        return cluster.dsn("postgres")

    def start(self, name: str, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        """Start `guestd ARGUMENTS` with a log of its own; the terminal's Ctrl-C does not reach it."""
        with self.log(name).open("ab") as log:
            child = psutil.Popen(
                [sys.executable, "-m", "guestd", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._children[name] = child
        self._state.processes.append(Process(name, child.pid, child.create_time()))
        self._write()

    def log(self, name: str) -> Path:
        """The file that a part writes its log to."""
        return self.directory / f"{name}.log"

    def wait(self, poll: Callable[[], T | None], what: str, seconds: float) -> T:
        """Call `poll` until it returns something true, and return that.

        Raises DemoError with the tails of the logs when that takes too long, or as soon as a part has stopped.
        """
        deadline = time.monotonic() + seconds
        while not (found := poll()):
            for process in self._state.processes:
                if _find_running(process) is None:
                    raise DemoError(f"{process.name} stopped unexpectedly: {_read_log_tail(self.log(process.name))}")
            if time.monotonic() > deadline:
                tails = "\n".join(
                    f"{process.name}: {_read_log_tail(self.log(process.name))}" for process in self._state.processes
                )
                raise DemoError(f"timeout after {seconds:.0f} s, waiting until {what}\n{tails}")
            time.sleep(0.05)
        return found

    def stop(self, *names: str) -> None:
        """Stop these parts and wait for their end; DemoError when one has another exit status than 0."""
        stopping = [process for process in self._state.processes if process.name in names]
        _stop(stopping)
        self._state.processes = [process for process in self._state.processes if process.name not in names]
        self._write()
        for process in stopping:
            status = self._children[process.name].wait()
            if status != 0:
                raise DemoError(f"{process.name} exited with status {status}: {_read_log_tail(self.log(process.name))}")

    def psql(self, dsn: str) -> str:
        """The command that opens a prompt on the database; the password of a named DSN is not shown."""
        if self._state.server is None:
            return f"{prefix()}/usr/lib/postgresql/17/bin/psql {shlex.quote(dsn)}"
        return rf"""psql "$GUESTD_DATABASE_DSN" and there \connect {self._state.database}"""

    def _write(self) -> None:
        file = _state_file(self._cache)
        new = file.with_suffix(".new")
        new.touch(mode=0o600)  # a DSN may hold a password
        new.write_bytes(msgspec.json.encode(self._state))
        new.replace(file)


@contextmanager
def hold_lock(cache: Path) -> Iterator[None]:
    """Hold the lock; DemoError when another demo has it."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "demo.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("another ./dev demo is running; wait until it ends, or stop it with Ctrl-C") from None
        yield


def begin(cache: Path, server: str | None) -> Parts:
    """The parts of a new demo, none of them started. `server`: the DSN of a server to use instead of its own."""
    if server is None:
        prefix()  # downloads once, before anything runs and waits
    directory = Path(tempfile.mkdtemp(prefix="guestd-demo-"))
    (directory / "channels").mkdir()
    # On the demo's own server one name is enough; on another server it must be unique.
    database = "guestd_demo" if server is None else f"guestd_demo_{uuid4().hex[:8]}"
    return Parts(cache, State(str(directory), database, server))


def end(cache: Path) -> bool:
    """Stop everything that a demo has left running, in order, and delete its files; False when there is nothing."""
    file = _state_file(cache)
    try:
        state = msgspec.json.decode(file.read_bytes(), type=State)
    except FileNotFoundError:
        return False
    _stop([process for process in state.processes if process.name != "guestd"])
    _stop([process for process in state.processes if process.name == "guestd"])
    _end_store(cache, state)
    shutil.rmtree(state.directory, ignore_errors=True)
    file.unlink()
    return True


def _end_store(cache: Path, state: State) -> None:
    cluster = _own_cluster(cache) if state.server is None else None
    server = state.server
    if cluster is not None and cluster.pid() is not None:
        server = cluster.dsn("postgres")
    if server is not None:
        # a database that could not be created or reached cannot be dropped either
        with suppress(psycopg.Error):
            _drop_database(server, state.database)
    if cluster is not None:
        cluster.stop()


def _drop_database(server: str, name: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def read_store_log_tail(cache: Path) -> str:
    """The tail of the log of the demo's own server; the log of another server cannot be read."""
    return _read_log_tail(cache / "demo" / "log")


def _read_log_tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:] if log.exists() else []
    return "tail of its log:" + "".join(f"\n    {line[:300]}" for line in lines) if lines else "it has no log"


def _own_cluster(cache: Path) -> Cluster:
    return Cluster(cache / "demo", prefix=prefix())


def _state_file(cache: Path) -> Path:
    return cache / "demo.json"


def _find_running(process: Process) -> psutil.Process | None:
    try:
        found = psutil.Process(process.pid)
        same = abs(found.create_time() - process.created) < 1 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return found if same else None


def _stop(processes: list[Process]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if (found := _find_running(process)) is not None:
                with suppress(psutil.NoSuchProcess):
                    found.send_signal(number)
        deadline = time.monotonic() + STOP_SECONDS
        while any(_find_running(process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.02)
