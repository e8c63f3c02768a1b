"""A real systemd, booted in namespaces of its own on this host's /usr: for the unit, and what it promises. Root only.

    STATE/root    its root: etc, var and opt are its own, usr is this host's and read-only
    STATE/log     output of the first process

The network is this host's. Ending the first process ends everything that it started.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from tools.harness.waiting import NotInTime, eventually

INIT = Path(__file__).with_name("booted_init.sh")
SYSTEMD = Path("/usr/lib/systemd/systemd")
UNITS = Path("/usr/lib/systemd/system")
# A second on an idle machine.
START_SECONDS = 90.0
TARGET = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
# Of what a boot starts, that which a root without devices, mounts and logins can have.
KEPT = ("systemd-journald", "systemd-tmpfiles-setup.service", "systemd-ask-password")


class BootedError(Exception):
    """No systemd can be booted here, or it does not start; the message says why."""


def obstacle() -> str | None:
    """Why no systemd can be booted on this host; None if one can."""
    if os.geteuid() != 0:
        return "namespaces and mounts are for root"
    if not SYSTEMD.exists():
        return "this host has no systemd"
    if _unified() is None:
        return "this host has no cgroup2"
    missing = [program for program in ("unshare", "nsenter", "mount", "pivot_root") if shutil.which(program) is None]
    return f"this host has no {missing[0]}" if missing else None


class Booted:
    """One machine in `state`, an absolute path."""

    def __init__(self, state: Path) -> None:
        self.root = state / "root"
        self._log = state / "log"
        self._group: Path | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        for name in (
            "usr",
            "etc/systemd/system",
            "proc",
            "sys",
            "dev",
            "run",
            "tmp",
            "var/lib",
            "var/log",
            "opt",
            "srv",
        ):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        self._write_etc()

    def _write_etc(self) -> None:
        etc = self.root / "etc"
        (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n")
        (etc / "group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        (etc / "machine-id").touch()
        shutil.copy("/etc/ld.so.cache", etc)
        own = etc / "systemd/system"
        (own / "booted.target").write_text(TARGET)
        for wants in ("sysinit.target.wants", "local-fs.target.wants", "sockets.target.wants", "timers.target.wants"):
            for unit in (UNITS / wants).glob("*"):
                if not unit.name.startswith(KEPT):
                    (own / unit.name).symlink_to("/dev/null")

    def up(self, binds: Mapping[Path, str]) -> None:
        """Boot, with directories of this host under other names; BootedError when that fails."""
        exc, unified = obstacle(), _unified()
        if exc is not None or unified is None:
            raise BootedError(exc or "no cgroup2")
        self._group = unified / f"guestd-booted-{os.getpid()}"
        self._group.mkdir()
        namespaces = [
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child",
            "--uts",
            "--ipc",
            "--cgroup",
        ]
        pairs = [f"{source}:{target}" for source, target in binds.items()]
        # Into its group first: what it sees as the top of all groups is where it is when it unshares.
        enter = 'echo $$ >"$1"/cgroup.procs && shift && exec "$@"'
        command = ["unshare", *namespaces, str(INIT), str(self.root), *pairs]
        with self._log.open("wb") as log:
            self._holder = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "sh", "-c", enter, "sh", str(self._group), *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._wait(lambda: self.state() in ("running", "degraded"), "the machine is up")

    def state(self) -> str:
        """As systemd calls it: starting, running, degraded; empty before it answers."""
        done = subprocess.run(
            self._inside("systemctl", "is-system-running"), capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    def run(self, *command: str) -> str:
        """Run a command in there; its output, whatever its status."""
        done = subprocess.run(self._inside(*command), capture_output=True, text=True, check=False, timeout=100)
        return done.stdout + done.stderr

    def down(self) -> None:
        """End it and all its processes."""
        if self._holder is not None:
            self._holder.send_signal(signal.SIGKILL)
            self._holder.wait()
        if self._group is not None:
            group = self._group
            with suppress(NotInTime):
                eventually(lambda: _removed(group), "its groups are removed", START_SECONDS, every_seconds=0.05)

    def _inside(self, *command: str) -> list[str]:
        return [
            "nsenter",
            "--target",
            str(self._first_process()),
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
            *command,
        ]

    def _first_process(self) -> int:
        """0 before there is a first process."""
        assert self._holder is not None
        pid = self._holder.pid
        if self._holder.poll() is not None:
            raise BootedError(f"the machine has ended: {self._log.read_text().strip()}")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        try:
            eventually(is_so, what, START_SECONDS, every_seconds=0.05)
        except NotInTime as exc:
            raise BootedError(f"{exc}; {self._log.read_text().strip()}") from None


def _unified() -> Path | None:
    """Where cgroup2 is mounted, with the other hierarchies or alone."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"), None)


def _removed(group: Path) -> bool:
    """Groups can be removed when their processes are gone, the innermost first."""
    for path in sorted(group.rglob("*"), reverse=True):
        if path.is_dir():
            try:
                path.rmdir()
            except OSError:
                return False
    try:
        group.rmdir()
    except OSError:
        return False
    return True
