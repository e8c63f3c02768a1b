"""The --mqtt options of `guestd agent` and `guestd simulate`."""

from __future__ import annotations

import argparse
import re
import ssl
from typing import TYPE_CHECKING

from guestd.cli.arguments import path, text
from guestd.core.address import parse_host_port
from guestd.core.config import PREFIX_PATTERN
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret_text
from guestd.core.tls import TlsFile, make_client_context

if TYPE_CHECKING:
    from guestd.agent.mqtt import Address

PORT, TLS_PORT = 1883, 8883
_TLS_OPTIONS = ("--mqtt-ca", "--mqtt-cert", "--mqtt-key")
_PREFIX = "guestd/v1"


def add_broker_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options beside --mqtt."""
    add = parser.add_argument
    add("--mqtt-tls", action="store_true", help="use TLS; implied by --mqtt-ca, --mqtt-cert and --mqtt-key")
    ca_help = "verify the broker's TLS certificate against these authorities (PEM; default: the system's)"
    add("--mqtt-ca", type=path, metavar="FILE", help=ca_help)
    add("--mqtt-cert", type=path, metavar="FILE", help="client certificate (PEM), where the broker requires one")
    key_help = "key of the client certificate (PEM; default: in the same file)"
    add("--mqtt-key", type=path, metavar="FILE", help=key_help)
    add("--mqtt-user", type=text, metavar="NAME", help="user name at the broker")
    file_help = "file whose first line is the user's password; without TLS it is sent unencrypted"
    add("--mqtt-password-file", type=path, metavar="FILE", help=file_help)
    add("--mqtt-prefix", type=_prefix, metavar="TOPIC", help=f"prefix of the topics (default: {_PREFIX})")


def _prefix(given: str) -> str:
    if not re.match(PREFIX_PATTERN, given):
        raise argparse.ArgumentTypeError(f"must be a topic without wildcards, as {_PREFIX}, and is {given!r}")
    return text(given)


def read_broker(arguments: argparse.Namespace) -> Address:
    """The broker that the arguments name.

    Raises ConfigError for an address or a file that cannot be used, and for an option that would be ignored.
    """
    from guestd.agent.mqtt import Address

    tls = _read_tls(arguments)
    try:
        host, port = parse_host_port(arguments.mqtt, PORT if tls is None else TLS_PORT)
    except ValueError as exc:
        raise ConfigError(f"--mqtt: {exc}") from exc
    return Address(host, port, arguments.mqtt_prefix or _PREFIX, arguments.mqtt_user, _read_password(arguments), tls)


def reject_unused_options(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if an option of the broker is given and --mqtt is not: it would have no effect."""
    given = [f"--{name.replace('_', '-')}" for name, value in vars(arguments).items() if _is_given(name, value)]
    if given and arguments.mqtt is None:
        raise ConfigError(f"{', '.join(given)}: only with --mqtt; add it, or remove them")


def _is_given(name: str, value: object) -> bool:
    return name.startswith("mqtt_") and value not in (None, False)


def _read_password(arguments: argparse.Namespace) -> str | None:
    if arguments.mqtt_password_file is None:
        return None
    if arguments.mqtt_user is None:
        raise ConfigError("--mqtt-password-file needs --mqtt-user: without it the password is not sent; add it")
    return read_secret_text(arguments.mqtt_password_file, "--mqtt-password-file")


def _read_tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    given = (arguments.mqtt_ca, arguments.mqtt_cert, arguments.mqtt_key)
    authorities, certificate, key = (
        TlsFile(option, "" if path is None else str(path)) for option, path in zip(_TLS_OPTIONS, given, strict=True)
    )
    if not arguments.mqtt_tls and not (authorities or certificate or key):
        return None
    return make_client_context(authorities, certificate, key)
