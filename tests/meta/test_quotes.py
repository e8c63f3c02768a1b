"""Quotations of logs, errors and pages in docs/failure-modes.md and docs/runbook.md are texts of the code."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Words of systemd, PostgreSQL, OpenSSL, the kernel and libvirt, which guestd passes on; and values of settings.
NOT_OURS = {
    "Failed to find user record",
    "Permission denied",
    "Too many open files",
    "Watchdog timeout",
    "certificate verify failed",
    "enforce",
    "libvirt",
    "report",
    "too many clients",
}


@cache
def texts() -> list[str]:
    """Every string of the code; a hole of an f-string is a line end."""
    found = []
    for folder in ("daemon", "schema", "tools/harness"):
        for file in (ROOT / folder).rglob("*.py"):
            found += list(_strings(ast.parse(file.read_text())))
    return found


def _strings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)


def is_in_the_code(quoted: str) -> bool:
    """Whether a text of the code contains the quotation, with a number or nothing where the code has a value."""
    with_holes = re.sub(r"\d+", "\n", quoted)
    return any(quoted in text or with_holes in text for text in texts())


def quoted_failures() -> list[str]:
    """Quotations of the columns that say what an operator sees."""
    rows = [
        line
        for line in (ROOT / "docs/failure-modes.md").read_text().splitlines()
        if line.startswith("| ") and "[tests/" in line
    ]
    return sorted({text for row in rows for text in re.findall(r'"([^"`]+)"', row.split(" | ")[1])} - NOT_OURS)


def searched_events() -> list[str]:
    """What the runbook's commands search the journal for."""
    text = (ROOT / "docs/runbook.md").read_text()
    return re.findall(r"journalctl .*--grep [\"']([^\"']+)", text) + re.findall(r"journalctl .*\| grep '([^']+)'", text)


@pytest.mark.parametrize("quoted", quoted_failures())
def test_what_the_failure_modes_quote_is_in_the_code(quoted: str) -> None:
    assert is_in_the_code(quoted)


@pytest.mark.parametrize("event", searched_events())
def test_what_the_runbook_searches_the_journal_for_is_logged(event: str) -> None:
    assert is_in_the_code(event)
