"""The tally of a fault: what senders sent compared with what the tables hold, sample by sample.

A sample is identified by its number, which `sample_line` puts into a field that is stored (`uptime`); a sample of
`guestd simulate` by its time, which is unique within its machine. `./dev faults` collects the records of
`reliability.record` in docs/reliability.md.
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tools.harness.waiting import eventually

from guestd.simulator import machine_ids
from support.daemon import Daemon, add_machine, command, environment, execute, metrics_line, rows

_NUMBER = re.compile(rb'"uptime_seconds":(\d+)')
_TIME = re.compile(rb'"timestamp":"([^"]+)"')


@dataclass(frozen=True)
class Tally:
    """What became of the samples that were sent. Each is counted once, under the first of these that fits."""

    sent: int = 0
    stored: int = 0
    stored_in_part: int = 0
    quarantined: int = 0
    refused: int = 0
    # Given up or never handed over by the sender, or by a broker that lost its state: before guestd.
    sender_gap: int = 0
    # Held by nothing but a file that the fault itself destroyed.
    destroyed: int = 0
    # Rows beyond the first of a sample.
    duplicated: int = 0
    lost: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Tally)))


def sample_line(number: int, boot_id: UUID | None = None, *, oldest: int = 1, **changes: object) -> bytes:
    """A D1 line that carries its sample's number; with a boot_id it is the line of that `seq` in that run."""
    content: dict[str, Any] = {"system": {"uptime_seconds": number, "load_average": None}} | changes
    line = metrics_line(**content)
    body = json.dumps(json.loads(line), separators=(",", ":")).encode()
    if boot_id is None:
        return body + b"\n"
    kind = b'{"type":"metrics",'
    assert body.startswith(kind)
    return b'%s"boot_id":"%s","seq":%d,"oldest":%d,%s\n' % (
        kind, str(boot_id).encode(), number, oldest, body.removeprefix(kind),
    )  # fmt: skip


def count_samples(
    dsn: str,
    sent: Mapping[UUID, Collection[int]],
    *,
    refused: int = 0,
    sender_gap: int = 0,
    destroyed: Mapping[UUID, Collection[int]] | None = None,
) -> Tally:
    """Compare the numbers that each of these machines sent with the tables.

    `refused` is what guestd counted as refused; `destroyed` are the samples that only the destroyed file may have held.
    """
    stored = rows(dsn, 'SELECT "machineId", "uptime" FROM "SystemMetrics"')
    quarantined = [
        (machine_id, sample_number(payload), in_part) for machine_id, payload, in_part in _list_quarantined(dsn, sent)
    ]  # fmt: skip
    return _compare(sent, stored, quarantined, Tally(refused=refused, sender_gap=sender_gap), destroyed or {})


def count_fleet(
    dsn: str, manifest: Path, *, refused: int = 0, destroyed: Mapping[UUID, Collection[int]] | None = None
) -> Tally:
    """The same for a fleet of `guestd simulate --count N --manifest FILE`; samples go by their milliseconds."""
    members = [json.loads(line) for line in manifest.read_text().splitlines()]
    sent = {UUID(member["machine"]): member["timestamps_ms"] for member in members}
    stored = rows(
        dsn, 'SELECT "machineId", (extract(epoch FROM "timestamp") * 1000)::bigint FROM "SystemMetrics"'
    )  # fmt: skip
    # The rest of a line that a stop cut is quarantined too; it has no time, and the whole line is written again.
    quarantined = [
        (machine_id, sample_ms(payload), in_part)
        for machine_id, payload, in_part in _list_quarantined(dsn, sent)
        if payload.startswith(b"{")
    ]
    sender_gap = sum(member["given_up"] for member in members)
    tally = _compare(sent, stored, quarantined, Tally(refused=refused, sender_gap=sender_gap), destroyed or {})
    # Of what a sender dropped after it had sent it, without an answer, some was received: the tables show how much.
    unconfirmed = min(max(0, tally.lost), sum(member["unconfirmed"] for member in members))
    return replace(tally, sender_gap=sender_gap + unconfirmed, lost=tally.lost - unconfirmed)


def sample_ms(payload: bytes) -> int:
    """By what a simulated sample is known."""
    found = _TIME.search(payload)
    assert found, f"a frame without a time: {payload[:200]!r}"
    return round(datetime.fromisoformat(found[1].decode()).timestamp() * 1000)


def sample_number(payload: bytes) -> int:
    """By what a sample of `sample_line` is known."""
    found = _NUMBER.search(payload)
    assert found, f"a frame without a number: {payload[:200]!r}"
    return int(found[1])


def _list_quarantined(dsn: str, machines: Collection[UUID]) -> list[tuple[UUID, bytes, bool]]:
    select = 'SELECT "machineId", "payload", "stored" FROM "QuarantinedFrame" WHERE "machineId" = ANY(%s)'
    return [(machine_id, payload, in_part) for machine_id, payload, in_part in rows(dsn, select, list(machines))]


