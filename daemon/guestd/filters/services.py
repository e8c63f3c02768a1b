"""The services that policies switch (VMServiceConfig, DepartmentServiceConfig, GlobalServiceConfig), and their rules.

Pure. The platform's list, with its bugs put right (docs/decisions/0029): using a service opens connections and not only
goes on with them, answers follow from libvirt's own connection tracking, and a rule belongs to its service alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from guestd.filters.model import DEFAULT_RULE_PRIORITY, Rule, matches


@dataclass(frozen=True, slots=True)
class Ports:
    """A range of ports, both ends included."""

    protocol: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether a machine may connect to a service, and be connected to."""

    uses: bool
    provides: bool


def _tcp(*ports: int) -> tuple[Ports, ...]:
    return tuple(Ports("tcp", port, port) for port in ports)


def _both(port: int) -> tuple[Ports, ...]:
    return Ports("tcp", port, port), Ports("udp", port, port)


# FTP's passive range, 1024 to 65535, is left out: it would open nearly everything.
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


def policies(
    machine: Mapping[str, Policy], department: Mapping[str, Policy], everywhere: Mapping[str, Policy]
) -> dict[str, Policy]:
    """What holds for a machine: its own row, else its department's, else the global one: that it is there decides."""
    return {**everywhere, **department, **machine}


def service_rules(chosen: Mapping[str, Policy]) -> Iterator[Rule]:
    """The rules of the services that are switched on; a key that is not in the list has none."""
    for key, policy in sorted(chosen.items()):
        title, ports = SERVICES.get(key, ("", ()))
        for each in ports:
            if policy.uses:
                yield accepting(each, "out", f"Allow using {title} service")
            if policy.provides:
                yield accepting(each, "in", f"Allow providing {title} service")


def accepting(ports: Ports, direction: str, comment: str) -> Rule:
    """A rule that lets connections to these ports be opened, and their answers through."""
    conditions = [("dstportstart", str(ports.first)), ("dstportend", str(ports.last)), ("comment", comment)]
    return Rule("accept", direction, DEFAULT_RULE_PRIORITY, ports.protocol, matches(conditions))
