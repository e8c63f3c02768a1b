"""The gate: the order rules of docs/wire.md, on a real spool."""

import asyncio
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestd.ingest.gate import MAX_DROPPED, RESEND_REQUEST_MS
from guestd.spool.file import from_milliseconds
from guestd.wire.framing import HEAD_BYTES, Oversize
from support.gate import MACHINE, NEXT_BOOT, OTHER, PLAIN, ack, gate_on, marked, numbered, resend


@pytest.mark.asyncio
async def test_the_next_line_is_taken_and_acknowledged_once_it_is_on_disk(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(1)) == ack(1)
        assert await rig.payloads() == [numbered(1)]
        assert await rig.accept(numbered(2), numbered(3)) == ack(3)
        assert await rig.payloads() == [numbered(1), numbered(2), numbered(3)]
        assert rig.counts["accepted"] == 3
        assert rig.counts["accepted_bytes"] == sum(len(numbered(seq)) for seq in (1, 2, 3))


@pytest.mark.asyncio
async def test_a_line_is_not_acknowledged_before_it_is_on_disk(tmp_path: Path) -> None:
    async with gate_on(tmp_path, is_running=False) as rig:
        asking = asyncio.create_task(rig.accept(numbered(1)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not asking.done()
        writing = asyncio.create_task(rig.spool.run())
        assert await asking == ack(1)
        rig.spool.seal()
        await writing


@pytest.mark.asyncio
async def test_a_line_whose_reader_ends_during_its_commit_counts_as_accepted(tmp_path: Path) -> None:
    async with gate_on(tmp_path, is_running=False) as rig:
        reading = asyncio.create_task(rig.accept(numbered(1)))
        for _ in range(10):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        writing = asyncio.create_task(rig.spool.run())
        rig.spool.seal()
        await writing
        assert await rig.payloads() == [numbered(1)]
        assert (rig.counts["accepted"], rig.counts["accepted_bytes"]) == (1, len(numbered(1)))


@pytest.mark.asyncio
async def test_a_duplicate_is_acknowledged_again_and_not_stored_again(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(numbered(1), numbered(2))
        assert await rig.accept(numbered(1)) == ack(2)
        assert await rig.accept(numbered(1), numbered(2), numbered(3)) == ack(3)
        assert await rig.payloads() == [numbered(1), numbered(2), numbered(3)]
        assert rig.counts["duplicate"] == 3


@pytest.mark.asyncio
async def test_a_line_behind_a_gap_is_not_taken_and_the_missing_ones_are_asked_for(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(numbered(1))
        assert await rig.accept(numbered(3), numbered(4)) == resend(1)
        assert await rig.payloads() == [numbered(1)]
        assert rig.counts["out_of_order"] == 2
        assert await rig.accept(numbered(2), numbered(3), numbered(4)) == ack(4)
        assert await rig.payloads() == [numbered(seq) for seq in (1, 2, 3, 4)]


@pytest.mark.asyncio
async def test_a_run_of_the_agent_that_is_not_known_begins_at_its_first_line(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(2)) == resend(0)
        assert await rig.accept(numbered(1), numbered(2)) == ack(2)


@pytest.mark.asyncio
async def test_lines_are_asked_for_once_a_second(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(3)) == resend(0)
        rig.now_ms += RESEND_REQUEST_MS - 1
        assert await rig.accept(numbered(4)) is None
        rig.now_ms += 1
        assert await rig.accept(numbered(5)) == resend(0)


@pytest.mark.asyncio
async def test_another_gap_is_asked_for_at_once(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(2)) == resend(0)
        assert await rig.accept(numbered(1)) == ack(1)
        assert await rig.accept(numbered(3)) == resend(1)
        assert await rig.accept(numbered(3), machine_id=OTHER) == resend(0)


@pytest.mark.asyncio
async def test_a_clock_that_steps_back_does_not_silence_the_asking(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(3)) == resend(0)
        rig.now_ms -= 3_600_000
        assert await rig.accept(numbered(3)) == resend(0)


@pytest.mark.asyncio
async def test_lines_that_the_agent_gave_up_are_counted_and_passed_over(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(numbered(1), numbered(2))
        assert await rig.accept(numbered(6, oldest=6)) == ack(6)
        assert rig.counts["dropped_by_agent"] == 3
        # Its oldest is held, and what follows it comes in order.
        assert await rig.accept(numbered(9, oldest=8)) == resend(6)
        assert await rig.accept(numbered(8, oldest=8), numbered(9, oldest=8)) == ack(9)
        assert rig.counts["dropped_by_agent"] == 4
        assert await rig.payloads() == [
            numbered(1), numbered(2), numbered(6, oldest=6), numbered(8, oldest=8), numbered(9, oldest=8),
        ]  # fmt: skip


@pytest.mark.asyncio
async def test_lines_that_the_agent_gave_up_are_counted_once_though_the_next_one_is_sent_again(tmp_path: Path) -> None:
    async with gate_on(tmp_path, max_bytes=500) as rig:
        await rig.accept(numbered(1))
        broken = numbered(6, oldest=6)[:-1]
        assert await rig.accept(broken) == resend(1)
        assert rig.counts["dropped_by_agent"] == 0
        waiting = asyncio.create_task(rig.accept(numbered(6, oldest=6)))
        await asyncio.sleep(0)
        waiting.cancel()  # its channel is closed while the spool is full
        await asyncio.wait([waiting])
        assert rig.counts["dropped_by_agent"] == 0
        await rig.spool.trim(rig.spool.last_seq)
        assert await rig.accept(numbered(6, oldest=6)) == ack(6)
        assert rig.counts["dropped_by_agent"] == 4


@pytest.mark.asyncio
async def test_a_new_run_of_the_agent_counts_from_one_again(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(numbered(1), numbered(2))
        assert await rig.accept(numbered(1, boot_id=NEXT_BOOT)) == ack(1, NEXT_BOOT)
        assert await rig.accept(numbered(3, boot_id=NEXT_BOOT)) == resend(1, NEXT_BOOT)
        assert await rig.accept(numbered(2, boot_id=NEXT_BOOT)) == ack(2, NEXT_BOOT)
        assert len(await rig.frames()) == 4


@pytest.mark.asyncio
async def test_the_mark_of_the_last_line_is_told_with_every_answer(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(marked(1, "0", "a")) == {**ack(1), "mark": "a" * 16}
        assert await rig.accept(marked(1, "0", "a")) == {**ack(1), "mark": "a" * 16}
        assert await rig.accept(marked(3, "b", "c")) == {**resend(1), "mark": "a" * 16}
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(marked(2, "a", "b")) == {**ack(2), "mark": "b" * 16}


@pytest.mark.asyncio
async def test_a_line_that_follows_another_than_the_last_one_is_not_taken(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(marked(1, "0", "a"), marked(2, "a", "b"))
        # The machine was put back to line 1: its line 2 is another one, and so is what follows it.
        assert await rig.accept(marked(2, "a", "e"), marked(3, "e", "f")) == {**resend(2), "mark": "b" * 16}
        assert (rig.counts["duplicate"], rig.counts["rewound"]) == (1, 1)
        # The agent holds nothing before this one: there is nothing to wait for.
        assert await rig.accept(marked(3, "e", "f", oldest=3)) == {**ack(3), "mark": "f" * 16}
        assert len(await rig.payloads()) == 3


@pytest.mark.asyncio
async def test_an_oversize_line_that_is_numbered_is_acknowledged_so_that_it_does_not_come_again(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        large = Oversize(numbered(1)[:-1].ljust(HEAD_BYTES, b"x"), 5_000_000)
        assert await rig.accept(large) == ack(1)
        assert await rig.accept(large) == ack(1)
        assert await rig.accept(numbered(2)) == ack(2)
        assert await rig.payloads() == [numbered(2)]
        assert (rig.counts["oversize"], rig.counts["duplicate"], rig.counts["accepted"]) == (1, 1, 1)


@pytest.mark.asyncio
async def test_an_oversize_line_is_taken_in_its_turn_only(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(Oversize(numbered(2)[:-1], 5_000_000)) == resend(0)
        assert rig.counts["oversize"] == 0


@pytest.mark.asyncio
async def test_an_oversize_line_without_a_number_is_counted_and_not_answered(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(Oversize(b"x" * HEAD_BYTES, 5_000_000)) is None
        assert rig.counts == {"oversize": 1}
        assert await rig.payloads() == []


@pytest.mark.asyncio
async def test_lines_without_a_number_are_taken_and_change_nothing_for_those_with_one(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(PLAIN) is None
        assert await rig.accept(numbered(1)) == ack(1)
        assert await rig.accept(PLAIN) is None
        assert await rig.accept(PLAIN, numbered(2), PLAIN) == ack(2)
        assert await rig.accept(numbered(2)) == ack(2)
        assert await rig.payloads() == [PLAIN, numbered(1), PLAIN, PLAIN, numbered(2), PLAIN]


@pytest.mark.asyncio
async def test_messages_of_other_types_are_counted_by_type_and_not_stored(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        lines = (
            b'{"type":"pong","timestamp":"t"}',
            b'{"id":"c","success":true}',
            Oversize(b'{"type":"ping",', 9),
        )
        assert await rig.accept(*lines) is None
        assert rig.counts == {"pong": 1, "response": 1, "ping": 1}
        assert await rig.payloads() == []


@pytest.mark.asyncio
async def test_a_ping_and_a_keep_alive_are_answered_beside_the_acknowledgement(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        rig.now_ms = 1_759_320_030_125
        now = "2025-10-01T12:00:30.125+00:00"
        ping, keep_alive = b'{"type":"ping","timestamp":"t","sequence":1}', b'{"type":"keep_alive","sequence_number":4}'
        pong = {"type": "pong", "timestamp": now}
        response = {"type": "keep_alive_response", "sequence_number": 4, "timestamp": now}
        assert await rig.replies(ping, numbered(1), keep_alive) == [ack(1), pong, response]
        assert await rig.payloads() == [numbered(1)]


@pytest.mark.asyncio
async def test_of_many_pings_and_keep_alives_the_latest_are_answered(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        lines = [b'{"type":"keep_alive","sequence_number":%d}' % number for number in range(500)]
        found = await rig.replies(*lines, *[b'{"type":"ping"}'] * 500)
        assert [(line["type"], line.get("sequence_number")) for line in found] == [
            ("keep_alive_response", 499), ("pong", None),
        ]  # fmt: skip
        assert (rig.counts["ping"], rig.counts["keep_alive"]) == (500, 500)


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"keep_alive","sequence_number":-1}',
        b'{"type":"keep_alive","sequence_number":4294967296}',
        b'{"type":"keep_alive"}',
        b'{"type":"keep_alive","sequence_number":"4"}',
        b'{"type":"keep_alive","sequence_number":' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.asyncio
async def test_a_keep_alive_that_cannot_be_read_is_counted_and_not_answered(tmp_path: Path, line: bytes) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.replies(line) == []
        assert rig.counts == {"keep_alive": 1}


@pytest.mark.asyncio
async def test_machines_do_not_share_their_sequences(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(numbered(1), numbered(2))
        assert await rig.accept(numbered(1), machine_id=OTHER) == ack(1)
        assert [frame.machine_id for frame in await rig.frames()] == [MACHINE, MACHINE, OTHER]


@pytest.mark.asyncio
async def test_what_was_acknowledged_is_known_after_a_restart(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(numbered(1), numbered(2), Oversize(numbered(3)[:-1], 5_000_000))
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(1), numbered(2), numbered(3), numbered(4)) == ack(4)
        assert await rig.payloads() == [numbered(1), numbered(2), numbered(4)]


@pytest.mark.asyncio
async def test_a_caller_that_is_cancelled_while_its_lines_are_written_loses_none(tmp_path: Path) -> None:
    async with gate_on(tmp_path, is_running=False) as rig:
        asking = asyncio.create_task(rig.accept(numbered(1), numbered(2)))
        for _ in range(10):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        writing = asyncio.create_task(rig.spool.run())
        # Its successor on the channel gets the same lines again.
        assert await rig.accept(numbered(1), numbered(2), numbered(3)) == ack(3)
        assert await rig.payloads() == [numbered(1), numbered(2), numbered(3)]
        rig.spool.seal()
        await writing


@pytest.mark.asyncio
async def test_a_machine_whose_share_is_full_waits_and_others_do_not(tmp_path: Path) -> None:
    async with gate_on(tmp_path, max_bytes=10_000) as rig:
        full = numbered(1)[:-1] + b',"x":"' + b"x" * 900 + b'"}'
        assert await rig.accept(full) == ack(1)
        waiting = asyncio.create_task(rig.accept(numbered(2)))
        assert await rig.accept(numbered(1), machine_id=OTHER) == ack(1)
        assert not waiting.done()
        await rig.spool.trim(1)
        assert await waiting == ack(2)


@pytest.mark.asyncio
async def test_a_caller_that_is_cancelled_while_there_is_no_room_has_taken_nothing(tmp_path: Path) -> None:
    async with gate_on(tmp_path, max_bytes=10_000) as rig:
        await rig.accept(numbered(1)[:-1] + b',"x":"' + b"x" * 900 + b'"}')
        waiting = asyncio.create_task(rig.accept(numbered(2)))
        for _ in range(10):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await rig.spool.trim(1)
        assert await rig.accept(numbered(2)) == ack(2)
        assert await rig.payloads() == [numbered(2)]
        assert rig.counts["duplicate"] == 0


@pytest.mark.asyncio
async def test_lines_that_a_cancelled_caller_could_not_place_are_counted_unless_they_come_again(tmp_path: Path) -> None:
    async with gate_on(tmp_path, max_bytes=10_000) as rig:
        await rig.accept(numbered(1)[:-1] + b',"x":"' + b"x" * 900 + b'"}')
        waiting = asyncio.create_task(rig.accept(numbered(2), PLAIN, PLAIN))
        for _ in range(10):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert rig.counts["cut_off"] == 2


@pytest.mark.asyncio
async def test_a_duplicate_is_not_acknowledged_before_the_first_one_is_on_disk(tmp_path: Path) -> None:
    async with gate_on(tmp_path, is_running=False) as rig:
        first, again = (asyncio.create_task(rig.accept(numbered(1))) for _ in range(2))
        for _ in range(10):
            await asyncio.sleep(0)
        assert rig.counts["duplicate"] == 1
        assert not again.done()
        writing = asyncio.create_task(rig.spool.run())
        assert await first == await again == ack(1)
        rig.spool.seal()
        await writing


@pytest.mark.asyncio
async def test_nothing_is_missed_of_a_run_of_which_nothing_was_known(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(5000, oldest=5000)) == ack(5000)
        assert rig.counts["dropped_by_agent"] == 0


@pytest.mark.asyncio
async def test_what_an_agent_reports_as_given_up_is_accepted_within_bounds(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(numbered(1))
        assert await rig.accept(numbered(10**17, oldest=10**17)) == ack(10**17)
        assert rig.counts["dropped_by_agent"] == MAX_DROPPED


@pytest.mark.asyncio
async def test_a_host_clock_that_was_far_ahead_and_is_put_right_is_followed(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        right_ms = rig.now_ms
        rig.now_ms += 365 * 86_400_000
        await rig.accept(PLAIN)
        rig.now_ms = right_ms
        await rig.accept(PLAIN)
        await rig.accept(PLAIN)
        times = [frame.received_at for frame in await rig.frames()]
    assert [from_milliseconds(right_ms), from_milliseconds(right_ms + 1)] == times[1:]


@pytest.mark.asyncio
async def test_receive_times_of_a_machine_increase_whatever_the_clock_does(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        for now_ms in (5000, 5000, 4000, 5001, 9000):
            rig.now_ms = now_ms
            await rig.accept(PLAIN, PLAIN)
        rig.now_ms = 4500
        await rig.accept(PLAIN, machine_id=OTHER)
    async with gate_on(tmp_path) as rig:
        rig.now_ms = 100
        await rig.accept(PLAIN)
        times_ms = [round(frame.received_at.timestamp() * 1000) for frame in await rig.frames()]
    assert times_ms == [5000, 5001, 5002, 5003, 5004, 5005, 5006, 5007, 9000, 9001, 4500, 9002]


LINES = st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda pair: (max(pair), min(pair)))


@given(st.lists(st.lists(LINES, max_size=6), max_size=5))
@settings(max_examples=15)
def test_whatever_arrives_is_stored_once_in_order_and_without_unexplained_gaps(
    calls: list[list[tuple[int, int]]],
) -> None:
    async def deliver(directory: Path) -> None:
        async with gate_on(directory) as rig:
            for lines in calls:
                answer = await rig.accept(*(numbered(seq, oldest=oldest) for seq, oldest in lines))
                stored = [json.loads(payload) for payload in await rig.payloads()]
                assert answer is None or answer["seq"] == (stored[-1]["seq"] if stored else 0)
                last_seq = 0
                for line in stored:
                    assert line["seq"] == last_seq + 1 or line["seq"] == line["oldest"] > last_seq
                    last_seq = line["seq"]

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(deliver(Path(directory)))


@pytest.mark.asyncio
async def test_where_a_machine_stood_is_forgotten_when_nobody_knows_it_any_more(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.accept(numbered(1), numbered(2))
        await rig.accept(numbered(1), machine_id=OTHER)
        await rig.gate.forget(lambda machine_id: machine_id == OTHER)
        assert set(rig.gate.senders) == {OTHER}
    async with gate_on(tmp_path) as rig:
        assert set(rig.gate.senders) == {OTHER}
        # Should it come back: its agent goes on with the oldest line that it holds.
        assert await rig.accept(numbered(3, oldest=3)) == ack(3)
