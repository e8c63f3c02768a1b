"""What every verb prints, with text in it that a terminal would act on, and when nobody can read it."""

import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from gueststore.database import Connection
from support.daemon import command, environment
from support.libvirt import domain_xml, uri_of
from support.poison import TERMINAL_POISON, XML_POISON, assert_harmless
from support.rollups import SAMPLE
from support.schema import insert, make_machine
from support.store import Server, database

MACHINE, FRAME = uuid.UUID(int=7), uuid.UUID(int=8)
# Every verb that prints what the store, libvirt or an operator's file holds.
VERBS: dict[str, tuple[str, ...]] = {
    "show": ("guestd", "show", str(MACHINE)),
    "show of two": ("guestd", "show", TERMINAL_POISON),
    "top": ("guestd", "top", "--rounds", "1"),
    "quarantine list": ("guestd", "quarantine", "list"),
    "quarantine show": ("guestd", "quarantine", "show", str(FRAME)),
    "quarantine retry": ("guestd", "quarantine", "retry", str(FRAME)),
    "filters show": ("guestd", "filters", "show", str(MACHINE)),
    "filters explain": ("guestd", "filters", "explain", str(MACHINE), "tcp", "192.0.2.1:80", "in"),
    "filters plan": ("guestd", "filters", "plan"),
    "plan": ("guestd", "plan"),
    "vms release": ("guestd", "vms", "release", f"{TERMINAL_POISON}{MACHINE}"),
    "check": ("guestd", "check"),
    "doctor": ("guestd", "doctor"),
    "gueststore status": ("gueststore", "status"),
    "gueststore check": ("gueststore", "check"),
    "gueststore retention": ("gueststore", "retention", "--dry-run"),
}
WITHOUT_JSON = ("show of two",)
PRINTING = [name for name in VERBS if name not in WITHOUT_JSON]


@pytest.fixture(scope="module")
def poisoned_dsn(cluster: Server, template: str) -> Iterator[str]:
    """A store whose every text is poison. No verb here changes it, so all share it."""
    with database(cluster, template) as name:
        with psycopg.connect(cluster.dsn(name), autocommit=True) as connection:
            poison(connection)
        yield cluster.dsn(name)


