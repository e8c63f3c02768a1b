"""Plans applied to a real libvirt: the seed's filters, and manual changes to them."""

import random
from typing import Any
from uuid import UUID

import pytest

from guestd.filters.desired import DesiredFilters, compile_rows
from guestd.filters.model import Filter
from guestd.filters.plan import Define, FilterPlan, Guard, Remove, plan_filters
from guestd.filters.snapshot import ObservedFilters, StoreSnapshot
from guestd.filters.xml import parse_filter, render_filter
from support.filter_trees import seeded_rows

pytestmark = pytest.mark.timeout(600)


def seeded() -> dict[str, Filter]:
    """The filters of a new platform, by their names in libvirt."""
    return dict(compile_rows(StoreSnapshot(tuple(seeded_rows()), (), {})).filters)


class Host:
    """libvirt's filters, and those that guestd defined there."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.known: set[tuple[str, UUID]] = set()

    def observe(self) -> dict[str, Filter]:
        found = [parse_filter(each.XMLDesc()) for each in self.connection.listAllNWFilters()]
        return {each.name: each for each in found}

    def plan(self, desired: dict[str, Filter]) -> FilterPlan:
        return plan_filters(
            DesiredFilters(desired, known=frozenset(self.known)), ObservedFilters(self.observe()), Guard(1000)
        )

    def apply(self, found: FilterPlan, count: int | None = None) -> int:
        for action in found.actions[:count]:
            match action:
                case Define(definition=definition):
                    self.connection.nwfilterDefineXML(render_filter(definition))
                    self.known.add((definition.name, definition.uuid))
                case Remove(name=name):
                    self.connection.nwfilterLookupByName(name).undefine()
        return len(found.actions[:count])


@pytest.fixture
def host(nwfilters: Any) -> Host:
    host = Host(nwfilters)
    for name in [name for name in host.observe() if name.startswith("ibay-")]:
        nwfilters.nwfilterLookupByName(name).undefine()
    return host


def test_the_seeds_filters_are_applied_and_read_back_equal(host: Host) -> None:
    desired, foreign = seeded(), host.observe()
    assert host.apply(host.plan(desired)) == 67
    assert {name: each for name, each in host.observe().items() if name in desired} == desired
    assert host.plan(desired).actions == ()
    assert {name: host.observe()[name] for name in foreign} == foreign


def test_an_interrupted_plan_is_finished_by_the_next(host: Host) -> None:
    desired = seeded()
    dice = random.Random(7)
    done = 0
    while (found := host.plan(desired)).actions:
        done += host.apply(found, dice.randint(1, len(found.actions)))
    assert done == 67
    without = {name: each for name, each in desired.items() if not each.references}
    while (found := host.plan(without)).actions:
        host.apply(found, dice.randint(1, len(found.actions)))
    assert {name for name in host.observe() if name.startswith("ibay-")} == set(without)


def test_manual_changes_are_repaired_and_nothing_else_is_defined(host: Host) -> None:
    desired = seeded()
    host.apply(host.plan(desired))
    plain = sorted(name for name, each in desired.items() if each.rules and not each.references)
    changed, removed = plain[0], plain[-1]
    xml = host.connection.nwfilterLookupByName(changed).XMLDesc()
    host.connection.nwfilterDefineXML(
        xml.replace("action='accept'", "action='drop'", 1).replace(
            "'drop' direction='in'", "'return' direction='in'", 1
        )
    )
    host.connection.nwfilterLookupByName(removed).undefine()
    repaired = {action.definition.name for action in host.plan(desired).actions if isinstance(action, Define)}
    assert removed in repaired
    assert repaired <= {changed, removed}
    assert changed in repaired
    host.apply(host.plan(desired))
    assert host.plan(desired).actions == ()
