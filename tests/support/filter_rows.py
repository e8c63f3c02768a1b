"""Filters for tests: rows that libvirt takes as they are, made up by hypothesis."""

from dataclasses import replace
from typing import Any, Literal
from uuid import UUID

from hypothesis import strategies as st

from guestd.filters.compiler import FilterRow, RuleRow
from guestd.filters.model import IPV6_OF, LINK_PROTOCOLS, PROTOCOLS, is_ipv6

ROW = UUID(int=7)
COLUMNS = {
    "srcMacAddr": "src_mac_addr", "srcIpAddr": "src_ip_addr", "srcIpMask": "src_ip_mask", "dstIpAddr": "dst_ip_addr",
    "dstIpMask": "dst_ip_mask", "srcPortStart": "src_port_start", "srcPortEnd": "src_port_end",
    "dstPortStart": "dst_port_start", "dstPortEnd": "dst_port_end",
}  # fmt: skip


def rule_row(**columns: Any) -> RuleRow:
    before: dict[str, Any] = {
        "id": UUID(int=1),
        "action": "accept",
        "direction": "in",
        "priority": 500,
        "protocol": "tcp",
    }
    return RuleRow(**before | columns)


def filter_row(*rules: RuleRow, **columns: Any) -> FilterRow:
    before: dict[str, Any] = {
        "id": ROW, "name": "Some", "internal_name": "ibay-00000000000000aa", "uuid": UUID(int=0xAA), "chain": None,
        "priority": 500, "state_match": True, "rules": rules, "targets": (),
    }  # fmt: skip
    return FilterRow(**before | columns)


comments = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=60
).filter(lambda text: not text.startswith("$") and len(text.encode()) <= 255)  # fmt: skip
macs = st.one_of(
    st.just("$MAC"),
    st.lists(st.integers(0, 255), min_size=6, max_size=6).map(lambda parts: ":".join(f"{n:X}" for n in parts)),
)
states = st.dictionaries(
    st.sampled_from(["new", "established", "RELATED", "invalid"]), st.booleans(), min_size=1
).filter(lambda state: any(state.values()))  # fmt: skip


def masks(bits: int) -> st.SearchStrategy[str]:
    plain = st.integers(0, bits).map(str)
    return plain if bits == 128 else st.one_of(plain, st.sampled_from(["255.255.0.0", "255.255.255.252", "0.0.0.0"]))


@st.composite
def rule_rows(draw: st.DrawFn, *, is_stateful: bool = True, protocols: frozenset[str] = PROTOCOLS) -> RuleRow:
    protocol = draw(st.sampled_from(sorted(protocols)))
    is_link = protocol in LINK_PROTOCOLS
    columns: dict[str, Any] = {
        "id": draw(st.uuids()),
        "protocol": protocol,
        "action": draw(st.sampled_from(["accept", "drop", "return", "continue" if is_link else "reject"])),
        "direction": draw(st.sampled_from(["in", "out", "inout"])),
        "priority": draw(st.integers(-1000, 1000)),
        "src_mac_addr": draw(st.none() | macs),
        "comment": draw(st.none() | comments),
    }
    if protocol in IPV6_OF:
        columns["ip_version"] = draw(st.sampled_from([None, "ipv4", "ipv6"]))
    wide = is_ipv6(protocol) or columns.get("ip_version") == "ipv6"
    if protocol not in ("mac", "vlan", "stp"):
        for side in ("src", "dst"):
            columns |= draw(_addresses(side, 6 if wide else 4))
    if any(value in ("$IP", "$IPV6") for value in columns.values()) and columns["src_mac_addr"] == "$MAC":
        columns["src_mac_addr"] = None
    if protocol.removesuffix("-ipv6") in ("tcp", "udp", "sctp"):
        for side in ("src", "dst"):
            columns |= draw(_ports(side))
    if not is_link and is_stateful:
        columns["state"] = draw(st.none() | states)
    return RuleRow(**columns)


