"""Channels: the difference between what should be read and what is read."""

from pathlib import Path
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from guestd.ingest.channel_plan import ChannelSocket, Close, Open, plan_channels


def channel(number: int, inode: int = 1, created_ns: int = 1) -> ChannelSocket:
    machine_id = UUID(int=number)
    return ChannelSocket(machine_id, Path(f"{machine_id}.socket"), inode, created_ns)


def keyed(*channels: ChannelSocket) -> dict[UUID, ChannelSocket]:
    return {each.machine_id: each for each in channels}


CHANNELS = st.dictionaries(st.integers(0, 5), st.integers(1, 3), max_size=6).map(
    lambda inodes: keyed(*(channel(number, inode) for number, inode in inodes.items()))
)


def applied(running: dict[UUID, ChannelSocket], actions: tuple[Open | Close, ...]) -> dict[UUID, ChannelSocket]:
    world = dict(running)
    for action in actions:
        match action:
            case Open(opened):
                # A socket serves one client: the old reader must be gone first.
                assert opened.machine_id not in world
                world[opened.machine_id] = opened
            case Close(closed):
                assert world.pop(closed.machine_id) == closed
    return world


@given(CHANNELS, CHANNELS)
def test_a_plan_leads_to_the_desired_channels(
    desired: dict[UUID, ChannelSocket], running: dict[UUID, ChannelSocket]
) -> None:
    assert applied(running, plan_channels(desired, running)) == desired


@given(CHANNELS, CHANNELS, st.integers(0, 12))
def test_after_any_prefix_a_new_plan_leads_to_the_desired_channels(
    desired: dict[UUID, ChannelSocket], running: dict[UUID, ChannelSocket], done: int
) -> None:
    middle = applied(running, plan_channels(desired, running)[:done])
    assert applied(middle, plan_channels(desired, middle)) == desired


@given(CHANNELS)
def test_the_plan_is_empty_when_the_desired_channels_are_open(desired: dict[UUID, ChannelSocket]) -> None:
    assert plan_channels(desired, dict(desired)) == ()


def test_a_recreated_socket_is_closed_and_opened() -> None:
    old, new = channel(1, inode=1), channel(1, inode=2)
    assert plan_channels(keyed(new), keyed(old)) == (Close(old), Open(new))


def test_a_socket_with_the_same_inode_and_another_creation_time_is_another() -> None:
    old, new = channel(1, created_ns=1), channel(1, created_ns=2)
    assert plan_channels(keyed(new), keyed(old)) == (Close(old), Open(new))


def test_closing_comes_before_opening() -> None:
    assert plan_channels(keyed(channel(2)), keyed(channel(1))) == (Close(channel(1)), Open(channel(2)))
