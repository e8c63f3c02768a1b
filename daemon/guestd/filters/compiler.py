"""Compile a row of NWFilter with its rows of FWRule to the model, or list what is wrong with it.

Pure. libvirt accepts many values that it then changes, ignores, or fails on when a machine starts. guestd refuses them
first and names the rule and the column. One refused rule refuses the whole filter: without that rule the filter would
have another meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from guestd.filters.model import (
    IPV6_OF,
    LINK_PROTOCOLS,
    PREFIX,
    PROTOCOLS,
    ROOT,
    Filter,
    Reference,
    Rule,
    build_matches,
    canonical_mac,
    canonical_mask,
    default_chain_priority,
    has_ports,
    is_ipv6,
    read_address,
)
from guestd.filters.snapshot import FilterRow, RuleRow

PRIORITIES = range(-1000, 1001)
PORTS = range(65536)
CHAIN_MAX = 12
# libvirt stores 256 bytes and the kernel 255; both may truncate within a character.
COMMENT_MAX_BYTES = 255

_NAME = re.compile(re.escape(PREFIX) + r"[0-9A-Za-z._-]{1,64}")
_CHAIN = re.compile(r"root|(?:mac|vlan|stp|arp|rarp|ipv4|ipv6)(?:-[0-9A-Za-z._-]+)?")
# XML forbids characters below U+0020 except three, which it turns into spaces; the last two are no characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ACTIONS = ("accept", "reject", "drop", "return", "continue")
_STATES = {"new": "NEW", "established": "ESTABLISHED", "related": "RELATED", "invalid": "INVALID"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a filter is refused: `rule` is the id of the rule, or None for the filter itself."""

    rule: UUID | None
    column: str
    reason: str

    def __str__(self) -> str:
        return f"{'' if self.rule is None else f'rule {self.rule}, '}{self.column}: {self.reason}"


def compile_filter(row: FilterRow, names: Mapping[UUID, str]) -> Filter | tuple[Problem, ...]:
    """The filter that a row describes, or all problems with the row.

    `names` are the internal names of all filters of the store, by id.
    """
    problems = [Problem(None, column, reason) for column, reason in _filter_problems(row, names)]
    for rule in row.rules:
        problems += [Problem(rule.id, column, reason) for column, reason in _rule_problems(rule, row)]
    if problems:
        return tuple(problems)
    return Filter(
        name=row.internal_name,
        uuid=row.uuid,
        chain=row.chain or ROOT,
        priority=row.priority,
        entries=(
            *sorted({_rule(rule, row) for rule in row.rules}, key=rule_order),
            *(Reference(name) for name in sorted({names[target] for target in row.targets})),
        ),
    )


def rule_order(rule: Rule) -> tuple[object, ...]:
    """Sort key for the rules of a filter: rows have no order except their priority."""
    return rule.priority, rule.protocol, rule.matches, rule.direction, rule.action, rule.is_stateful


def _filter_problems(row: FilterRow, names: Mapping[UUID, str]) -> Iterator[tuple[str, str]]:
    if not _NAME.fullmatch(row.internal_name):
        yield (
            "internalName",
            f"{row.internal_name!r} is not {PREFIX} followed by letters or digits: guestd manages only such names",
        )
    chain = row.chain or ROOT
    if not _CHAIN.fullmatch(chain) or len(chain) > CHAIN_MAX:
        yield (
            "chain",
            f"libvirt refuses {chain!r}: use at most {CHAIN_MAX} characters that begin with the name of a known chain",
        )
    if row.priority not in PRIORITIES:
        yield "priority", f"libvirt refuses {row.priority}: use -1000 to 1000"
    elif row.priority == 0 and chain != ROOT:
        yield (
            "priority",
            f"libvirt does not store a 0 and uses {default_chain_priority(chain)} after its restart: use -1 or 1",
        )
    for target in row.targets:
        if target not in names:
            yield "FilterReference", f"it includes filter {target}, which does not exist"