def _compare(
    sent: Mapping[UUID, Collection[int]],
    stored: Collection[tuple[UUID, int]],
    quarantined: Collection[tuple[UUID, int, bool]],
    outside: Tally,
    destroyed: Mapping[UUID, Collection[int]],
) -> Tally:
    wanted = {(machine_id, sample) for machine_id, samples in sent.items() for sample in samples}
    assert len(wanted) == sum(map(len, sent.values())), "a sender gave one number twice"
    stored = [row for row in stored if row[0] in sent]
    times = Counter(stored)
    in_part = {(machine_id, sample) for machine_id, sample, is_stored in quarantined if is_stored}
    times.update((machine_id, sample) for machine_id, sample, is_stored in quarantined if not is_stored)
    missing = wanted - times.keys()
    gone = {sample for sample in missing if sample[1] in destroyed.get(sample[0], ())}
    return Tally(
        sent=len(wanted),
        stored=len((wanted & set(stored)) - in_part),
        stored_in_part=len(wanted & in_part),
        quarantined=len((wanted & times.keys()) - set(stored)),
        refused=outside.refused,
        sender_gap=outside.sender_gap,
        destroyed=len(gone),
        # A row that was not sent is the second of one whose time or number was changed.
        duplicated=times.total() - len(wanted & times.keys()),
        lost=len(missing) - len(gone) - outside.refused - outside.sender_gap,
    )


@dataclass(frozen=True)
class Fleet:
    """A running `guestd simulate`: agents that number their lines and keep them until they are acknowledged."""

    process: subprocess.Popen[bytes]
    manifest: Path
    machines: list[UUID]

    def is_writing(self) -> bool:
        """Whether it has not sent all yet: a fault that comes later proves little."""
        return self.process.poll() is None

    def finish(self, daemon: Daemon, seconds: float = 600) -> None:
        """Wait until all is acknowledged and what guestd holds is stored."""
        assert self.process.wait(seconds) == 0
        eventually(lambda: daemon.metric("guestd_spool_frames") == 0, "the spool is empty", seconds)


@contextmanager
def fleet(
    daemon: Daemon, *, count: int, guests: int = 10, interval_seconds: float = 0.05, processes: int = 10, first: int = 0
) -> Iterator[Fleet]:
    """A fleet on the daemon's channels, known to its store, that ends when `count` lines of each are acknowledged."""
    machines = machine_ids(guests, seed=1, first=first)
    add_machine(daemon.dsn, machines[0])
    execute(
        daemon.dsn,
        """INSERT INTO "Machine" ("id", "name", "internalName", "status", "templateId", "os")
        SELECT each, "name", each::text, "status", "templateId", "os" FROM "Machine",
        """
        f"unnest('{{{','.join(map(str, machines[1:]))}}}'::uuid[]) AS each WHERE \"id\" = '{machines[0]}'",
    )
    manifest = daemon.directory / f"manifest-{first}.jsonl"
    arguments = command("guestd", "simulate", "--directory", str(daemon.channels), "--manifest", str(manifest))
    arguments += ["--guests", str(guests), "--interval", str(interval_seconds), "--count", str(count)]
    arguments += ["--processes", str(processes), "--first-id", str(first)]
    process = subprocess.Popen(arguments, env=environment())
    try:
        yield Fleet(process, manifest, machines)
    finally:
        process.kill()
        process.wait()


@contextmanager
def store_closed(dsn: str) -> Iterator[None]:
    """An outage: the test's database refuses connections."""
    database = dsn.rsplit("/", 1)[1]
    server = dsn.removesuffix(database) + "postgres"
    execute(
        server,
        f"ALTER DATABASE {database} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{database}'",
    )
    try:
        yield
    finally:
        execute(server, f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")


def frames_on_disk(daemon: Daemon) -> list[tuple[UUID, bytes]]:
    """What the spool's file of a killed guestd holds, read from a copy, for SQLite tidies up what it opens."""
    with tempfile.TemporaryDirectory() as copies:
        shutil.copytree(daemon.spool, copies, dirs_exist_ok=True)
        with closing(sqlite3.connect(Path(copies) / "spool.db")) as spool:
            frames = spool.execute("SELECT machine_id, payload FROM frame").fetchall()
    return [(UUID(bytes=machine_id), payload) for machine_id, payload in frames]


class Reliability:
    """How often a fault is made, and where its tally is recorded."""

    def __init__(self, test: str) -> None:
        self._test = test

    def rounds(self, quick: int, full: int) -> int:
        """How many times: `full` under ./dev faults, `quick` in ./dev test."""
        return full if os.environ.get("GUESTD_FAULTS") == "full" else quick

    def record(self, fault: str, rounds: int, tally: Tally, note: str = "") -> None:
        """Require a tally with nothing lost or doubled; write a row of docs/reliability.md."""
        ends = tally.stored + tally.stored_in_part + tally.quarantined + tally.refused
        assert tally.sent == ends + tally.sender_gap + tally.destroyed + tally.lost, tally
        assert (tally.duplicated, tally.lost) == (0, 0), tally
        assert tally.sent, "a fault without a sample proves nothing"
        if file := os.environ.get("GUESTD_RELIABILITY"):
            row = {"fault": fault, "test": self._test, "rounds": rounds, "note": note} | asdict(tally)
            with Path(file).open("a") as records:
                records.write(json.dumps(row) + "\n")

    def record_filters(self, fault: str, *, rounds: int, actions: int, kills: int, wrong: int) -> None:
        """Demand that filters came out right each time; a row of the second table of docs/reliability.md."""
        assert wrong == 0, f"{wrong} wrong outcomes of {rounds}"
        if file := os.environ.get("GUESTD_RELIABILITY"):
            row = {"fault": fault, "test": self._test, "rounds": rounds, "actions": actions, "kills": kills, "wrong": 0}
            with Path(file).open("a") as records:
                records.write(json.dumps(row) + "\n")


@pytest.fixture
def reliability(request: pytest.FixtureRequest) -> Reliability:
    """Rounds and records of this test's fault."""
    return Reliability(str(request.node.nodeid).partition("[")[0])
