"""What a libvirt URI says about its transport. Source: https://libvirt.org/uri.html."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from guestd.core.errors import ConfigError


def check_uri(uri: str) -> None:
    """Raise ConfigError for a malformed URI, or one whose certificates would not be used."""
    try:
        transport, pkipath = get_transport(uri), get_query(uri, "pkipath")
    except ValueError as exc:
        raise ConfigError(f"libvirt.uri {uri}: {exc}") from exc
    if pkipath and transport != "tls":
        raise ConfigError(
            f"libvirt.uri {uri}: pkipath has no effect with the transport {transport}: use qemu+tls://, or remove it"
        )


def get_transport(uri: str) -> str:
    """The transport of the scheme: libvirt's default is tls with a host, unix without one."""
    parts = urlsplit(uri)
    _, _, transport = parts.scheme.partition("+")
    return transport or ("tls" if parts.netloc else "unix")


def get_query(uri: str, name: str) -> str:
    """A parameter of the URI, empty if it is not given."""
    return parse_qs(urlsplit(uri).query, keep_blank_values=True).get(name, [""])[-1]


def get_socket(uri: str) -> str:
    """The path of libvirtd's socket on this host; empty for an empty URI, another host, and drivers without a daemon.

    The modular daemon of QEMU has the same path as a symbolic link.
    """
    parts = urlsplit(uri)
    if parts.netloc or get_transport(uri) != "unix" or parts.path != "/system":
        return ""
    return get_query(uri, "socket") or "/run/libvirt/libvirt-sock"
