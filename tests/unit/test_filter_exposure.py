"""What a plan opens: packets that are blocked now and would pass."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestd.filters.explain import decide_packets
from guestd.filters.exposure import find_opened
from guestd.filters.machine_filter import machine_filter_name
from guestd.filters.model import Filter, Reference, Rule, build_matches
from guestd.filters.network_services import Policy, Ports
from guestd.filters.packet_match import Packet
from guestd.filters.rule_tree import BLOCKING
from guestd.filters.snapshot import FilterRow, build_stand_in
from support.filter_departments import DROP_ALL, filters_of, machines, plan_change
from support.filter_rows import filter_row, rule_row
from support.filter_trees import GUEST, generated, lone_packets, ordered_packets, seeded_rows

TOP, INNER = "ibay-top", "ibay-inner"


def test_a_hundred_machines_that_lose_their_drop_all_and_keep_an_accept_need_confirmation() -> None:
    plan = plan_change(machines(100), machines(100, department=()))
    assert len(plan.actions) == 100
    assert plan.needs_confirmation is not None
    assert "open 100 of 100 machines, and 20 may be opened at once" in plan.needs_confirmation
    held = [each for each in plan.reports if each.kind == "held"]
    assert len(held) == 100
    assert "would pass, and is blocked now" in held[0].text


def test_one_machine_may_be_opened_and_two_of_three_may_not() -> None:
    three = machines(3)
    one, two = [*machines(1, department=()), *three[1:]], [*machines(2, department=()), *three[2:]]
    assert plan_change(three, one).needs_confirmation is None
    assert [each.kind for each in plan_change(three, one).reports] == []
    assert plan_change(three, two).needs_confirmation is not None
    assert plan_change(machines(1), machines(1, department=())).needs_confirmation is None


@pytest.mark.parametrize(
    "changes",
    [
        {"ports": (Ports("tcp", 8080, 8090),)},
        {"services": {"http": Policy(True, True), "ssh": Policy(True, True), "dns": Policy(True, True)}},
        {"services": {}},
        {"has_clean_traffic": True},
        {"allowed_ips": GUEST},
    ],
    ids=lambda each: next(iter(each)),
)
def test_everyday_edits_of_a_department_are_applied_at_once(changes: dict[str, object]) -> None:
    rows = [DROP_ALL, *seeded_rows()]
    after = [replace(each, **changes) for each in machines(50)]  # type: ignore[arg-type]  # columns of several types
    assert plan_change(machines(50), after, rows).needs_confirmation is None


def edited(**columns: object) -> FilterRow:
    return replace(DROP_ALL, rules=(replace(DROP_ALL.rules[0], **columns),))  # type: ignore[arg-type]


ACCEPT_ALL = rule_row(id=UUID(int=22), action="accept", direction="inout", priority=-900, protocol="all")


@pytest.mark.parametrize(
    "later",
    [
        edited(action="accept"),
        edited(direction="in", state={"invalid": True}),
        edited(ip_version="ipv6"),
        edited(protocol="tcp"),
        edited(src_ip_addr="10.0.0.0", src_ip_mask="8"),
        replace(DROP_ALL, rules=(*DROP_ALL.rules, ACCEPT_ALL)),
        replace(DROP_ALL, rules=()),
    ],
    ids=["accepts", "one state", "other version", "one protocol", "one network", "accepts all before", "empty"],
)
def test_a_departments_filter_that_blocks_less_opens_all_its_machines(later: FilterRow) -> None:
    plan = plan_change(machines(50), machines(50), later_rows=[later])
    assert plan.needs_confirmation is not None
    assert "open 50 of 50 machines" in plan.needs_confirmation


@pytest.mark.parametrize(
    "later",
    [
        edited(action="reject"),
        edited(priority=950),
        edited(comment="for all"),
        replace(DROP_ALL, rules=(*DROP_ALL.rules, replace(ACCEPT_ALL, protocol="tcp", dst_port_start=22))),
        replace(DROP_ALL, rules=(*DROP_ALL.rules, replace(ACCEPT_ALL, action="drop"))),
    ],
    ids=["rejects", "later", "comment", "accepts a port", "drops more"],
)
def test_a_departments_filter_that_blocks_as_much_is_applied_at_once(later: FilterRow) -> None:
    assert plan_change(machines(50), machines(50), later_rows=[later]).needs_confirmation is None


@pytest.mark.parametrize(
    "columns",
    [
        {"dst_port_start": 1, "dst_port_end": 65535},
        {"dst_port_start": 0, "dst_port_end": 65534},
        {"dst_port_start": 1024, "dst_port_end": 65535},
        {"src_port_start": 1024, "src_port_end": 65535},
        {"src_ip_addr": "128.0.0.0", "src_ip_mask": "1"},
    ],
    ids=str,
)
def test_an_accept_of_most_ports_or_addresses_opens_whatever_else_rules_name(columns: dict[str, object]) -> None:
    host = replace(ACCEPT_ALL, id=UUID(int=23), protocol="tcp", src_ip_addr="10.0.0.5", dst_port_start=22)
    wide = replace(ACCEPT_ALL, protocol="tcp", **columns)  # type: ignore[arg-type]  # columns of several types
    before, after = (replace(DROP_ALL, rules=(*DROP_ALL.rules, *more)) for more in ([host], [host, wide]))
    plan = plan_change(machines(50), machines(50), [before], [after])
    assert plan.needs_confirmation is not None
    assert "open 50 of 50 machines" in plan.needs_confirmation


def blocklist(addresses: range) -> FilterRow:
    block = rule_row(action="drop", direction="inout", priority=100, protocol="all")
    rules = [
        replace(block, id=UUID(int=5000 + number), src_ip_addr=f"100.64.{number // 256}.{number % 256}")
        for number in addresses
    ]
    return filter_row(*rules, id=UUID(int=77), name="list", internal_name="ibay-list", uuid=UUID(int=77))


@pytest.mark.parametrize("later", [range(3001), range(1, 3000), range(3000)], ids=["longer", "shorter", "same"])
@pytest.mark.parametrize("port", [None, 443])
def test_an_edit_beside_a_list_of_thousands_of_addresses_is_compared_and_applied(
    later: range, port: int | None
) -> None:
    rules = [] if port is None else [replace(ACCEPT_ALL, protocol="tcp", dst_port_start=port)]
    department = (DROP_ALL.id, UUID(int=77))
    plan = plan_change(
        machines(50, department=department), machines(50, department=department), [DROP_ALL, blocklist(range(3000))],
        [replace(DROP_ALL, rules=(*DROP_ALL.rules, *rules)), blocklist(later)],
    )  # fmt: skip
    assert plan.needs_confirmation is None


def test_what_takes_too_many_comparisons_counts_as_opened() -> None:
    department = (DROP_ALL.id, UUID(int=77))
    these = machines(50, department=department)
    rows = [DROP_ALL, blocklist(range(3000))], [DROP_ALL, blocklist(range(3000, 6000))]
    plan = plan_change(these, these, *rows)
    assert plan.needs_confirmation is not None
    assert "comparisons of packets with rules" in plan.needs_confirmation


def test_machines_that_lose_the_address_that_their_filter_needs_are_opened() -> None:
    clean = [DROP_ALL, *seeded_rows()]
    before = machines(50, department=(), is_clean=True)
    plan = plan_change(before, [replace(each, allowed_ips=()) for each in before], clean)
    assert plan.needs_confirmation is not None


def made(name: str, *entries: Rule | Reference, chain: str = "root", priority: int = 0) -> Filter:
    return Filter(name, UUID(int=len(name)), chain, priority, entries)


def rule(action: str, direction: str, protocol: str, priority: int = 500, **conditions: str) -> Rule:
    return Rule(action, direction, priority, protocol, build_matches(conditions.items()))


def opened(before: Sequence[Filter], after: Sequence[Filter]) -> Mapping[str, str]:
    return find_opened([TOP], {each.name: each for each in before}, {each.name: each for each in after})


@pytest.mark.parametrize(
    "protocol", ["mac", "ip", "ipv6", "arp", "rarp", "vlan", "stp", "", "esp", "icmpv6", "udp-ipv6"]
)
@pytest.mark.parametrize("direction", ["in", "out", "inout"])
def test_a_lost_rule_that_drops_opens_whatever_it_drops(protocol: str, direction: str) -> None:
    drop = rule("drop", direction, protocol)
    assert opened([made(TOP, drop)], [made(TOP)]).keys() == {TOP}
    assert opened([made(TOP, drop)], [made(TOP, drop, rule("accept", "in", "tcp", dstportstart="22"))]) == {}


@pytest.mark.parametrize(
    "conditions",
    [
        {"srcmacaddr": "52:54:00:00:00:01"},
        {"srcmacaddr": "$MAC"},
        {"srcipaddr": "10.0.0.0", "srcipmask": "8"},
        {"dstipaddr": "10.0.0.1"},
        {"srcportstart": "1000", "srcportend": "2000", "dstportstart": "22"},
        {"state": "ESTABLISHED"},
        {"dscp": "3"},
        {"srcipaddr": "$IP"},
    ],
    ids=str,
)
def test_a_lost_rule_that_drops_opens_what_only_it_matches(conditions: dict[str, str]) -> None:
    drop = made(INNER, rule("drop", "out", "tcp", 500, **conditions))
    with_address = Reference(INNER, (("IP", GUEST[0]),))
    before, after = [made(TOP, with_address), drop], [made(TOP, with_address), made(INNER)]
    assert opened(before, after).keys() == {TOP}
    assert opened(before, before) == {}


def test_a_rule_for_part_of_what_a_wider_one_blocks_may_go() -> None:
    all_of_it, part = rule("drop", "inout", "all"), rule("drop", "in", "tcp", 100, dstportstart="22")
    assert opened([made(TOP, all_of_it, part)], [made(TOP, all_of_it)]) == {}
    assert opened([made(TOP, all_of_it, part)], [made(TOP, part)]).keys() == {TOP}


def test_what_was_open_already_is_not_opened() -> None:
    accept, drop = rule("accept", "inout", "all", 100), rule("drop", "inout", "all", 900)
    assert opened([made(TOP, accept, drop)], [made(TOP)]) == {}


def test_a_tree_that_cannot_be_evaluated_afterwards_counts_as_opened() -> None:
    drop = rule("drop", "inout", "all")
    unknown = rule("accept", "in", "tcp", 100, dscp="3")
    assert opened([made(TOP, drop)], [made(TOP, drop, unknown)]).keys() == {TOP}
    without_value = rule("drop", "in", "tcp", srcipaddr="$IP")
    assert "cannot be evaluated" in opened([made(TOP, drop)], [made(TOP, drop, without_value)])[TOP]
    assert opened([made(TOP, without_value)], [made(TOP)]) == {}, "libvirt enforces nothing of it now"


def test_a_filter_that_cannot_be_read_and_is_not_included_any_more_may_have_blocked() -> None:
    unread = build_stand_in(INNER, UUID(int=9))
    before, repaired = [made(TOP, Reference(INNER)), unread], [made(TOP, Reference(INNER)), made(INNER)]
    assert "cannot be read" in opened(before, [made(TOP), unread])[TOP]
    assert opened(before, repaired) == {}


def test_machines_without_an_interface_that_names_their_filter_are_not_counted() -> None:
    before, after = [made(TOP, rule("drop", "in", "all"))], [made(TOP)]
    assert find_opened([], {each.name: each for each in before}, {each.name: each for each in after}) == {}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_a_tree_that_blocks_any_packet_is_opened_by_the_loss_of_its_blocking_rules(seed: int) -> None:
    dice = random.Random(seed)
    rows = generated(dice)
    before = filters_of(rows.filters, rows.machines)
    after = {
        name: replace(
            each,
            entries=tuple(one for one in each.entries if isinstance(one, Reference) or one.action not in BLOCKING),
        )
        for name, each in before.items()
    }
    top = machine_filter_name(rows.machines[0].id)
    packets: list[Packet] = [*lone_packets(dice), *ordered_packets()]
    was, becomes = (decide_packets(packets, each[top], each) for each in (before, after))
    found = find_opened([top], before, after)
    if any(old.action in BLOCKING and new.action not in BLOCKING for old, new in zip(was, becomes, strict=True)):
        assert found.keys() == {top}
    assert find_opened([top], before, before) == {}
    assert find_opened([top], after, before) == {} or any(each.action == "return" for each in _rules(before))


def _rules(filters: Mapping[str, Filter]) -> list[Rule]:
    return [each for one in filters.values() for each in one.rules]