def _rule_problems(rule: RuleRow, row: FilterRow) -> Iterator[tuple[str, str]]:
    protocol, problem = _protocol(rule)
    if problem is not None:
        yield problem
        return
    yield from _verdict_problems(rule, protocol, row.chain or ROOT)
    yield from _mac_problems(rule)
    yield from _address_problems("src", rule.src_ip_addr, rule.src_ip_mask, protocol)
    yield from _address_problems("dst", rule.dst_ip_addr, rule.dst_ip_mask, protocol)
    yield from _port_problems("src", rule.src_port_start, rule.src_port_end, protocol)
    yield from _port_problems("dst", rule.dst_port_start, rule.dst_port_end, protocol)
    yield from _state_problems(rule.state, protocol, is_stateful=row.state_match)
    yield from _comment_problems(rule.comment or "")


def _protocol(rule: RuleRow) -> tuple[str, tuple[str, str] | None]:
    """libvirt's name of the protocol for the rule's version of IP, and the problem if there is one."""
    name, version = rule.protocol, rule.ip_version
    problem = None
    if name not in PROTOCOLS:
        problem = "protocol", f"libvirt ignores {name!r}, and the rule would match everything"
    elif version not in (None, "ipv4", "ipv6"):
        problem = "ipVersion", f"{version!r} is neither ipv4 nor ipv6"
    elif version == "ipv6" and name in IPV6_OF:
        name = IPV6_OF[name]
    elif version is not None and name in LINK_PROTOCOLS - {"ip", "ipv6"}:
        problem = "ipVersion", f"protocol {name} has no IP version"
    elif version is not None and is_ipv6(name) != (version == "ipv6"):
        problem = "ipVersion", f"{version} contradicts protocol {name}"
    return name, problem


def _verdict_problems(rule: RuleRow, protocol: str, chain: str) -> Iterator[tuple[str, str]]:
    is_link = protocol in LINK_PROTOCOLS
    if rule.action not in _ACTIONS:
        yield "action", f"libvirt refuses {rule.action!r}"
    elif rule.action == "continue" and not is_link:
        yield "action", f"iptables has no continue: a machine with this filter would not start (protocol {protocol})"
    elif rule.action == "reject" and is_link:
        yield "action", f"libvirt turns it into drop: protocol {protocol} cannot reject"
    if rule.direction not in ("in", "out", "inout"):
        yield "direction", f"libvirt refuses {rule.direction!r}"
    if rule.priority not in PRIORITIES:
        yield "priority", f"libvirt replaces {rule.priority} by 500: use -1000 to 1000"
    family = chain.partition("-")[0]
    chain_protocol = {"ipv4": "ip"}.get(family, family)
    if is_link and protocol != "mac" and family not in (ROOT, "mac") and protocol != chain_protocol:
        yield "protocol", f"frames of protocol {protocol} never reach chain {chain}"


def _mac_problems(rule: RuleRow) -> Iterator[tuple[str, str]]:
    if rule.src_mac_addr == "$MAC":
        # libvirt iterates over both lists in parallel, and their lengths differ.
        if any((address or "").startswith("$") for address in (rule.src_ip_addr, rule.dst_ip_addr)):
            yield "srcMacAddr", "a machine with several addresses would not start with $IP beside $MAC: use two rules"
    elif rule.src_mac_addr is not None:
        yield from _problem_from("srcMacAddr", canonical_mac, rule.src_mac_addr)


def _address_problems(side: str, address: str | None, mask: str | None, protocol: str) -> Iterator[tuple[str, str]]:
    column, mask_column = f"{side}IpAddr", f"{side}IpMask"
    if address is None:
        if mask is not None:
            yield mask_column, f"libvirt ignores a mask without {column}"
        return
    if protocol in ("mac", "vlan", "stp"):
        yield column, f"libvirt ignores it: protocol {protocol} has no IP addresses"
        return
    bits = 128 if is_ipv6(protocol) else 32
    yield from _problem_from(column, lambda text: _check_address(text, bits), address)
    if mask is not None:
        yield from _problem_from(mask_column, lambda text: _check_mask(text, bits), mask)


