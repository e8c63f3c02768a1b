"""The lab's guest: Debian's cloud kernel and an initramfs with busybox, Python and this checkout's `guestd agent`.

The kernel reads several archives one behind the other. What does not change from day to day is made once into the
cache (`_base`); the agent and /init, from this checkout, are put behind it every time.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.harness.packages import PackagesError

REPOSITORY = Path(__file__).resolve().parents[2]
# All of virtio is modules, and insmod takes them in this order.
MODULES = (
    "drivers/virtio/virtio_ring", "drivers/virtio/virtio", "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci", "drivers/char/virtio_console",
    "drivers/virtio/virtio_balloon", "net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
    "drivers/block/virtio_blk", "drivers/misc/pvpanic/pvpanic", "drivers/misc/pvpanic/pvpanic-mmio",
)  # fmt: skip
LIBRARIES = (
    "ld-linux-x86-64.so.2", "libc.so.6", "libcrypto.so.3", "libdl.so.2", "libexpat.so.1", "libffi.so.8", "libm.so.6",
    "libpthread.so.0", "librt.so.1", "libssl.so.3", "libz.so.1",
)  # fmt: skip
# Of lib-dynload; the agent does without the rest.
EXTENSIONS = re.compile(
    r"_(asyncio|contextvars|ctypes|hashlib|json|posixshmem|queue|ssl|typing|zoneinfo)\.|(mmap|resource|termios)\."
)
UNUSED = {
    "__pycache__", "curses", "dbm", "distutils", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "multiprocessing",
    "pydoc_data", "sqlite3", "test", "turtle.py", "unittest", "venv", "wsgiref", "xmlrpc",
}  # fmt: skip
AGENT_PACKAGES = ("msgspec", "paho-mqtt", "psutil", "structlog")


def guest_image(packages: Path, directory: Path) -> None:
    """Put `kernel` and `initrd` for guests into `directory`. `packages`: what get-packages lab has unpacked."""
    directory.mkdir(exist_ok=True)
    kernel = next((packages / "boot").glob("vmlinuz-*"))
    shutil.copy(kernel, directory / "kernel")
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary)
        for package in ("daemon/guestd", "schema/gueststore"):  # the second has what both command lines share
            shutil.copytree(
                REPOSITORY / package, tree / "agent" / Path(package).name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(Path(__file__).with_name("lab_guest_init.sh"), tree / "init")
        (tree / "init").chmod(0o755)
        _compile(packages, tree / "agent")
        shutil.copy(Path(__file__).with_name("lab_sender.py"), tree / "agent")
        (directory / "initrd").write_bytes(_base(packages).read_bytes() + gzip.compress(_archive(tree), 1))


def _base(packages: Path) -> Path:
    """The archive of everything that is not ours, from the cache."""
    pins = _pins()
    key = hashlib.sha256("\0".join([str(packages), pins, Path(__file__).read_text()]).encode()).hexdigest()[:8]
    base = packages.parent / f"lab-guest-{key}.cpio.gz"
    if not base.exists():
        with tempfile.TemporaryDirectory() as temporary:
            tree = Path(temporary)
            _fill(tree, packages, pins)
            new = base.with_suffix(f".{os.getpid()}")
            new.write_bytes(gzip.compress(_archive(tree), 6))
            new.replace(base)
    return base


def _fill(tree: Path, packages: Path, pins: str) -> None:
    for name in ("bin", "dev", "lib/modules", "lib64", "lib/x86_64-linux-gnu", "proc", "run", "sys", "tmp", "usr/bin"):
        (tree / name).mkdir(parents=True)
    shutil.copy(packages / "bin/busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    kernel = next((packages / "lib/modules").iterdir()) / "kernel"
    for module in MODULES:
        shutil.copy(kernel / f"{module}.ko", tree / "lib/modules")
    (tree / "modules").write_text("".join(f"/lib/modules/{Path(module).name}.ko\n" for module in MODULES))
    for library in LIBRARIES:
        found = next(packages.glob(f"*/x86_64-linux-gnu/{library}"), None) or next(
            packages.glob(f"usr/lib/*/{library}")
        )
        shutil.copy(found, tree / "lib/x86_64-linux-gnu")
    (tree / "lib64/ld-linux-x86-64.so.2").symlink_to("/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    shutil.copy(packages / "usr/bin/python3.11", tree / "usr/bin")
    python = tree / "usr/lib/python3.11"
    shutil.copytree(packages / "usr/lib/python3.11", python, ignore=lambda _, names: UNUSED & set(names))
    (python / "lib-dynload").mkdir()
    for extension in (packages / "usr/lib/python3.11/lib-dynload").iterdir():
        if EXTENSIONS.match(extension.name):
            shutil.copy(extension, python / "lib-dynload")
    _install(pins, tree / "site")
    for directory in (python, tree / "site"):
        _compile(packages, directory)


def _pins() -> str:
    """The lines of requirements.lock for what the agent needs."""
    blocks = re.split(r"\n(?=\S)", (REPOSITORY / "requirements.lock").read_text())
    return "\n".join(block for block in blocks if block.split("==")[0] in AGENT_PACKAGES)


def _install(pins: str, site: Path) -> None:
    """Install the pinned wheels for the guest's Python, which need not be the one that runs this."""
    requirements = site.with_name("requirements.txt")
    requirements.write_text(pins)
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_x86_64"]
    command += ["--platform=manylinux_2_28_x86_64", "--target", str(site), "-r", str(requirements)]
    done = subprocess.run(command, check=False)
    requirements.unlink()
    if done.returncode != 0:
        raise PackagesError("the guest's Python packages could not be installed")
    for unneeded in ("psutil/tests", "bin"):
        shutil.rmtree(site / unneeded, ignore_errors=True)


def _compile(packages: Path, directory: Path) -> None:
    """Compile with the guest's own interpreter and leave only that: emulated guests are slow at it, and small."""
    libraries = [packages / "lib/x86_64-linux-gnu", packages / "usr/lib/x86_64-linux-gnu"]
    command = [f"{libraries[0]}/ld-linux-x86-64.so.2", "--library-path", ":".join(map(str, libraries))]
    command += [f"{packages}/usr/bin/python3.11", "-I", "-S", "-m", "compileall", "-q", "-b", "-s", str(directory)]
    subprocess.run([*command, "--invalidation-mode", "unchecked-hash", str(directory)], check=True)
    for source in directory.rglob("*.py"):
        source.unlink()


def _archive(tree: Path) -> bytes:
    """The tree as a cpio archive of the kind that the kernel unpacks (newc), owned by root."""
    return b"".join([*_entries(tree), _entry("TRAILER!!!", mode=0, content=b"", inode=0)])


def _entries(tree: Path) -> Iterator[bytes]:
    for inode, path in enumerate(sorted(tree.rglob("*")), start=1):
        content = b""
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        yield _entry(str(path.relative_to(tree)), mode=path.lstat().st_mode, content=content, inode=inode)


def _entry(name: str, *, mode: int, content: bytes, inode: int) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, four device numbers, size of the name, checksum (unused)
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + encoded) + _padded(content)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)
