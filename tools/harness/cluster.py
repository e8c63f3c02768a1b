"""A private PostgreSQL + TimescaleDB server in one directory, for development and for tests.

    DIRECTORY/data   the cluster (mode 0700), its unix socket included
    DIRECTORY/log    the log of the server
    DIRECTORY/port   the loopback port of the last start, taken again when it is free
    DIRECTORY/lock   held while somebody starts or stops the server

Every client on the socket or loopback is trusted: this holds development data only. PostgreSQL refuses to run
as root, so root's server runs as nobody, who must be able to enter the directory.

As a program, `cluster.py up [--fresh]`, `down` and `dsn` manage the server that `./dev up` keeps in the
cache.
"""

import argparse
import fcntl
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import psycopg
from psycopg import sql
from tools.harness.packages import PackagesError, unpacked
from tools.harness.ports import free_port

# Ten times what a start after a crash took on a slow disk.
START_SECONDS = 60.0
# sun_path of a unix socket, less its final NUL.
SOCKET_PATH_MAX_BYTES = 107
# Errors of a start after which the next attempt may succeed: the port was taken in the meantime, or sessions of a
# server that was killed have not ended yet.
PASSING = ("Address already in use", "is still in use")
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "shared_preload_libraries": "timescaledb",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class ClusterError(Exception):
    """The server could not be started or stopped; the message says why and what to do."""


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


