"""HOST and HOST:PORT as operators type them: one parser and one formatter for every option, setting and log line
beside the store's, which are libpq's.

An IPv6 address has colons of its own: with a port it is written in brackets, `[::1]:1883`, without one with or without
them (RFC 3986). A zone (`fe80::1%eth0`) is part of the address.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address, ip_address

HIGHEST_PORT = 65535
FORMS = "must be HOST, HOST:PORT, IPV6 or [IPV6]:PORT, with a port from 1 to 65535"
# As resolvers take it, international names included; not a URL, a user or a path.
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")
_PORT = re.compile(r"[0-9]{1,5}")
# MQTT, MQTT over TLS, guestd's pages.
_USUAL_PORTS = ("1883", "8883", "9478")
_ZONE = re.compile(r"[^\s%/:\[\]]+")
_USER = "without a user: use --mqtt-user and --mqtt-password-file, or the settings for user and password"


def parse_host(text: str) -> str:
    """Parse a host name or an address; an IPv6 address may stand in brackets, which are removed.

    Raises ValueError for anything else, a port included.
    """
    if "@" in text:  # before it may be a password, so the text is not repeated
        raise ValueError(f"must be a host name or an address, {_USER}")
    if "://" in text:
        raise ValueError(f"{text!r} must be a host name or an address, without a scheme")
    if _split(text)[1] is not None:
        raise ValueError(f"{text!r} has a port, and must be a host alone")
    if text.startswith("[") and text.endswith("]"):
        _check_ipv6(text[1:-1])
        return text[1:-1]
    if ":" in text:
        _check_ipv6(text)
        return text
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is neither a host name nor an address")
    try:
        text.encode("idna")
    except UnicodeError as exc:
        raise ValueError(f"{text!r} is not a host name: a part of it is empty or longer than 63 characters") from exc
    return text


def parse_host_port(text: str, default_port: int | None) -> tuple[str, int]:
    """Parse HOST, HOST:PORT, IPV6, [IPV6] or [IPV6]:PORT. `default_port` None: a port is required.

    An address that may be one with a port is refused without brackets.

    Raises ValueError, whose text gives the right forms.
    """
    if "@" in text:  # before it may be a password, so the text is not repeated
        raise ValueError(f"{FORMS}, {_USER}")
    if "://" in text:
        raise ValueError(f"{text!r}: {FORMS}, without a scheme")
    host, port = _split(text)
    try:
        reject_port_without_brackets(host)
        parsed = parse_host(host)
    except ValueError as exc:
        raise ValueError(f"{text!r}: {FORMS} ({exc})") from exc
    if port is None and default_port is not None:
        return parsed, default_port
    if port is None or not _PORT.fullmatch(port) or not 0 < int(port) <= HIGHEST_PORT:
        raise ValueError(f"{text!r}: {FORMS}" if port is not None else f"{text!r}: must be HOST:PORT or [IPV6]:PORT")
    return parsed, int(port)


def reject_port_without_brackets(text: str) -> None:
    """Raise ValueError for an IPv6 address whose last group can be meant as a port: brackets show which it is.

    Only ports that are usual for what guestd connects to or serves: other last groups are those of addresses.
    """
    address, _, port = text.rpartition(":")
    if port not in _USUAL_PORTS:
        return
    try:
        IPv6Address(address)
    except AddressValueError:
        return
    raise ValueError(f"{text!r} is an address and seems to end with a port: write [{address}]:{port}, or [{text}]")


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on it."""
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def format_host_port(host: str, port: int) -> str:
    """Format HOST:PORT, an IPv6 address in brackets; `parse_host_port` reads it back."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def format_url(scheme: str, host: str, port: int, path: str) -> str:
    """Format a URL; the `%` before a zone is escaped (RFC 6874)."""
    return f"{scheme}://{format_host_port(host.replace('%', '%25'), port)}{path}"


def _split(text: str) -> tuple[str, str | None]:
    """Split the host, with its brackets, from the port; None where there is none."""
    if text.startswith("["):
        address, bracket, rest = text.partition("]")
        return (address + bracket, rest[1:]) if rest.startswith(":") else (text, None)
    if text.count(":") != 1:
        return text, None
    host, _, port = text.partition(":")
    return host, port


def _check_ipv6(address: str) -> None:
    numbers, percent, zone = address.partition("%")
    try:
        IPv6Address(numbers)
    except AddressValueError as exc:
        raise ValueError(f"{address!r} is not an IPv6 address") from exc
    if percent and not _ZONE.fullmatch(zone):
        raise ValueError(f"{address!r} is not an IPv6 address with a zone")
