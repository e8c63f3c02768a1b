"""When the samples of numbered lines were taken: any clock, any wait, in the order of the lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guestd.core.transport import Transport
from guestd.rows.run_times import AHEAD_OF_KNOWN, Claim, RunTimes, find_ceilings, plausible_times, read_claim
from guestd.rows.times import CLOCK_TOLERANCE, QUEUE_TIME, whole_milliseconds

BOOT = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11"
START = datetime(2025, 10, 1, tzinfo=UTC)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
JITTER = timedelta(milliseconds=50)
INTERVAL = timedelta(seconds=10)
# By how much a clock may be wrong: by nothing, a little, a time zone, a battery that is empty.
OFFSETS = st.one_of(
    st.just(timedelta()),
    st.timedeltas(-timedelta(minutes=10), timedelta(minutes=10)),
    st.sampled_from([-2 * HOUR, 2 * HOUR, timedelta(days=-365), timedelta(days=365), timedelta(days=-20_000)]),
)
TRANSPORTS = st.sampled_from(list(Transport))


@dataclass(frozen=True)
class Sent:
    """A sample that was taken and the line that was received."""

    taken_at: datetime
    claim: Claim


def sent(
    offsets: Sequence[timedelta], reader_at: datetime, transport: Transport = Transport.VIRTIO, *, has_age: bool = True
) -> list[Sent]:
    """Samples every ten seconds from START. `offsets`: by how much the clock is ahead at each; `reader_at`: when guestd
    begins to read them."""
    lines = []
    for number, offset in enumerate(offsets):
        taken_at = START + number * INTERVAL
        received_at = max(taken_at, reader_at) + JITTER + number * timedelta(milliseconds=1)
        age_ms = max(0, (reader_at - taken_at) // timedelta(milliseconds=1))
        claim = Claim(taken_at + offset, age_ms if has_age else None, received_at, transport)
        lines.append(Sent(taken_at, claim))
    return lines


def placed(lines: Sequence[Sent], batch: int = 2000) -> list[datetime]:
    """The timestamps, decided batch by batch."""
    run, moments = RunTimes(BOOT), []
    for begin in range(0, len(lines), batch):
        claims = [line.claim for line in lines[begin : begin + batch]]
        ceilings = list(find_ceilings(list(plausible_times(claims))))[::-1]
        for seq, (claim, ceiling) in enumerate(zip(claims, ceilings, strict=True), begin + 1):
            moments.append(run.place(seq, claim, ceiling))
    return moments


CLAIMS = st.builds(
    Claim,
    st.none() | st.datetimes(timezones=st.just(UTC)) | st.timedeltas(-8 * HOUR, HOUR).map(lambda ago: START + ago),
    st.none() | st.integers(0, 2**63 - 1) | st.integers(0, 30_000_000),
    st.timedeltas(timedelta(), HOUR).map(lambda since: START + since),
    TRANSPORTS,
)


@given(st.lists(CLAIMS, max_size=30).map(lambda claims: sorted(claims, key=lambda claim: claim.received_at)), st.data())
def test_whatever_lines_claim_their_samples_are_in_their_order_and_within_a_week(
    claims: list[Claim], data: st.DataObject
) -> None:
    moments = placed([Sent(START, claim) for claim in claims], data.draw(st.integers(1, 40)))
    assert all(earlier < later for earlier, later in pairwise(moments))
    for claim, moment in zip(claims, moments, strict=True):
        assert claim.earliest <= moment <= claim.received_at + CLOCK_TOLERANCE + SECOND
        assert moment == whole_milliseconds(moment)


@given(st.lists(OFFSETS, min_size=1, max_size=60), st.timedeltas(timedelta(), 2 * HOUR), st.integers(1, 60))
@example([timedelta(days=365)] * 60, timedelta(minutes=8), 7)
@example([2 * HOUR] * 3 + [timedelta()] * 57, 3 * HOUR, 1)
@example([timedelta(days=-20_000)] * 3 + [timedelta()] * 57, timedelta(minutes=8), 1)
def test_lines_that_state_their_age_are_placed_where_they_were_taken_whatever_the_clock_does(
    offsets: list[timedelta], wait: timedelta, batch: int
) -> None:
    lines = sent(offsets, START + wait)
    for line, moment in zip(lines, placed(lines, batch), strict=True):
        # The clock itself is used while it is nearly right. It may be up to five minutes behind.
        assert -CLOCK_TOLERANCE - SECOND < moment - line.taken_at <= AHEAD_OF_KNOWN + SECOND


@given(OFFSETS, st.timedeltas(timedelta(), 2 * HOUR))
def test_a_clock_that_is_wrong_all_the_time_does_not_change_the_spacing(offset: timedelta, wait: timedelta) -> None:
    moments = placed(sent([offset] * 60, START + wait), 7)
    assert all(abs(later - earlier - INTERVAL) <= SECOND for earlier, later in pairwise(moments))


@given(st.timedeltas(timedelta(), timedelta(days=6)), TRANSPORTS, st.booleans(), st.integers(1, 60))
def test_a_right_clock_is_kept_however_long_lines_waited(
    wait: timedelta, transport: Transport, has_age: bool, batch: int
) -> None:
    lines = sent([timedelta()] * 49, START + wait, transport, has_age=has_age)
    assert placed(lines, batch) == [line.taken_at for line in lines]


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize("offset", [timedelta(days=-20_000), 2 * HOUR, timedelta(days=365), timedelta(minutes=3)])
def test_a_clock_that_is_set_right_at_boot_moves_only_the_lines_before(transport: Transport, offset: timedelta) -> None:
    """Without an age: what the clock shows later is nearer to the truth, because NTP corrects it."""
    lines = sent([offset] * 3 + [timedelta()] * 57, START + 3 * HOUR, transport, has_age=False)
    moments = placed(lines)
    assert moments[3:] == [line.taken_at for line in lines[3:]]
    assert all(earlier < later for earlier, later in pairwise(moments))


def test_a_clock_that_is_hours_behind_does_not_make_a_live_guest_late() -> None:
    lines = sent([-2 * HOUR] * 5, START)
    assert [moment - line.taken_at for line, moment in zip(lines, placed(lines, 1), strict=True)] == [
        JITTER + number * timedelta(milliseconds=1) for number in range(5)
    ]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("interval", [INTERVAL, SECOND])
def test_without_an_age_a_clock_that_is_behind_makes_one_sample_of_a_run_late(batch: int, interval: timedelta) -> None:
    """The first one, which may have waited as well; nothing before it shows how fast lines come."""
    lines = live([-2 * HOUR] * 30, interval)
    _, *moments = placed(lines, batch)
    assert all(abs(moment - line.taken_at) < SECOND for line, moment in zip(lines[1:], moments, strict=True))


@pytest.mark.parametrize("transport", Transport)
def test_without_an_age_samples_after_a_step_back_of_the_clock_have_the_time_of_receipt(transport: Transport) -> None:
    lines = live([timedelta()] * 5 + [-HOUR] * 30, INTERVAL, transport)
    for line, moment in zip(lines, placed(lines, 1), strict=True):
        assert abs(moment - line.taken_at) < SECOND


def live(offsets: Sequence[timedelta], interval: timedelta, transport: Transport = Transport.VIRTIO) -> list[Sent]:
    """Samples without an age that are received as they are taken."""
    taken = [START + number * interval for number in range(len(offsets))]
    return [
        Sent(at, Claim(at + offset, None, at + JITTER, transport)) for at, offset in zip(taken, offsets, strict=True)
    ]


@given(st.lists(st.timedeltas(timedelta(), timedelta(minutes=4)), max_size=8), st.integers(1, 20))
def test_without_an_age_a_backlog_that_comes_with_pauses_is_kept(pauses: list[timedelta], batch: int) -> None:
    """guestd waits for the store, or its spool is full: no line is read meanwhile."""
    lines: list[Sent] = []
    waited = timedelta()
    for line in sent([timedelta()] * 720, START + 4 * HOUR, has_age=False):
        number = len(lines)
        if number >= 60 and number % 60 == 0 and number // 60 <= len(pauses):
            waited += pauses[number // 60 - 1]
        claim = replace(line.claim, received_at=line.claim.received_at + waited)
        lines.append(Sent(line.taken_at, claim))
    assert placed(lines, batch) == [line.taken_at for line in lines]


def test_a_clock_that_drifts_away_is_followed_until_it_is_wrong() -> None:
    lines = sent([-timedelta(minutes=minute / 2) for minute in range(20)], START)
    late = [line.taken_at - moment for line, moment in zip(lines, placed(lines, 1), strict=True)]
    assert max(late) <= CLOCK_TOLERANCE
    assert late[-1] < SECOND


def test_lines_that_waited_in_the_channel_are_placed_by_the_clock_that_was_right_before() -> None:
    """The spool was full: guestd did not read what was written long ago. The rest of the backlog follows in order."""
    run = RunTimes(BOOT)
    run.place(1, Claim(START, 0, START, Transport.VIRTIO))
    read_at = START + 2 * HOUR
    in_channel = [START + number * INTERVAL for number in range(1, 20)]
    moments = [run.place(seq, Claim(at, 0, read_at, Transport.VIRTIO)) for seq, at in enumerate(in_channel, 2)]
    assert moments == in_channel
    held = START + 20 * INTERVAL
    age_ms = (read_at - held) // timedelta(milliseconds=1)
    assert run.place(21, Claim(held, age_ms, read_at, Transport.VIRTIO)) == held


def test_a_clock_that_is_set_back_is_not_taken_for_a_wait() -> None:
    lines = sent([timedelta()] * 3 + [-2 * HOUR] * 3, START)
    moments = placed(lines, 1)
    assert all(abs(moment - line.taken_at) < SECOND for line, moment in zip(lines, moments, strict=True))


def test_a_host_clock_that_was_far_ahead_does_not_hold_a_run_in_the_future() -> None:
    run = RunTimes(BOOT)
    ahead = START + timedelta(days=300)
    assert run.place(1, Claim(ahead, 0, ahead, Transport.VIRTIO)) == ahead
    assert run.place(2, Claim(START, 0, START, Transport.VIRTIO)) == START


def test_a_line_that_a_broker_delivers_late_is_placed_by_its_clock() -> None:
    run = RunTimes(BOOT)
    later = run.place(2, Claim(START + INTERVAL, None, START + HOUR, Transport.MQTT))
    assert run.place(1, Claim(START, None, START + HOUR, Transport.MQTT)) == START
    assert run.place(3, Claim(START, None, START + HOUR, Transport.MQTT)) > later


def test_a_line_is_never_older_than_retention_keeps_and_those_that_are_stay_in_order() -> None:
    run, read_at = RunTimes(BOOT), START + timedelta(days=30)
    ages = [timedelta(days=30), timedelta(days=29), timedelta(days=1)]
    claims = [Claim(read_at - age, age // timedelta(milliseconds=1), read_at, Transport.VIRTIO) for age in ages]
    first, second, third = (run.place(seq, claim) for seq, claim in enumerate(claims, 1))
    assert first == read_at - QUEUE_TIME
    assert second - first == timedelta(milliseconds=1)
    assert third == read_at - timedelta(days=1)


def test_the_claim_of_a_line_is_read_where_our_agent_writes_it() -> None:
    head = b'{"type":"metrics","boot_id":"%s","seq":1,"oldest":1,' % BOOT.encode()
    for line, expected in {
        head + b'"age_ms":17,"timestamp":"2025-10-01T00:00:00.000+00:00","data":{}}': (START, 17),
        head + b'"timestamp":"2025-10-01T00:00:00Z","data":{}}': (START, None),
        head + b'"timestamp":"soon","data":{}}': (None, None),
        head + b'"data":{}}': (None, None),
        head + b'"data":{"timestamp":"2025-10-01T00:00:00Z"}}': (None, None),
        head + b'"x":{"age_ms":17,"timestamp":"2025-10-01T00:00:00Z"},"age_ms":3,"timestamp":"soon"}': (None, None),
    }.items():
        claim = read_claim(line, START, Transport.VIRTIO)
        assert (claim.time, claim.age_ms) == expected
