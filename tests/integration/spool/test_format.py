"""A spool file of another version, or with values that guestd never writes: each costs only itself."""

import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from guestd.core.errors import ConfigError
from guestd.doctor.host import _check_spool_file
from guestd.spool.file import FORMAT, UNREADABLE_MACHINE, SenderState, list_damaged_files
from guestd.spool.queue import open_spool
from guestd.telemetry.registry import Telemetry
from support.daemon import Daemon, add_machine, rows
from support.spooled import drain, line, samples, spooled


def change(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / "spool.db")) as connection, connection:
        connection.execute(statement)


def read_version(directory: Path) -> int:
    with closing(sqlite3.connect(directory / "spool.db")) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


@pytest.mark.asyncio
async def test_a_file_has_the_version_of_its_format(tmp_path: Path) -> None:
    async with spooled(tmp_path, uuid4(), []):
        assert read_version(tmp_path) == FORMAT
    change(tmp_path, "PRAGMA user_version = 0")  # as earlier versions left it
    async with spooled(tmp_path, uuid4(), []):
        assert read_version(tmp_path) == FORMAT


@pytest.mark.asyncio
async def test_a_file_of_a_newer_format_is_refused_with_the_fix_and_stays_as_it_is(tmp_path: Path) -> None:
    async with spooled(tmp_path, uuid4(), [line(1)]):
        pass
    change(tmp_path, f"PRAGMA user_version = {FORMAT + 1}")
    before = (tmp_path / "spool.db").read_bytes()
    for _ in range(2):  # the directory is not left locked
        with pytest.raises(ConfigError, match=rf"format {FORMAT + 1}.* up to {FORMAT}: install the newer guestd again"):
            open_spool(tmp_path, max_bytes=1000, share=1, metrics=Telemetry().spool)
    assert (tmp_path / "spool.db").read_bytes() == before
    assert list_damaged_files(tmp_path) == []
    (finding,) = _check_spool_file(tmp_path / "spool.db", 1000)
    assert "newer guestd" in finding.text
    change(tmp_path, f"PRAGMA user_version = {FORMAT}")
    async with spooled(tmp_path, uuid4(), []) as spool:
        assert spool.frames == 1


def test_guestd_ends_with_78_on_a_file_of_a_newer_format(daemon: Daemon) -> None:
    daemon.spool.mkdir()
    change(daemon.spool, "PRAGMA user_version = 99")
    daemon.start()
    assert daemon.process is not None
    assert daemon.process.wait(30) == 78
    assert "install the newer guestd again" in daemon.log.read_text()


# Written by a newer guestd before it was rolled back, or flipped bits on sound pages.
BROKEN_FRAMES = {
    "kind 'metrics/2'": "UPDATE frame SET kind = 'metrics/2' WHERE seq = 3",
    "transport 'vsock'": "UPDATE frame SET channel = 'vsock' WHERE seq = 3",
    "'00' is no machine": "UPDATE frame SET machine_id = x'00' WHERE seq = 3",
    "is no time of receipt": f"UPDATE frame SET received_at_ms = {2**62} WHERE seq = 3",
    "half of the number of a line": "UPDATE frame SET line_seq = 7 WHERE seq = 3",
}


@pytest.mark.parametrize("problem", BROKEN_FRAMES)
@pytest.mark.asyncio
async def test_a_frame_that_cannot_be_read_is_quarantined_whole_and_the_others_are_stored(
    tmp_path: Path, dsn: str, problem: str
) -> None:
    machine_id, payloads = add_machine(dsn), [line(cpu) for cpu in range(1, 6)]
    async with spooled(tmp_path, machine_id, payloads) as spool:
        spool_id = spool.spool_id
    change(tmp_path, BROKEN_FRAMES[problem])
    with capture_logs() as logs:
        async with spooled(tmp_path, machine_id, []) as spool:
            tally = await drain(spool, dsn)
            assert spool.spool_id == spool_id
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 4, 5]
    assert tally.quarantined == {"spool": 1}
    ((found_id, reason, detail, kept, seq),) = rows(
        dsn, 'SELECT "machineId", "reason", "detail", "payload", "seq" FROM "QuarantinedFrame"'
    )
    assert (reason, kept, seq) == ("spool", payloads[2], 3)
    assert problem in detail
    assert found_id == (UNREADABLE_MACHINE if "no machine" in problem else machine_id)
    (event,) = [log for log in logs if log["log_level"] == "error"]
    assert (event["event"].partition(",")[0], event["frames"]) == ("frames of the spool cannot be read", 1)
    assert problem in event["problem"]
    assert list_damaged_files(tmp_path) == []


BROKEN_SENDERS = (
    "UPDATE sender SET machine_id = x'00' WHERE machine_id = :machine",
    "UPDATE sender SET received_at_ms = -1 WHERE machine_id = :machine",
    "UPDATE sender SET seq = 4 WHERE machine_id = :machine",
)


@pytest.mark.parametrize("statement", BROKEN_SENDERS)
@pytest.mark.asyncio
async def test_a_senders_state_that_cannot_be_read_costs_only_itself(tmp_path: Path, statement: str) -> None:
    machine_id, other_id = uuid4(), uuid4()
    for each in (machine_id, other_id):
        async with spooled(tmp_path, each, [line(1)]):
            pass
    change(tmp_path, statement.replace(":machine", f"x'{machine_id.hex}'"))
    with capture_logs() as logs:
        async with spooled(tmp_path, machine_id, []) as spool:
            assert (spool.frames, set(spool.senders_at_open)) == (2, {other_id})
            assert isinstance(spool.senders_at_open[other_id], SenderState)
    assert [log["senders"] for log in logs if log["log_level"] == "error"] == [1]


@pytest.mark.asyncio
async def test_an_id_that_cannot_be_read_is_replaced_and_no_frame_is_left_out_or_stored_twice(
    tmp_path: Path, dsn: str
) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1), line(2)]) as spool:
        await drain(spool, dsn)
        old_id = spool.spool_id
    async with spooled(tmp_path, machine_id, [line(3)]):
        pass
    change(tmp_path, "UPDATE identity SET spool_id = replace(spool_id, '-', '+')")
    async with spooled(tmp_path, machine_id, [line(4)]) as spool:
        assert (spool.frames, spool.since_seq) == (2, 2)
        tally = await drain(spool, dsn)
        assert spool.spool_id not in (old_id, UUID(int=0))
    assert tally.frames["stored"] == 2
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3, 4]
    assert list_damaged_files(tmp_path) == []


@pytest.mark.asyncio
async def test_an_owner_that_cannot_be_read_costs_a_new_id_and_no_frame(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1)]) as spool:
        await drain(spool, dsn)
    change(tmp_path, "UPDATE owner SET owner = 'x'")
    async with spooled(tmp_path, machine_id, [line(2)]) as spool:
        await drain(spool, dsn)
    assert [cpu for _, cpu in samples(dsn)] == [1, 2]


@pytest.mark.asyncio
async def test_numbers_go_on_behind_the_frames_where_the_last_one_issued_was_lost(tmp_path: Path, dsn: str) -> None:
    machine_id = add_machine(dsn)
    async with spooled(tmp_path, machine_id, [line(1), line(2)]):
        pass
    change(tmp_path, "DELETE FROM sqlite_sequence")
    async with spooled(tmp_path, machine_id, [line(3)]) as spool:
        assert spool.last_seq == 3
        await drain(spool, dsn)
    assert [cpu for _, cpu in samples(dsn)] == [1, 2, 3]
