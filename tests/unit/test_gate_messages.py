"""The gate: several messages in one line, halves of messages, and lines that are broken."""

from pathlib import Path

import pytest

from guestd.ingest.gate import TRUNCATED_RETRIES
from guestd.wire.limits import MESSAGES
from support.gate import PLAIN, ack, gate_on, numbered, resend


@pytest.mark.asyncio
async def test_the_half_of_a_numbered_line_is_not_taken_and_the_whole_one_behind_it_is(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(1)[:-5]) == resend(0)
        assert await rig.accept(numbered(1)) == ack(1)
        assert await rig.payloads() == [numbered(1)]
        assert (rig.counts["cut_off"], rig.counts["duplicate"]) == (1, 0)


@pytest.mark.asyncio
async def test_a_numbered_line_that_is_broken_every_time_is_taken_in_the_end(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        broken = numbered(1)[:-1] + b",}"
        answers = [await rig.accept(broken) for _ in range(TRUNCATED_RETRIES + 1)]
        assert answers == [resend(0), None, None, ack(1)]
        assert await rig.payloads() == [broken]
        assert await rig.accept(numbered(2)) == ack(2)


@pytest.mark.parametrize("value", [b"NaN", b"-Infinity", b'"\x00\xff"', rb'"\ud800"', b"9" * 5000])
@pytest.mark.asyncio
async def test_a_numbered_line_that_decoding_can_repair_is_not_asked_for_again(tmp_path: Path, value: bytes) -> None:
    async with gate_on(tmp_path) as rig:
        line = numbered(1).replace(b"{}}", b'{"x":%s}}' % value)
        assert await rig.accept(line) == ack(1)
        assert await rig.payloads() == [line]


@pytest.mark.asyncio
async def test_messages_in_one_line_are_stored_and_acknowledged_each_by_itself(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(1) + PLAIN) == ack(1)
        assert await rig.accept(PLAIN + numbered(2) + numbered(3)) == ack(3)
        assert await rig.accept(numbered(2), numbered(3) + numbered(4)) == ack(4)
        assert await rig.payloads() == [numbered(1), PLAIN, PLAIN, numbered(2), numbered(3), numbered(4)]
        assert (rig.counts["accepted"], rig.counts["duplicate"], rig.counts["cut_off"]) == (6, 2, 0)


@pytest.mark.asyncio
async def test_a_number_is_not_acknowledged_for_the_sake_of_what_follows_its_half(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(1)[:-3] + PLAIN) == resend(0)
        assert await rig.accept(numbered(1)) == ack(1)
        assert await rig.accept(numbered(2)[:-3] + numbered(3)) == resend(1)
        assert await rig.accept(numbered(2), numbered(3)) == ack(3)
        assert await rig.payloads() == [PLAIN, numbered(1), numbered(2), numbered(3)]
        assert (rig.counts["cut_off"], rig.counts["out_of_order"], rig.counts["accepted"]) == (2, 1, 4)


@pytest.mark.asyncio
async def test_a_half_that_was_sent_again_in_its_line_is_refused_and_counted(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(numbered(1)[:-3] + numbered(1)) == ack(1)
        assert await rig.accept(PLAIN[:-1] + PLAIN) is None
        assert await rig.payloads() == [numbered(1), PLAIN]
        assert rig.counts["fragment"] == 2


@pytest.mark.asyncio
async def test_messages_of_other_types_in_one_line_are_counted_each(tmp_path: Path) -> None:
    async with gate_on(tmp_path) as rig:
        ping, event = b'{"type":"ping"}', b'{"type":"error_report","error_type":"e"}'
        assert [reply["type"] for reply in await rig.replies(ping + event + ping + PLAIN)] == ["pong"]
        assert await rig.payloads() == [event, PLAIN]
        assert (rig.counts["ping"], rig.counts["error_report"]) == (2, 1)


@pytest.mark.parametrize(
    "before", [b'{"type":"ping"}', b'{"type":"keep_alive","sequence_number":4}', b'{"type":"new"}']
)
@pytest.mark.asyncio
async def test_metrics_of_any_form_behind_another_message_are_taken(tmp_path: Path, before: bytes) -> None:
    older, spaced, sorted_keys = (
        b'{"timestamp":1,"metrics":{}}',
        b'{ "type": "metrics"}',
        b'{"data":{},"type":"metrics"}',
    )
    async with gate_on(tmp_path) as rig:
        await rig.replies(before + older, before + spaced, before + sorted_keys)
        assert await rig.payloads() == [older, spaced, sorted_keys]
        assert sum(rig.counts[kind] for kind in ("ping", "keep_alive", "unknown")) == 3


@pytest.mark.parametrize("kind", [b"ping", b"keep_alive", b"new"])
@pytest.mark.asyncio
async def test_what_is_broken_is_kept_though_it_begins_as_a_message_of_which_nothing_is(
    tmp_path: Path, kind: bytes
) -> None:
    async with gate_on(tmp_path) as rig:
        line = b'{"type":"%s","sequence_number":4' % kind
        assert await rig.replies(line, line + b'} x{"timestamp":1}') == []
        assert await rig.payloads() == [line, line + b'} x{"timestamp":1}']
        assert rig.counts["accepted"] == 2


@pytest.mark.asyncio
async def test_of_many_numbered_messages_in_a_line_the_first_are_taken_and_the_others_asked_for(tmp_path: Path) -> None:
    messages = [numbered(seq) for seq in range(1, 2 * MESSAGES + 1)]
    async with gate_on(tmp_path) as rig:
        assert await rig.accept(b"".join(messages)) == resend(MESSAGES)
        assert await rig.accept(b"".join(messages[MESSAGES:])) == ack(2 * MESSAGES)
        assert await rig.payloads() == messages
    async with gate_on(tmp_path / "again") as rig:
        # An agent that sends the same line each time gets further each time that what is left is taken as it is.
        answers = [await rig.accept(b"".join(messages)) for _ in range(TRUNCATED_RETRIES + 1)]
        assert answers[-1] == ack(MESSAGES + 1)
        assert await rig.payloads() == [*messages[:MESSAGES], b"".join(messages[MESSAGES:])]


@pytest.mark.asyncio
async def test_a_broken_numbered_line_with_typed_objects_in_it_is_kept_whole(tmp_path: Path) -> None:
    inner = b'{"i":[{"type":"disk","n":1},{"type":"ping"},{"type":"disk","n":2}%s]}}'
    broken, whole = (numbered(1).replace(b"{}}", inner % end) for end in (b",", b""))
    async with gate_on(tmp_path) as rig:
        answers = [await rig.replies(broken) for _ in range(TRUNCATED_RETRIES + 1)]
        assert answers == [[resend(0)], [], [], [ack(1)]]
        assert await rig.payloads() == [broken]
        assert rig.counts["ping"] == rig.counts["unknown"] == rig.counts["fragment"] == 0
    async with gate_on(tmp_path / "half") as rig:
        assert await rig.replies(whole[:-3] + whole) == [ack(1)]
        assert await rig.payloads() == [whole]
        assert rig.counts["fragment"] == 1
