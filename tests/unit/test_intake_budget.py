"""Intake: how much a machine may send; who sends more waits, or is refused."""

import asyncio
from pathlib import Path

import pytest

from support.gate import DEADLINE_SECONDS, MACHINE, OTHER, PLAIN, gate_on


@pytest.mark.asyncio
async def test_a_machine_within_its_budget_is_read_on_at_once(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as gate, asyncio.timeout(DEADLINE_SECONDS):
        await gate.intake.pace(MACHINE, size_bytes=1000, frames=10)
        assert gate.counts["held_back"] == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("used", [{"size_bytes": 1001, "frames": 0}, {"size_bytes": 1, "frames": 11}])
async def test_a_machine_over_its_budget_is_held_back_and_no_other(tmp_path: Path, used: dict[str, int]) -> None:
    async with gate_on(tmp_path) as gate, asyncio.timeout(DEADLINE_SECONDS):
        pacing = asyncio.create_task(gate.intake.pace(MACHINE, **used))
        await asyncio.sleep(0)
        await gate.intake.pace(OTHER, size_bytes=1000, frames=10)
        assert gate.counts["held_back"] == 1
        pacing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pacing
        assert gate.counts["held_back"] == 0


@pytest.mark.asyncio
async def test_what_a_broker_kept_of_a_machine_is_taken_though_it_comes_faster_than_its_budget(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as gate:
        gate.intake.charge_rows(MACHINE, 52)
        assert gate.intake.admits(MACHINE, 10)
        assert gate.counts == {}


@pytest.mark.asyncio
async def test_who_was_silent_for_a_day_may_send_a_days_backlog_and_nobody_else(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as gate:
        await gate.intake.accept(MACHINE, [PLAIN])
        await gate.intake.accept(OTHER, [PLAIN])
        gate.now_ms += 24 * 3600 * 1000
        await gate.intake.accept(OTHER, [PLAIN])
        assert gate.intake.admits(MACHINE, 10)
        await gate.intake.accept(MACHINE, [PLAIN])
        for machine_id in (MACHINE, OTHER):
            gate.intake.charge_rows(machine_id, 90)
        assert gate.intake.admits(MACHINE, 10)
        assert not gate.intake.admits(OTHER, 10)
        gate.intake.charge_rows(MACHINE, 10)
        assert not gate.intake.admits(MACHINE, 10)


@pytest.mark.asyncio
async def test_a_machine_is_refused_for_the_rows_that_its_frames_became(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as gate:
        assert gate.intake.admits(MACHINE, 10)
        gate.intake.charge_rows(MACHINE, 54)
        assert not gate.intake.admits(MACHINE, 10)
        assert gate.intake.admits(OTHER, 10)
        assert gate.counts == {"rate": 1}


@pytest.mark.asyncio
async def test_what_is_refused_for_its_rate_is_not_charged(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as gate:
        assert [gate.intake.admits(MACHINE, 400) for _ in range(100)] == [True] * 3 + [False] * 97
        assert gate.counts["rate"] == 97
