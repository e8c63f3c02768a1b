"""The kernel's rules are those that guestd predicts."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from guestd.filters.compiler import compile_filter
from guestd.filters.kernel import LISTINGS, count_rules, find_missing_rules
from guestd.filters.model import PROTOCOLS, ROOT, Filter, Reference
from guestd.filters.packet_match import PacketRule, build_packet_rules, order_rules
from guestd.filters.xml import render_filter
from support.filter_rows import filter_row, rule_rows
from support.libvirt import libvirt
from support.nwfilter import PORT

pytestmark = pytest.mark.timeout(900)
# Each includes the one before.
NAMES = ("ibay-kernel-a", "ibay-kernel-b", "ibay-kernel-c")
MAC = "52:54:00:00:00:10"
ADDRESSES = (("IP", "10.9.0.2"), ("IP", "10.9.0.3"), ("IPV6", "fd00::2"))
PARAMETERS = "".join(f"<parameter name='{name}' value='{value}'/>" for name, value in ADDRESSES)
CHAINS = {"in": "FO", "out": "FI"}
VERDICTS = {("in", "accept"): "ACCEPT", ("out", "accept"): "RETURN"}
NUMBERS = {"icmp": "icmp", "ipv6-icmp": "icmp"}


@st.composite
def trees(draw: st.DrawFn) -> list[Filter]:
    """Three filters, each of which includes the one before somewhere among its rules; no rules for ebtables."""
    found: list[Filter] = []
    protocols = frozenset({"all", "tcp", "udp", "icmp", "sctp", "esp", "tcp-ipv6", "udp-ipv6", "icmpv6"})
    assert protocols <= PROTOCOLS
    for number, internal_name in enumerate(NAMES):
        is_stateful = draw(st.booleans())
        rules = draw(st.lists(rule_rows(is_stateful=is_stateful, protocols=protocols), max_size=4))
        few = [replace(rule, priority=draw(st.sampled_from([-5, 100, 100, 900]))) for rule in rules]
        chain = draw(st.sampled_from([None, "ipv4", "ipv6-x"]))
        row = filter_row(
            *few, internal_name=internal_name, uuid=UUID(int=800 + number), state_match=is_stateful, chain=chain
        )
        result = compile_filter(row, {})
        assert isinstance(result, Filter)
        entries = list(result.entries)
        if found:
            entries.insert(draw(st.integers(0, len(entries))), Reference(found[-1].name, ADDRESSES))
        found.append(replace(result, entries=tuple(entries)))
    return found


def predict_rules(tree: list[Filter]) -> list[tuple[Any, ...]]:
    filters = {each.name: each for each in tree}
    placed = [replace(each, variables=ADDRESSES) for each in order_rules(tree[-1], filters)]
    return sorted((number, *_describe_rule(rule)) for number, rule in _numbered(build_packet_rules(placed)))


def _numbered(packet_rules: list[PacketRule]) -> Iterator[tuple[tuple[str, int, int], PacketRule]]:
    counts: dict[tuple[str, int], int] = {}
    for rule in packet_rules:
        key = CHAINS[rule.direction], rule.version
        counts[key] = counts.get(key, 0) + 1
        yield (*key, counts[key]), rule


def _describe_rule(rule: PacketRule) -> tuple[Any, ...]:
    mac = MAC if rule.mac == "$MAC" else rule.mac
    verdict = VERDICTS.get((rule.direction, rule.verdict), rule.verdict.upper())
    return (
        rule.protocol, _net(rule.source), _net(rule.destination), _ports(rule.source_ports),
        _ports(rule.destination_ports), mac, ",".join(sorted(rule.states or ())),
        {None: None, True: "REPLY", False: "ORIGINAL"}[rule.answer], verdict,
    )  # fmt: skip


def _net(network: Any) -> str | None:
    return None if network is None or network.prefixlen == 0 else str(network)


def _ports(ports: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if ports == (0, 65535) else ports


def read_kernel_rules(run: Callable[..., str]) -> list[tuple[Any, ...]]:
    found = []
    for version, command in ((4, "iptables-save"), (6, "ip6tables-save")):
        counts: dict[str, int] = {}
        for text in run(command, "-t", "filter").splitlines():
            words = shlex.split(text) if text.startswith(("-A FI-", "-A FO-")) else []
            if words:
                chain = words[1][:2]
                counts[chain] = counts.get(chain, 0) + 1
                found.append(((chain, version, counts[chain]), *_describe_words(words[2:])))
    return sorted(found)


def _describe_words(words: list[str]) -> tuple[Any, ...]:
    options = {words[place]: words[place + 1] for place in range(len(words) - 1) if words[place].startswith("-")}
    mac = options.get("--mac-source")

    def ports(name: str) -> tuple[int, int] | None:
        text = options.get(name)
        first, _, last = (text or "").partition(":")
        return None if text is None else _ports((int(first), int(last or first)))

    def net(name: str) -> str | None:
        return None if name not in options else _net(ip_network(options[name]))

    return (
        NUMBERS.get(options.get("-p", "all"), options.get("-p", "all")), net("-s"), net("-d"), ports("--sport"),
        ports("--dport"), mac and mac.lower(), ",".join(sorted(filter(None, options.get("--ctstate", "").split(",")))),
        options.get("--ctdir"), options["-j"],
    )  # fmt: skip


@pytest.fixture
def bound(nwfilters: Any, bridge_port: Callable[..., str]) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """Binds a filter to the port, as libvirt does when a machine starts, and returns the kernel's rules."""
    bindings: list[Any] = []

    def unbind() -> None:
        while bindings:
            bindings.pop().delete()

    def bind(name: str) -> list[tuple[Any, ...]]:
        unbind()
        xml = (
            f"<filterbinding><owner><name>m</name><uuid>{uuid4()}</uuid></owner><portdev name='{PORT}'/>"
            f"<mac address='{MAC}'/><filterref filter='{name}'>{PARAMETERS}</filterref></filterbinding>"
        )
        bindings.append(nwfilters.nwfilterBindingCreateXML(xml))
        return read_kernel_rules(bridge_port)

    yield bind
    unbind()
    for name in reversed(NAMES):
        with suppress(libvirt.libvirtError):  # no example defined it
            nwfilters.nwfilterLookupByName(name).undefine()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(tree=trees())
def test_the_packet_rules_of_a_tree_are_those_of_the_kernel(
    nwfilters: Any, bound: Any, bridge_port: Callable[..., str], tree: list[Filter]
) -> None:
    for each in tree:
        nwfilters.nwfilterDefineXML(render_filter(each))
    assert bound(tree[-1].name) == predict_rules(tree)
    top = Filter("ibay-top", UUID(int=9), ROOT, 0, (Reference(tree[-1].name, ADDRESSES),))
    listings = [bridge_port(*command) for command in LISTINGS]
    expected = count_rules(order_rules(top, {each.name: each for each in tree}))
    assert list(find_missing_rules(PORT, expected, listings)) == []
