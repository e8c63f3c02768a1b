"""What is remembered of machines between frames; a bug that guests can reach fills no log."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from guestd.core.errors import BadFrame
from guestd.core.transport import Transport
from guestd.ingest.prepare import Preparer
from guestd.ingest.sample_times import FreeTimes, find_batch_ceilings
from guestd.rows.batch import Moment, Prepared, line_digest
from guestd.spool.file import Frame
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import METRICS, LineId


@pytest.mark.asyncio
async def test_of_a_machine_that_nobody_knows_any_more_nothing_is_remembered() -> None:
    kept, gone = UUID(int=1), UUID(int=2)
    asked: list[UUID] = []

    async def taken(moments: Sequence[tuple[UUID, datetime]]) -> set[tuple[UUID, datetime]]:
        asked.extend(machine_id for machine_id, _ in moments)
        return set()

    times, now = FreeTimes(), datetime.now(UTC)

    async def find(moment: datetime) -> None:
        frames = [Prepared(1, machine_id, now, b"", BadFrame("json", ""), None) for machine_id in (kept, gone)]
        await times.find([(kept, moment), (gone, moment)], taken, frames)

    for minute in range(2):
        await find(now + timedelta(minutes=minute))
    assert asked == [kept, gone], "the store is asked only where it is not known that time goes forward"
    times.forget(lambda machine_id: machine_id == kept)
    await find(now + timedelta(minutes=2))
    assert asked == [kept, gone, gone]


@pytest.mark.asyncio
async def test_the_event_loop_gets_its_turn_at_every_line_while_the_times_of_a_backlog_are_compared() -> None:
    boot_id, now, pauses = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11", datetime.now(UTC), 0
    head = b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":1,"timestamp":"%s"}'
    frames = [
        Frame(
            seq=seq, machine_id=UUID(int=1), received_at=now, transport=Transport.VIRTIO, kind=METRICS,
            line_id=LineId(boot_id, seq),
            payload=head % (boot_id.encode(), seq, (now - timedelta(minutes=100 - seq)).isoformat().encode()),
        )
        for seq in range(1, 101)
    ]  # fmt: skip

    async def pause() -> None:
        nonlocal pauses
        pauses += 1

    ceilings = await find_batch_ceilings(frames, pause)
    assert sorted(ceilings) == list(range(1, 100))
    assert pauses >= 3 * len(frames)


@pytest.mark.asyncio
async def test_a_run_that_this_process_does_not_know_is_continued_behind_the_sample_of_the_line_before() -> None:
    machine_id, boot_id, now = UUID(int=1), "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11", datetime.now(UTC)
    head = b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":1,"after":"%s","mark":"%s"}'
    lines = [(seq, "a" * 15 + str(seq - 1), "a" * 15 + str(seq)) for seq in (8, 9)]
    frames = [
        Prepared(
            seq, machine_id, now, head % (boot_id.encode(), seq, after.encode(), mark.encode()),
            BadFrame("json", ""), None, line_id=LineId(boot_id, seq, mark),
        )
        for seq, after, mark in lines
    ]  # fmt: skip
    asked: list[tuple[UUID, int, datetime]] = []
    before = (machine_id, line_digest(LineId(boot_id, 7, "a" * 15 + "7")))

    async def stored(sought: Sequence[tuple[UUID, int, datetime]]) -> dict[tuple[UUID, int], datetime]:
        asked.extend(sought)
        return {before: now}

    async def all_free(_: Sequence[Moment]) -> set[Moment]:
        return set()

    times, moments = FreeTimes(), [(machine_id, now - timedelta(minutes=4))] * 2
    for _ in range(2):
        await times.find_lines_before(frames, stored)
        moments = await times.find(moments, all_free, frames)
    assert asked == [(*before, now)], "once"
    assert [at for _, at in moments] == [now + timedelta(milliseconds=1), now + timedelta(milliseconds=2)]


@pytest.mark.asyncio
@pytest.mark.parametrize("numbers", [(1, 2), (2, 1)])
@pytest.mark.parametrize("moved_ms", [0, 10])
async def test_lines_that_another_host_has_stored_meanwhile_place_the_next_line_where_that_host_does(
    moved_ms: int, numbers: tuple[int, int]
) -> None:
    """In their order, or in another one as a broker may deliver them."""
    machine_id, boot_id, now = UUID(int=1), "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11", datetime.now(UTC)

    def frame(seq: int) -> Prepared:
        line_id = LineId(boot_id, seq)
        return Prepared(
            seq, machine_id, now, b"{}", BadFrame("json", ""), line_digest(line_id), line_id=line_id,
        )  # fmt: skip

    def after(milliseconds: int) -> datetime:
        return now + timedelta(milliseconds=milliseconds)

    frames = [frame(number) for number in numbers]
    of_other_host = {(machine_id, each.digest): after(moved_ms + each.seq - 1) for each in frames}

    async def none_stored(_: Sequence[tuple[UUID, int, datetime]]) -> dict[tuple[UUID, int], datetime]:
        return {}

    async def stored(_: Sequence[tuple[UUID, int, datetime]]) -> dict[tuple[UUID, int], datetime]:
        return {(machine, digest): at for (machine, digest), at in of_other_host.items() if digest is not None}

    async def all_free(_: Sequence[Moment]) -> set[Moment]:
        return set()

    times, same = FreeTimes(), [(machine_id, now)] * 2
    assert await times.follow_stored(same, frames, none_stored) == set()
    assert await times.find(same, all_free, frames) == [(machine_id, after(0)), (machine_id, after(1))]
    # The other host has committed the same lines: the keys conflict.
    assert await times.follow_stored(same, frames, stored) == {1, 2}
    assert await times.find([(machine_id, now)], all_free, [frame(3)]) == [(machine_id, after(moved_ms + 2))]


def test_the_traceback_of_a_bug_is_logged_once_however_many_frames_reach_it() -> None:
    telemetry = Telemetry()
    preparer = Preparer(telemetry.writer.preparing)

    def one_bug(_: Frame) -> None:
        raise LookupError("one")

    def another(_: Frame) -> None:
        raise LookupError("another")

    with capture_logs() as told:
        for seq, step in enumerate([one_bug] * 100 + [another]):
            frame = Frame(seq, UUID(int=1), datetime.now(UTC), b"{}", Transport.VIRTIO, METRICS, None)
            assert isinstance(preparer.guard(frame, step), BadFrame)
    assert telemetry.registry.get_sample_value("guestd_bugs_total") == 101
    assert [entry["seq"] for entry in told] == [0, 100]