@pytest.fixture(scope="module")
def poisoned(poisoned_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a verb: a store and a libvirt whose every text is poison."""
    tmp_path = tmp_path_factory.mktemp("poisoned")
    directory = tmp_path / "paths \u202e"
    directory.mkdir()
    uri = uri_of(tmp_path / "node.xml", [domain_xml(XML_POISON, 1), domain_xml("two", 2)])
    (tmp_path / "guestd.toml").write_text(
        f'[libvirt]\nuri = "{uri}"\n[spool]\ndirectory = "{tmp_path}/paths \\u202e"\n'
        f'[virtio]\ndirectory = "{tmp_path}/none \\u202e"\n[telemetry]\nlisten_port = 1\n'
    )
    return environment() | {"GUESTD_DATABASE_DSN": poisoned_dsn, "CONFIG": str(tmp_path / "guestd.toml")}


def poison(connection: Connection) -> None:
    now = datetime.now(UTC)
    for machine_id in (MACHINE, uuid.uuid4()):
        text = {"name": TERMINAL_POISON, "internalName": f"{TERMINAL_POISON}{machine_id}", "status": TERMINAL_POISON}
        make_machine(connection, id=machine_id, **text)
    host = insert(connection, "Host", name=TERMINAL_POISON, uri=TERMINAL_POISON, version=TERMINAL_POISON)
    domain = {"state": TERMINAL_POISON, "reason": TERMINAL_POISON, "channel": "absent"}
    insert(connection, "MachineDomain", machineId=MACHINE, domainUuid=MACHINE, vcpus=1, memoryKB=1, **domain)
    lease = {"machineId": MACHINE, "domainUuid": MACHINE, "hostId": host["id"]}
    insert(connection, "MachineLease", **lease, hostBoot=TERMINAL_POISON)
    common = {"machineId": MACHINE, "timestamp": now}
    figures = {"cpuUsagePercent": 1, "usedMemoryKB": 1, "availableMemoryKB": 1, "diskIOStats": Jsonb({})}
    insert(connection, "SystemMetrics", **SAMPLE, **figures, networkStats=Jsonb([]), **common)
    process = {"processId": 1, "name": TERMINAL_POISON, "status": TERMINAL_POISON}
    insert(connection, "ProcessSnapshot", **process, cpuUsagePercent=1, memoryUsageKB=1, **common)
    port = {"ordinal": 0, "port": 22, "protocol": "\x1b]52;c;AA\x07", "state": TERMINAL_POISON, "isListening": True}
    owner = {"processName": TERMINAL_POISON, "executablePath": TERMINAL_POISON, "connectionCount": 1}
    insert(connection, "PortUsage", **port, **owner, **common)
    frame = {"id": FRAME, "machineId": MACHINE, "receivedAt": now, "payload": TERMINAL_POISON.encode() + b"\xff"}
    origin = {"spoolId": uuid.uuid4(), "seq": 1, "reason": TERMINAL_POISON, "detail": TERMINAL_POISON}
    insert(connection, "QuarantinedFrame", **frame, **origin, refusals=Jsonb([{"reason": TERMINAL_POISON}]))
    rules = insert(connection, "NWFilter", name=TERMINAL_POISON, internalName=TERMINAL_POISON, uuid=uuid.uuid4())
    rule = {"priority": 1, "protocol": "tcp", "srcIpAddr": TERMINAL_POISON, "comment": TERMINAL_POISON}
    insert(connection, "FWRule", nwFilterId=rules["id"], **rule)
    insert(connection, "FWRule", nwFilterId=rules["id"], **rule | {"srcIpAddr": None, "comment": XML_POISON})
    insert(connection, "VMNWFilter", vmId=MACHINE, nwFilterId=rules["id"])
    connection.execute(f'CREATE TABLE "{TERMINAL_POISON}" ("id" integer)'.encode())
    connection.execute(f'ALTER TABLE "Machine" ADD COLUMN "{TERMINAL_POISON}" integer'.encode())


def run(name: str, environment: dict[str, str], *more: str, **streams: Any) -> subprocess.CompletedProcess[Any]:
    program, *words = VERBS[name]
    if program == "guestd":
        more = ("--config", environment["CONFIG"], *more)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(command(program, *words, *more), env=environment, check=False, timeout=60, **streams)


@pytest.mark.parametrize("name", VERBS)
def test_no_verb_prints_what_a_terminal_acts_on(poisoned: dict[str, str], name: str) -> None:
    done = run(name, poisoned)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.stdout + done.stderr
    assert_harmless(done.stdout)
    assert_harmless(done.stderr)
    if name not in WITHOUT_JSON:
        assert_harmless(run(name, poisoned, "--json").stdout)


@pytest.mark.parametrize("name", PRINTING)
def test_a_reader_that_has_ended_ends_a_verb_quietly(poisoned: dict[str, str], name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = run(name, poisoned, "--json", stdout=pipe)
    assert (done.returncode, errors(done)) == (141, [])


@pytest.mark.parametrize("name", PRINTING)
def test_stdout_that_cannot_be_written_is_an_error(poisoned: dict[str, str], name: str) -> None:
    program = VERBS[name][0]
    with Path("/dev/full").open("wb") as full:
        done = run(name, poisoned, stdout=full)
    assert (done.returncode, errors(done)) == (1, [f"{program}: stdout cannot be written: No space left on device"])
    closed = run(name, poisoned, stdout=None, preexec_fn=partial(os.close, 1))
    assert (closed.returncode, errors(closed)) == (1, [f"{program}: stdout cannot be written: Bad file descriptor"])


def errors(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The lines of stderr but for a note that has nothing to do with the output."""
    lines = done.stderr.decode().splitlines()
    return [line for line in lines if not line.startswith("guestd: libvirt's networks are left out")]


@pytest.mark.parametrize("name", [name for name in PRINTING if name != "check"])
def test_an_interrupted_verb_ends_without_a_traceback(poisoned: dict[str, str], name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"host=127.0.0.1 port={silent.getsockname()[1]} dbname=guestd user=guestd"
        program, *words = VERBS[name]
        started = command(program, *words, *(("--config", poisoned["CONFIG"]) if program == "guestd" else ()))
        environment = poisoned | {"GUESTD_DATABASE_DSN": dsn}
        # A shell starts its background commands, such as these tests, with SIGINT ignored.
        started = ["env", "--default-signal=INT", *started]
        with subprocess.Popen(started, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as verb:
            accepted, _ = silent.accept()
            verb.send_signal(signal.SIGINT)
            _, stderr = verb.communicate(timeout=30)
            accepted.close()
    assert (verb.returncode, stderr.decode()) == (0 if name == "top" else 130, "")


POISONED_WORDS: dict[str, tuple[str, ...]] = {
    "an unknown option": ("show", f"--{TERMINAL_POISON}"),
    "an unknown verb": (TERMINAL_POISON,),
    "a number": ("quarantine", "list", "--limit", TERMINAL_POISON),
    "an id": ("quarantine", "show", TERMINAL_POISON),
    "a name": ("show", f"{TERMINAL_POISON}\udcff"),
    "a name of a filtered machine": ("filters", "show", f"{TERMINAL_POISON}\udcff"),
    "an address": ("filters", "explain", "web1", "tcp", TERMINAL_POISON, "in"),
    "a reason": ("quarantine", "list", "--reason", f"{TERMINAL_POISON}\udcff"),
    "a file": ("check", "--config", f"/none/{TERMINAL_POISON}\udcff"),
    "a socket": ("agent", "--listen", f"/none/{TERMINAL_POISON}\udcff"),
    "a broker": ("agent", "--mqtt", f"{TERMINAL_POISON}:x", "--machine-id", str(MACHINE)),
}


@pytest.mark.parametrize("words", POISONED_WORDS.values(), ids=POISONED_WORDS)
def test_what_was_typed_is_escaped_in_the_error(poisoned_dsn: str, words: tuple[str, ...]) -> None:
    environment_ = environment() | {"GUESTD_DATABASE_DSN": poisoned_dsn}
    done = subprocess.run(command("guestd", *words), env=environment_, capture_output=True, check=False, timeout=60)
    assert done.returncode in (0, 1, 2, 78)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert_harmless(done.stdout)
    assert_harmless(done.stderr)


@pytest.mark.parametrize(
    "dsn_text", [f"host={TERMINAL_POISON}", "host=\udcff", f"{TERMINAL_POISON}", "postgresql://\udcff"]
)
@pytest.mark.parametrize(
    "words", [("guestd", "top"), ("guestd", "doctor"), ("guestd", "run"), ("gueststore", "status")]
)
def test_a_poisoned_dsn_is_an_error_in_one_line(words: tuple[str, ...], dsn_text: str, tmp_path: Path) -> None:
    bare = environment() | {"GUESTD_DATABASE_DSN": dsn_text}
    if words[0] == "guestd":
        (tmp_path / "guestd.toml").write_text(
            f'[spool]\ndirectory = "{tmp_path}/spool"\n[telemetry]\nlisten_port = 0\n'
        )
        words = (*words, "--config", str(tmp_path / "guestd.toml"))
    done = subprocess.run(command(*words), env=bare, capture_output=True, check=False, timeout=60)
    assert done.returncode in (1, 78)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert_harmless(done.stdout)
    assert_harmless(done.stderr)