def _check_address(text: str, bits: int) -> None:
    if text == ("$IPV6" if bits == 128 else "$IP"):
        return
    if text.startswith("$"):
        raise ValueError(f"{text} has no value: a machine with this filter would not start")
    if read_address(text).max_prefixlen != bits:
        raise ValueError(
            f"{text!r} is not an IPv{6 if bits == 128 else 4} address; ipVersion sets the version of the rule"
        )


def _check_mask(text: str, bits: int) -> None:
    if int(canonical_mask(text)) > bits or ("." in text) != (bits == 32 and not text.isdigit()):
        raise ValueError(f"{text!r} is not a mask of {bits} bits")


def _port_problems(side: str, start: int | None, end: int | None, protocol: str) -> Iterator[tuple[str, str]]:
    column = f"{side}PortStart"
    if start is None:
        if end is not None:
            yield f"{side}PortEnd", f"libvirt ignores an end without {column}, and the rule would match every port"
    elif not has_ports(protocol):
        yield (
            column,
            f"libvirt ignores it: protocol {protocol} has no ports, and the rule would match all its packets",
        )
    elif start not in PORTS or (end is not None and end not in PORTS):
        yield column, "use a port from 0 to 65535"
    elif end is not None and start > end:
        yield column, f"{start} is above {side}PortEnd {end}: the range is empty"


def _state_problems(state: object, protocol: str, *, is_stateful: bool) -> Iterator[tuple[str, str]]:
    if state is None:
        return
    if not isinstance(state, dict) or not all(isinstance(value, bool) for value in state.values()):
        yield "state", "it is not a JSON object of booleans"
    elif unknown := sorted(str(name) for name in state if str(name).lower() not in _STATES):
        yield "state", f"libvirt refuses {', '.join(unknown)}: use new, established, related or invalid"
    elif not any(state.values()):
        yield "state", "no state is true: use NULL for any state"
    elif protocol in LINK_PROTOCOLS:
        yield "state", f"libvirt ignores it: protocol {protocol} has no connections"
    elif not is_stateful:
        yield "state", "libvirt ignores it where NWFilter.stateMatch is false"


def _comment_problems(comment: str) -> Iterator[tuple[str, str]]:
    if _UNPRINTABLE.search(comment):
        yield "comment", "it contains a line break or another character that XML does not preserve"
    elif len(comment.encode()) > COMMENT_MAX_BYTES:
        yield "comment", f"libvirt truncates it: it has more than {COMMENT_MAX_BYTES} bytes"
    elif comment.startswith("$"):
        yield "comment", "libvirt reads text that begins with $ as a variable"


def _problem_from(column: str, check: Callable[[str], object], text: str) -> Iterator[tuple[str, str]]:
    try:
        check(text)
    except ValueError as exc:
        yield column, str(exc)


def _rule(rule: RuleRow, row: FilterRow) -> Rule:
    protocol, _ = _protocol(rule)
    return Rule(
        action=rule.action,
        direction=rule.direction,
        priority=rule.priority,
        protocol=protocol,
        matches=build_matches((name, value) for name, value in _attributes(rule, protocol) if value),
        is_stateful=row.state_match,
    )


def _attributes(rule: RuleRow, protocol: str) -> Iterator[tuple[str, str | None]]:
    # ARP has the addresses in its own header.
    prefix = "arp" if protocol in ("arp", "rarp") else ""
    yield "srcmacaddr", rule.src_mac_addr
    yield f"{prefix}srcipaddr", rule.src_ip_addr
    yield f"{prefix}srcipmask", rule.src_ip_mask
    yield f"{prefix}dstipaddr", rule.dst_ip_addr
    yield f"{prefix}dstipmask", rule.dst_ip_mask
    for side, start, end in (
        ("src", rule.src_port_start, rule.src_port_end),
        ("dst", rule.dst_port_start, rule.dst_port_end),
    ):
        if start is not None:
            yield f"{side}portstart", str(start)
            yield f"{side}portend", str(start if end is None else end)
    if isinstance(rule.state, dict):
        yield "state", ",".join(_STATES[str(name).lower()] for name, value in rule.state.items() if value)
    yield "comment", rule.comment
