"""The gate: machines that send much wait for their turn before their lines are accepted, or are refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from guestd.spool.file import SenderState
from support.gate import DEADLINE_SECONDS, MACHINE, OTHER, PLAIN, GateRig, ack, gate_on, numbered, read_lines

# As many objects as are a fifth of a second's work.
HEAVY = b'{"type":"metrics","data":{},"x":[' + b"{}," * 9000 + b"{}]}"
OTHERS = [UUID(int=number) for number in range(10, 20)]


@asynccontextmanager
async def busy_gate(directory: Path) -> AsyncIterator[GateRig]:
    """A gate at which other machines report too, and all are known."""
    async with gate_on(directory) as rig, asyncio.timeout(DEADLINE_SECONDS):
        for machine_id in (MACHINE, OTHER, UUID(int=3), *OTHERS):
            rig.gate.senders[machine_id] = SenderState(rig.now_ms, None, None)
        for machine_id in OTHERS:
            await rig.accept(PLAIN, machine_id=machine_id)
        yield rig


async def store_all(rig: GateRig) -> None:
    await rig.spool.trim(rig.spool.last_seq)


@pytest.mark.asyncio
async def test_who_sends_much_waits_while_such_frames_are_not_stored_and_others_do_not(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        await rig.gate.wait_for_turn(MACHINE, [HEAVY])
        await rig.accept(HEAVY)
        waiting = asyncio.create_task(rig.gate.wait_for_turn(OTHER, [HEAVY]))
        for machine_id in OTHERS:
            await rig.gate.wait_for_turn(machine_id, [PLAIN])
            await rig.accept(PLAIN, machine_id=machine_id)
        assert rig.counts["held_back"] == 1
        assert not waiting.done()
        await store_all(rig)
        await waiting
        assert rig.counts["held_back"] == 0


@pytest.mark.asyncio
async def test_a_caller_that_is_cancelled_while_it_waits_for_its_turn_lets_the_next_one_go(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        await rig.accept(HEAVY)
        first, second = (asyncio.create_task(rig.gate.wait_for_turn(each, [HEAVY])) for each in (OTHER, UUID(int=3)))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await store_all(rig)
        await second


@pytest.mark.asyncio
async def test_a_line_that_did_not_wait_for_its_turn_is_accepted_and_the_next_one_waits_for_both(
    tmp_path: Path,
) -> None:
    async with busy_gate(tmp_path) as rig:
        assert await rig.accept(numbered(1)[:-1] + HEAVY[len(PLAIN) - 1 :]) == ack(1)
        await rig.accept(HEAVY, machine_id=OTHER)
        assert rig.spool.heavy_rows > 18_000
        await store_all(rig)
        assert rig.spool.heavy_rows == 0


@pytest.mark.asyncio
async def test_over_a_broker_who_sends_much_is_refused_while_such_frames_are_not_stored(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        assert rig.gate.admit(MACHINE, HEAVY)
        assert rig.gate.admit(OTHER, HEAVY) is None
        assert rig.counts["rate"] == 1
        assert rig.gate.admit(OTHERS[0], PLAIN) == 0


@pytest.mark.asyncio
async def test_after_a_silence_a_backlog_passes_without_turns(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        rig.now_ms += 600_000
        rig.gate.senders[OTHER] = SenderState(rig.now_ms, None, None)
        assert rig.gate.admit(OTHER, HEAVY)
        assert rig.gate.admit(MACHINE, HEAVY) == 0


@pytest.mark.asyncio
async def test_on_a_channel_a_backlog_after_a_silence_waits_for_its_turn(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        rig.now_ms += 600_000
        await rig.accept(HEAVY, machine_id=OTHER)
        for machine_id in (MACHINE, UUID(int=9)):
            waiting = asyncio.create_task(rig.gate.wait_for_turn(machine_id, [HEAVY]))
            await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()


@pytest.mark.asyncio
async def test_a_machine_whose_channel_is_read_is_not_silent_whatever_comes(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        for _ in range(10):
            rig.now_ms += 5000
            await rig.gate.pace(MACHINE, size_bytes=1, frames=0)
        rig.gate.senders[OTHER] = SenderState(rig.now_ms, None, None)
        assert rig.gate.admit(OTHER, HEAVY)
        assert rig.gate.admit(MACHINE, HEAVY) is None


@pytest.mark.asyncio
async def test_the_backlog_of_a_machine_of_which_nothing_is_known_passes_without_turns(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        assert rig.gate.admit(OTHER, HEAVY)
        assert rig.gate.admit(MACHINE, HEAVY) is None
        assert rig.gate.admit(UUID(int=9), HEAVY) == 0


@pytest.mark.asyncio
async def test_when_most_machines_send_much_none_waits(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig, asyncio.timeout(DEADLINE_SECONDS):
        for machine_id in (MACHINE, OTHER, UUID(int=3)):
            await rig.gate.wait_for_turn(machine_id, [HEAVY])
            await rig.accept(HEAVY, machine_id=machine_id)


@pytest.mark.asyncio
async def test_a_refused_guest_does_not_count_as_silent(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        assert rig.gate.admit(OTHER, HEAVY)
        for _ in range(100):
            rig.now_ms += 1000
            assert rig.gate.admit(MACHINE, HEAVY) is None


@pytest.mark.asyncio
async def test_rows_that_the_estimate_did_not_show_are_charged(tmp_path: Path) -> None:
    async with busy_gate(tmp_path) as rig:
        await rig.gate.accept(MACHINE, read_lines(PLAIN))
        rig.gate.charge_rows(MACHINE, 50_000)
        assert rig.gate.admit(MACHINE, PLAIN) is None


@pytest.mark.asyncio
async def test_who_sends_lines_that_take_long_to_read_is_held_back_although_nothing_of_them_is_stored(
    tmp_path: Path,
) -> None:
    async with busy_gate(tmp_path) as rig:
        rig.gate.charge_reading(MACHINE, 1000.0)
        held_back = asyncio.create_task(rig.gate.pace(MACHINE, size_bytes=1, frames=1))
        await rig.gate.pace(OTHER, size_bytes=1, frames=1)
        await asyncio.sleep(0)
        assert not held_back.done()
        assert rig.counts["held_back"] == 1
        held_back.cancel()
