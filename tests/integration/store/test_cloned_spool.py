"""Copies of one spool that are used side by side, as on a cloned host: each line that was accepted is stored once."""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tools.harness.waiting import eventually

from guestd.ingest.writer import Writer
from guestd.rows.batch import Limits
from guestd.spool.queue import Spool
from guestd.store.batch_writer import Outcome
from guestd.telemetry.registry import Telemetry
from support.daemon import add_machine, execute, metrics_line, rows
from support.spooled import Tally, drain, entry, line, samples, spooled

LIMITS = Limits(3, 1_000_000, 0.01)
SEPARATED = "another guestd stores under this spool's id"


@asynccontextmanager
async def resumed(spool: Spool, dsn: str) -> AsyncIterator[None]:
    """A writer that has compared the spool with the ledger, and is gone again."""
    consumer = Tally().writer(spool, dsn, LIMITS)
    writing = asyncio.create_task(consumer.run())
    await asyncio.to_thread(eventually, lambda: consumer.store_error is None, "the ledger was read")
    writing.cancel()
    with suppress(asyncio.CancelledError):
        await writing
    yield


async def append(spool: Spool, machine_id: UUID, payloads: Sequence[bytes]) -> None:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    await spool.append([entry(machine_id, now_ms + place, payload) for place, payload in enumerate(payloads)])


@pytest.mark.asyncio
async def test_what_a_clone_accepted_while_the_other_stored_under_its_numbers_is_stored(
    tmp_path: Path, dsn: str
) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path / "one", machine_id, [line(1)]) as spool:
        await drain(spool, dsn)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with capture_logs() as logs:
        for place, host in enumerate(("one", "two")):
            # The store goes away when each has compared its file with the ledger.
            async with spooled(tmp_path / host, machine_id, []) as spool, resumed(spool, dsn):
                await append(spool, machine_id, [line(place * 40 + number) for number in range(10, 30)])
        for host in ("one", "two"):
            async with spooled(tmp_path / host, machine_id, []) as spool:
                await drain(spool, dsn)
    assert sorted(cpu for _, cpu in samples(dsn)) == [1, *range(10, 30), *range(50, 70)]
    separated = [log for log in logs if log["event"].startswith(SEPARATED)]
    assert len(separated) == 1
    assert "cloned" in separated[0]["event"]


@pytest.mark.asyncio
async def test_of_two_copies_of_a_spool_that_never_reached_the_store_each_keeps_what_it_accepted(
    tmp_path: Path, dsn: str
) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path / "one", machine_id, [line(1)]):
        pass
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    async with (
        spooled(tmp_path / "one", machine_id, [line(2)]) as one,
        spooled(tmp_path / "two", machine_id, [line(3)]) as two,
    ):
        tallies = await asyncio.gather(drain(one, dsn), drain(two, dsn))
        assert one.spool_id != two.spool_id
    assert sorted(cpu for _, cpu in samples(dsn)) == [1, 2, 3]
    assert sum(tally.frames["duplicate"] for tally in tallies) == 1


@pytest.mark.asyncio
async def test_a_ledger_of_an_earlier_version_is_taken_over_by_one_copy_only(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path / "one", machine_id, [line(1)]) as spool:
        await drain(spool, dsn)
    execute(dsn, 'UPDATE "IngestLedger" SET "owner" = NULL')
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    ids = set()
    for place, host in enumerate(("one", "two", "one")):
        async with spooled(tmp_path / host, machine_id, [line(place + 2)]) as spool:
            await drain(spool, dsn)
            ids.add(spool.spool_id)
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3, 4]
    assert len(ids) == 2
    assert rows(dsn, 'SELECT count(*), count("owner") FROM "IngestLedger"') == [(2, 2)]


@pytest.mark.asyncio
async def test_a_crash_between_the_new_id_and_its_ledger_reports_no_loss(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1), line(2)]) as spool:
        await drain(spool, dsn)
    async with spooled(tmp_path, machine_id, [line(3)]) as spool:
        await spool.rename(2)
    with capture_logs() as logs:
        async with spooled(tmp_path, machine_id, [line(4)]) as spool:
            await drain(spool, dsn)
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3, 4]
    assert not [log for log in logs if log["log_level"] == "error"]


