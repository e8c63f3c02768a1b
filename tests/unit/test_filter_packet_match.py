"""Which rule decides on a packet, as the kernel would."""

from dataclasses import replace
from uuid import UUID

import pytest

from guestd.filters.model import Filter, Match, Reference, Rule, build_matches
from guestd.filters.packet_match import (
    Packet,
    PacketRule,
    build_packet_rules,
    find_contradictions,
    find_deciding_rule,
    order_rules,
)
from guestd.filters.variables import NotInstallable

SSH = Packet("in", "tcp", "10.0.0.5", "10.0.0.2", 40000, 22)
ANSWER = Packet("out", "tcp", "10.0.0.2", "10.0.0.5", 22, 40000, state="ESTABLISHED", answer=True)


def rule(text: str, **conditions: str) -> Rule:
    action, direction, priority, protocol = text.split()
    return Rule(action, direction, int(priority), protocol, build_matches(conditions.items()))


def tree(*rules: Rule, chain: str = "root", name: str = "ibay-a", targets: tuple[Filter, ...] = ()) -> Filter:
    return Filter(name, UUID(int=1), chain, 0, (*rules, *(Reference(each.name) for each in targets)))


def list_packet_rules(top: Filter, *others: Filter) -> list[PacketRule]:
    return build_packet_rules(order_rules(top, {each.name: each for each in (top, *others)}))


def verdict(packet: Packet, top: Filter, *others: Filter) -> str:
    found = find_deciding_rule(packet, list_packet_rules(top, *others))
    return "passes" if found is None else found.verdict


ACCEPT_SSH = rule("accept in 500 tcp", dstportstart="22", dstportend="22")
DROP_IN, DROP_ALL = rule("drop in 1000 all"), rule("drop inout 1000 all")


def test_a_packet_that_no_rule_matches_passes() -> None:
    assert verdict(SSH, tree()) == "passes"


def test_the_lower_priority_decides() -> None:
    early = replace(ACCEPT_SSH, action="drop", priority=10)
    assert verdict(SSH, tree(ACCEPT_SSH, early)) == "drop"


def test_among_equal_priorities_the_entry_that_stands_first_decides() -> None:
    drops = tree(replace(ACCEPT_SSH, action="drop"), name="ibay-b")
    accept, include = ACCEPT_SSH, Reference("ibay-b")
    for entries, expected in (((accept, include), "accept"), ((include, accept), "drop")):
        assert verdict(SSH, replace(tree(), entries=entries), drops) == expected
        deeper = replace(tree(name="ibay-c"), entries=(Reference("ibay-a"),))
        assert verdict(SSH, deeper, replace(tree(), entries=entries), drops) == expected


def test_rules_of_the_root_chain_come_first_whatever_their_priority() -> None:
    other = tree(rule("accept in -1000 tcp"), chain="ipv4", name="ibay-b")
    assert verdict(SSH, tree(DROP_IN, targets=(other,)), other) == "drop"


def test_an_accepting_rule_lets_out_the_answers_of_its_own_connections_and_nothing_else() -> None:
    top = tree(ACCEPT_SSH, DROP_IN)
    assert verdict(ANSWER, top) == "accept"
    assert verdict(replace(ANSWER, answer=False, state="NEW"), top) == "drop"


def test_a_rule_that_drops_what_comes_in_drops_what_goes_out_too() -> None:
    assert verdict(replace(ANSWER, state="NEW", answer=False), tree(DROP_IN)) == "drop"


def test_a_rule_with_a_state_applies_to_one_direction_only() -> None:
    only_new = rule("drop in 1000 all", state="NEW")
    assert verdict(SSH, tree(only_new)) == "drop"
    assert verdict(replace(ANSWER, state="NEW", answer=False), tree(only_new)) == "passes"


def test_masks_ranges_and_protocols_are_compared() -> None:
    near = rule("accept in 1 tcp", srcipaddr="10.0.0.0", srcipmask="24", dstportstart="20", dstportend="25")
    assert verdict(SSH, tree(near, DROP_ALL)) == "accept"
    assert verdict(replace(SSH, source="10.0.1.5"), tree(near, DROP_ALL)) == "drop"
    assert verdict(replace(SSH, destination_port=26), tree(near, DROP_ALL)) == "drop"
    assert verdict(replace(SSH, protocol="udp"), tree(near, DROP_ALL)) == "drop"


def test_rules_for_ipv4_do_not_apply_to_ipv6() -> None:
    assert verdict(Packet("in", "tcp", "fd00::5", "fd00::2", 40000, 22), tree(DROP_ALL)) == "passes"


def test_a_variable_stands_for_each_of_its_values() -> None:
    own = tree(rule("drop out 1 all", srcipaddr="$IP"), name="ibay-b")
    top = Filter("ibay-a", UUID(int=2), "root", 0, (Reference("ibay-b", (("IP", "10.0.0.2"), ("IP", "10.0.0.3"))),))
    assert [str(each.source) for each in list_packet_rules(top, own) if each.direction == "out"] == [
        "10.0.0.2/32",
        "10.0.0.3/32",
    ]
    with pytest.raises(NotInstallable, match="IP has no value"):
        list_packet_rules(own)


