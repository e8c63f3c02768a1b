"""Where a broker is, and as whom to come: from the settings, with what they name read once."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from paho.mqtt.enums import MQTTProtocolVersion

from guestd.core.config import MqttSettings
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret

_VERSIONS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


@dataclass(frozen=True, slots=True)
class Login:
    """Where to connect, and as whom. `tls` None: in the clear.

    `session_seconds` 0: the broker keeps nothing for us. `will_topic` empty: nobody is told when we go.
    """

    host: str
    port: int
    client_id: str
    version: MQTTProtocolVersion
    username: str
    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None
    keepalive_seconds: int
    session_seconds: int
    receive_maximum: int
    max_message_bytes: int
    unacknowledged_bytes: int
    will_topic: str


def login(settings: MqttSettings) -> Login:
    """The login that the settings describe. Raises ConfigError for files that cannot be used."""
    client_id = settings.client_id or f"guestd-{socket.gethostname()}"
    password = read_secret(Path(settings.password_file), "mqtt.password_file") if settings.password_file else b""
    return Login(
        host=settings.host,
        port=settings.port,
        client_id=client_id,
        version=_VERSIONS[settings.version],
        username=settings.username,
        password=password.decode() or None,
        tls=_tls(settings),
        keepalive_seconds=settings.keepalive_seconds,
        session_seconds=settings.session_seconds,
        receive_maximum=settings.receive_maximum,
        # Twice, so that what is a little too large comes, and is counted; what is far beyond the broker drops.
        max_message_bytes=2 * settings.max_frame_bytes,
        unacknowledged_bytes=settings.unacknowledged_bytes,
        will_topic=f"{settings.prefix}/host/{client_id}/status",
    )


def _tls(settings: MqttSettings) -> ssl.SSLContext | None:
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file or None)
    except OSError as exc:  # an SSLError is one too
        raise ConfigError(f"mqtt.tls_ca_file {settings.tls_ca_file}: {exc.strerror or exc}") from exc
    if settings.tls_certificate_file:
        try:
            context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file or None)
        except OSError as exc:
            named = f"mqtt.tls_certificate_file {settings.tls_certificate_file}, mqtt.tls_key_file"
            raise ConfigError(f"{named} {settings.tls_key_file}: {exc.strerror or exc}") from exc
    return context
