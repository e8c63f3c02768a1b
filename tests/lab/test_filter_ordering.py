"""libvirt installs trees without a chain conflict, and fails on those with one."""

import random
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from guestd.filters.chain_conflict import find_chain_conflict
from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.snapshot import FilterRow
from guestd.filters.xml import render_filter
from support.faults import Reliability
from support.filter_rows import filter_row, rule_row
from support.filters import ENFORCE, FilterHost
from support.libvirt import libvirt
from support.nwfilter import PORT

pytestmark = pytest.mark.timeout(600)
CHAINS = {"root": "mac", "ipv4": "ip", "ipv4-y": "ip", "arp-x": "arp", "mac": "mac"}
PRIORITIES = (-750, -10, 100, 500)


def tree(dice: random.Random) -> list[Filter]:
    """Filters that include one or all of those before; the last includes all of them, directly or through others.

    References stand among the rules.
    """
    found: list[Filter] = []
    for number in range(1, 4):
        chain = dice.choice([*CHAINS, "ipv4", "ipv4"])
        rules = tuple(
            Rule("accept", dice.choice(["in", "out", "inout"]), dice.choice([-800, -20, 100, 500, 900]), CHAINS[chain])
            for _ in range(dice.randint(1, 3))
        )
        entries: list[Rule | Reference] = [*sorted(rules, key=lambda rule: rule.priority)]
        for each in found[-1:] + found[:-1] * dice.randint(0, 1):
            entries.insert(dice.randint(0, len(entries)), Reference(each.name))
        name = f"ibay-tree{number}"
        found.append(Filter(name, UUID(int=700 + number), chain, dice.choice(PRIORITIES), tuple(entries)))
    return found


@pytest.fixture
def is_installable(nwfilters: Any, bridge_port: Callable[..., str]) -> Iterator[Callable[[list[Filter]], bool]]:
    """Whether libvirt can bind the last of these filters to a device."""
    made: list[Filter] = []

    def bind(tree: list[Filter]) -> bool:
        for each in tree:
            nwfilters.nwfilterDefineXML(render_filter(each))
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


def test_libvirt_installs_exactly_the_trees_without_a_conflict(
    is_installable: Callable[[list[Filter]], bool], reliability: Reliability
) -> None:
    dice, rounds = random.Random(3), reliability.rounds(quick=15, full=150)
    wrong, refused = [], 0
    for _ in range(rounds):
        filters = tree(dice)
        found = find_chain_conflict(filters[-1], {each.name: each for each in filters})
        refused += found is not None
        if is_installable(filters) != (found is None):
            wrong.append((filters, found))
    assert refused
    assert wrong == []
    reliability.record_filters(
        f"trees of filters of one chain with several priorities, {refused} of which libvirt cannot install",
        rounds=rounds, actions=3 * rounds, kills=0, wrong=0,
    )  # fmt: skip


def stored(name: str, number: int, priority: int) -> FilterRow:
    """A filter of chain ipv4 whose one rule has the priority that the chain has; `number` makes its ids."""
    rule = rule_row(id=UUID(int=number), protocol="ip", priority=priority)
    return filter_row(
        rule, id=UUID(int=number), uuid=UUID(int=number), internal_name=f"ibay-{name}", name=name, chain="ipv4",
        priority=priority,
    )  # fmt: skip


def test_conflicting_filters_are_refused_and_the_installed_ones_stay(filter_host: FilterHost) -> None:
    host = filter_host
    machine_id, name = host.add_machine()
    host.store([stored("low", 901, 500), stored("high", 902, 500), stored("third", 903, 900)])
    host.assign(machine_id, "low", "high")
    host.reconcile(ENFORCE)
    host.run("""UPDATE "NWFilter" SET "priority" = 100 WHERE "name" = 'low'""")
    host.edit("low", "priority", 100)
    result = host.reconcile(ENFORCE)
    assert {(each.kind, each.name) for each in result.reports} == {("refused", "ibay-low"), ("clash", "ibay-high")}
    assert host.filters()["ibay-low"].priority == 500
    for each in ("low", "high"):
        assert "libvirt cannot install ibay-low (priority 100) and ibay-high (priority 500)" in host.read_row(each)[1]
    _, printed = host.guestd("plan")
    assert any(line.startswith("refused: ibay-low: libvirt cannot install") for line in printed), printed
    _, printed = host.guestd("filters", "show", str(machine_id))
    assert any(line.startswith("refused: libvirt cannot install ibay-low") for line in printed), printed
    _, printed = host.guestd("doctor")
    assert any("refused: ibay-high, ibay-low" in line for line in printed), printed
    host.domain(name).createWithFlags(1)  # the installed filters let it start
    host.assign(machine_id, "third")
    host.run("""UPDATE "NWFilter" SET "priority" = 100 WHERE "name" IN ('high', 'third')""")
    assert {text for _, text in host.reconcile(ENFORCE).steps} == {"done"}
    assert host.is_settled()
    host.run("""UPDATE "NWFilter" SET "priority" = 900 WHERE "name" = 'third'""")
    assert {(each.kind, each.name) for each in host.reconcile(ENFORCE).reports} == {
        ("refused", "ibay-third"), ("clash", "ibay-low"),
    }  # fmt: skip
