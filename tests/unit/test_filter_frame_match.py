"""Which rule decides on the frame of a packet, before the rules for packets."""

from dataclasses import replace
from uuid import UUID

import pytest

from guestd.filters.desired import compile_rows
from guestd.filters.frame_match import decide, decide_frame, find_open_ends, find_unordered_chains
from guestd.filters.model import Filter, Match, Reference, Rule, build_matches
from guestd.filters.packet_match import UNKNOWN, Decision, Packet, PlacedRule, build_packet_rules, order_rules
from support.filter_trees import all_services

OUT = Packet("out", "tcp", "10.0.0.2", "10.0.0.5", 40000, 443)


def rule(text: str, **conditions: str) -> Rule:
    action, direction, priority, protocol = text.split()
    return Rule(action, direction, int(priority), protocol, build_matches(conditions.items()))


def placed(*filters: Filter) -> list[PlacedRule]:
    references = tuple(Reference(each.name, (("IP", "10.0.0.2"),)) for each in filters)
    return order_rules(Filter("ibay-u", UUID(int=9), "root", 0, references), {each.name: each for each in filters})


def chain(name: str, priority: int, *rules: Rule) -> Filter:
    return Filter(f"ibay-{name}", UUID(int=1), name, priority, rules)


def verdict(packet: Packet, *filters: Filter) -> str | None:
    found = decide_frame(packet, placed(*filters))
    return found.action if found.rule or found.unknown else None


OWN_IP = chain("ipv4-ip", -700, rule("return out 500 ip", srcipaddr="$IP"), rule("drop out 1000 ip"))
OWN_MAC = chain("mac", -800, rule("return out 400 mac", srcmacaddr="$MAC"), rule("drop out 500 mac"))


def test_frames_from_the_machines_own_addresses_pass() -> None:
    assert verdict(OUT, OWN_IP, OWN_MAC) is None


def test_frames_from_another_ip_address_are_dropped() -> None:
    assert verdict(replace(OUT, source="10.0.0.3"), OWN_IP, OWN_MAC) == "drop"


def test_incoming_frames_are_not_checked_for_the_machines_addresses() -> None:
    assert verdict(Packet("in", "tcp", "10.0.0.5", "10.0.0.2", 40000, 22), OWN_IP, OWN_MAC) is None


def test_a_chain_sees_the_frames_of_its_family_only() -> None:
    assert verdict(Packet("out", "tcp", "fd00::2", "fd00::5", 40000, 443), OWN_IP) is None
    assert verdict(OUT, chain("arp", -500, rule("drop inout 1 arp"))) is None


def test_chains_and_rules_of_the_root_chain_are_processed_by_priority() -> None:
    first = Filter("ibay-r", UUID(int=2), "root", 0, (rule("accept out -900 mac"),))
    last = Filter("ibay-r", UUID(int=2), "root", 0, (rule("accept out 1 mac"),))
    drop = chain("ipv4", -700, rule("drop out 5 ip"))
    assert verdict(OUT, drop, first) == "accept"
    assert verdict(OUT, drop, last) == "drop"


def test_a_rule_for_both_directions_is_reversed_for_outgoing_frames() -> None:
    peer = chain("ipv4", -700, rule("drop inout 5 ip", srcipaddr="10.0.0.5"))
    assert verdict(OUT, peer) == "drop"
    assert verdict(replace(OUT, destination="10.0.0.6"), peer) is None


def test_a_frame_at_the_end_of_a_chain_passes_although_a_later_chain_would_drop_it() -> None:
    false, other = replace(OUT, mac="52:54:00:00:00:99"), rule("drop out 1 ip", dstipaddr="10.0.0.9")
    assert verdict(false, chain("ipv4", -900, other), OWN_MAC) is None
    assert verdict(false, chain("ipv4", -900, other, rule("return out 2 ip")), OWN_MAC) == "drop"
    assert verdict(false, chain("ipv4", -900, rule("drop in 1 ip")), OWN_MAC) == "drop"


