"""A private mosquitto in one directory, for development and for tests, with the configuration of deploy/mosquitto.

    DIRECTORY/mosquitto.conf   what is this broker's own: listener, files, the place of the queue
    DIRECTORY/passwords        its users, hashed; DIRECTORY/<user>.password one of them, to be named in a configuration
    DIRECTORY/queue            what it has taken and not delivered
    DIRECTORY/log, pid, port   of the last start; the port is taken again when it is free

As a program, `broker.py up [--fresh]`, `down` and `address` manage the broker that `./dev up` keeps in the cache.
"""

import argparse
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.harness.packages import PackagesError, unpacked
from tools.harness.ports import free_port

DEPLOY = Path(__file__).resolve().parents[2] / "deploy/mosquitto"
START_SECONDS = 30.0
USERS = ("guestd", "simulator")
# Lines of deploy/mosquitto/mosquitto.conf that each broker here has with a place of its own.
_PLACES = ("listener", "password_file", "acl_file", "persistence_location", "include_dir")


class BrokerError(Exception):
    """The broker could not be started or stopped; the message says why and what to do."""


class Broker:
    """One broker in `directory`, from the programs under `prefix` (see `prefix()`).

    `lines` go to its configuration, after those of the listener in deploy/mosquitto, `overrides` to its end; `access`
    is what decides who may say and hear what, else deploy/mosquitto/acl. `start` and `stop` raise BrokerError.
    """

    def __init__(
        self,
        directory: Path,
        *,
        prefix: Path,
        address: str = "127.0.0.1",
        lines: Sequence[str] = (),
        overrides: Sequence[str] = (),
        access: Sequence[str] | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self._prefix = prefix
        self._address = address
        self._lines = lines
        self.overrides = overrides
        self._access = access
        self._configuration = self.directory / "mosquitto.conf"
        self._queue = self.directory / "queue"
        self._log = self.directory / "log"
        self._child: subprocess.Popen[bytes] | None = None
        self.port = 0

    def add_user(self, name: str, password: str | None = None) -> Path:
        """Make a user, or give it another password; returns the file that holds the password."""
        self._make_directory()
        password = password or secrets.token_urlsafe(12)
        passwords = self.directory / "passwords"
        self._run("mosquitto_passwd", "-b", *([] if passwords.exists() else ["-c"]), passwords, name, password)
        file = self.directory / f"{name}.password"
        file.touch(mode=0o600)
        file.write_text(f"{password}\n")
        return file

    def start(self) -> None:
        """Start it and wait until it takes connections; one that runs already is left alone."""
        self._make_directory()
        if self.pid() is not None:
            self.port = self._last_port()
            return
        deadline = time.monotonic() + START_SECONDS
        while not self._try_to_start():
            if time.monotonic() > deadline:
                raise BrokerError(f"mosquitto did not start within {START_SECONDS:.0f} s: see {self._log}")

    def stop(self) -> None:
        """Stop it if it runs, so that it keeps its queue, and wait until it is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it: what it has not saved is lost."""
        self._end(signal.SIGKILL)

    def forget(self) -> None:
        """Delete the queue and every session; the broker must not run."""
        shutil.rmtree(self._queue, ignore_errors=True)

    def erase(self) -> None:
        """Stop it and delete everything that it keeps."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def pid(self) -> int | None:
        """Return the broker's process id, None when it does not run; the number may be another program's by now."""
        try:
            pid = int((self.directory / "pid").read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if os.fsencode(self._configuration) in argv else None

    def read_log(self) -> str:
        """Return what it has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _make_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    def _try_to_start(self) -> bool:
        self.port = free_port(self._last_port())
        (self.directory / "port").write_text(f"{self.port}\n")
        self._queue.mkdir(exist_ok=True)
        passwords = self.directory / "passwords"
        passwords.touch(mode=0o600)
        acl = self.directory / "acl"
        acl.write_bytes((DEPLOY / "acl").read_bytes())
        acl.chmod(0o600)
        own = [
            f"listener {self.port} {self._address}",
            *_list_listener_lines(),
            *self._lines,
            f"password_file {passwords}",
            *(self._access or [f"acl_file {acl}"]),
            f"persistence_location {self._queue}/",
            f"include_dir {DEPLOY / 'conf.d'}",
            *self.overrides,
            # It would change to a user of its own, who may not enter the directories of tests.
            *(["user root"] if os.geteuid() == 0 else []),
        ]
        self._configuration.write_text("\n".join(own) + "\n")
        with self._log.open("ab") as log:
            # In a session of its own: Ctrl-C in a terminal must not reach it.
            child = subprocess.Popen(
                [self._prefix / "usr/sbin/mosquitto", "-c", self._configuration],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        (self.directory / "pid").write_text(f"{child.pid}\n")
        self._child = child
        return self._answers(child)

    def _answers(self, child: subprocess.Popen[bytes]) -> bool:
        """Whether it takes connections; False when its port was taken in between."""
        deadline = time.monotonic() + START_SECONDS
        while child.poll() is None and time.monotonic() < deadline:
            with socket.socket(socket.AF_INET6 if ":" in self._address else socket.AF_INET) as probe:
                if probe.connect_ex((self._address, self.port)) == 0:
                    return True
            time.sleep(0.02)
        if "Address already in use" not in self.read_log():
            raise BrokerError(f"mosquitto did not start in {self.directory}: {self.read_log().strip()[-500:]}")
        return False

    def _end(self, number: signal.Signals) -> None:
        pid = self.pid()
        if pid is not None:
            os.kill(pid, number)
        deadline = time.monotonic() + START_SECONDS
        while self.pid() is not None:
            if self._child is not None:
                self._child.poll()
            if time.monotonic() > deadline:
                raise BrokerError(f"mosquitto (process {pid}) does not stop: see {self._log}")
            time.sleep(0.01)
        if self._child is not None:
            self._child.wait()

    def _last_port(self) -> int:
        try:
            return int((self.directory / "port").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _run(self, program: str, *arguments: str | Path) -> None:
        subprocess.run([self._prefix / "usr/bin" / program, *arguments], check=True, capture_output=True)


def _list_listener_lines() -> list[str]:
    """List the lines of the listener in deploy/mosquitto that are no place of the installation: what it refuses."""
    lines = (DEPLOY / "mosquitto.conf").read_text().splitlines()
    return [line for line in lines if line and line.split()[0] not in _PLACES and not line.startswith("#")]


def prefix() -> Path:
    """Return the directory of mosquitto's programs, unpacking them first where that was never done.

    Raises BrokerError after tools/harness/get-packages has printed on stderr what is missing.
    """
    try:
        return unpacked("mosquitto")
    except PackagesError as exc:
        raise BrokerError("there is no mosquitto to start") from exc


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The mosquitto that ./dev keeps in the cache.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start it, print where it listens")
    up.add_argument("--fresh", action="store_true", help="delete everything in it first")
    verbs.add_parser("down", help="stop it")
    verbs.add_parser("address", help="print where the running one listens")
    return parser.parse_args()


def main() -> None:
    """Do the verb that the command line names."""
    arguments = _arguments()
    programs = prefix()
    broker = Broker(programs.parent / "broker", prefix=programs)
    if arguments.verb == "down":
        broker.stop()
        return
    if arguments.verb == "up":
        if arguments.fresh:
            broker.erase()
        for name in USERS:
            if not (broker.directory / f"{name}.password").exists():
                broker.add_user(name)
        broker.start()
    elif broker.pid() is None:
        raise BrokerError("the broker is not running: ./dev up starts it")
    else:
        broker.start()
    print(f"mqtt://127.0.0.1:{broker.port} users {' and '.join(USERS)}, passwords in {broker.directory}/*.password")


if __name__ == "__main__":
    try:
        main()
    except BrokerError as exc:
        sys.exit(f"broker: {exc}")
