"""`guestd show` and `guestd top` on a real store, as a pipe gets them and as JSON."""

import json
import os
import pty
import random
import subprocess
import sys
from datetime import UTC, datetime

from gueststore.database import Connection
from support.rollups import send
from support.schema import connection, make_machine

__all__ = ["connection"]


def guestd(dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "guestd", *words]
    environment = {"GUESTD_DATABASE_DSN": dsn, "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_show_says_what_is_known_of_a_machine(dsn: str, connection: Connection) -> None:
    machine = make_machine(connection, name="mail \x1b[2J")
    assert "no sample yet" in guestd(dsn, "show", str(machine)).stdout
    for _ in range(5):
        send(connection, machine, datetime.now(UTC), random.Random(2))
    shown = guestd(dsn, "show", str(machine))
    assert shown.returncode == 0, shown.stderr
    assert "s ago: CPU " in shown.stdout
    assert "\x1b" not in shown.stdout
    assert "MiB  " in shown.stdout
    facts = json.loads(guestd(dsn, "show", str(machine), "--json").stdout)
    assert list(facts) == ["machine", "processes", "ports", "changes"]
    assert (facts["machine"]["id"], facts["machine"]["name"]) == (str(machine), "mail \x1b[2J")
    assert facts["machine"]["cpu_percent"] >= 0
    assert {"name", "machines", "cpu_percent", "memory_kb"} == set(facts["processes"][0])


def test_show_of_a_machine_without_samples_has_nulls_in_its_json(dsn: str, connection: Connection) -> None:
    machine = make_machine(connection, name="new")
    facts = json.loads(guestd(dsn, "show", "new", "--json").stdout)
    assert facts["machine"] | {"internal_name": "", "status": ""} == {
        "id": str(machine), "name": "new", "internal_name": "", "status": "", "at": None, "cpu_percent": None,
        "used_memory_kb": None, "total_memory_kb": None, "uptime_seconds": None,
    }  # fmt: skip
    assert facts["processes"] == facts["ports"] == facts["changes"] == []


def test_show_of_a_name_that_none_or_several_have_says_so(dsn: str, connection: Connection) -> None:
    for _ in range(2):
        make_machine(connection, name="twin")
    missing, twins = guestd(dsn, "show", "nobody"), guestd(dsn, "show", "twin")
    assert (missing.returncode, twins.returncode) == (1, 1)
    assert "0 machines are called 'nobody'" in missing.stderr
    assert twins.stderr.count("\n") == 3


def test_top_lists_every_machine_the_busiest_first(dsn: str, connection: Connection) -> None:
    idle = make_machine(connection, name="idle")
    busy = [make_machine(connection, name=f"busy-{number}") for number in range(3)]
    for number, machine in enumerate(busy):
        send(connection, machine, datetime.now(UTC), random.Random(number))
    shown = guestd(dsn, "top", "--rounds", "2", "--seconds", "0.01")
    assert shown.returncode == 0, shown.stderr
    tables = shown.stdout.split("4 machines, by cpu, ")
    assert len(tables) == 3
    listed = [line.split() for line in tables[2].splitlines()[2:]]
    cpu = [float(words[0]) for words in listed[:3]]
    assert cpu == sorted(cpu, reverse=True)
    assert listed[3][0] == "-"
    assert listed[3][-1] == "idle"
    assert idle not in busy
    by_name = guestd(dsn, "top", "--rounds", "1", "--sort", "name").stdout
    assert [line.split()[-1] for line in by_name.splitlines()[2:]] == ["busy-0", "busy-1", "busy-2", "idle"]
    refreshes = guestd(dsn, "top", "--rounds", "2", "--seconds", "0.01", "--sort", "name", "--json").stdout
    for line in refreshes.splitlines():
        refresh = json.loads(line)
        assert [machine["name"] for machine in refresh["machines"]] == ["busy-0", "busy-1", "busy-2", "idle"]
        assert datetime.fromisoformat(refresh["at"]).tzinfo is not None
    assert len(refreshes.splitlines()) == 2


def test_top_redraws_a_terminal(dsn: str, connection: Connection) -> None:
    make_machine(connection, name="mail [red]\x1b[2J")
    host, terminal = pty.openpty()
    command = [sys.executable, "-m", "guestd", "top", "--rounds", "2", "--seconds", "0.01"]
    environment = {"GUESTD_DATABASE_DSN": dsn, "PYTHONPATH": ":".join(sys.path), "TERM": "xterm"}
    with subprocess.Popen(command, stdout=terminal, stderr=subprocess.DEVNULL, env=environment) as top:
        os.close(terminal)
        shown = b"".join(iter(lambda: read_terminal(host), b"")).decode()
        assert top.wait() == 0
    os.close(host)
    assert "1 machines, by cpu, " in shown
    assert "mail [red]\\x1b[2J" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[1A" in shown  # back up to the first line of the table before


def read_terminal(host: int) -> bytes:
    try:
        return os.read(host, 65536)
    except OSError:  # Linux's answer when the other end is closed
        return b""


def test_a_store_that_does_not_answer_is_named() -> None:
    shown = guestd("host=127.0.0.1 port=1 dbname=guestd user=nobody", "top", "--rounds", "1")
    assert (shown.returncode, shown.stderr.partition(" dbname")[0]) == (1, "guestd: host=127.0.0.1 port=1")
