"""A private libvirtd with real guests, in namespaces of its own: network, mounts, processes. Root only.

    STATE/run/libvirt-sock   where clients connect: `Lab.uri`
    STATE/channels           the guests' sockets, UUID.socket (agent) and NAME.control, and consoles, NAME.log
    STATE/etc, lib, log      libvirt's own directories

libvirtd, QEMU and what they call come from get-packages (lab), the guests' kernel too; nothing is installed,
no packet leaves the namespaces, and /dev/kvm is not there: guests run in QEMU's emulator. Ending the namespaces' first
process (tools/harness/lab_init.py) ends everything.

As a program, `lab.py up [GUESTS]`, `down` and `virsh ...` manage the lab that `./dev lab up` keeps in the cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

from tools.harness.lab_domain import domain_xml
from tools.harness.lab_guest import guest_image
from tools.harness.packages import PackagesError, unpacked
from tools.harness.waiting import NotInTime, eventually

INIT = Path(__file__).with_name("lab_init.py")
# Its first connection asks QEMU what it can do: 0.1 to 8 s were seen, on an idle machine.
START_SECONDS = 90.0
LIBVIRTD_CONF = 'auth_unix_ro = "none"\nauth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\n'
# Root within the namespaces; what needs systemd, cgroups, udev or a security module is off.
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""


class LabError(Exception):
    """The lab cannot be started, or a command in it failed; the message says why."""


def obstacle() -> str | None:
    """Why there can be no lab on this host; None when there can."""
    if os.geteuid() != 0:
        return "the lab makes namespaces and mounts, which only root may"
    if os.uname().machine != "x86_64":
        return f"the lab's packages are for x86_64, and this host is {os.uname().machine}"
    if not Path("/dev/net/tun").exists():
        return "the lab's libvirt needs /dev/net/tun"
    for program in ("unshare", "nsenter", "setpriv", "mount"):
        if shutil.which(program) is None:
            return f"the lab needs {program} (the packages util-linux and mount)"
    return None


class Lab:
    """One libvirtd and its guests in `state`, an absolute path of at most 60 characters.

    `beside` names another lab, whose network this one shares: guests can be migrated between the two.
    """

    def __init__(self, state: Path, *, beside: Lab | None = None) -> None:
        self.state = state
        self._beside = beside
        self.channels = state / "channels"
        self.socket = state / "run/libvirt-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        self._holder: subprocess.Popen[bytes] | None = None

    def up(self, *wrapper: str) -> None:
        """Make the namespaces and start libvirtd in them; LabError when that fails.

        `wrapper` is a command to start them under: `setpriv --pdeathsig KILL` ends them with the caller.
        """
        exc = obstacle()
        if exc is not None:
            raise LabError(exc)
        packages = unpacked("lab")
        self._make_directories(packages)
        guest = self.state / "guest"
        guest_image(packages, guest)
        with self._log("init").open("wb") as log:
            command = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
            process = self._holder = subprocess.Popen(
                [*wrapper, *self._network(), *command, sys.executable, INIT, packages, self.state, guest],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.state / "pid").write_text(f"{process.pid}\n")

        def ready() -> bool:
            if process.poll() is not None:
                raise LabError(f"the lab's namespaces could not be made: {self._log('init').read_text().strip()}")
            return (self.state / "ready").exists()

        _wait(ready, "the lab's namespaces are ready")
        self.start_libvirtd()

    def _network(self) -> list[str]:
        """The command that gives what it runs a network of its own, or the other lab's."""
        if self._beside is None:
            return ["unshare", "--net"]
        return ["nsenter", "--target", str(self._beside.init_pid()), "--net"]

    def _make_directories(self, packages: Path) -> None:
        for name in ("root", "run", "log", "channels", "etc/nwfilter", "lib/dnsmasq"):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        # Two on one machine would be the same host to each other.
        (self.state / "etc/libvirtd.conf").write_text(f'{LIBVIRTD_CONF}host_uuid = "{uuid4()}"\n')
        (self.state / "etc/qemu.conf").write_text(QEMU_CONF)
        for stock in (packages / "usr/share/libvirt/nwfilter").glob("*.xml"):
            shutil.copy(stock, self.state / "etc/nwfilter")

    def start_libvirtd(self) -> None:
        """Start libvirtd and wait until it answers."""
        (self.state / "run/libvirtd.pid").unlink(missing_ok=True)
        command = ["libvirtd", "-d", "-f", "/etc/libvirt/libvirtd.conf", "--pid-file", "/run/libvirt/libvirtd.pid"]
        self.run(*command)
        _wait(self._answers, "libvirtd answers")

    def _answers(self) -> bool:
        return self._inside("virsh", "-q", "uri").returncode == 0

    def add_guest(self, name: str, uuid: UUID, program: str = "lab.interval=1") -> None:
        """Define a guest and start it; it needs some seconds to boot. `program`: see `domain_xml`."""
        xml = self.state / f"{name}.xml"
        xml.write_text(domain_xml(name, uuid, self.channels, program))
        self.run("virsh", "-q", "define", str(xml))
        self.run("virsh", "-q", "start", name)

    def knows_user(self, name: str, user: int, group: int) -> None:
        """Make a user known to libvirtd, which refuses a client of whom it finds no record, whatever its rights."""
        etc = Path("/proc", str(self.init_pid()), "root/etc")
        for file, line in (
            ("passwd", f"{name}:x:{user}:{group}::/:/usr/sbin/nologin"),
            ("group", f"{name}:x:{group}:"),
        ):
            with (etc / file).open("a") as records:
                records.write(f"{line}\n")

    def signal_libvirtd(self, number: signal.Signals) -> None:
        """Send libvirtd a signal."""
        self.run("busybox", "kill", f"-{int(number)}", (self.state / "run/libvirtd.pid").read_text())

    def stop_libvirtd(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End libvirtd, guests stay; returns when it is gone."""
        pid = (self.state / "run/libvirtd.pid").read_text()
        self.signal_libvirtd(number)
        _wait(lambda: self._inside("busybox", "kill", "-0", pid).returncode != 0, "libvirtd has ended")

    def signal_qemu(self, name: str, number: signal.Signals) -> None:
        """Send a guest's QEMU a signal."""
        self.run("busybox", "kill", f"-{int(number)}", (self.state / f"run/qemu/{name}.pid").read_text())

    def run(self, *command: str) -> str:
        """Run a command in the lab's namespaces and return what it printed; LabError when it fails."""
        done = self._inside(*command)
        if done.returncode != 0:
            raise LabError(f"{' '.join(command)} failed in the lab: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def _inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        init = f"/proc/{self.init_pid()}"
        enter = ["nsenter", "--target", str(self.init_pid()), "--net", "--mount", "--pid", "--ipc", "--uts"]
        # --root after the mount namespace: where PID 1 has its root.
        return subprocess.run(
            [*enter, f"--root={init}/root", f"--wd={init}/root", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"},
        )

    def init_pid(self) -> int:
        """The host's number of the namespaces' first process; LabError when the lab is not up."""
        try:
            children = Path(f"/proc/{self.holder_pid()}/task/{self.holder_pid()}/children").read_text().split()
            return int(children[0])
        except (OSError, IndexError, ValueError):
            raise LabError("the lab is not up") from None

    def holder_pid(self) -> int:
        """The process that unshared; it lives as long as the namespaces' first process."""
        return int((self.state / "pid").read_text())

    def down(self) -> None:
        """End everything that runs in the lab; the state's directory stays. A lab that is down is left alone."""
        try:
            holder, init = self.holder_pid(), self.init_pid()
        except (OSError, ValueError, LabError):
            return
        os.kill(init, signal.SIGKILL)
        if self._holder is None:  # another process has started it, and reaps it
            _wait(lambda: not Path(f"/proc/{holder}").exists(), "the lab's processes have ended")
        else:
            self._holder.wait(START_SECONDS)

    def _log(self, name: str) -> Path:
        return self.state / f"{name}.log"


def _wait(is_so: Callable[[], bool], what: str) -> None:
    try:
        eventually(is_so, what, START_SECONDS)
    except NotInTime as exc:
        raise LabError(str(exc)) from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev lab", description="A private libvirtd with real guests.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start it with guests, and print how to reach it")
    up.add_argument("guests", type=int, nargs="?", default=2, help="number of guests (default: 2)")
    verbs.add_parser("down", help="end it and its guests")
    virsh = verbs.add_parser("virsh", help="run virsh in it", prefix_chars="\0")
    virsh.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args()


def main() -> None:
    """Do the verb that the command line names."""
    arguments = _arguments()
    lab = Lab(Path(os.environ["GUESTD_CACHE"], "lab"))
    match arguments.verb:
        case "up":
            lab.down()
            shutil.rmtree(lab.state, ignore_errors=True)
            lab.up()
            for number in range(arguments.guests):
                lab.add_guest(f"guest{number}", uuid4())
            print(f"{lab.uri}\nchannels: {lab.channels}\nlist the guests: ./dev lab virsh list --all")
        case "down":
            lab.down()
        case "virsh":
            print(lab.run("virsh", *arguments.command), end="")


if __name__ == "__main__":
    try:
        main()
    except (LabError, PackagesError) as exc:
        sys.exit(f"lab: {exc}")
