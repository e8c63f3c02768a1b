"""Replay windows of runs: which numbers are settled, whatever the order they come in."""

from hypothesis import example, given
from hypothesis import strategies as st

from guestd.ingest.replay_window import WINDOW_LINES, ReplayWindow, advance, start

MOST = 10**18


def settled(seqs: list[int]) -> list[bool]:
    """Of each number whether it was new when it came."""
    window = start(seqs[0])
    news = [True]
    for seq in seqs[1:]:
        then = advance(window, seq)
        news.append(then is not None)
        window = then or window
    return news


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200))
def test_each_number_is_new_exactly_once_in_any_order(seqs: list[int]) -> None:
    first = [seq not in seqs[:place] for place, seq in enumerate(seqs)]
    # Of what is below the first to come nothing is known, but that a run begins with 1.
    assert settled(seqs) == first


def test_a_run_in_order_takes_no_room() -> None:
    window = start(1)
    for seq in range(2, 3 * WINDOW_LINES):
        then = advance(window, seq)
        assert then is not None
        window = then
    assert window == ReplayWindow(3 * WINDOW_LINES - 1, -1)


def test_behind_the_window_a_whole_run_is_settled_and_another_is_not_known() -> None:
    whole = list(range(1, 2 * WINDOW_LINES))
    assert settled([*whole, 1, 2])[-2:] == [False, False]
    assert settled([7, 8, 8 + 2 * WINDOW_LINES, 7, 8]) == [True, True, True, True, True]


def test_a_number_that_never_came_is_new_however_late_it_comes() -> None:
    assert settled([1, 2 + 2 * WINDOW_LINES, 2])[-1]
    without_two = [1, *range(3, 2 * WINDOW_LINES)]
    assert settled([*without_two, 2])[-1]


@given(st.lists(st.integers(1, MOST), min_size=1, max_size=50))
@example([1, MOST, 1, MOST - 1, 2])
def test_any_numbers_cost_little(seqs: list[int]) -> None:
    window = start(seqs[0])
    for seq in seqs:
        window = advance(window, seq) or window
        assert window.below.bit_length() <= WINDOW_LINES + 1
