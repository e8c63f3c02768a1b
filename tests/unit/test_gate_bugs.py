"""A line with which the gate always fails costs no other line, and does not come for ever."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from guestd.ingest.gate import Gate
from guestd.ingest.mqtt_gate import MachineMessage
from guestd.ingest.rate_limit import RateLimit
from support.gate import (
    DEADLINE_SECONDS,
    MACHINE,
    OTHER,
    PLAIN,
    RATES,
    GateRig,
    gate_on,
    mqtt_gate,
    numbered,
    read_lines,
)

EVENT = b'{"type":"error_report","error_type":"e"}'
PING = b'{"type":"ping"}'


class Odd(bytes):
    """A payload that cannot be read on arrival."""

    error: Exception = LookupError("a bug")

    def strip(self, *_: object) -> bytes:
        raise self.error


def broken(missing: int) -> None:
    if missing:
        raise LookupError("a bug")


def bugs(rig: GateRig) -> float | None:
    return rig.telemetry.registry.get_sample_value("guestd_gate_bugs_total")


async def deliver(rig: GateRig, *messages: MachineMessage) -> int:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await mqtt_gate(rig, count_missing=broken).accept(messages)


def of_machine(*payloads: bytes) -> Sequence[MachineMessage]:
    return [MachineMessage(MACHINE, payload) for payload in payloads]


@pytest.mark.asyncio
async def test_a_message_of_a_broker_with_which_the_gate_always_fails_is_kept_and_holds_up_no_other(
    tmp_path: Path,
) -> None:
    async with gate_on(tmp_path) as rig:
        with capture_logs() as logged:
            messages = [*of_machine(numbered(1), numbered(5)), MachineMessage(OTHER, PLAIN)]
            assert await deliver(rig, *messages) == 3
        assert await rig.payloads() == [numbered(1), numbered(5), PLAIN]
        # Its number is kept with it, by which the store knows it.
        assert [frame.line_id and frame.line_id.seq for frame in await rig.frames()] == [1, 5, None]
        assert bugs(rig) == 1
        (entry,) = logged
        assert (entry["machine"], type(entry["exc_info"])) == (str(MACHINE), LookupError)
        # What is missing can still arrive, and is no duplicate.
        assert await deliver(rig, *of_machine(numbered(2))) == 1
        assert (await rig.payloads())[-1] == numbered(2)


@pytest.mark.asyncio
async def test_a_message_that_cannot_be_read_is_kept_whole(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await deliver(rig, *of_machine(numbered(1), Odd(numbered(2)), numbered(2))) == 3
        assert await rig.payloads() == [numbered(1), numbered(2), numbered(2)]
        assert bugs(rig) == 1


@pytest.mark.asyncio
async def test_a_line_that_triggers_a_bug_is_held_to_its_machines_share(tmp_path: Path) -> None:
    async with gate_on(tmp_path, max_bytes=20_000) as rig:
        lines = [numbered(seq) for seq in range(1, 101, 10)]
        assert await deliver(rig, *of_machine(*lines * 10)) == 100
        assert rig.counts["share"] > 0
        assert rig.spool.bytes <= 2_000


@pytest.mark.asyncio
async def test_messages_before_one_that_found_no_memory_are_not_taken_for_settled(tmp_path: Path) -> None:
    class WithoutMemory(Odd):
        error = MemoryError()

    async with gate_on(tmp_path) as rig:
        with pytest.raises(MemoryError):
            await deliver(rig, *of_machine(numbered(1), WithoutMemory(numbered(2))))
        assert await rig.payloads() == []
        # The broker delivers both again.
        assert await deliver(rig, *of_machine(numbered(1), numbered(2))) == 2
        assert await rig.payloads() == [numbered(1), numbered(2)]


@pytest.mark.asyncio
async def test_a_line_of_a_channel_with_which_the_gate_fails_is_accepted_and_the_next_ones_too(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def now_ms() -> int:
        if errors:
            raise errors.pop()
        return 1_000_000

    async with gate_on(tmp_path) as rig:
        gate = Gate(rig.spool, rig.telemetry.gate, now_ms, RateLimit(RATES))

        async def accept(*lines: bytes) -> list[bytes]:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await gate.accept(MACHINE, read_lines(*lines))

        await accept(numbered(1))
        errors.append(LookupError("a bug"))
        (reply,) = await accept(numbered(2), numbered(3))
        assert b'"seq":3' in reply
        for line in (EVENT, PLAIN, PING):
            errors.append(LookupError("a bug"))
            assert await accept(line) == []
        assert await rig.payloads() == [numbered(1), numbered(2), numbered(3), EVENT, PLAIN]
        assert bugs(rig) == 4
        # Not what fails whatever the line is.
        errors += [LookupError("a bug")] * 2
        with pytest.raises(LookupError):
            await accept(numbered(4))
        (reply,) = await accept(numbered(4))
        assert b'"seq":4' in reply