@st.composite
def _addresses(draw: st.DrawFn, side: str, version: Literal[4, 6]) -> dict[str, str]:
    variable = "$IPV6" if version == 6 else "$IP"
    address = draw(st.none() | st.just(variable) | st.ip_addresses(v=version).map(lambda each: each.exploded))
    if address is None:
        return {}
    mask = draw(st.none() | masks(128 if version == 6 else 32))
    return {f"{side}_ip_addr": address} | ({} if mask is None else {f"{side}_ip_mask": mask})


@st.composite
def _ports(draw: st.DrawFn, side: str) -> dict[str, int]:
    start = draw(st.none() | st.integers(0, 65535))
    if start is None:
        return {}
    end = draw(st.none() | st.integers(start, 65535))
    return {f"{side}_port_start": start} | ({} if end is None else {f"{side}_port_end": end})


@st.composite
def filter_rows(draw: st.DrawFn) -> FilterRow:
    is_stateful = draw(st.booleans())
    chain = draw(st.sampled_from([None, "root", "mac", "ipv4", "ipv4-ip", "ipv6", "arp-a.b_c", "rarp", "vlan", "stp"]))
    family = (chain or "root").partition("-")[0]
    protocols = PROTOCOLS - LINK_PROTOCOLS | {
        "mac",
        "ip" if family == "ipv4" else family if family != "root" else "arp",
    }
    rules = draw(st.lists(rule_rows(is_stateful=is_stateful, protocols=frozenset(protocols)), max_size=6))
    priority = draw(st.integers(-1000, 1000).filter(lambda number: number != 0))
    return filter_row(*rules, state_match=is_stateful, chain=chain, priority=priority)


# What people write, mistakes among them, by column; any column may hold any of its list.
_WILD: dict[str, list[Any]] = {
    "action": ["continue", "ACCEPT", "", "allow"],
    "direction": ["both", "IN", ""],
    "priority": [-1001, 1001, 2**31 - 1, 0, -1000, 1000],
    "protocol": ["", "TCP", "all", "any", "gre", "icmpv6", "tcp-ipv6", "rarp", "stp", "udplite", "igmp"],
    "ip_version": ["ipv4", "ipv6", "4", "both", ""],
    "src_mac_addr": ["", "$MAC", "52:54:00", "0:0:0:0:0:0", "52-54-00-00-00-01", "$OTHER"],
    "src_ip_addr": ["", "$IP", "$IPV6", "10.0.0", "10.0.0.0/8", "::ffff:10.0.0.1", "fe80::1%eth0", "010.0.0.1", "::"],
    "dst_ip_addr": ["", "$IP", "$IPV6", "0.0.0.0", "FD00::A", "255.255.255.255", "1.2.3.4.5", "$DHCPSERVER"],
    "src_ip_mask": ["", "0", "33", "255.0.255.0", "128", "-1", "0.0.0.0", "ffff::"],
    "dst_ip_mask": ["", "0", "032", "255.255.255.255", "129", "64"],
    "src_port_start": [-1, 0, 65535, 65536, 2**31 - 1],
    "src_port_end": [-1, 0, 65535, 65536],
    "dst_port_start": [-1, 0, 65535, 65536],
    "dst_port_end": [-1, 0, 65535, 65536],
    "state": [{}, {"new": False}, {"NONE": True}, ["new"], {"new": "yes"}, {"untracked": True}, {"New": True}],
    "comment": ["", " ", "a\nb", "$IP", "<&>'\"", "x" * 256, "\u00e9" * 128, " two  spaces ", "\u2028", "a\tb"],
}


@st.composite
def wild_filter_rows(draw: st.DrawFn) -> FilterRow:
    """Rows as the store's own checks, or an older store, may let them stand: up to three columns are anything."""
    row = draw(filter_rows().filter(lambda row: len(row.rules) > 0))
    columns = draw(st.lists(st.sampled_from(sorted(_WILD)), min_size=1, max_size=3, unique=True))
    changed = {column: draw(st.sampled_from(_WILD[column])) for column in columns}
    chain = draw(st.sampled_from([row.chain, row.chain, "", "root-x", "ipv4-", "mac-0123456789", "IPV4", "ip"]))
    priority = draw(st.sampled_from([row.priority, row.priority, 0, 1001]))
    return replace(row, rules=(replace(row.rules[0], **changed), *row.rules[1:]), chain=chain, priority=priority)
