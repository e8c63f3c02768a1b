"""Filters that include each other, themselves, or too much cost only themselves and the machines that include them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestd.filters.desired import CompiledRows, DesiredFilters, build_desired, compile_rows
from guestd.filters.explain import Question, describe_rules, list_verdicts
from guestd.filters.graph import MAX_TREE_ENTRIES, count_tree_entries
from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.plan import Define, FilterPlan, Guard, plan_filters
from guestd.filters.snapshot import FilterRow, MachineRow, ObservedFilters, StoreSnapshot
from support.filter_rows import filter_row, rule_row

QUESTION = Question("tcp", "10.0.0.5", 22, "in")
ADDRESS = "$IP"


def made(number: int, *targets: int, rules: int = 1, source: str | None = None) -> FilterRow:
    return filter_row(
        *(rule_row(id=UUID(int=1000 * number + each + 1), priority=each, src_ip_addr=source) for each in range(rules)),
        id=UUID(int=number), uuid=UUID(int=number), name=f"filter {number}", internal_name=f"ibay-{number}",
        targets=tuple(UUID(int=each) for each in targets),
    )  # fmt: skip


def machine(number: int, *filters: int, addresses: Sequence[str] = ()) -> MachineRow:
    own = tuple(UUID(int=each) for each in filters)
    return MachineRow(
        UUID(int=90_000 + number), f"m{number}", f"vm-{number}", tuple(addresses), own, (), False, {}, {}, ()
    )


def compile_all(rows: Sequence[FilterRow], machines: Sequence[MachineRow]) -> tuple[CompiledRows, FilterPlan]:
    compiled = compile_rows(StoreSnapshot(tuple(rows), tuple(machines), {}))
    desired = build_desired(compiled, [each.id for each in machines])
    return compiled, plan_filters(desired, ObservedFilters({}), Guard(10**6))


def defined(plan: FilterPlan) -> dict[str, Filter]:
    return {each.definition.name: each.definition for each in plan.actions if isinstance(each, Define)}


def refused(plan: FilterPlan) -> dict[str, str]:
    return {each.name: each.text for each in plan.reports if each.kind == "refused"}


def test_filters_without_rules_that_include_each_other_and_one_that_needs_an_address_cost_only_their_machine() -> None:
    rows = [made(1, 2, 3, rules=0), made(2, 1, rules=0), made(3, source=ADDRESS), made(4)]
    compiled, plan = compile_all(rows, [machine(1, 1), machine(2, 4)])
    assert refused(plan).keys() == {"ibay-1", "ibay-2"}
    assert "ibay-2 -> ibay-1" in refused(plan)["ibay-1"]
    assert defined(plan).keys() >= {"ibay-3", "ibay-4", machine_filter_name(machine(2).id)}
    assert compiled.reports[machine(1).id] == (
        "filter ibay-3 cannot be enforced: no address for $IP in Machine.allowedIps",
    )
    for each in (machine(1, 1), machine(2, 4)):
        assert list(describe_rules(compiled, each))
        assert len(list_verdicts(compiled, each, QUESTION)) == 3


@pytest.mark.parametrize(
    "rows",
    [
        [made(1, 1)],
        [made(1, 2), made(2, 1)],
        [made(1, 2, rules=0), made(2, 3, rules=0), made(3, 1, rules=0)],
        [made(1, 2), made(2, 3, source=ADDRESS), made(3, 2, rules=0)],
    ],
    ids=["itself", "each other", "three without rules", "a cycle behind it"],
)
@pytest.mark.parametrize("addresses", [(), ("10.0.0.2",)], ids=["no address", "an address"])
def test_what_includes_itself_is_refused_and_everything_else_goes_on(
    rows: list[FilterRow], addresses: Sequence[str]
) -> None:
    one, other = machine(1, 1, addresses=addresses), machine(2, 7, addresses=addresses)
    compiled, plan = compile_all([*rows, made(7)], [one, other])
    assert defined(plan).keys() >= {"ibay-7", machine_filter_name(other.id)}
    assert any("it includes itself" in text for text in refused(plan).values())
    assert {each.verdict for each in list_verdicts(compiled, other, QUESTION)} == {"passes"}
    assert list(describe_rules(compiled, one))


def test_a_machine_whose_filters_are_a_cycle_has_no_verdict() -> None:
    one = machine(1, 1)
    compiled, _ = compile_all([made(1, 2), made(2, 1)], [one])
    verdicts = list_verdicts(compiled, one, QUESTION)
    assert {(each.verdict, each.unknown) for each in verdicts} == {
        ("cannot be evaluated", "filter ibay-1 includes itself")
    }
    assert "the rules cannot be listed" in list(describe_rules(compiled, one))


def test_filters_that_include_each_other_two_thousand_deep_are_ordered_and_evaluated() -> None:
    depth = 2000
    rows = [made(number, number + 1) for number in range(1, depth)] + [made(depth, source=ADDRESS)]
    one = machine(1, 1, addresses=["10.0.0.2"])
    compiled, plan = compile_all(rows, [one, machine(2, 1)])
    assert len(defined(plan)) == depth + 2
    assert refused(plan) == {}
    assert {each.verdict for each in list_verdicts(compiled, one, QUESTION)} == {"passes"}


def cycle(length: int) -> dict[str, str]:
    """The reasons why the filters of a cycle of this length, with a machine's, are refused."""
    rows = [made(number, number % length + 1) for number in range(1, length + 1)]
    _, plan = compile_all(rows, [machine(1, 1)])
    assert len(refused(plan)) == length + 1
    return refused(plan)


