"""A plan carried out on a real libvirt: the seed's filters, and what people do to them by hand."""

import random
from typing import Any
from uuid import UUID

import pytest

from guestd.filters.desired import Rows, asked
from guestd.filters.model import Filter
from guestd.filters.plan import Define, Guard, Plan, Remove, Seen, Wanted, plan
from guestd.filters.xml import read, write
from support.filter_trees import seeded_rows

pytestmark = pytest.mark.timeout(600)


def seeded() -> dict[str, Filter]:
    """The filters of a new platform, by their names in libvirt."""
    return dict(asked(Rows(tuple(seeded_rows()), (), {})).filters)


class Host:
    """libvirt's filters, and what guestd has defined there."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.known: set[tuple[str, UUID]] = set()

    def seen(self) -> dict[str, Filter]:
        found = [read(each.XMLDesc()) for each in self.connection.listAllNWFilters()]
        return {each.name: each for each in found}

    def plan(self, wanted: dict[str, Filter]) -> Plan:
        return plan(Wanted(wanted, known=frozenset(self.known)), Seen(self.seen()), Guard(1000))

    def apply(self, found: Plan, count: int | None = None) -> int:
        for action in found.actions[:count]:
            match action:
                case Define(definition=definition):
                    self.connection.nwfilterDefineXML(write(definition))
                    self.known.add((definition.name, definition.uuid))
                case Remove(name=name):
                    self.connection.nwfilterLookupByName(name).undefine()
        return len(found.actions[:count])


@pytest.fixture
def host(nwfilters: Any) -> Host:
    host = Host(nwfilters)
    for name in [name for name in host.seen() if name.startswith("ibay-")]:
        nwfilters.nwfilterLookupByName(name).undefine()
    return host


def test_the_seeds_filters_are_applied_and_read_back_equal(host: Host) -> None:
    wanted, foreign = seeded(), host.seen()
    assert host.apply(host.plan(wanted)) == 67
    assert {name: each for name, each in host.seen().items() if name in wanted} == wanted
    assert host.plan(wanted).actions == ()
    assert {name: host.seen()[name] for name in foreign} == foreign


def test_a_plan_that_is_cut_off_anywhere_is_finished_by_the_next(host: Host) -> None:
    wanted = seeded()
    dice = random.Random(7)
    done = 0
    while (found := host.plan(wanted)).actions:
        done += host.apply(found, dice.randint(1, len(found.actions)))
    assert done == 67
    without = {name: each for name, each in wanted.items() if not each.references}
    while (found := host.plan(without)).actions:
        host.apply(found, dice.randint(1, len(found.actions)))
    assert {name for name in host.seen() if name.startswith("ibay-")} == set(without)


def test_what_is_changed_or_removed_by_hand_is_put_right_and_nothing_else_is_defined(host: Host) -> None:
    wanted = seeded()
    host.apply(host.plan(wanted))
    plain = sorted(name for name, each in wanted.items() if each.rules and not each.references)
    changed, removed = plain[0], plain[-1]
    xml = host.connection.nwfilterLookupByName(changed).XMLDesc()
    host.connection.nwfilterDefineXML(
        xml.replace("action='accept'", "action='drop'", 1).replace(
            "'drop' direction='in'", "'return' direction='in'", 1
        )
    )
    host.connection.nwfilterLookupByName(removed).undefine()
    healed = {action.definition.name for action in host.plan(wanted).actions if isinstance(action, Define)}
    assert removed in healed
    assert healed <= {changed, removed}
    assert changed in healed
    host.apply(host.plan(wanted))
    assert host.plan(wanted).actions == ()
