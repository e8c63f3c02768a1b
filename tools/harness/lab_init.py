"""PID 1 of the lab's namespaces: makes their root from the unpacked packages, then reaps what is orphaned there.

    lab_init.py PACKAGES STATE GUEST

The root is a tmpfs with the packages' directories bound into it, so that every program finds its files where it looks
for them, and nothing of the host's is seen but STATE (under its own name, for sockets) and GUEST (as /guest). /dev has
no kvm. When this process ends, all others of the namespaces are killed by the kernel: a lab leaves nothing behind.

libvirt waits for the end of a QEMU, which is reaped here at once: the PID 1 of some containers takes seconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

DEVICES = ("full", "null", "random", "tty", "urandom", "zero", "net/tun")
READ_ONLY = ("bin", "boot", "lib", "lib64", "sbin", "usr")
PASSWD = """\
root:x:0:0::/root:/bin/sh
libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin
nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin
"""
GROUP = "root:x:0:\ntty:x:5:\nkvm:x:107:\nlibvirt-qemu:x:64055:\nnogroup:x:65534:\n"
# libvirt's directories, and which of the state's they are.
STATE = {"etc/libvirt": "etc", "var/lib/libvirt": "lib", "run/libvirt": "run", "var/log/libvirt": "log"}


def main() -> None:
    """Make the root, enter it, say so in STATE/ready, reap until SIGTERM."""
    packages, state, guest = (Path(argument) for argument in sys.argv[1:])
    socket.sethostname(state.name)  # two hosts of one name are the same to libvirt
    _make_root(state / "root", packages=packages, state=state, guest=guest)
    subprocess.run(["/sbin/ip", "link", "set", "lo", "up"], check=True)
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    (state / "ready").touch()
    while signal.sigwait(awaited) == signal.SIGCHLD:
        _reap()


def _make_root(root: Path, *, packages: Path, state: Path, guest: Path) -> None:
    _mount("-t", "tmpfs", "-o", "mode=755", "lab", root)
    for name in READ_ONLY:
        if (packages / name).is_dir():
            _bind(packages / name, root / name)
    shutil.copytree(packages / "etc", root / "etc", symlinks=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    for name in ("proc", "root", "sys", "tmp", "var/cache/libvirt", "var/tmp"):
        (root / name).mkdir(parents=True)
    _mount("-t", "proc", "proc", root / "proc")
    _mount("-t", "sysfs", "sysfs", root / "sys")
    _make_devices(root / "dev")
    for inside, outside in STATE.items():
        _bind(state / outside, root / inside)
    _bind(guest, root / "guest")
    _bind(state, root / state.relative_to("/"))
    (root / "var/run").symlink_to("/run")
    _make_firewall_names(root)
    os.chroot(root)
    os.chdir("/")


def _make_firewall_names(root: Path) -> None:
    """The names by which libvirt calls iptables: links that the packages make when they are installed."""
    programs = root / "opt/sbin"
    _bind(root / "usr/sbin", programs)
    _mount("-t", "tmpfs", "-o", "mode=755", "sbin", root / "usr/sbin")
    for program in programs.iterdir():
        (root / "usr/sbin" / program.name).symlink_to(f"/opt/sbin/{program.name}")
    for family in ("iptables", "ip6tables", "ebtables"):
        for ending in ("", "-save", "-restore"):
            (root / "usr/sbin" / f"{family}{ending}").symlink_to(f"/opt/sbin/{family}-nft{ending}")


def _make_devices(devices: Path) -> None:
    (devices / "net").mkdir(parents=True)
    for name in DEVICES:
        (devices / name).touch()
        _mount("--bind", Path("/dev", name), devices / name)
    (devices / "shm").mkdir()
    (devices / "pts").mkdir()
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=620,gid=5", "devpts", devices / "pts")
    (devices / "ptmx").symlink_to("pts/ptmx")


def _bind(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _mount("--bind", source, target)


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