def test_a_cycle_is_reported_with_its_path_and_a_long_one_with_the_ends_of_it() -> None:
    ten = " -> ".join(f"ibay-{each}" for each in (*range(1, 10), 1))
    assert cycle(9)["ibay-1"] == f"it includes itself: {ten}"
    ends = "ibay-1 -> ibay-2 -> ibay-3 -> ibay-4 -> ibay-5 -> ({} more) -> {} -> ibay-1"
    assert cycle(10)["ibay-1"] == "it includes itself: " + ends.format(1, "ibay-7 -> ibay-8 -> ibay-9 -> ibay-10")
    assert cycle(600)["ibay-1"] == "it includes itself: " + ends.format(
        591, "ibay-597 -> ibay-598 -> ibay-599 -> ibay-600"
    )


@pytest.mark.parametrize("rules", [0, 1])
def test_filters_that_include_the_same_ones_again_and_again_are_refused_when_they_would_be_too_many(rules: int) -> None:
    # Each includes the two before it: the number of walks grows as Fibonacci's numbers do.
    rows = [made(1)] + [made(each, each - 1, *range(max(1, each - 2), each - 1), rules=rules) for each in range(2, 80)]
    one, other = machine(1, 79), machine(2, 5)
    compiled, plan = compile_all(rows, [one, other])
    assert machine_filter_name(other.id) in defined(plan)
    assert {"ibay-79", machine_filter_name(one.id)} <= refused(plan).keys()
    assert f"more than {MAX_TREE_ENTRIES}" in refused(plan)["ibay-79"]
    assert {each.verdict for each in list_verdicts(compiled, one, QUESTION)} == {"cannot be evaluated"}
    assert "ibay-10" in defined(plan)


def test_an_included_filter_counts_as_often_as_it_is_included() -> None:
    compiled, _ = compile_all([made(1, rules=3), made(2, 1), made(3, 1, 2), made(4, 4)], [])
    filters = dict(compiled.filters)
    assert count_tree_entries(filters) == {"ibay-1": 3, "ibay-2": 5, "ibay-3": 11}
    filters["ibay-2"] = replace(filters["ibay-2"], entries=(*filters["ibay-2"].entries, Reference("missing")))
    assert count_tree_entries(filters) == {"ibay-1": 3, "ibay-2": 6, "ibay-3": 12}


@pytest.mark.parametrize("more", [0, 1])
def test_a_filter_may_have_as_many_rules_and_references_as_are_allowed(more: int) -> None:
    rule, each = Rule("accept", "in", 500, "tcp"), Filter("ibay-1", UUID(int=1), "root", 0)
    desired = DesiredFilters({each.name: replace(each, entries=(rule,) * (MAX_TREE_ENTRIES + more))})
    assert len(refused(plan_filters(desired, ObservedFilters({}), Guard(0)))) == more
    # One that libvirt has, and no row describes, is not refused: nothing would be defined.
    assert refused(plan_filters(DesiredFilters({}), ObservedFilters(dict(desired.filters)), Guard(0))) == {}


@st.composite
def graphs(draw: st.DrawFn) -> list[FilterRow]:
    count = draw(st.integers(1, 9))
    found = []
    for number in range(1, count + 1):
        targets = draw(st.lists(st.integers(1, count), unique=True, max_size=3))
        source = draw(st.sampled_from([None, ADDRESS]))
        found.append(made(number, *targets, rules=draw(st.integers(0, 2)), source=source))
    return found


@settings(max_examples=200, deadline=None)
@given(graphs(), st.data())
def test_no_graph_of_filters_breaks_a_run_and_what_does_not_lead_to_a_cycle_is_as_without_it(
    rows: list[FilterRow], data: st.DataObject
) -> None:
    numbers = st.lists(st.integers(1, len(rows)), unique=True, max_size=3)
    addresses = data.draw(st.sampled_from([(), ("10.0.0.2",)]))
    machines = [machine(each, *data.draw(numbers), addresses=addresses) for each in range(3)]
    compiled, plan = compile_all(rows, machines)
    for each in machines:
        assert list(describe_rules(compiled, each))
        assert len(list_verdicts(compiled, each, QUESTION)) == 3
    bad = _leading_to_cycles({row.id: row.targets for row in rows})
    assert not {f"ibay-{each.int}" for each in bad} & defined(plan).keys()
    good = [row for row in rows if row.id not in bad]
    kept = [each for each in machines if not bad.intersection(each.own)]
    _, alone = compile_all(good, kept)
    assert defined(alone).items() <= defined(plan).items()


def _leading_to_cycles(targets: Mapping[UUID, Sequence[UUID]]) -> set[UUID]:
    good = set[UUID]()
    while more := {each for each in targets if each not in good and good.issuperset(targets[each])}:
        good |= more
    return set(targets) - good


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_a_cycle_that_is_added_leaves_every_other_filter_as_it_is(seed: int) -> None:
    dice = random.Random(seed)
    rows = [made(number, *(each for each in range(1, number) if dice.random() < 0.3)) for number in range(1, 8)]
    machines = [machine(each, dice.randint(1, 7)) for each in range(3)]
    _, before = compile_all(rows, machines)
    cycle = [made(20, 21, dice.randint(1, 7), rules=0), made(21, 20, rules=dice.randint(0, 1))]
    _, after = compile_all([*rows, *cycle], [*machines, replace(machine(9), own=(UUID(int=20),))])
    assert defined(before).items() <= defined(after).items()
