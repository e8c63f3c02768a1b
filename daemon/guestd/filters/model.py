"""The canonical model of a network filter: two filters are equal here when they mean the same to libvirt.

Pure. libvirt rewrites parts of a filter when it defines it (masks, MAC and IPv6 addresses, the order of states and
attributes, the order of variables). The model has one form for each of them, so that models are compared and never XML
text. What decides between packets is kept as it is: the order of rules and references (libvirt inserts the rules of an
included filter where the reference stands, then sorts by priority), and the order of a variable's values.
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
# libvirt's default priorities of chains; root has 0.
CHAIN_PRIORITIES = {
    "stp": -810, "mac": -800, "vlan": -750, "ipv4": -700, "ipv6": -600, "arp": -500, "rarp": -400,
}  # fmt: skip

WITH_PORTS = frozenset({"tcp", "udp", "sctp"})
# Matched by ebtables, frame by frame and without connection tracking; the others by iptables and ip6tables.
LINK_PROTOCOLS = frozenset({"mac", "vlan", "stp", "arp", "rarp", "ip", "ipv6"})
_IPV4 = frozenset({"all", "tcp", "udp", "udplite", "esp", "ah", "sctp", "icmp", "igmp"})
IPV6_OF = {name: f"{name}-ipv6" for name in _IPV4 - {"icmp", "igmp"}} | {"icmp": "icmpv6"}
PROTOCOLS = LINK_PROTOCOLS | _IPV4 | frozenset(IPV6_OF.values())
_MAC = re.compile(r"[0-9A-Fa-f]{1,2}(:[0-9A-Fa-f]{1,2}){5}")
_SHOWN_CHARS = 60
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "NONE")


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """One condition: an attribute of libvirt's XML and its canonical value."""

    name: str
    value: str
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule; `protocol` is the XML element, empty for a rule without conditions. `matches` are sorted."""

    action: str
    direction: str
    priority: int
    protocol: str
    matches: tuple[Match, ...] = ()
    is_stateful: bool = True

    def value(self, name: str) -> str | None:
        """The value of a condition that is not negated, or None."""
        return next((match.value for match in self.matches if match.name == name and not match.is_negated), None)

    @property
    def is_link(self) -> bool:
        """Whether ebtables matches it; it matches every frame with a rule without conditions."""
        return not self.protocol or self.protocol in LINK_PROTOCOLS

    def __str__(self) -> str:
        words = [self.action, self.direction, str(self.priority), self.protocol]
        words += [f"{match.name}{'!=' if match.is_negated else '='}{match.value}" for match in self.matches]
        return " ".join(words if self.is_stateful else [*words, "stateless"])


@dataclass(frozen=True, slots=True)
class Reference:
    """An included filter, by its name in libvirt, and the variables passed to it, as names with one value each.

    Sorted by name; the values of one variable stand in their own order, because libvirt combines those of several
    variables by position.
    """

    target: str
    parameters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter as libvirt has it: rules and references in one order. `priority` is that of its chain, -1000 to 1000."""

    name: str
    uuid: UUID
    chain: str
    priority: int
    entries: tuple[Rule | Reference, ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in their order."""
        return tuple(each for each in self.entries if isinstance(each, Rule))

    @property
    def references(self) -> tuple[Reference, ...]:
        """The references, in their order."""
        return tuple(each for each in self.entries if isinstance(each, Reference))


def build_match(name: str, value: str, *, is_negated: bool = False) -> Match:
    """A condition with its value in canonical form; a value without one (a variable, a flag) stays unchanged."""
    return Match(name, _canonical(name, value), is_negated)


def build_matches(attributes: Iterable[tuple[str, str]]) -> tuple[Match, ...]:
    """The conditions of a rule, none of them negated, in canonical form and order."""
    return tuple(sorted(build_match(name, value) for name, value in attributes))


def default_chain_priority(chain: str) -> int:
    """The priority that libvirt gives a chain whose filter names none."""
    return CHAIN_PRIORITIES.get(chain.partition("-")[0], 0)


def has_ports(protocol: str) -> bool:
    """Whether rules of this protocol may name ports."""
    return protocol.removesuffix("-ipv6") in WITH_PORTS


def is_ipv6(protocol: str) -> bool:
    """Whether the addresses of this protocol's rules are IPv6."""
    return protocol in ("ipv6", "icmpv6") or protocol.endswith("-ipv6")


def is_mac(text: str) -> bool:
    """Whether the text is a MAC address."""
    return _MAC.fullmatch(text) is not None


def canonical_mac(text: str) -> str:
    """Six pairs of lower-case hex digits. ValueError where the text is no MAC address."""
    if not is_mac(text):
        raise ValueError(f"{text!r} is not a MAC address")
    return ":".join(f"{int(part, 16):02x}" for part in text.split(":"))


def read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 or IPv6 address. ValueError where the text is no address, or has a zone."""
    shown = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{shown!r} is not an IP address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{shown!r} has a zone, which libvirt's filters do not support: write it without")
    return address


def canonical_address(text: str) -> str:
    """An address in its canonical form. ValueError as `read_address`."""
    return str(read_address(text))


def canonical_mask(text: str) -> str:
    """A prefix length. ValueError where the text is no contiguous mask."""
    if text.isascii() and text.isdigit():
        if int(text) > 128:
            raise ValueError(f"{text!r} has more than 128 bits")
        return str(int(text))
    mask = ipaddress.ip_address(text)
    ones = f"{int(mask):0{mask.max_prefixlen}b}".rstrip("0")
    if "0" in ones:
        raise ValueError(f"{text!r} is not contiguous")
    return str(len(ones))


def _canonical(name: str, value: str) -> str:
    if value.startswith("$"):
        return value
    if name == "state":
        given = {word.strip().upper() for word in value.split(",")}
        return ",".join(word for word in STATES if word in given)
    canonical = next((form for ending, form in _CANONICAL_FORMS.items() if name.endswith(ending)), str)
    try:
        return canonical(value)
    except ValueError:
        return value


_CANONICAL_FORMS: dict[str, Callable[[str], str]] = {
    "macaddr": canonical_mac,
    "macmask": canonical_mac,
    "ipaddr": canonical_address,
    "ipfrom": canonical_address,
    "ipto": canonical_address,
    "ipmask": canonical_mask,
}