def test_continue_decides_nothing() -> None:
    assert verdict(OUT, chain("ipv4", -700, rule("continue out 1 ip"), rule("drop out 2 ip"))) == "drop"


def test_addresses_in_the_arp_header_are_compared() -> None:
    own = chain("arp-ip", -500, rule("return out 400 arp", arpsrcipaddr="$IP"), rule("drop out 500 arp"))
    request = Packet("out", "arp", "10.0.0.2", "10.0.0.5")
    assert verdict(request, own) is None
    assert verdict(replace(request, source="10.0.0.3"), own) == "drop"
    assert verdict(OUT, own) is None


def test_frames_from_another_mac_address_are_dropped() -> None:
    false = "52:54:00:00:00:99"
    assert verdict(replace(OUT, mac=false), OWN_MAC) == "drop"
    named = chain("mac", -800, rule("drop in 500 mac", srcmacaddr=false))
    incoming = Packet("in", "tcp", "10.0.0.5", "10.0.0.2", 40000, 22)
    assert verdict(incoming, named) is None
    assert verdict(replace(incoming, mac=false), named) == "drop"


def test_rules_for_packets_do_not_apply_to_arp() -> None:
    found = placed(chain("root", 0, rule("drop inout 1 all")))
    packet_rules = build_packet_rules(found)
    assert decide(Packet("out", "arp", "10.0.0.2", "10.0.0.5"), found, packet_rules) == Decision("accept")
    assert decide(OUT, found, packet_rules).action == "drop"


def test_an_entry_that_stands_first_decides_among_equal_priorities_of_a_chain() -> None:
    inner = replace(chain("ipv4", -700, rule("drop out 5 ip")), name="ibay-inner")
    accept, include = rule("accept out 5 ip"), Reference("ibay-inner")
    for entries, expected in (((accept, include), "accept"), ((include, accept), "drop")):
        top = replace(chain("ipv4", -700), entries=entries)
        assert decide_frame(OUT, order_rules(top, {"ibay-inner": inner})).action == expected


def test_chains_of_one_priority_that_end_a_frame_differently_have_no_verdict() -> None:
    drops, accepts = chain("ipv4-a", -700, rule("drop out 5 ip")), chain("ipv4-b", -700, rule("accept out 5 ip"))
    returns = chain("ipv4-b", -700, rule("return out 5 ip"))
    assert verdict(OUT, drops, accepts) == verdict(OUT, accepts, drops) == UNKNOWN
    assert verdict(OUT, drops, returns) == verdict(OUT, returns, drops) == "drop"
    assert verdict(OUT, drops, replace(accepts, priority=-699)) == "drop"
    assert verdict(OUT, drops, chain("ipv4-b", -700, rule("drop out 5 ip"))) == "drop"
    assert verdict(OUT, drops, chain("ipv4-b", -700, rule("drop out 5 ip", dstipaddr="10.9.9.9"))) == UNKNOWN
    incoming = Packet("in", "tcp", "10.0.0.5", "10.0.0.2", 40000, 22)
    assert verdict(incoming, drops, accepts) is None


def test_chains_of_one_priority_are_reported_where_one_passes_what_the_other_drops() -> None:
    drops = chain("ipv4-a", -700, rule("drop out 5 ip"))
    for other, expected in (
        (rule("accept out 9 ip"), True),
        (rule("drop out 9 ip", dstipaddr="10.9.9.9"), True),
        (rule("drop out 9 ip"), False),
        (rule("return out 9 ip"), False),
        (rule("accept in 9 ip"), False),
    ):
        found = find_unordered_chains(placed(drops, chain("ipv4-b", -700, other)))
        assert found == ([("ipv4-a", "ipv4-b", "out")] if expected else []), other
    assert find_unordered_chains(placed(drops, chain("ipv4-b", -701, rule("accept out 9 ip")))) == []
    assert find_unordered_chains(placed(drops, chain("ipv6-b", -700, rule("accept out 9 ipv6")))) == []
    assert find_unordered_chains(placed(chain("mac", -700, rule("accept out 9 mac")), drops)) == [
        ("ipv4-a", "mac", "out")
    ]


