"""What a broker delivers, judged on a real spool: what of it is kept."""

from pathlib import Path

import pytest

from guestd.published import Publications, Published
from unit.test_intake import MACHINE, PLAIN, Gate, gate_on, marked, numbered

EVENT = b'{"type":"error_report","error_type":"e"}'


async def deliver(gate: Gate, *lines: bytes) -> None:
    published = Publications(
        gate.spool,
        gate.intake,
        counters=gate.counters,
        missing=lambda lines: gate.counts.update(missing=lines),
        now_ms=lambda: gate.now_ms,
        max_frame_bytes=10_000,
    )
    assert await published.accept([Published(MACHINE, line) for line in lines]) == len(lines)


@pytest.mark.asyncio
async def test_a_line_without_a_mark_is_known_by_its_number(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as gate:
        await deliver(gate, numbered(1), numbered(2), numbered(1))
        assert await gate.payloads() == [numbered(1), numbered(2)]
        assert gate.counts["duplicate"] == 1


@pytest.mark.asyncio
async def test_another_line_under_a_number_that_is_settled_is_kept(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as gate:
        lines = [marked(1, "0", "a"), marked(2, "a", "b"), marked(3, "b", "c")]
        await deliver(gate, *lines)
        await deliver(gate, lines[2])
        assert gate.counts["duplicate"] == 1
        # Put back behind line 1: it writes another 2 and another 3, and goes on.
        rewound = [marked(2, "a", "d"), marked(3, "d", "e"), marked(4, "e", "f")]
        await deliver(gate, *rewound)
        assert await gate.payloads() == lines + rewound
        assert gate.counts["missing"] == 0


@pytest.mark.asyncio
async def test_events_are_kept_and_other_messages_are_counted(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as gate:
        await deliver(gate, EVENT, b'{"type":"ping"}', PLAIN, b'{"type":"new"}')
        assert await gate.payloads() == [EVENT, PLAIN]
        assert [gate.counts[name] for name in ("error_report", "ping", "unknown")] == [1, 1, 1]