class Cluster:
    """One server in `directory`, from the programs under `prefix` (see `prefix()`).

    `settings` are server settings beyond ours, by name; `start` and `stop` raise ClusterError.
    """

    def __init__(self, directory: Path, *, prefix: Path, settings: Mapping[str, str] | None = None) -> None:
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        self._log = self._directory / "log"
        self._programs = programs_in(prefix)
        self._settings = {**SETTINGS, "unix_socket_directories": str(self._data), **(settings or {})}
        self._identity: _Identity = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def start(self) -> None:
        """Start the server and wait until it takes connections; one that runs already is left alone."""
        self._make_directory()
        with self._locked():
            if self.pid() is None:
                if not self._data.exists():
                    self._initialise()
                self._start()

    def follow(self, server: str) -> None:
        """Start as a streaming replica of the server of that DSN, from a copy of it; for a directory that is new."""
        self._make_directory()
        with self._locked():
            options = ["--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream"]
            done = self._run("pg_basebackup", "-D", self._data, "-d", server, *options)
            if done.returncode != 0:
                raise ClusterError(f"no replica in {self._directory}: {done.stdout.strip()}")
            self._start()

    def stop(self) -> None:
        """Stop the server if it runs and wait until it is gone."""
        if self._data.exists():
            with self._locked():
                self._stop()

    def erase(self) -> None:
        """Stop the server and delete everything that it keeps."""
        self.stop()
        shutil.rmtree(self._data, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def pid(self) -> int | None:
        """Return the server's process id, None when it does not run.

        The file that names it outlives a crash and a reboot, and the number may be another program's by then.
        """
        try:
            pid = int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if os.fsencode(self._data) in argv else None

    def dsn(self, database: str) -> str:
        """Return the address of `database` on this server, by TCP; raise ClusterError when it never ran."""
        port = self._last_port()
        if port is None:
            raise ClusterError(f"no server was ever started in {self._directory}")
        return f"postgresql://postgres@127.0.0.1:{port}/{database}"

    def _make_directory(self) -> None:
        socket_path = os.fsencode(self._data / ".s.PGSQL.65535")
        if len(socket_path) > SOCKET_PATH_MAX_BYTES:
            raise ClusterError(
                f"{self._directory} is too long a path for a unix socket: set GUESTD_CACHE to a shorter one"
            )
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._identity:
            os.chown(self._directory, self._identity["user"], self._identity["group"])
            self._check_nobody_may_enter(self._directory)
            self._check_nobody_may_enter(self._programs)

    def _check_nobody_may_enter(self, directory: Path) -> None:
        for step in [*reversed(directory.parents), directory]:
            if subprocess.run(["test", "-x", step], cwd="/", check=False, **self._identity).returncode != 0:
                raise ClusterError(
                    f"root's PostgreSQL runs as nobody, who may not enter {step}: "
                    "set GUESTD_CACHE to a directory that is open to all"
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _initialise(self) -> None:
        # Under another name until it is whole: an interrupted initdb leaves nothing like a cluster.
        unfinished = self._directory / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if self._settings.get("fsync") == "off":
            options.append("--no-sync")
        done = self._run("initdb", "-D", unfinished, *options)
        if done.returncode != 0:
            raise ClusterError(f"initdb in {self._directory} failed: {done.stdout.strip()}")
        unfinished.rename(self._data)

    def _start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._try_to_start():
            if time.monotonic() > deadline:
                raise ClusterError(f"PostgreSQL did not start within {START_SECONDS:.0f} s: see {self._log}")
            time.sleep(0.2)

    def _try_to_start(self) -> bool:
        """Return whether the server takes connections; raise ClusterError where trying again is no use."""
        for leftover in [self._data / "postmaster.pid", *self._data.glob(".s.PGSQL.*")]:
            leftover.unlink(missing_ok=True)
        port = free_port(self._last_port() or 0)
        (self._directory / "port").write_text(f"{port}\n")
        settings = {**self._settings, "port": str(port)}
        options = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in settings.items())
        log_start_bytes = self._log.stat().st_size if self._log.exists() else 0
        wait = ["-w", "-t", f"{START_SECONDS:.0f}"]
        if self._run("pg_ctl", "start", "-D", self._data, "-l", self._log, *wait, "-o", options).returncode == 0:
            return True
        with self._log.open(errors="replace") as log:
            log.seek(log_start_bytes)
            output = log.read()
        if not any(reason in output for reason in PASSING):
            raise ClusterError(
                f"PostgreSQL did not start in {self._directory}: {output.strip() or 'without a message'}"
            )
        return False

    def _stop(self) -> None:
        for mode in ("fast", "immediate"):
            if self.pid() is not None:
                self._run("pg_ctl", "stop", "-D", self._data, "-m", mode, "-w", "-t", f"{START_SECONDS:.0f}")
        if self.pid() is not None:
            raise ClusterError(f"PostgreSQL (process {self.pid()}) does not stop: see {self._log}")

    def _last_port(self) -> int | None:
        try:
            return int((self._directory / "port").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            **self._identity,
        )


def prefix() -> Path:
    """Return the directory of PostgreSQL's programs, unpacking them first where that was never done.

    GUESTD_STORE_PACKAGES names another entry of get-packages than timescaledb. Raises ClusterError after that
    has printed on stderr what is missing.
    """
    try:
        return unpacked(os.environ.get("GUESTD_STORE_PACKAGES", "timescaledb"))
    except PackagesError as exc:
        raise ClusterError("there is no PostgreSQL to start") from exc


def programs_in(prefix: Path) -> Path:
    """The directory of the server's and the clients' programs, of whichever version of PostgreSQL is there."""
    (programs,) = prefix.glob("usr/lib/postgresql/*/bin")
    return programs


def create_database(server: str, name: str) -> None:
    """Create database `name` and its timescaledb extension, where missing, on the server of the DSN `server`.

    Safe when several do it at once.
    """
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(hashtext('guestd create_database'))")
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            # not template1: TimescaleDB's workers connect to it, and a template in use cannot be copied
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        with psycopg.connect(server, dbname=name, autocommit=True) as inside:
            inside.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The TimescaleDB that ./dev keeps in the cache.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start it, make the database guestd, print its DSN")
    up.add_argument("--fresh", action="store_true", help="delete everything in it first")
    verbs.add_parser("down", help="stop it")
    verbs.add_parser("dsn", help="print the DSN of the running one")
    return parser.parse_args()


def main() -> None:
    """Do the verb that the command line names."""
    arguments = _arguments()
    programs = prefix()
    cluster = Cluster(programs.parent / "store", prefix=programs)
    if arguments.verb == "down":
        cluster.stop()
        return
    if arguments.verb == "up":
        if arguments.fresh:
            cluster.erase()
        cluster.start()
        create_database(cluster.dsn("postgres"), "guestd")
    elif cluster.pid() is None:
        raise ClusterError("the store is not running: ./dev up starts it")
    print(cluster.dsn("guestd"))


if __name__ == "__main__":
    try:
        main()
    except ClusterError as exc:
        sys.exit(f"cluster: {exc}")