def test_a_rule_without_conditions_matches_every_frame() -> None:
    everything = chain("root", 0, Rule("drop", "inout", 5, ""))
    assert verdict(OUT, everything) == "drop"
    assert verdict(Packet("in", "arp", "10.0.0.5", "10.0.0.2"), everything) == "drop"
    assert build_packet_rules(placed(everything)) == []


def test_reject_drops_a_frame() -> None:
    assert verdict(OUT, chain("ipv4", -700, rule("reject out 5 ip"))) == "drop"


def test_both_addresses_of_a_rule_have_the_same_value_of_a_variable() -> None:
    own = chain("ipv4", -700, rule("drop out 5 ip", srcipaddr="$IP", dstipaddr="$IP"))
    top = Filter("ibay-u", UUID(int=9), "root", 0, (Reference(own.name, (("IP", "10.0.0.2"), ("IP", "10.0.0.5"))),))
    found = order_rules(top, {own.name: own})
    assert decide_frame(OUT, found).action == "accept"
    assert decide_frame(replace(OUT, destination="10.0.0.2"), found).action == "drop"


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("drop out 5 mac", {"protocolid": "ipv4"}),
        ("drop out 5 ip", {"protocol": "tcp", "dstportstart": "80"}),
        ("drop out 5 mac", {"dstmacaddr": "52:54:00:00:00:01"}),
        ("drop out 5 ip", {"srcipaddr": "fd00::2"}),
    ],
)
def test_a_condition_that_guestd_does_not_know_has_no_verdict(text: str, conditions: dict[str, str]) -> None:
    found = decide_frame(OUT, placed(chain("root", 0, rule(text, **conditions))))
    assert (found.action, found.unknown.startswith("guestd does not evaluate ")) == (UNKNOWN, True)
    before = chain("root", 0, rule("drop out 4 ip"), rule(text, **conditions))
    assert verdict(OUT, before) == "drop"
    assert verdict(Packet("in", "tcp", "10.0.0.5", "10.0.0.2", 40000, 22), before) is None


def test_a_negated_condition_has_no_verdict() -> None:
    negated = Rule("drop", "out", 5, "mac", (Match("srcmacaddr", "$MAC", is_negated=True),))
    assert verdict(OUT, chain("mac", -800, negated)) == UNKNOWN


def test_an_open_end_is_reported_where_a_later_rule_would_drop() -> None:
    open_chain = chain("ipv6-x", -700, rule("accept out 500 ipv6", dstipaddr="fd00::9"))
    assert find_open_ends(placed(open_chain)) == []
    assert find_open_ends(placed(open_chain, OWN_MAC)) == []
    later = replace(OWN_MAC, priority=-1)
    assert find_open_ends(placed(open_chain, later)) == [("ipv6-x", "out")]
    ended = replace(open_chain, entries=(*open_chain.entries, rule("return out 900 ipv6", comment="the end")))
    assert find_open_ends(placed(ended, later)) == []
    root = Filter("ibay-r", UUID(int=2), "root", 0, (rule("drop inout 9 ipv6"), rule("drop inout 9 ip")))
    assert find_open_ends(placed(open_chain, root)) == [("ipv6-x", "out")]
    assert find_open_ends(placed(OWN_IP, OWN_MAC, root)) == []


def test_the_seeds_chains_are_closed_or_nothing_drops_behind_them() -> None:
    rows = all_services()
    found = compile_rows(rows)
    (top,) = found.machine_filters.values()
    assert find_open_ends(order_rules(top, found.filters)) == []
