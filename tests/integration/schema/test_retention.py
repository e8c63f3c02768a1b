"""gueststore retention: the dry run lists what is due, and the command drops it."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from gueststore.database import Connection
from gueststore.retention import enforce_retention, read_retention_due
from support.models import REQUIRED
from support.schema import insert, rows

LONG_AGO = datetime.now(UTC) - timedelta(days=400)


def run(*words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "gueststore", "retention", *words], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_dry_run_names_every_relation_and_drops_nothing(dsn: str, connection: Connection) -> None:
    insert(connection, "QuarantinedFrame", **REQUIRED["QuarantinedFrame"](connection) | {"createdAt": LONG_AGO})
    lines = run("--dry-run", "--dsn", dsn)
    assert len(lines) == len(read_retention_due(dsn)) == 16
    assert any(line.startswith("QuarantinedFrame: kept 90 days, 1 older than ") for line in lines)
    assert any(
        line.startswith("PortUsage: ") and line.endswith("; more is kept until it is rolled up") for line in lines
    )
    (facts,) = run("--dry-run", "--json", "--dsn", dsn)
    due = {each["relation"]: each for each in json.loads(facts)}
    assert (due["QuarantinedFrame"]["keep_days"], due["QuarantinedFrame"]["due"]) == (90, 1)
    assert due["PortUsage"]["is_held_back"] is True
    assert datetime.fromisoformat(due["PortUsage"]["cutoff"]) < datetime.now(UTC)
    assert rows(connection, 'SELECT count(*) FROM "QuarantinedFrame"') == [(1,)]


def test_the_command_drops_what_is_due_and_prints_it(dsn: str, connection: Connection) -> None:
    insert(connection, "QuarantinedFrame", **REQUIRED["QuarantinedFrame"](connection) | {"createdAt": LONG_AGO})
    assert run("--dsn", dsn) == ["QuarantinedFrame: 1 dropped"]
    assert rows(connection, 'SELECT count(*) FROM "QuarantinedFrame"') == [(0,)]
    assert run("--dsn", dsn) == ["nothing to do: no data is past its retention, or it waits for its roll-up"]
    assert enforce_retention(dsn) == {}
    insert(connection, "QuarantinedFrame", **REQUIRED["QuarantinedFrame"](connection) | {"createdAt": LONG_AGO})
    assert run("--dsn", dsn, "--json") == ['[{"relation":"QuarantinedFrame","dropped":1}]']
