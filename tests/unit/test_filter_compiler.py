"""A row compiles to a filter, or to problems that name the columns that libvirt would change, ignore or refuse."""

import dataclasses
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given

from guestd.filters.compiler import compile_filter
from guestd.filters.model import Filter, Match, Reference, Rule, build_matches
from guestd.filters.snapshot import FilterRow
from guestd.filters.xml import parse_filter, render_filter
from support.filter_rows import filter_row, filter_rows, rule_row


def compile_valid(row: FilterRow) -> Filter:
    result = compile_filter(row, {})
    assert isinstance(result, Filter), result
    return result


def list_problem_columns(row: FilterRow) -> list[str]:
    result = compile_filter(row, {})
    return [] if isinstance(result, Filter) else [problem.column for problem in result]


def test_every_column_of_a_row_is_compiled() -> None:
    row = rule_row(
        direction="out", priority=-7, ip_version="ipv4", src_mac_addr="AA:B:0:1:2:3", src_ip_addr="10.1.0.0",
        src_ip_mask="255.255.0.0", dst_ip_addr="10.2.3.4", dst_ip_mask="32", src_port_start=1024, src_port_end=65535,
        dst_port_start=443, state={"established": True, "new": True, "related": False}, comment="web",
    )  # fmt: skip
    expected = {
        "srcmacaddr": "aa:0b:00:01:02:03", "srcipaddr": "10.1.0.0", "srcipmask": "16", "dstipaddr": "10.2.3.4",
        "dstipmask": "32", "srcportstart": "1024", "srcportend": "65535", "dstportstart": "443", "dstportend": "443",
        "state": "NEW,ESTABLISHED", "comment": "web",
    }  # fmt: skip
    assert compile_valid(filter_row(row)).rules == (Rule("accept", "out", -7, "tcp", build_matches(expected.items())),)


def test_the_version_of_ip_chooses_the_protocol() -> None:
    row = filter_row(rule_row(ip_version="ipv6"), rule_row(protocol="icmp", ip_version="ipv6"))
    assert sorted(rule.protocol for rule in compile_valid(row).rules) == ["icmpv6", "tcp-ipv6"]


def test_addresses_of_arp_are_those_in_its_header() -> None:
    rule = compile_valid(filter_row(rule_row(protocol="arp", src_ip_addr="$IP"))).rules[0]
    assert rule.value("arpsrcipaddr") == "$IP"


def test_a_filter_without_state_match_tracks_no_connections() -> None:
    assert not compile_valid(filter_row(rule_row(), state_match=False)).rules[0].is_stateful


def test_rules_are_ordered_by_priority_and_twins_are_one() -> None:
    late, early = rule_row(priority=9), rule_row(id=UUID(int=2), priority=1)
    rules = compile_valid(filter_row(late, early, dataclasses.replace(early, id=UUID(int=3)))).rules
    assert [rule.priority for rule in rules] == [1, 9]


def test_references_are_the_internal_names_of_their_targets() -> None:
    one, two = UUID(int=1), UUID(int=2)
    result = compile_filter(filter_row(targets=(two, one)), {one: "ibay-b", two: "ibay-a"})
    assert isinstance(result, Filter)
    assert result.references == (Reference("ibay-a"), Reference("ibay-b"))


