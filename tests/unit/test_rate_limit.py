"""Rate limits: nobody gets more than the burst and the rate, nobody is held longer than that takes."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from guestd.ingest.rate_limit import MAX_MACHINES, Rate, RateLimit, Rates

MACHINE, OTHER = UUID(int=1), UUID(int=2)
RATES = Rates(size_bytes=Rate(100, 1000), frames=Rate(1, 10), rows=Rate(10, 50))


def test_a_machine_that_was_never_charged_is_within_its_rate_limit() -> None:
    assert RateLimit(RATES).wait_seconds(MACHINE, 5) == 0


def test_the_burst_is_free_and_what_is_beyond_it_is_paid_with_time() -> None:
    rate_limit = RateLimit(RATES)
    rate_limit.charge(MACHINE, 5, size_bytes=1000)
    assert rate_limit.wait_seconds(MACHINE, 5) == 0
    rate_limit.charge(MACHINE, 5, size_bytes=300)
    assert rate_limit.wait_seconds(MACHINE, 5) == 3
    assert rate_limit.wait_seconds(MACHINE, 7) == 1
    assert rate_limit.wait_seconds(MACHINE, 8) == 0


def test_the_scarcest_of_bytes_frames_and_rows_decides() -> None:
    rate_limit = RateLimit(RATES)
    rate_limit.charge(MACHINE, 0, size_bytes=1100, frames=12, rows=51)
    assert rate_limit.wait_seconds(MACHINE, 0) == 2


def test_one_machine_does_not_pay_for_another() -> None:
    rate_limit = RateLimit(RATES)
    rate_limit.charge(MACHINE, 0, rows=1_000_000)
    assert rate_limit.wait_seconds(OTHER, 0) == 0


def test_rest_fills_the_buckets_and_no_more_than_fills_them() -> None:
    rate_limit = RateLimit(RATES)
    rate_limit.charge(MACHINE, 0, frames=15)
    assert rate_limit.wait_seconds(MACHINE, 1_000_000) == 0
    rate_limit.charge(MACHINE, 1_000_000, frames=12)
    assert rate_limit.wait_seconds(MACHINE, 1_000_000) == 2


def test_a_machine_at_rest_is_forgotten_and_so_is_the_first_of_too_many() -> None:
    rate_limit = RateLimit(RATES)
    rate_limit.charge(MACHINE, 0, frames=15)
    assert rate_limit.wait_seconds(MACHINE, 15) == 0
    assert rate_limit._full_at_seconds == {}
    for number in range(MAX_MACHINES + 5):
        rate_limit.charge(UUID(int=number), 0, frames=15)
    assert len(rate_limit._full_at_seconds) == MAX_MACHINES


USES = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 3000), st.integers(0, 30), st.integers(0, 200)), max_size=30
)


@given(USES)
def test_whoever_waits_when_told_to_uses_at_most_rate_and_burst_and_one_more_use(
    uses: list[tuple[int, int, int, int]],
) -> None:
    rate_limit, now = RateLimit(RATES), 0.0
    totals, largest = [0, 0, 0], [0, 0, 0]
    for pause, *used in uses:
        now += pause
        now += rate_limit.wait_seconds(MACHINE, now)
        for place, (total, rate) in enumerate(zip(totals, (RATES.size_bytes, RATES.frames, RATES.rows), strict=True)):
            assert total <= rate.burst + rate.per_second * now + largest[place] + 1e-6
            totals[place] = total + used[place]
            largest[place] = max(largest[place], used[place])
        size_bytes, frames, rows = used
        rate_limit.charge(MACHINE, now, size_bytes=size_bytes, frames=frames, rows=rows)
