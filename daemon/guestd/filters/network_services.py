"""The services that policies switch (VMServiceConfig, DepartmentServiceConfig, GlobalServiceConfig), and their rules.

Pure. The platform's list with its bugs fixed (docs/decisions/0029): a machine that may use a service may open
connections and not only continue them, libvirt's connection tracking lets the answers through, and each rule belongs to
one service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guestd.filters.model import DEFAULT_RULE_PRIORITY, Rule, build_matches


@dataclass(frozen=True, slots=True)
class Ports:
    """A range of ports, both ends included."""

    protocol: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether a machine may connect to a service (uses), and accept connections to it (provides)."""

    uses: bool
    provides: bool


def _tcp(*ports: int) -> tuple[Ports, ...]:
    return tuple(Ports("tcp", port, port) for port in ports)


def _both(port: int) -> tuple[Ports, ...]:
    return Ports("tcp", port, port), Ports("udp", port, port)


# Without FTP's passive range, 1024 to 65535: it would open nearly all ports.
SERVICES: Mapping[str, tuple[str, tuple[Ports, ...]]] = {
    "ssh": ("Secure Shell", _tcp(22)),
    "rdp": ("Remote Desktop", _tcp(3389)),
    "http": ("Web (HTTP)", _tcp(80)),
    "https": ("Secure Web (HTTPS)", _tcp(443)),
    "dns": ("Domain Name System", _both(53)),
    "smtp": ("Mail Transfer", _tcp(25, 587)),
    "smtps": ("Secure Mail Transfer", _tcp(465)),
    "pop3": ("Mail Retrieval (POP3)", _tcp(110)),
    "pop3s": ("Secure Mail Retrieval (POP3S)", _tcp(995)),
    "imap": ("Mail Access (IMAP)", _tcp(143)),
    "imaps": ("Secure Mail Access (IMAPS)", _tcp(993)),
    "ftp": ("File Transfer", _tcp(21)),
    "ftps": ("Secure File Transfer", _tcp(990)),
    "mysql": ("MySQL Database", _tcp(3306)),
    "postgresql": ("PostgreSQL Database", _tcp(5432)),
    "mongodb": ("MongoDB Database", _tcp(27017)),
    "redis": ("Redis Database", _tcp(6379)),
    "openvpn": ("OpenVPN", _both(1194)),
    "steam": ("Steam Gaming", (*_both(27015), *_both(27036), *_tcp(27031, 27037))),
    "cpanel": ("cPanel Control Panel", _tcp(2082, 2083)),
    "bittorrent": ("BitTorrent", _both(6881)),
}


def merge_policies(
    machine: Mapping[str, Policy], department: Mapping[str, Policy], global_policies: Mapping[str, Policy]
) -> dict[str, Policy]:
    """The policy of each service: the machine's own row, else its department's, else the global one."""
    return {**global_policies, **department, **machine}


def build_service_rules(policies: Mapping[str, Policy]) -> Iterator[Rule]:
    """The rules of all services that are switched on; a service that is not in SERVICES has none."""
    for key, policy in sorted(policies.items()):
        title, ports = SERVICES.get(key, ("", ()))
        for each in ports:
            if policy.uses:
                yield build_accept_rule(each, "out", f"Allow using {title} service")
            if policy.provides:
                yield build_accept_rule(each, "in", f"Allow providing {title} service")


def build_accept_rule(ports: Ports, direction: str, comment: str) -> Rule:
    """A rule that accepts new connections to these ports and lets their answers through."""
    conditions = [("dstportstart", str(ports.first)), ("dstportend", str(ports.last)), ("comment", comment)]
    return Rule("accept", direction, DEFAULT_RULE_PRIORITY, ports.protocol, build_matches(conditions))