@pytest.mark.parametrize(
    ("column", "rule"),
    [
        ("protocol", {"protocol": "ipv4"}),
        ("protocol", {"protocol": "gre"}),
        ("ipVersion", {"protocol": "tcp-ipv6", "ip_version": "ipv4"}),
        ("ipVersion", {"protocol": "igmp", "ip_version": "ipv6"}),
        ("ipVersion", {"protocol": "arp", "ip_version": "ipv4"}),
        ("ipVersion", {"protocol": "ip", "ip_version": "ipv6"}),
        ("action", {"action": "continue"}),
        ("action", {"action": "reject", "protocol": "mac"}),
        ("action", {"action": "deny"}),
        ("direction", {"direction": "both"}),
        ("priority", {"priority": 1001}),
        ("srcMacAddr", {"src_mac_addr": "aabbccddeeff"}),
        ("srcMacAddr", {"src_mac_addr": "aa:bb:cc:dd:ee:+f"}),
        ("srcMacAddr", {"src_mac_addr": "$FOO"}),
        ("srcMacAddr", {"src_mac_addr": "$MAC", "dst_ip_addr": "$IP"}),
        ("srcIpAddr", {"src_ip_addr": "010.1.2.3"}),
        ("srcIpAddr", {"src_ip_addr": "1.2.3"}),
        ("srcIpAddr", {"src_ip_addr": ""}),
        ("srcIpAddr", {"src_ip_addr": "::1"}),
        ("srcIpAddr", {"src_ip_addr": "$SERVERS"}),
        ("srcIpAddr", {"src_ip_addr": "$IP", "ip_version": "ipv6"}),
        ("srcIpAddr", {"src_ip_addr": "fe80::1%eth0", "ip_version": "ipv6"}),
        ("dstIpAddr", {"dst_ip_addr": "10.0.0.1", "protocol": "mac"}),
        ("dstIpMask", {"dst_ip_mask": "24"}),
        ("srcIpMask", {"src_ip_addr": "10.0.0.1", "src_ip_mask": "33"}),
        ("srcIpMask", {"src_ip_addr": "10.0.0.1", "src_ip_mask": "255.0.255.0"}),
        ("srcIpMask", {"src_ip_addr": "10.0.0.1", "src_ip_mask": "ffff::"}),
        ("dstPortEnd", {"dst_port_end": 80}),
        ("dstPortStart", {"dst_port_start": 90, "dst_port_end": 80}),
        ("dstPortStart", {"dst_port_start": 65536}),
        ("dstPortStart", {"dst_port_start": 80, "protocol": "all"}),
        ("srcPortStart", {"src_port_start": 8, "protocol": "icmp"}),
        ("state", {"state": ["new"]}),
        ("state", {"state": {"fresh": True}}),
        ("state", {"state": {"new": "yes"}}),
        ("state", {"state": {"new": False}}),
        ("state", {"state": {"new": True}, "protocol": "ip"}),
        ("comment", {"comment": "two\nlines"}),
        ("comment", {"comment": "é" * 128}),
        ("comment", {"comment": "$5 a month"}),
    ],
)
def test_a_rule_that_libvirt_would_change_or_ignore_is_refused(column: str, rule: dict[str, Any]) -> None:
    assert list_problem_columns(filter_row(rule_row(**rule))) == [column]


@pytest.mark.parametrize(
    ("column", "changes"),
    [
        ("internalName", {"internal_name": "clean-traffic"}),
        ("internalName", {"internal_name": "ibay-../x"}),
        ("chain", {"chain": "ipv4x"}),
        ("chain", {"chain": "ipv4-a b"}),
        ("chain", {"chain": "ipv4-34567890"}),
        ("priority", {"priority": 1001}),
        ("priority", {"priority": 0, "chain": "ipv4"}),
        ("FilterReference", {"targets": (UUID(int=99),)}),
    ],
)
def test_a_filter_that_libvirt_would_change_or_refuse_is_refused(column: str, changes: dict[str, Any]) -> None:
    assert list_problem_columns(filter_row(**changes)) == [column]


def test_a_state_is_refused_where_the_filter_ignores_states() -> None:
    assert list_problem_columns(filter_row(rule_row(state={"new": True}), state_match=False)) == ["state"]


def test_a_rule_that_never_reaches_its_chain_is_refused() -> None:
    assert list_problem_columns(filter_row(rule_row(protocol="arp"), chain="ipv4")) == ["protocol"]


def test_a_problem_names_the_rule_the_column_and_the_reason() -> None:
    (problem,) = compile_filter(filter_row(rule_row(priority=2000)), {})  # type: ignore[misc]  # a refusal is a tuple
    assert str(problem) == f"rule {UUID(int=1)}, priority: libvirt replaces 2000 by 500: use -1000 to 1000"


@given(filter_rows())
def test_rendered_filters_parse_to_the_same_model(row: FilterRow) -> None:
    compiled = compile_valid(row)
    assert parse_filter(render_filter(compiled)) == compiled


def test_negated_conditions_are_kept_apart() -> None:
    xml = """<filter name='f' chain='mac' priority='-800'><uuid>00000000-0000-0000-0000-0000000000aa</uuid>
      <rule action='drop' direction='out' priority='500'><mac match='no' srcmacaddr='$MAC'/><mac comment='c'/></rule>
    </filter>"""
    result = parse_filter(xml)
    assert result.rules[0].matches == (Match("comment", "c"), Match("srcmacaddr", "$MAC", is_negated=True))
    assert parse_filter(render_filter(result)) == result


def test_masks_addresses_and_states_have_one_form() -> None:
    one = build_matches([("srcipaddr", "FE80:0::1"), ("srcipmask", "ffff:ff00::"), ("state", "related, NEW")])
    assert [each.value for each in one] == ["fe80::1", "24", "NEW,RELATED"]
