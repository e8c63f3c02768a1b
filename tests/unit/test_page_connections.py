"""Which connection of the pages makes room for a new one."""

import socket
from collections.abc import Callable, Iterator

import pytest

from guestd.core.descriptors import KEPT_FROM_CHANNELS, KEPT_FROM_PAGES
from guestd.service.connections import Connection, choose_victim, group_address


@pytest.fixture
def connection() -> Iterator[Callable[..., Connection]]:
    with socket.socket() as unused:
        yield lambda address, has_logged_in=False, answered_at=0.0: Connection(
            unused, address, has_logged_in, answered_at
        )


def test_an_address_with_many_connections_makes_room_before_one_with_few(connection: Callable[..., Connection]) -> None:
    prometheus = connection("10.0.0.1")
    strangers = [connection("10.0.0.2", answered_at=5.0) for _ in range(3)]
    assert choose_victim([prometheus, *strangers]) is strangers[0]


def test_who_has_not_been_answered_makes_room_before_who_has(connection: Callable[..., Connection]) -> None:
    first, answered, last = connection("a", answered_at=2.0), connection("a", answered_at=1.0), connection("a")
    assert choose_victim([first, answered, last]) is last
    assert choose_victim([first, answered]) is answered


def test_who_has_logged_in_stays_while_there_are_others(connection: Callable[..., Connection]) -> None:
    operators = [connection("a", has_logged_in=True) for _ in range(5)]
    stranger = connection("b", answered_at=9.0)
    assert choose_victim([*operators, stranger]) is stranger
    assert choose_victim(operators) is operators[0]


@pytest.mark.parametrize(
    ("address", "group"),
    [("10.1.2.3", "10.1.2.3"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"), ("fe80::1%eth0", "fe80::"), ("::1", "::")],
)
def test_an_ipv6_network_counts_as_one_address(address: str, group: str) -> None:
    assert group_address(address) == group


def test_pages_give_up_before_channels_and_channels_before_the_spool() -> None:
    assert KEPT_FROM_PAGES > KEPT_FROM_CHANNELS > 0
