"""Calls that block a thread of the event loop's own pool never wait for each other: there are more threads than calls.

Each place makes one call at a time. What strangers or guests can cause in number has threads of its own with a bound:
password checks, the page /metrics, the spool, libvirt.
"""

import ast
from pathlib import Path

from guestd.app import BLOCKING_CALLS

DAEMON = Path(__file__).parents[2] / "daemon/guestd"
# Programs of their own.
OTHERS = ("agent", "cli", "doctor")


def test_the_daemon_has_a_thread_for_each_place_that_blocks_one() -> None:
    places = [
        f"{file.relative_to(DAEMON)}:{node.lineno}"
        for file in DAEMON.glob("**/*.py")
        if file.relative_to(DAEMON).parts[0] not in OTHERS
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "to_thread"
    ]
    assert 5 < len(places) < BLOCKING_CALLS, places


def test_passwords_are_not_checked_on_those_threads() -> None:
    assert "to_thread" not in (DAEMON / "service/http_auth.py").read_text()
