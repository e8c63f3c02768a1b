"""What a broker delivers, judged on a real spool: what of it is kept."""

import asyncio
import itertools
from pathlib import Path
from uuid import UUID

import pytest

from guestd.ingest.mqtt_gate import MachineMessage
from guestd.spool.file import SenderState
from guestd.wire.framing import Framer
from guestd.wire.line import read_first_line
from support.gate import BOOT, MACHINE, OTHER, PLAIN, GateRig, gate_on, marked, mqtt_gate, numbered, read_lines
from support.poison import POISON

EVENT = b'{"type":"error_report","error_type":"e"}'


async def deliver(rig: GateRig, *lines: bytes) -> None:
    assert await mqtt_gate(rig).accept([MachineMessage(MACHINE, line) for line in lines]) == len(lines)


@pytest.mark.asyncio
async def test_a_line_without_a_mark_is_known_by_its_number(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, numbered(1), numbered(2), numbered(1))
        assert await rig.payloads() == [numbered(1), numbered(2)]
        assert rig.counts["duplicate"] == 1


@pytest.mark.asyncio
async def test_what_a_machine_says_on_its_channel_settles_no_line_that_the_broker_still_owes(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, numbered(1), numbered(3))
        await rig.gate.accept(MACHINE, read_lines(PLAIN))
        await deliver(rig, numbered(2))
        assert await rig.payloads() == [numbered(1), numbered(3), PLAIN, numbered(2)]