def test_values_of_two_variables_belong_together_by_position() -> None:
    accept = rule("accept in 1 tcp", srcipaddr="$A", dstportstart="$B")
    own = tree(accept, DROP_ALL, name="ibay-b")
    for ports, expected in ((("22", "80"), "accept"), (("80", "22"), "drop")):
        values = (("A", "10.0.0.5"), ("A", "10.0.0.6"), ("B", ports[0]), ("B", ports[1]))
        assert verdict(SSH, replace(tree(), entries=(Reference("ibay-b", values),)), own) == expected


def test_an_outer_filters_values_override_those_of_an_inner_reference() -> None:
    own = tree(rule("drop in 1 tcp", srcipaddr="$A"), name="ibay-b")
    middle = replace(tree(name="ibay-c"), entries=(Reference("ibay-b", (("A", "10.0.0.5"),)),))
    top = replace(tree(), entries=(Reference("ibay-c", (("A", "10.0.0.9"),)),))
    assert verdict(SSH, top, middle, own) == "passes"
    assert verdict(SSH, middle, own) == "drop"


@pytest.mark.parametrize(
    "conditions",
    [
        {"dscp": "63"},
        {"flags": "SYN/SYN"},
        {"srcipfrom": "10.0.0.1", "srcipto": "10.0.0.9"},
        {"dstportstart": "ssh"},
        {"srcipaddr": "fd00::5"},
        {"state": "NONE"},
        {"state": ""},
        {"connlimit-above": "1"},
    ],
)
def test_what_guestd_does_not_evaluate_is_named_and_has_no_verdict(conditions: dict[str, str]) -> None:
    strange = rule("accept in 1 tcp", **conditions)
    for packet in (SSH, ANSWER):
        found = find_deciding_rule(packet, list_packet_rules(tree(strange, DROP_ALL)))
        assert found is not None
        assert found.unknown.startswith("guestd does not evaluate ")
        assert next(iter(conditions)) in found.unknown
    assert verdict(SSH, tree(rule("drop in 0 tcp"), strange)) == "drop"
    assert verdict(replace(SSH, protocol="udp"), tree(strange, DROP_ALL)) == "drop"


def test_a_negated_condition_is_not_evaluated() -> None:
    negated = replace(ACCEPT_SSH, matches=(Match("srcipaddr", "10.0.0.5", is_negated=True),))
    found = find_deciding_rule(SSH, list_packet_rules(tree(negated, DROP_ALL)))
    assert found is not None
    assert found.unknown == "guestd does not evaluate srcipaddr!=10.0.0.5"


def test_ports_in_hexadecimal_are_numbers() -> None:
    assert verdict(SSH, tree(rule("accept in 1 tcp", dstportstart="0x10", dstportend="0x16"), DROP_ALL)) == "accept"


def test_a_rule_with_only_the_senders_mac_has_no_reverse() -> None:
    assert {each.direction for each in list_packet_rules(tree(rule("drop out 1 tcp", srcmacaddr="$MAC")))} == {"out"}


def test_rules_of_one_priority_that_decide_differently_are_found() -> None:
    web = rule("drop in 500 tcp", dstportstart="20", dstportend="80")
    (pair, *_) = find_contradictions(list_packet_rules(tree(ACCEPT_SSH, web)))
    assert {each.placed.rule for each in pair} == {ACCEPT_SSH, web}


def test_of_rules_with_many_addresses_the_first_pair_that_meets_is_found_once() -> None:
    accept = [rule("accept out 500 tcp", srcipaddr="$IP", dstportstart=str(port)) for port in range(1, 31)]
    drop = rule("drop out 500 tcp", srcipaddr="$IP", dstportstart="30", dstportend="60")
    addresses = tuple(("IP", f"10.0.{number // 200}.{number % 200 + 1}") for number in range(1000))
    top = Filter("ibay-top", UUID(int=1), "root", 0, (Reference("ibay-a", addresses),))
    filters = {"ibay-a": Filter("ibay-a", UUID(int=2), "root", 0, (*accept, drop))}
    found = find_contradictions(build_packet_rules(order_rules(top, filters)))
    assert {(one.placed.rule, two.placed.rule) for one, two in found} == {(accept[29], drop)}
    assert len(found) == 2  # one in each direction


def test_rules_that_never_meet_are_no_contradiction() -> None:
    far = rule("drop in 500 tcp", dstportstart="80", dstportend="80")
    assert find_contradictions(list_packet_rules(tree(ACCEPT_SSH, far))) == []
    assert find_contradictions(list_packet_rules(tree(ACCEPT_SSH, replace(far, priority=501)))) == []
