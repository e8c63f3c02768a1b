"""Where tools/harness/get-packages has unpacked Debian packages."""

from __future__ import annotations

import subprocess
from pathlib import Path


class PackagesError(Exception):
    """Packages are not available; tools/harness/get-packages has printed why, and what to do instead."""


def unpacked(name: str) -> Path:
    """Return the directory of an entry of tools/harness/get-packages, fetching it first where that was never done."""
    getter = Path(__file__).with_name("get-packages")
    done = subprocess.run([getter, name], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise PackagesError(f"the packages of {name} could not be unpacked")
    return Path(done.stdout.strip())
