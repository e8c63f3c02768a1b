"""The canonical model of a network filter: two filters are equal here when they are the same to libvirt.

Pure. What libvirt rewrites when it takes a filter (masks, MAC and IPv6 addresses, the order of states and attributes)
is written here in one form on both sides, so that models are compared and never text. Only the order of rules and of
references is kept as it is: it decides between rules of one priority.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from uuid import UUID

PREFIX = "ibay-"
ROOT = "root"
DEFAULT_RULE_PRIORITY = 500
# What libvirt gives a chain whose filter states no priority; root has 0.
CHAIN_PRIORITIES = {
    "stp": -810, "mac": -800, "vlan": -750, "ipv4": -700, "ipv6": -600, "arp": -500, "rarp": -400,
}  # fmt: skip

WITH_PORTS = frozenset({"tcp", "udp", "sctp"})
# Judged by ebtables, frame by frame and without connections; the others by iptables and ip6tables.
LINK_PROTOCOLS = frozenset({"mac", "vlan", "stp", "arp", "rarp", "ip", "ipv6"})
_IPV4 = frozenset({"all", "tcp", "udp", "udplite", "esp", "ah", "sctp", "icmp", "igmp"})
IPV6_OF = {name: f"{name}-ipv6" for name in _IPV4 - {"icmp", "igmp"}} | {"icmp": "icmpv6"}
PROTOCOLS = LINK_PROTOCOLS | _IPV4 | frozenset(IPV6_OF.values())
_MAC = re.compile(r"[0-9A-Fa-f]{1,2}(:[0-9A-Fa-f]{1,2}){5}")
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "NONE")


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """One condition: an attribute of libvirt's and its canonical value."""

    name: str
    value: str
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule; `protocol` is the element of libvirt's, empty for a rule that has none. `matches` are sorted."""

    action: str
    direction: str
    priority: int
    protocol: str
    matches: tuple[Match, ...] = ()
    is_stateful: bool = True

    def value(self, name: str) -> str | None:
        """The value of a condition that is not negated; None where there is none."""
        return next((match.value for match in self.matches if match.name == name and not match.is_negated), None)

    @property
    def is_link(self) -> bool:
        """Whether ebtables judges it."""
        return self.protocol in LINK_PROTOCOLS

    def __str__(self) -> str:
        words = [self.action, self.direction, str(self.priority), self.protocol]
        words += [f"{match.name}{'!=' if match.is_negated else '='}{match.value}" for match in self.matches]
        return " ".join(words if self.is_stateful else [*words, "stateless"])


@dataclass(frozen=True, slots=True)
class Reference:
    """A filter that is included, by its name in libvirt, and the variables that it is given, sorted."""

    target: str
    parameters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of libvirt's. `priority` is that of its chain, -1000 to 1000."""

    name: str
    uuid: UUID
    chain: str
    priority: int
    rules: tuple[Rule, ...] = ()
    references: tuple[Reference, ...] = ()


def match(name: str, value: str, *, is_negated: bool = False) -> Match:
    """A condition with its value in canonical form; a value that has none (a variable, a flag) stays as it is."""
    return Match(name, _canonical(name, value), is_negated)


def matches(attributes: Iterable[tuple[str, str]]) -> tuple[Match, ...]:
    """Conditions of a rule, none of them negated, in canonical form and order."""
    return tuple(sorted(match(name, value) for name, value in attributes))


def chain_priority(chain: str) -> int:
    """The priority that libvirt gives a chain of which none is stated."""
    return CHAIN_PRIORITIES.get(chain.partition("-")[0], 0)


def has_ports(protocol: str) -> bool:
    """Whether rules of this protocol may name ports."""
    return protocol.removesuffix("-ipv6") in WITH_PORTS


def is_ipv6(protocol: str) -> bool:
    """Whether the addresses of this protocol's rules are IPv6."""
    return protocol in ("ipv6", "icmpv6") or protocol.endswith("-ipv6")


def canonical_mac(text: str) -> str:
    """Six pairs of lower-case hex digits. ValueError for anything else than six numbers up to ff."""
    if not _MAC.fullmatch(text):
        raise ValueError(f"{text!r} is not a MAC address")
    return ":".join(f"{int(part, 16):02x}" for part in text.split(":"))


def canonical_address(text: str) -> str:
    """An IPv4 or IPv6 address in its one form. ValueError for anything else."""
    if "%" in text:
        raise ValueError(f"{text!r} names a zone, which a filter cannot")
    return str(ipaddress.ip_address(text))


def canonical_mask(text: str) -> str:
    """A prefix length. ValueError for a mask with holes, or anything else."""
    if text.isascii() and text.isdigit():
        if int(text) > 128:
            raise ValueError(f"{text!r} is over 128 bits")
        return str(int(text))
    mask = ipaddress.ip_address(text)
    ones = f"{int(mask):0{mask.max_prefixlen}b}".rstrip("0")
    if "0" in ones:
        raise ValueError(f"{text!r} has holes")
    return str(len(ones))


def _canonical(name: str, value: str) -> str:
    if value.startswith("$"):
        return value
    if name == "state":
        given = {word.strip().upper() for word in value.split(",")}
        return ",".join(word for word in STATES if word in given)
    form = next((form for ending, form in _FORMS.items() if name.endswith(ending)), str)
    try:
        return form(value)
    except ValueError:
        return value


_FORMS: dict[str, Callable[[str], str]] = {
    "macaddr": canonical_mac,
    "macmask": canonical_mac,
    "ipaddr": canonical_address,
    "ipfrom": canonical_address,
    "ipto": canonical_address,
    "ipmask": canonical_mask,
}
