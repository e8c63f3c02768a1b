"""libvirt lays what guestd says that it can lay, and fails on what it says that it cannot."""

import random
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from fix_faults import Reliability
from fix_nwfilter import PORT
from guestd.filters.laying import clash
from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.nwfilterxml import write

libvirt = pytest.importorskip("libvirt", reason="libvirt-python is not installed: ./dev builds it where it can")
pytestmark = pytest.mark.timeout(600)
CHAINS = {"root": "mac", "ipv4": "ip", "ipv4-y": "ip", "arp-x": "arp", "mac": "mac"}
PRIORITIES = (-750, -10, 100, 500)


def tree(dice: random.Random) -> list[Filter]:
    """Filters that include the one before, or the one before that, or both; the last includes them all somehow."""
    found: list[Filter] = []
    for number in range(1, 4):
        chain = dice.choice([*CHAINS, "ipv4", "ipv4"])
        rules = tuple(
            Rule("accept", dice.choice(["in", "out", "inout"]), dice.choice([-800, -20, 100, 500, 900]), CHAINS[chain])
            for _ in range(dice.randint(1, 3))
        )
        rules = tuple(sorted(rules, key=lambda rule: rule.priority))
        targets = tuple(Reference(each.name) for each in found[-1:] + found[:-1] * dice.randint(0, 1))
        name = f"ibay-lay{number}"
        found.append(Filter(name, UUID(int=700 + number), chain, dice.choice(PRIORITIES), rules, targets))
    return found


@pytest.fixture
def is_laid(nwfilters: Any, bridge_port: Callable[..., str]) -> Iterator[Callable[[list[Filter]], bool]]:
    """Whether libvirt can bind the last of these filters to a device."""
    made: list[Filter] = []

    def bind(tree: list[Filter]) -> bool:
        for each in tree:
            nwfilters.nwfilterDefineXML(write(each))
        made[:] = tree
        xml = (
            f"<filterbinding><owner><name>m</name><uuid>{uuid4()}</uuid></owner><portdev name='{PORT}'/>"
            f"<mac address='52:54:00:00:00:10'/><filterref filter='{tree[-1].name}'/></filterbinding>"
        )
        try:
            nwfilters.nwfilterBindingCreateXML(xml).delete()
        except libvirt.libvirtError:
            return False
        return True

    yield bind
    for each in reversed(made):
        nwfilters.nwfilterLookupByName(each.name).undefine()


def test_what_guestd_says_can_be_laid_together_is_what_libvirt_lays(
    is_laid: Callable[[list[Filter]], bool], reliability: Reliability
) -> None:
    dice, rounds = random.Random(3), reliability.rounds(quick=15, full=150)
    wrong, refused = [], 0
    for _ in range(rounds):
        filters = tree(dice)
        found = clash(filters[-1], {each.name: each for each in filters})
        refused += found is not None
        if is_laid(filters) != (found is None):
            wrong.append((filters, found))
    assert refused > rounds // 10
    assert wrong == []
    reliability.record_filters(
        f"trees of filters of one chain with several priorities, {refused} of which libvirt cannot lay",
        rounds=rounds, actions=3 * rounds, kills=0, wrong=0,
    )  # fmt: skip