@pytest.mark.asyncio
async def test_another_line_under_a_number_that_is_settled_is_kept(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        lines = [marked(1, "0", "a"), marked(2, "a", "b"), marked(3, "b", "c")]
        await deliver(rig, *lines)
        await deliver(rig, lines[2])
        assert rig.counts["duplicate"] == 1
        # Put back behind line 1: it writes another 2 and another 3, and goes on.
        rewound = [marked(2, "a", "d"), marked(3, "d", "e"), marked(4, "e", "f")]
        await deliver(rig, *rewound)
        assert await rig.payloads() == lines + rewound
        assert rig.counts["missing"] == 0


@pytest.mark.asyncio
async def test_events_are_kept_and_other_messages_are_counted(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, EVENT, b'{"type":"ping"}', PLAIN, b'{"type":"new"}')
        assert await rig.payloads() == [EVENT, PLAIN]
        assert [rig.counts[name] for name in ("error_report", "ping", "unknown")] == [1, 1, 1]


@pytest.mark.asyncio
async def test_what_a_machine_says_beside_metrics_is_charged(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, *[b'{"type":"ping"}'] * 500, PLAIN)
        assert await rig.payloads() == []
        assert (rig.counts["ping"], rig.counts["rate"]) == (500, 1)


@pytest.mark.asyncio
async def test_what_finds_the_spool_full_is_left_with_all_behind_it(tmp_path: Path) -> None:
    line = b"x" * 900
    async with gate_on(tmp_path, max_bytes=10_000) as rig:
        machines = [UUID(int=number) for number in range(1, 16)]
        settled = await mqtt_gate(rig).accept([MachineMessage(machine_id, line) for machine_id in machines])
        assert settled == rig.counts["accepted"] == 10
        assert (
            await mqtt_gate(rig).accept([MachineMessage(machines[10], line), MachineMessage(machines[11], b"{}")]) == 0
        )
        await rig.spool.trim(5)
        assert (
            await mqtt_gate(rig).accept([MachineMessage(machines[10], line), MachineMessage(machines[11], b"{}")]) == 2
        )
        assert rig.counts["share"] == 0


@pytest.mark.asyncio
async def test_a_machine_over_its_share_is_refused_and_those_behind_it_are_taken(tmp_path: Path) -> None:
    line = b"x" * 900
    async with gate_on(tmp_path, max_bytes=10_000) as rig:
        messages = [MachineMessage(MACHINE, line)] * 2 + [MachineMessage(OTHER, line)]
        assert await mqtt_gate(rig).accept(messages) == 3
        assert (rig.counts["accepted"], rig.counts["share"]) == (2, 1)


@pytest.mark.asyncio
async def test_a_numbered_line_that_is_refused_is_not_missing_and_not_taken_when_it_comes_again(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        too_long = numbered(2)[:-1] + b" " * 10_000 + b"}"
        await deliver(rig, numbered(1), too_long, numbered(3), numbered(2))
        assert await rig.payloads() == [numbered(1), numbered(3)]
        assert [rig.counts[name] for name in ("oversize", "missing", "duplicate")] == [1, 0, 1]


@pytest.mark.asyncio
async def test_gaps_are_counted_and_what_fills_them_is_taken_also_after_a_restart(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, numbered(1), numbered(5), numbered(3))
        assert rig.counts["missing"] == 3
    async with gate_on(tmp_path) as rig:
        await deliver(rig, *(numbered(seq) for seq in range(1, 7)))
        assert await rig.payloads() == [numbered(seq) for seq in (1, 5, 3, 2, 4, 6)]
        assert rig.counts["duplicate"] == 3


@pytest.mark.asyncio
async def test_a_batch_is_settled_when_it_is_on_disk_and_not_before(tmp_path: Path) -> None:
    async with gate_on(tmp_path, is_running=False) as rig:
        first = asyncio.create_task(mqtt_gate(rig).accept([MachineMessage(MACHINE, numbered(1))]))
        # The same line again, by another connection: it is known, and as little safe as the first.
        again = asyncio.create_task(mqtt_gate(rig).accept([MachineMessage(MACHINE, numbered(1))]))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not first.done()
        assert not again.done()
        writing = asyncio.create_task(rig.spool.run())
        assert [await first, await again] == [1, 1]
        assert rig.counts["duplicate"] == 1
        rig.spool.seal()
        await writing


@pytest.mark.asyncio
async def test_messages_in_one_payload_are_lines_of_their_own(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, numbered(1) + b"\n" + PLAIN + EVENT + b'{"type":"ping"}\r\n', b"\xef\xbb\xbf" + numbered(2))
        assert await rig.payloads() == [numbered(1), PLAIN, EVENT, numbered(2)]
        assert (rig.counts["accepted"], rig.counts["ping"], rig.counts["missing"]) == (4, 1, 0)
        await deliver(rig, numbered(2) + numbered(3))
        assert rig.counts["duplicate"] == 1


@pytest.mark.asyncio
async def test_a_payload_of_several_lines_is_one_message_if_it_is_one(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        pretty = b'{\n  "type": "metrics",\r\n  "data": {}\n}'
        await deliver(rig, pretty + b"\n")
        assert await rig.payloads() == [pretty]


@pytest.mark.asyncio
async def test_a_half_in_front_of_its_whole_is_counted_and_what_cannot_be_read_is_kept(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, PLAIN[:-1] + PLAIN, b"x", PLAIN[:-1])
        assert await rig.payloads() == [PLAIN, b"x", PLAIN[:-1]]
        assert rig.counts["fragment"] == 1


@pytest.mark.asyncio
async def test_a_blank_payload_is_settled_and_is_nothing_as_on_a_channel(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, b"", b"\r\n", b"\0", b"\xef\xbb\xbf", PLAIN)
        assert await rig.payloads() == [PLAIN]
        assert rig.counts["accepted"] == 1


@pytest.mark.asyncio
async def test_a_byte_order_mark_before_a_line_over_the_limit_does_not_hide_its_number(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, numbered(1), b"\xef\xbb\xbf" + numbered(2)[:-1] + b" " * 10_000 + b"}", numbered(3))
        assert await rig.payloads() == [numbered(1), numbered(3)]
        assert (rig.counts["oversize"], rig.counts["missing"]) == (1, 0)


@pytest.mark.asyncio
async def test_messages_without_line_ends_are_separated_as_on_a_channel(tmp_path: Path) -> None:
    typed = b'{"type":"metrics","data":{"i":[{"type":"disk","n":1},{"type":"ping"}]}}'
    older = b'{"timestamp":1,"metrics":{}}'
    broken = typed[:-1] + b",}"
    text = b'{"type":"metrics","x":"a {{b}}\r c"}'
    for number, (line, parts) in enumerate(
        [
            (typed + typed, [typed, typed]),
            (b'{"type":"ping"}' + older, [older]),
            (older + older, [older, older]),
            (broken, [broken]),
            (typed[:-4] + typed, [typed]),
            (text, [text]),
            (typed + b"\r" + typed, [typed, typed]),
            (b"".join(map(numbered, range(1, 9))) + older + older, [*map(numbered, range(1, 9)), older + older]),
        ]
    ):
        async with gate_on(tmp_path / f"{number}b") as broker, gate_on(tmp_path / f"{number}c") as channel:
            await deliver(broker, line)
            for each in Framer(10_000).feed(line + b"\n"):
                await channel.gate.accept(MACHINE, read_first_line(each))
            assert await broker.payloads() == await channel.payloads() == parts


@pytest.mark.asyncio
async def test_poisoned_lines_are_accepted_as_on_a_channel_with_a_number_and_without(tmp_path: Path) -> None:
    number = numbered(1).partition(b'"data"')[0]
    async with gate_on(tmp_path / "channel") as channel, gate_on(tmp_path / "broker") as broker:
        # What cannot be read as JSON is requested again where that is possible.
        poison = [value for name, value in POISON.items() if name != "deeper list"]
        for place, value in enumerate(poison):
            line = number + b'"data":%s}' % value
            plain = line.replace(number, b'{"type":"metrics",')
            for case, stream in enumerate(
                (line, plain, plain + plain, b"\xef\xbb\xbf" + plain, b"\0" + line + b"\x1e")
            ):
                # A machine for each, as rate limits are of machines; its first line.
                machine_id = UUID(int=10 * place + case)
                await channel.gate.accept(machine_id, read_first_line(stream))
                await mqtt_gate(broker).accept([MachineMessage(machine_id, stream)])
        frames = [[(frame.machine_id, frame.payload) for frame in await rig.frames()] for rig in (channel, broker)]
        assert len(frames[0]) == 6 * len(poison)
        small = [[frame for frame in some if len(frame[1]) < 500] for some in frames]
        assert small[0] == small[1]
        assert channel.counts["fragment"] == broker.counts["fragment"] == channel.counts["cut_off"] == 0


@pytest.mark.asyncio
@pytest.mark.parametrize("line", [numbered(1)[:-1] + b" " * 300 + b"}", b'{"type":"ping"}' + b" " * 300])
async def test_who_sends_what_takes_long_to_read_is_read_no_more_though_nothing_of_it_is_kept(
    tmp_path: Path, line: bytes
) -> None:
    async with gate_on(tmp_path) as rig:
        for machine_id in (OTHER, UUID(int=3), UUID(int=4)):
            await rig.gate.accept(machine_id, read_lines(PLAIN))
        await deliver(rig, numbered(1))
        # Of each message, 60 s: not even one fits.
        calls = itertools.count()
        gate = mqtt_gate(rig, cpu_seconds=lambda: next(calls) * 60.0)
        await gate.accept([MachineMessage(MACHINE, line)] * 20)
        assert next(calls) == 2
        assert rig.gate.admits(OTHER, PLAIN)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "message", [numbered(1), b'{"type":"ping"}', b"", b" " * 10_001], ids=["duplicate", "ping", "empty", "oversize"]
)
async def test_who_is_read_all_the_time_is_not_silent_though_nothing_of_it_is_kept(
    tmp_path: Path, message: bytes
) -> None:
    async with gate_on(tmp_path) as rig:
        for machine_id in (OTHER, UUID(int=3), UUID(int=4), UUID(int=5)):
            await rig.gate.accept(machine_id, read_lines(PLAIN))
        rig.gate.senders[MACHINE] = SenderState(rig.now_ms, BOOT, 1)
        for _ in range(10):
            rig.now_ms += 5000
            await deliver(rig, message)
        heavy = b"{" * 9000
        rig.gate.senders[OTHER] = SenderState(rig.now_ms, None, None)
        assert rig.gate.admit(OTHER, heavy)
        assert rig.gate.admit(MACHINE, heavy) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("message", [b"", b'{"type":"ping"}', numbered(1)], ids=["empty", "ping", "duplicate"])
async def test_messages_of_which_nothing_is_kept_count_for_the_rate_limit(tmp_path: Path, message: bytes) -> None:
    async with gate_on(tmp_path) as rig:
        await deliver(rig, numbered(1), *[message] * 500)
        await deliver(rig, PLAIN)
        assert await rig.payloads() == [numbered(1)]
        assert rig.gate.admits(OTHER, PLAIN)
