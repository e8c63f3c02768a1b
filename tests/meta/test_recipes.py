"""docs/how-to/add-a-field.md does what it says: its blocks are applied to a copy of the tree, in order.

A block of `sh` is run; one of `diff` edits the file that is named before it; one of `sql` is appended to it. Both
examples of the page are followed in one copy.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.store import Server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/add-a-field.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(r"`([\w.-]+(?:/[\w.-]+)+)`")
# A minute on quiet cores; what the page runs fetches npm's packages once.
SECONDS = 600


def copy_of_the_tree(directory: Path) -> Path:
    """What git knows of, as it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name, follow_symlinks=False)
    return directory


def run(script: str, tree: Path, dsn: str) -> None:
    """Run a block of the page, with tests on this session's server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH", "COV"))}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tree,
        env=kept | {"GUESTD_DATABASE_DSN": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-5000:]}"


def edit(file: Path, diff: str) -> None:
    """Apply a diff without line numbers: what it keeps and takes away must stand in the file, once."""
    lines = [(line[:1] or " ", line[1:]) for line in diff.splitlines()]
    before = "".join(f"{text}\n" for sign, text in lines if sign != "+")
    after = "".join(f"{text}\n" for sign, text in lines if sign != "-")
    content = file.read_text("utf-8")
    assert content.count(before) == 1, f"{file} has this {content.count(before)} times:\n{before}"
    file.write_text(content.replace(before, after), "utf-8")


def named_file(tree: Path, text: str) -> Path:
    """The file that the text before a block names last; NNNN stands for a number."""
    name = NAMED_FILE.findall(text)[-1].replace("NNNN", "[0-9]*")
    return next(iter(tree.glob(name)))


def follow(page: str, tree: Path, dsn: str) -> list[str]:
    """Do what each block says; the kinds of the blocks."""
    kinds, end = [], 0
    for block in BLOCK.finditer(page):
        kind, content = block.groups()
        kinds.append(kind)
        before, end = page[end : block.start()], block.end()
        match kind:
            case "sh":
                run(content, tree, dsn)
            case "diff":
                edit(named_file(tree, before), content)
            case "sql":
                file = named_file(tree, before)
                file.write_text(file.read_text("utf-8") + content, "utf-8")
            case _:
                raise AssertionError(f"a block of {kind}")
    return kinds


@pytest.mark.timeout(SECONDS)
def test_a_field_is_added_as_the_page_says(tmp_path: Path, cluster: Server) -> None:
    tree = copy_of_the_tree(tmp_path)
    kinds = follow(PAGE.read_text("utf-8"), tree, cluster.dsn("postgres"))
    assert kinds.count("sql") == 2
    for name in ("cpuFrequencyMHz", "threadCount"):
        assert f"| {name} |" in (tree / "docs/schema.md").read_text("utf-8")
