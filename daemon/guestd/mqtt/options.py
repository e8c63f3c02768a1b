"""How to connect to a broker: from the settings, with the files that they name read once."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from paho.mqtt.enums import MQTTProtocolVersion

from guestd.core.address import format_host_port
from guestd.core.config import MqttSettings
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret_text
from guestd.core.tls import TlsFile, make_client_context
from guestd.mqtt.session_file import make_public_name
from guestd.mqtt.topics import Topics

_VERSIONS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """Address, user and protocol options. `tls` None: no encryption.

    `client_id` empty: the broker assigns one. `session_seconds` 0: the broker keeps no session. `will_topic` empty: no
    status is published.
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

    @property
    def address(self) -> str:
        """Host and port, as text."""
        return format_host_port(self.host, self.port)

    @property
    def is_version_5(self) -> bool:
        """Whether it is MQTT 5, with reasons and properties."""
        return self.version is MQTTProtocolVersion.MQTTv5


def read_options(settings: MqttSettings) -> BrokerOptions:
    """The options of the settings; without `mqtt.client_id` the id is empty (`mqtt.session_file` has one).

    Raises ConfigError for files that cannot be used, or that would be ignored.
    """
    return BrokerOptions(
        host=settings.host,
        port=settings.port,
        client_id=settings.client_id,
        version=_VERSIONS[settings.version],
        username=settings.username,
        password=_read_password(settings),
        tls=_read_tls(settings),
        keepalive_seconds=settings.keepalive_seconds,
        session_seconds=settings.session_seconds,
        receive_maximum=settings.receive_maximum,
        # Twice, so that a message that is a little too large arrives and is counted; the broker drops far larger ones.
        max_message_bytes=2 * settings.max_frame_bytes,
        unacknowledged_bytes=settings.unacknowledged_bytes,
        # Others may read it: an id that nobody may know is not part of it.
        will_topic=Topics(settings.prefix, settings.shared_group).own_status(settings.client_id or make_public_name()),
    )


def _read_password(settings: MqttSettings) -> str | None:
    if not settings.password_file:
        return None
    if not settings.username:
        raise ConfigError("mqtt.password_file needs mqtt.username: without it the password is not sent; set it")
    return read_secret_text(Path(settings.password_file), "mqtt.password_file")


def _read_tls(settings: MqttSettings) -> ssl.SSLContext | None:
    files = (
        TlsFile("mqtt.tls_ca_file", settings.tls_ca_file),
        TlsFile("mqtt.tls_certificate_file", settings.tls_certificate_file),
        TlsFile("mqtt.tls_key_file", settings.tls_key_file),
    )
    if settings.tls:
        return make_client_context(*files)
    unused = [file.named_by for file in files if file]
    if unused:
        raise ConfigError(f"{', '.join(unused)} without TLS: set mqtt.tls = true, or remove them")
    return None
