"""Copies of guestd with one rule taken out, and whether tests miss it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copied(directory: Path) -> Path:
    """Put a copy of guestd into `directory` and return its path."""
    shutil.copytree(ROOT / "daemon/guestd", directory / "guestd", ignore=shutil.ignore_patterns("__pycache__"))
    return directory / "guestd"


def mutate(file: Path, text: str, instead: str) -> None:
    """Put `instead` in the place of `text`, which is there once."""
    before = file.read_text()
    assert before.count(text) == 1, "the mutant no longer fits the code"
    file.write_text(before.replace(text, instead))


def survives(directory: Path, tests: Sequence[str]) -> bool:
    """Whether these tests pass with the copy of guestd in `directory`."""
    options = [
        # Their own conftest and no other: a mutant does not wait for the drivers that fixtures of other tests import.
        "--confcutdir=tests/unit",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout=10",
        "--timeout-method=thread",
        "-o",
        f"pythonpath={directory} schema tests .",
    ]
    environment = os.environ | {
        "HYPOTHESIS_PROFILE": "mutant",
        "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT / "schema")]),
    }
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 0
