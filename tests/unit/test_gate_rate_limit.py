"""The gate: how much a machine may send; who sends more waits, or is refused."""

import asyncio
from pathlib import Path

import pytest

from support.gate import DEADLINE_SECONDS, MACHINE, OTHER, PLAIN, gate_on, read_lines


@pytest.mark.asyncio
async def test_a_machine_within_its_rate_limit_is_read_on_at_once(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig, asyncio.timeout(DEADLINE_SECONDS):
        await rig.gate.pace(MACHINE, size_bytes=1000, frames=10)
        assert rig.counts["held_back"] == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("used", [{"size_bytes": 1001, "frames": 0}, {"size_bytes": 1, "frames": 11}])
async def test_a_machine_over_its_rate_limit_is_held_back_and_no_other(tmp_path: Path, used: dict[str, int]) -> None:
    async with gate_on(tmp_path) as rig, asyncio.timeout(DEADLINE_SECONDS):
        pacing = asyncio.create_task(rig.gate.pace(MACHINE, **used))
        await asyncio.sleep(0)
        await rig.gate.pace(OTHER, size_bytes=1000, frames=10)
        assert rig.counts["held_back"] == 1
        pacing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pacing
        assert rig.counts["held_back"] == 0


@pytest.mark.asyncio
async def test_what_a_broker_kept_of_a_machine_is_taken_though_it_comes_faster_than_its_rate_limit(
    tmp_path: Path,
) -> None:
    async with gate_on(tmp_path) as rig:
        rig.gate.charge_rows(MACHINE, 520)
        assert rig.gate.admit(MACHINE, b"x" * 10) is not None
        assert rig.counts == {}


@pytest.mark.asyncio
async def test_who_was_silent_for_a_day_may_send_a_days_backlog_and_nobody_else(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await rig.gate.accept(MACHINE, read_lines(PLAIN))
        rig.now_ms += 24 * 3600 * 1000
        await rig.gate.accept(OTHER, read_lines(PLAIN))
        assert rig.gate.admit(MACHINE, b"x" * 10) is not None
        await rig.gate.accept(MACHINE, read_lines(PLAIN))
        for machine_id in (MACHINE, OTHER):
            rig.gate.charge_rows(machine_id, 900)
        assert rig.gate.admit(MACHINE, b"x" * 10) is not None
        assert rig.gate.admit(OTHER, b"x" * 10) is None
        rig.gate.charge_rows(MACHINE, 100)
        assert rig.gate.admit(MACHINE, b"x" * 10) is None


@pytest.mark.asyncio
async def test_a_machine_is_refused_for_the_rows_that_its_frames_became(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert rig.gate.admit(MACHINE, b"x" * 10) is not None
        rig.gate.charge_rows(MACHINE, 540)
        assert rig.gate.admit(MACHINE, b"x" * 10) is None
        assert rig.gate.admit(OTHER, b"x" * 10) is not None
        assert rig.counts == {"rate": 1}


@pytest.mark.asyncio
async def test_what_is_refused_for_its_rate_is_not_charged(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert [rig.gate.admit(MACHINE, b"x" * 400) is not None for _ in range(100)] == [True] * 3 + [False] * 97
        assert rig.counts["rate"] == 97
