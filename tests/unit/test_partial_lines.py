"""Lines that have not arrived whole: one budget of memory for all channels."""

from guestd.ingest.partial_lines import PartialLines


class Channel:
    def __init__(self) -> None:
        self.lost = 0

    def give_up(self) -> None:
        self.lost += 1


def test_within_the_budget_every_line_is_kept() -> None:
    lines, channels = PartialLines(1000), [Channel() for _ in range(10)]
    for channel in channels:
        lines.note(channel, 100, is_new=True)
    assert lines.bytes == 1000
    assert not any(channel.lost for channel in channels)


def test_above_the_budget_the_oldest_line_is_given_up_and_no_other() -> None:
    lines, channels = PartialLines(1000), [Channel() for _ in range(11)]
    for channel in channels:
        lines.note(channel, 100, is_new=True)
    assert [channel.lost for channel in channels] == [1] + [0] * 10
    assert lines.bytes == 1000


def test_a_long_line_that_still_grows_outlives_those_that_stopped_before_it_began() -> None:
    lines, stopped, slow = PartialLines(1000), [Channel() for _ in range(10)], Channel()
    for channel in stopped:
        lines.note(channel, 100, is_new=True)
    for kept_bytes in range(0, 600, 50):
        lines.note(slow, kept_bytes + 50, is_new=not kept_bytes)
    assert not slow.lost
    assert sum(channel.lost for channel in stopped) == 6


def test_a_short_line_is_not_given_up_for_a_long_one() -> None:
    lines, short, long, other = PartialLines(1000), Channel(), Channel(), Channel()
    lines.note(short, 10, is_new=True)
    lines.note(long, 800, is_new=True)
    lines.note(other, 400, is_new=True)
    assert (short.lost, long.lost, other.lost) == (0, 1, 0)


def test_a_line_that_has_ended_or_whose_channel_has_needs_no_memory() -> None:
    lines, channel = PartialLines(1000), Channel()
    for _ in range(10):
        lines.note(channel, 900, is_new=True)
    lines.note(channel, 0, is_new=True)
    assert lines.bytes == 0
    assert not channel.lost
