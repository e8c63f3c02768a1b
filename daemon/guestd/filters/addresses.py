"""The addresses of a machine, as values of libvirt's variables IP and IPV6: the one check that they all pass.

Pure. libvirt drops a parameter whose value it does not accept (`fe80::1%eth0`, `10.0.0.1/32`; measured on 9.0), and
installs no filter any more that a machine without that parameter includes: neither for this machine nor for any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from guestd.filters.model import read_address

MAX_ADDRESSES = 256
# libvirt makes one rule of each address for each rule that names its variable, in 10 ms, and changes no other filter
# meanwhile. So many of them take 10 s.
MAX_RULES = 1000
BROADCAST = IPv4Address("255.255.255.255")
_SHOWN_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Addresses:
    """A machine's addresses in canonical form and order, and a sentence for each that is not used."""

    ipv4: tuple[str, ...]
    ipv6: tuple[str, ...]
    problems: tuple[str, ...] = ()

    def get_variables(self) -> dict[str, tuple[str, ...]]:
        """The values by variable; a variable without a value is left out."""
        return {name: values for name, values in (("$IP", self.ipv4), ("$IPV6", self.ipv6)) if values}

    def limit(self, rules: Mapping[str, int]) -> Addresses:
        """The first addresses, so few that libvirt makes at most MAX_RULES of the `rules` that name each variable."""
        count = rules.get("$IP", 0) * len(self.ipv4) + rules.get("$IPV6", 0) * len(self.ipv6)
        if count <= MAX_RULES:
            return self
        most = max(1, MAX_RULES // sum(rules.values()))
        cut = Addresses(self.ipv4[:most], self.ipv6[:most], self.problems)
        used, there = (len(each.ipv4) + len(each.ipv6) for each in (cut, self))
        if used == there:
            return self
        problem = (
            f"its filters have {sum(rules.values())} rules that name its addresses, and libvirt would make {count} of "
            f"them: only the first {used} of its {there} addresses are used"
        )
        return replace(cut, problems=(*self.problems, problem))


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """An address that a machine may have. ValueError explains why it can have no such address.

    An IPv4 address in IPv6's spelling (`::ffff:10.0.0.1`) is the IPv4 address.
    """
    address = read_address(text)
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    if address.is_unspecified or address.is_loopback or address.is_multicast or address == BROADCAST:
        raise ValueError(f"{text!r} is not the address of one machine")
    return address


def read_addresses(allowed_ips: Sequence[str], static_ips: Sequence[str]) -> Addresses:
    """The addresses of Machine.allowedIps or, where that is empty, those that libvirt's networks assign."""
    allowed, problems = _parse(allowed_ips, "Machine.allowedIps")
    assigned, static_problems = _parse(static_ips, "libvirt's network")
    others = sorted(str(each) for each in set(assigned) - set(allowed)) if allowed_ips else []
    problems += static_problems
    problems += [
        f"libvirt's network assigns {each}, which is not in Machine.allowedIps: allowedIps is used" for each in others
    ]
    used = allowed if allowed_ips else assigned
    ipv4, ipv6 = (sorted({str(each) for each in used if each.version == version}) for version in (4, 6))
    return Addresses(
        tuple(ipv4[:MAX_ADDRESSES]),
        tuple(ipv6[:MAX_ADDRESSES]),
        (*_shorten(problems), *_count_unused(4, len(ipv4)), *_count_unused(6, len(ipv6))),
    )


def _parse(texts: Sequence[str], source: str) -> tuple[list[IPv4Address | IPv6Address], list[str]]:
    found, problems = [], []
    for text in texts:
        try:
            found.append(parse_address(text))
        except ValueError as exc:
            problems.append(f"{source}: {exc}")
    return found, problems


def _shorten(problems: Sequence[str]) -> Iterator[str]:
    yield from problems[:_SHOWN_PROBLEMS]
    if len(problems) > _SHOWN_PROBLEMS:
        yield f"{len(problems) - _SHOWN_PROBLEMS} more of its addresses are not used, for such reasons"


def _count_unused(version: int, count: int) -> Iterator[str]:
    if count > MAX_ADDRESSES:
        yield f"it has {count} IPv{version} addresses: only the first {MAX_ADDRESSES} are used"
