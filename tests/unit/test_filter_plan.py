"""The filter plan: replanning after any prefix reaches the same end, and no prefix removes protection."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from guestd.filters.desired import DesiredFilters
from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.plan import Define, FilterAction, FilterPlan, Guard, Remove, list_used, plan_filters
from guestd.filters.snapshot import ObservedFilters, build_stand_in

EVERYTHING_BUT_ALL = Guard(1000)
RULE = Rule("accept", "in", 500, "tcp")
NAMES = [f"ibay-{number}" for number in range(7)]


def made(name: str, *targets: str, uuid: int | None = None, rules: int = 1) -> Filter:
    number = int(name.rpartition("-")[2], 36) if uuid is None else uuid
    some = tuple(replace(RULE, priority=priority) for priority in range(rules))
    return Filter(name, UUID(int=number), "root", 500, (*some, *(Reference(target) for target in sorted(targets))))


def by_name(*filters: Filter) -> dict[str, Filter]:
    return {each.name: each for each in filters}


@dataclass
class World:
    """A libvirt that refuses what the real one refuses, and any definition with a missing target."""

    filters: dict[str, Filter]
    bound: frozenset[str] = frozenset()
    known: set[tuple[str, UUID]] = field(default_factory=set)
    foreign: dict[str, Filter] = field(default_factory=dict)
    rows: set[tuple[str, UUID]] = field(default_factory=set)

    def plan(self, desired: DesiredFilters, guard: Guard = EVERYTHING_BUT_ALL) -> FilterPlan:
        now = replace(desired, known=frozenset(self.known))
        self.rows = {(each.name, each.uuid) for each in desired.filters.values()}
        return plan_filters(now, ObservedFilters(self.filters, self.bound), guard)

    def settle(self, desired: DesiredFilters) -> FilterPlan:
        """Plan and apply until nothing is left to do: a redefinition may free a name or uuid for another filter."""
        for _ in range(4):
            found = self.plan(desired)
            if not found.actions:
                return found
            self.apply(found.actions)
        raise AssertionError("it does not converge")

    def apply(self, actions: Iterable[FilterAction]) -> None:
        for action in actions:
            match action:
                case Define(definition=each):
                    self._define(each)
                case Remove(name=name, uuid=uuid):
                    assert self.filters[name].uuid == uuid
                    assert (name, uuid) in self.known | self.rows, f"{action}: not guestd's"
                    assert not self.users(name) & self.bound, f"{action}: nwfilter is in use"
                    assert self.users(name) == {name}, f"{action}: others include it"
                    del self.filters[name]

    def _define(self, each: Filter) -> None:
        there = self.filters.get(each.name)
        assert there is None or there.uuid == each.uuid, f"{each.name}: exists with another uuid"
        assert all(other.uuid != each.uuid or name == each.name for name, other in self.filters.items())
        assert each.name not in self.foreign
        for reference in each.references:
            assert reference.target in self.filters, f"{each.name}: {reference.target} is missing"
            assert each.name not in self.reach(reference.target), f"{each.name}: would introduce a loop"
        self.filters[each.name] = each
        self.known.add((each.name, each.uuid))

    def reach(self, start: str) -> set[str]:
        met, waiting = set[str](), [start]
        while waiting:
            name = waiting.pop()
            if name not in met and name in self.filters:
                met.add(name)
                waiting += [reference.target for reference in self.filters[name].references]
        return met

    def users(self, name: str) -> set[str]:
        return {other for other in self.filters if name in self.reach(other)}


@st.composite
def trees(draw: st.DrawFn, names: list[str], *, spare_uuids: bool) -> dict[str, Filter]:
    """Filters that include only later ones: no cycles."""
    chosen = draw(st.lists(st.sampled_from(names), unique=True))
    numbers = draw(st.permutations(range(len(names)))) if spare_uuids and draw(st.booleans()) else None
    found = {}
    for position, name in enumerate(chosen):
        targets = draw(st.lists(st.sampled_from(chosen[position + 1 :]), unique=True)) if chosen[position + 1 :] else []
        uuid = None if numbers is None else numbers[names.index(name)]
        found[name] = made(name, *targets, uuid=uuid, rules=draw(st.integers(0, 2)))
    return found


@st.composite
def worlds(draw: st.DrawFn) -> World:
    filters = draw(trees(NAMES, spare_uuids=True))
    own = {(each.name, each.uuid) for each in filters.values()}
    known = own if draw(st.booleans()) else {each for each in own if draw(st.booleans())}
    foreign = by_name(
        made("clean-1", uuid=91), made("clean-2", *draw(st.sampled_from([(), tuple(filters)[:1]])), uuid=92)
    )
    bound = draw(st.lists(st.sampled_from([*filters, *foreign]), unique=True))
    return World(foreign | filters, frozenset(bound), known, foreign)


@st.composite
def desired_states(draw: st.DrawFn) -> DesiredFilters:
    """Mostly valid; sometimes with a cycle, a missing target or a refused row."""
    filters = draw(trees(NAMES, spare_uuids=True))
    if filters and draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(filters)))
        extra = Reference(draw(st.sampled_from([*filters, "ibay-z"])))
        filters[name] = replace(filters[name], entries=(*filters[name].entries, extra))
    invalid = frozenset(draw(st.lists(st.sampled_from(NAMES), max_size=2))) - set(filters)
    return DesiredFilters(filters, invalid)


def test_a_filter_of_ours_that_cannot_be_read_is_defined_again() -> None:
    row = made("ibay-1")
    observed = ObservedFilters(by_name(build_stand_in(row.name, row.uuid)), are_uses_known=False)
    (action,) = plan_filters(DesiredFilters(by_name(row)), observed, EVERYTHING_BUT_ALL).actions
    assert str(action) == "define ibay-1: libvirt's definition cannot be read"


def test_an_unreadable_filter_that_becomes_empty_counts_as_emptied() -> None:
    row = made("ibay-1", rules=0)
    observed = ObservedFilters(by_name(build_stand_in(row.name, row.uuid)), are_uses_known=False)
    assert plan_filters(DesiredFilters(by_name(row)), observed, Guard(0)).needs_confirmation is not None
    there = ObservedFilters(by_name(replace(row, priority=1)))
    assert plan_filters(DesiredFilters(by_name(row)), there, Guard(0)).needs_confirmation is None
    full = DesiredFilters(by_name(made("ibay-1")))
    assert plan_filters(full, observed, Guard(0)).needs_confirmation is None


def test_a_row_without_rules_differs_from_a_filter_that_cannot_be_read() -> None:
    row = replace(made("ibay-1", rules=0), priority=0)
    observed = ObservedFilters(by_name(build_stand_in(row.name, row.uuid)), are_uses_known=False)
    assert plan_filters(DesiredFilters(by_name(row)), observed, EVERYTHING_BUT_ALL).actions


def test_while_something_that_may_use_them_cannot_be_read_no_filter_is_removed() -> None:
    gone, kept = made("ibay-1"), made("ibay-2")
    known = frozenset({(gone.name, gone.uuid)})
    desired = DesiredFilters(by_name(kept), known=known)
    unread = ObservedFilters(by_name(gone, build_stand_in("R&D", UUID(int=77))), are_uses_known=False)
    found = plan_filters(desired, unread, EVERYTHING_BUT_ALL)
    assert [type(action) for action in found.actions] == [Define]
    assert [str(each) for each in found.reports] == [
        "used: ibay-1: the store has no such filter; kept: something cannot be read, so its uses are unknown"
    ]
    read = replace(unread, are_uses_known=True)
    found = plan_filters(desired, read, EVERYTHING_BUT_ALL)
    assert [type(action) for action in found.actions] == [Define, Remove]
    assert found.reports == ()
    for are_uses_known in (True, False):
        bound = replace(unread, bound=frozenset({gone.name}), are_uses_known=are_uses_known)
        assert [str(each) for each in plan_filters(desired, bound, EVERYTHING_BUT_ALL).reports] == [
            "used: ibay-1: the store has no such filter; kept: it is still in use"
        ]


def test_the_name_and_the_uuid_of_a_filter_that_cannot_be_read_stay_in_use() -> None:
    row = made("ibay-1")
    for stand_in in (build_stand_in(row.name, UUID(int=99)), build_stand_in("R&D", row.uuid)):
        observed = ObservedFilters(by_name(stand_in), are_uses_known=False)
        found = plan_filters(DesiredFilters(by_name(row)), observed, EVERYTHING_BUT_ALL)
        assert found.actions == ()
        assert [each.text for each in found.reports if each.kind == "refused"] == [
            f"libvirt has {stand_in.name} with uuid {stand_in.uuid}, which guestd did not define"
        ]


def test_a_name_is_not_taken_from_a_filter_while_its_uses_are_unknown() -> None:
    old, row = made("ibay-1", uuid=99), made("ibay-1")
    desired = DesiredFilters(by_name(row), known=frozenset({(old.name, old.uuid)}))
    observed = ObservedFilters(by_name(old), are_uses_known=False)
    found = plan_filters(desired, observed, EVERYTHING_BUT_ALL)
    assert found.actions == ()
    assert [str(each) for each in found.reports] == [
        "refused: ibay-1: it needs the name or uuid of ibay-1, and something that cannot be read may use that"
    ]


@given(worlds(), desired_states(), st.data())
def test_replanning_after_any_prefix_of_a_plan_reaches_the_same_end(
    world: World, desired: DesiredFilters, data: st.DataObject
) -> None:
    before = dict(world.filters)
    actions = world.plan(desired).actions
    cut = data.draw(st.integers(0, len(actions)))
    whole = replace(world, filters=dict(world.filters), known=set(world.known))
    last = whole.settle(desired)
    world.apply(actions[:cut])
    world.settle(desired)
    assert world.filters == whole.filters
    refused = {report.name for report in last.reports if report.kind == "refused"}
    assert all(whole.filters[name] == each for name, each in desired.filters.items() if name not in refused)
    assert all(whole.filters.get(name) == before.get(name) for name in refused | desired.invalid)
    assert {name: whole.filters[name] for name in world.foreign} == world.foreign


@given(worlds(), desired_states())
def test_a_filter_that_an_interface_uses_is_never_removed(world: World, desired: DesiredFilters) -> None:
    for action in world.plan(desired).actions:
        used = {name for start in world.bound for name in world.reach(start)}
        assert not (isinstance(action, Remove) and action.name in used)
        world.apply([action])


def test_a_changed_filter_is_defined_in_place_and_alone() -> None:
    world = World(by_name(made("ibay-1", "ibay-2"), made("ibay-2")), frozenset({"ibay-1"}))
    desired = DesiredFilters(by_name(made("ibay-1", "ibay-2"), made("ibay-2", rules=3)))
    assert [str(action) for action in world.plan(desired).actions] == ["define ibay-2: 2 rules added, 0 removed"]


def test_targets_are_defined_before_those_that_include_them() -> None:
    desired = DesiredFilters(by_name(made("ibay-1", "ibay-2"), made("ibay-2", "ibay-3"), made("ibay-3")))
    names = [action.definition.name for action in World({}).plan(desired).actions if isinstance(action, Define)]
    assert names == ["ibay-3", "ibay-2", "ibay-1"]


def test_a_filter_that_leads_back_through_an_unchanged_one_is_redefined_first() -> None:
    before = by_name(made("ibay-0"), made("ibay-1"), made("ibay-2", "ibay-5"), made("ibay-5", "ibay-0"))
    # The new row of 2 is refused: it keeps its references.
    cycle = made("ibay-1", "ibay-2"), made("ibay-2", "ibay-1")
    desired = DesiredFilters(by_name(made("ibay-0", "ibay-2"), made("ibay-5"), *cycle))
    world = World(before)
    found = world.plan(desired)
    world.apply(found.actions)
    assert [str(action).split(":")[0] for action in found.actions] == ["define ibay-5", "define ibay-0"]


def test_a_cycle_is_refused_with_its_path_and_the_rest_is_planned() -> None:
    desired = DesiredFilters(by_name(made("ibay-1", "ibay-2"), made("ibay-2", "ibay-1"), made("ibay-3")))
    found = World({}).plan(desired)
    assert [str(each) for each in found.reports] == [
        "refused: ibay-1: it includes itself: ibay-1 -> ibay-2 -> ibay-1",
        "refused: ibay-2: it includes itself: ibay-2 -> ibay-1 -> ibay-2",
    ]
    assert [str(action) for action in found.actions] == ["define ibay-3: new, 1 rules, 0 references"]


def test_a_missing_target_is_refused_with_the_path_to_it() -> None:
    desired = DesiredFilters(by_name(made("ibay-1", "ibay-2"), made("ibay-2", "ibay-9")))
    texts = {report.text for report in World({}).plan(desired).reports}
    assert "it includes a filter that libvirt does not have: ibay-1 -> ibay-2 -> ibay-9" in texts


def test_a_refused_row_keeps_its_last_definition_and_those_that_include_it() -> None:
    world = World(by_name(made("ibay-1")), known={("ibay-1", UUID(int=1))})
    actions = world.plan(DesiredFilters(by_name(made("ibay-2", "ibay-1")), invalid=frozenset({"ibay-1"}))).actions
    assert [str(action) for action in actions] == ["define ibay-2: new, 1 rules, 1 references"]


def test_a_refused_row_does_not_count_as_deleted() -> None:
    world = World(by_name(made("ibay-1"), made("ibay-2")), known={("ibay-1", UUID(int=1))})
    assert world.plan(DesiredFilters(by_name(made("ibay-2")), invalid=frozenset({"ibay-1"}))).actions == ()


def test_a_filter_without_the_prefix_is_never_touched_whatever_the_store_knows() -> None:
    world = World(by_name(made("clean-1"), made("ibay-2")), known={("clean-1", UUID(int=1))})
    assert world.plan(DesiredFilters(by_name(made("ibay-2")))).actions == ()


def test_a_filter_with_the_prefix_that_guestd_did_not_define_is_reported_and_left() -> None:
    found = World(by_name(made("ibay-1"))).plan(DesiredFilters({}))
    assert found.actions == ()
    assert [report.kind for report in found.reports] == ["foreign"]


def test_a_name_of_a_foreign_filter_is_refused() -> None:
    world = World(by_name(made("ibay-1", uuid=77)))
    found = world.plan(DesiredFilters(by_name(made("ibay-1"))))
    assert (found.actions, [report.kind for report in found.reports]) == ((), ["refused"])


def test_a_renamed_filter_keeps_its_uuid_and_is_replaced_with_those_that_include_it() -> None:
    world = World(by_name(made("ibay-1"), made("ibay-5", "ibay-1")))
    world.known = {(each.name, each.uuid) for each in world.filters.values()}
    desired = DesiredFilters(by_name(made("ibay-2", uuid=1), made("ibay-5", "ibay-2")))
    steps = [str(action).partition(":")[0] for action in world.plan(desired).actions]
    assert steps == ["remove ibay-5", "remove ibay-1", "define ibay-2", "define ibay-5"]


def test_a_filter_cannot_be_renamed_while_an_interface_uses_it() -> None:
    world = World(by_name(made("ibay-1")), frozenset({"ibay-1"}), {("ibay-1", UUID(int=1))})
    found = world.plan(DesiredFilters(by_name(made("ibay-2", uuid=1))))
    assert found.actions == ()
    assert "an interface uses ibay-1" in " ".join(map(str, found.reports))


def test_nothing_is_left_to_do_after_a_plan() -> None:
    desired = DesiredFilters(by_name(made("ibay-1", "ibay-2"), made("ibay-2")))
    world = World({})
    world.apply(world.plan(desired).actions)
    assert world.plan(desired).actions == ()


def test_a_deleted_filter_stays_while_an_interface_uses_it() -> None:
    world = World(by_name(made("ibay-1", "ibay-2"), made("ibay-2")), frozenset({"ibay-1"}))
    world.known = {(each.name, each.uuid) for each in world.filters.values()}
    found = world.plan(DesiredFilters({}))
    assert (found.actions, [report.kind for report in found.reports]) == ((), ["used", "used"])


def test_an_emptied_store_removes_nothing_without_confirmation() -> None:
    world = World(by_name(made("ibay-1"), made("ibay-2")))
    world.known = {(each.name, each.uuid) for each in world.filters.values()}
    assert (
        world.plan(DesiredFilters({})).needs_confirmation
        == "it would remove or empty 2 of 2 filters, and 1 are allowed at once"
    )


def test_more_removals_than_are_allowed_need_confirmation() -> None:
    world = World(by_name(*(made(name) for name in NAMES)))
    world.known = {(each.name, each.uuid) for each in world.filters.values()}
    desired = DesiredFilters(by_name(*(made(name) for name in NAMES[:3])))
    assert world.plan(desired, Guard(3)).needs_confirmation is not None
    assert world.plan(desired, Guard(4)).needs_confirmation is None


def test_a_larger_share_than_is_allowed_needs_confirmation() -> None:
    world = World(by_name(*(made(name) for name in NAMES[:4])))
    world.known = {(each.name, each.uuid) for each in world.filters.values()}
    desired = DesiredFilters(by_name(*(made(name) for name in NAMES[:2])))
    assert world.plan(desired, Guard(20, 0.4)).needs_confirmation is not None
    assert world.plan(desired, Guard(20, 0.5)).needs_confirmation is None


def test_filters_that_lose_all_their_rules_count_as_removed() -> None:
    world = World(by_name(*(made(name) for name in NAMES)))
    desired = DesiredFilters(by_name(*(made(name, rules=0) for name in NAMES)))
    assert world.plan(desired).needs_confirmation is not None


# ---- one rule each


def own_world(*filters: Filter, bound: str | None = None, foreign: Iterable[Filter] = ()) -> World:
    """A libvirt whose filters guestd defined, but for the foreign ones."""
    known = {(each.name, each.uuid) for each in filters}
    return World(by_name(*filters, *foreign), frozenset({bound} if bound else ()), known, by_name(*foreign))


def steps(found: FilterPlan) -> list[str]:
    return [str(action).partition(":")[0] for action in found.actions]


def test_targets_come_first_also_through_a_refused_row_that_keeps_its_references() -> None:
    before = made("ibay-0"), made("ibay-2", "ibay-5"), made("ibay-4"), made("ibay-5"), made("ibay-6")
    desired = by_name(
        made("ibay-0", "ibay-2"), made("ibay-4", rules=2), made("ibay-5", "ibay-6"), made("ibay-6", "ibay-4")
    )
    found = own_world(*before).plan(DesiredFilters(desired, invalid=frozenset({"ibay-2"})))
    assert steps(found) == ["define ibay-4", "define ibay-6", "define ibay-5", "define ibay-0"]


def test_a_filter_that_includes_a_renamed_one_by_its_old_name_is_refused() -> None:
    world = own_world(made("ibay-1"), made("ibay-5", "ibay-1"))
    found = world.plan(DesiredFilters(by_name(made("ibay-2", uuid=1), made("ibay-5", "ibay-1"))))
    assert "refused: ibay-5: it includes a filter that libvirt does not have: ibay-5 -> ibay-1" in map(
        str, found.reports
    )


def test_only_rows_are_refused_and_not_what_libvirt_has_without_one() -> None:
    world = own_world(made("ibay-1", "ibay-2"), made("ibay-2"))
    desired = DesiredFilters(by_name(made("ibay-2", "ibay-1")), invalid=frozenset({"ibay-1"}))
    assert [str(report) for report in world.plan(desired).reports] == [
        "refused: ibay-2: it includes itself: ibay-2 -> ibay-1 -> ibay-2"
    ]


def test_a_name_without_the_prefix_is_refused() -> None:
    found = World({}).plan(DesiredFilters(by_name(made("clean-9"))))
    assert (found.actions, [report.text for report in found.reports]) == ((), ["its name does not begin with ibay-"])


def test_a_refusal_names_the_filter_that_guestd_did_not_define() -> None:
    found = World(by_name(made("ibay-1", uuid=77))).plan(DesiredFilters(by_name(made("ibay-1"))))
    expected = f"refused: ibay-1: libvirt has ibay-1 with uuid {UUID(int=77)}, which guestd did not define"
    assert [str(report) for report in found.reports] == [expected]


def test_a_renamed_filter_waits_for_those_that_include_it_and_stay_as_they_are() -> None:
    world = own_world(made("ibay-1"), made("ibay-5", "ibay-1"))
    renamed = made("ibay-2", uuid=1)
    expected = "refused: ibay-2: it needs the name or uuid of ibay-1, which ibay-5 includes"
    invalid = world.plan(DesiredFilters(by_name(renamed), invalid=frozenset({"ibay-5"})))
    assert invalid.actions == ()
    assert expected in map(str, invalid.reports)
    refused = world.plan(DesiredFilters(by_name(renamed, made("ibay-5", "ibay-9"))))
    assert refused.actions == ()
    assert expected in map(str, refused.reports)


def test_a_filter_without_a_row_stays_while_a_row_includes_it() -> None:
    found = own_world(made("ibay-1"), made("ibay-2")).plan(DesiredFilters(by_name(made("ibay-2", "ibay-1"))))
    assert steps(found) == ["define ibay-2"]
    assert [(report.kind, report.name) for report in found.reports] == [("used", "ibay-1")]


def test_reports_are_in_the_order_of_names() -> None:
    names = sorted(NAMES, reverse=True)
    chain = [made(name, *names[place + 1 : place + 2]) for place, name in enumerate(names)]
    used = own_world(*chain, bound=names[0]).plan(DesiredFilters({}))
    assert [(report.kind, report.name) for report in used.reports] == [("used", name) for name in NAMES]
    foreign = World(by_name(*chain)).plan(DesiredFilters({}))
    assert [(report.kind, report.name) for report in foreign.reports] == [("foreign", name) for name in NAMES]
    refused = World({}).plan(DesiredFilters(by_name(made("clean-9"), made("clean-1"))))
    assert [(report.kind, report.name) for report in refused.reports] == [
        ("refused", "clean-1"),
        ("refused", "clean-9"),
    ]


def test_what_has_another_prefix_or_an_invalid_row_is_not_reported_as_foreign() -> None:
    world = World(by_name(made("clean-1"), made("ibay-2")))
    assert world.plan(DesiredFilters({}, invalid=frozenset({"ibay-2"}))).reports == ()


def test_what_interfaces_use_is_what_they_name_and_all_that_it_includes() -> None:
    filters = by_name(made("ibay-1", "ibay-2"), made("ibay-2"), made("ibay-3"))
    assert list_used(ObservedFilters(filters, frozenset({"ibay-1"}))) == {"ibay-1", "ibay-2"}


def test_an_action_says_what_changes() -> None:
    world = own_world(made("ibay-1", "ibay-2", "ibay-3"), made("ibay-2"), made("ibay-3"))
    rest = made("ibay-2"), made("ibay-3")
    swapped = replace(world.filters["ibay-1"], entries=world.filters["ibay-1"].entries[::-1])
    for changed, words in (
        (swapped, "the order of its rules and references differs"),
        (replace(world.filters["ibay-1"], priority=400), "chain root 500 becomes root 400"),
        (made("ibay-1", "ibay-3"), "0 references added, 1 removed"),
        (made("ibay-1", "ibay-2", "ibay-3", rules=3), "2 rules added, 0 removed"),
    ):
        found = world.plan(DesiredFilters(by_name(changed, *rest)))
        assert [str(action) for action in found.actions] == [f"define ibay-1: {words}"]


def test_a_rule_that_libvirt_has_twice_is_removed_once() -> None:
    once = made("ibay-1")
    found = own_world(replace(once, entries=once.entries * 2)).plan(DesiredFilters(by_name(once)))
    assert [str(action) for action in found.actions] == ["define ibay-1: 0 rules added, 1 removed"]


def test_a_reference_that_somebody_moved_before_a_rule_is_moved_back() -> None:
    own = made("ibay-1", "ibay-2"), made("ibay-2")
    moved = replace(own[0], entries=own[0].entries[::-1])
    found = own_world(moved, own[1]).plan(DesiredFilters(by_name(*own)))
    assert [str(action) for action in found.actions] == ["define ibay-1: the order of its rules and references differs"]


def test_a_filter_with_a_new_uuid_is_replaced_and_not_counted_as_removed() -> None:
    found = own_world(made("ibay-1"), made("ibay-2")).plan(
        DesiredFilters(by_name(made("ibay-1", uuid=9), made("ibay-2"))), Guard(0)
    )
    assert [str(action) for action in found.actions] == [
        "remove ibay-1: another filter has its name or uuid now",
        "define ibay-1: it had another uuid",
    ]
    assert found.needs_confirmation is None


def test_new_and_changed_filters_need_no_confirmation() -> None:
    assert World({}).plan(DesiredFilters(by_name(made("ibay-1"))), Guard(0)).needs_confirmation is None
    rest = made("ibay-2"), made("ibay-3")
    for before, after in (
        (made("ibay-1", "ibay-2"), made("ibay-1", "ibay-2", rules=2)),
        (made("ibay-1", "ibay-2"), made("ibay-1", "ibay-2", rules=0)),
        (made("ibay-1", "ibay-2"), made("ibay-1")),
        (made("ibay-1", rules=0), replace(made("ibay-1", rules=0), priority=400)),
    ):
        found = own_world(before, *rest).plan(DesiredFilters(by_name(after, *rest)), Guard(0))
        assert steps(found) == ["define ibay-1"]
        assert found.needs_confirmation is None


def test_a_filter_that_loses_its_references_and_has_no_rules_counts_as_removed() -> None:
    world = own_world(made("ibay-1", "ibay-2", rules=0), made("ibay-2"))
    found = world.plan(DesiredFilters(by_name(made("ibay-1", rules=0), made("ibay-2"))), Guard(0))
    assert found.needs_confirmation == "it would remove or empty 1 of 2 filters, and 0 are allowed at once"


def test_the_share_is_of_the_filters_that_guestd_may_remove() -> None:
    world = World(by_name(made("ibay-1"), made("ibay-2"), made("clean-1", uuid=91), made("ibay-6", uuid=66)))
    found = world.plan(DesiredFilters(by_name(made("ibay-1", rules=0), made("ibay-2", rules=0))))
    assert found.needs_confirmation == "it would remove or empty 2 of 2 filters, and 1 are allowed at once"