@pytest.mark.asyncio
async def test_a_store_restored_from_before_the_last_start_is_no_other_guestds(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1)]) as spool:
        await drain(spool, dsn)
    ((seq, owner),) = rows(dsn, 'SELECT "committedSeq", "owner" FROM "IngestLedger"')
    for cpu in (2, 3):
        async with spooled(tmp_path, machine_id, [line(cpu)]) as spool:
            await drain(spool, dsn)
            spool_id = spool.spool_id
    with psycopg.connect(dsn) as connection:
        connection.execute('UPDATE "IngestLedger" SET "committedSeq" = %s, "owner" = %s', (seq, owner))
    with capture_logs() as logs:
        async with spooled(tmp_path, machine_id, [line(4)]) as spool:
            await drain(spool, dsn)
            assert spool.spool_id == spool_id
    (lost,) = [log for log in logs if log["log_level"] == "error"]
    assert (lost["missing_from"], lost["missing_to"]) == (2, 3)


class Killed(BaseException):
    """The process ends between COMMIT and trim; nothing handles that."""


class Hosts:
    """Hosts that use copies of one spool, and the numbers of the lines that each accepted."""

    def __init__(self, directory: Path, dsn: str, machine_id: UUID) -> None:
        self.directory = directory
        self.dsn = dsn
        self.machine_id = machine_id
        self.accepted: list[int] = []

    async def accept(self, host: int) -> None:
        """Start, accept lines while the store is away, and be killed."""
        async with spooled(self.directory / str(host), self.machine_id, self._lines()):
            pass

    async def accept_when_settled(self, host: int) -> None:
        """Start, compare with the ledger, accept lines while the store is away, and be killed."""
        async with spooled(self.directory / str(host), self.machine_id, []) as spool, resumed(spool, self.dsn):
            await append(spool, self.machine_id, self._lines())

    async def store(self, host: int) -> None:
        """Start, accept lines and store all."""
        async with spooled(self.directory / str(host), self.machine_id, self._lines()) as spool:
            await drain(spool, self.dsn)

    async def be_killed_after_commit(self, host: int) -> None:
        """Start, store a batch, and be killed before the spool is trimmed."""

        def kill(_: Outcome) -> None:
            raise Killed

        async with spooled(self.directory / str(host), self.machine_id, self._lines()) as spool:
            metrics = Telemetry().writer
            consumer = Writer(spool, dsn=self.dsn, limits=LIMITS, metrics=metrics, on_stored=[kill])
            with pytest.raises(Killed):
                await consumer.run()

    async def store_together(self, host: int) -> None:
        """Both run at the same time."""
        async with (
            spooled(self.directory / str(host), self.machine_id, self._lines()) as one,
            spooled(self.directory / str(1 - host), self.machine_id, self._lines()) as other,
        ):
            await asyncio.gather(drain(one, self.dsn), drain(other, self.dsn))

    async def be_cloned(self, host: int) -> None:
        """The other host's disk becomes a copy of this one's; what only the other's held is stored first."""
        async with spooled(self.directory / str(1 - host), self.machine_id, []) as spool:
            await drain(spool, self.dsn)
        shutil.rmtree(self.directory / str(1 - host))
        shutil.copytree(self.directory / str(host), self.directory / str(1 - host))

    def _lines(self) -> list[bytes]:
        numbers = range(len(self.accepted) + 1, len(self.accepted) + 5)
        self.accepted += numbers
        return [_numbered(number) for number in numbers]


def _numbered(number: int) -> bytes:
    """Every second one says no time, and is known by its place in its spool alone."""
    system = {"uptime_seconds": number, "load_average": None}
    text = metrics_line(datetime.now(UTC).isoformat(), system=system).strip()
    if number % 2:
        return text
    head, _, rest = text.partition(b'"timestamp": "')
    return head + rest.partition(b'", ')[2]


STEPS = ("accept", "accept_when_settled", "store", "be_killed_after_commit", "store_together", "be_cloned")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), min_size=2, max_size=9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_two_copies_of_a_spool_do_in_turns_each_line_is_stored_once(
    dsn: str, steps: list[tuple[str, int]]
) -> None:
    async def live(hosts: Hosts) -> None:
        await hosts.store(0)
        shutil.copytree(hosts.directory / "0", hosts.directory / "1")
        for step, host in steps:
            await getattr(hosts, step)(host)
        for host in (0, 1):
            await hosts.store(host)

    machine_id = add_machine(dsn)
    with tempfile.TemporaryDirectory() as directory:
        hosts = Hosts(Path(directory), dsn, machine_id)
        asyncio.run(asyncio.wait_for(live(hosts), 120))
    stored = Counter(n for (n,) in rows(dsn, 'SELECT "uptime" FROM "SystemMetrics" WHERE "machineId" = %s', machine_id))
    assert stored == Counter(hosts.accepted)
