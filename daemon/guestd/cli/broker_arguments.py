"""The --mqtt options of `guestd agent` and `guestd simulate`."""

from __future__ import annotations

import argparse
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from guestd.core.address import parse_host_port
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret_text

if TYPE_CHECKING:
    from guestd.agent.mqtt import Address

PORT = 1883


def add_broker_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options beside --mqtt."""
    add = parser.add_argument
    ca_help = "verify the broker's TLS certificate against these authorities (PEM); without it, no TLS"
    add("--mqtt-ca", type=Path, metavar="FILE", help=ca_help)
    add("--mqtt-cert", type=Path, metavar="FILE", help="client certificate, where the broker requires one")
    add("--mqtt-key", type=Path, metavar="FILE", help="key of the client certificate")
    add("--mqtt-user", metavar="NAME", help="user name at the broker")
    add("--mqtt-password-file", type=Path, metavar="FILE", help="file whose first line is the user's password")
    add("--mqtt-prefix", metavar="TOPIC", default="guestd/v1", help="prefix of the topics (default: guestd/v1)")


def read_broker(arguments: argparse.Namespace) -> Address:
    """The broker that the arguments name. Raises ConfigError for an address or a file that cannot be used."""
    from guestd.agent.mqtt import Address

    try:
        host, port = parse_host_port(arguments.mqtt, PORT)
    except ValueError as exc:
        raise ConfigError(f"--mqtt: {exc}") from exc
    file = arguments.mqtt_password_file
    password = read_secret_text(file, "--mqtt-password-file") if file else None
    return Address(host, port, arguments.mqtt_prefix, arguments.mqtt_user, password, _make_tls(arguments))


def _make_tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    if arguments.mqtt_ca is None:
        return None
    try:
        context = ssl.create_default_context(cafile=arguments.mqtt_ca)
        if arguments.mqtt_cert is not None:
            context.load_cert_chain(arguments.mqtt_cert, arguments.mqtt_key)
    except OSError as exc:  # an SSLError is one too
        raise ConfigError(f"--mqtt-ca, --mqtt-cert, --mqtt-key: {exc.strerror or exc}") from exc
    return context
