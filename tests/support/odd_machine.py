"""A machine on which something is wrong, for one command: files of /proc with other content, a mount that hangs.

As a program it enters a mount namespace of its own, so that nothing else on this machine sees what it mounts:

    python -m support.odd_machine [--bind FILE=PLACE]... [--hang DIRECTORY] -- COMMAND...

The mount is a FUSE file system whose server answers the greeting and nothing else; calls on it hang until the standard
input ends, and fail then.
"""

import argparse
import ctypes
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.daemon import environment

# sched.h, sys/mount.h and the kernel's fuse.h.
CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 1 << 18
FUSE_INIT = 26
REQUEST = struct.Struct("<IIQ")  # of a request's header: length, opcode, unique
REPLY = struct.Struct("<IiQ")
GREETING = struct.Struct("<IIIIHHIIHHI7I")


@contextmanager
def started_on_odd_machine(
    command: list[str], binds: Mapping[str, Path] | None = None, hang: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command with files bound to their places in /proc, and a directory that hangs until its stdin is closed."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    if hang is not None and not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse")
    words = [sys.executable, "-m", "support.odd_machine"]
    for place, file in (binds or {}).items():
        words += ["--bind", f"{file}={place}"]
    if hang is not None:
        words += ["--hang", str(hang)]
    known = environment()
    paths = os.pathsep.join([known["PYTHONPATH"], str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [*words, "--", *command],
        env=known | {"PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def main() -> None:
    """Mount what is asked for, and become the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", action="append", default=[])
    parser.add_argument("--hang")
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
    for bind in chosen.bind:
        file, _, place = bind.partition("=")
        subprocess.run(["mount", "--bind", file, place], check=True)
    if chosen.hang is not None:
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        _check(libc.mount(b"hung", chosen.hang.encode(), b"fuse.hung", 0, options))
        if os.fork() == 0:
            _serve(device)
    os.execvp(chosen.command[0], chosen.command)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _serve(device: int) -> None:
    """Answer the greeting and nothing else, until the standard input ends."""
    for stream in (1, 2):
        os.close(stream)  # the command's pipes end with the command
    while True:
        ready, _, _ = select.select([device, 0], [], [])
        if 0 in ready:
            os._exit(0)
        _, opcode, unique = REQUEST.unpack_from(os.read(device, 1 << 20))
        if opcode == FUSE_INIT:
            greeting = GREETING.pack(7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0, *[0] * 7)
            os.write(device, REPLY.pack(REPLY.size + len(greeting), 0, unique) + greeting)


if __name__ == "__main__":
    main()
