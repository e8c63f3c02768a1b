"""What a valid configuration leaves unprotected: `guestd check`, the doctor and the log of a start name each."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from guestd.core.address import is_loopback
from guestd.core.config import MqttSettings, Settings, TelemetrySettings
from guestd.hypervisor.uri import check_uri, get_query, get_transport
from guestd.service.http_auth import read_web_config
from guestd.store.connection import list_remote_hosts
from gueststore.tls import OPTIONAL_TLS, read_options

# Of a text that nobody guesses.
_SECRET_CHARS = 16


class Exposure(Struct, frozen=True):
    """A risk, and the setting that ends it."""

    text: str
    fix: str


def list_exposures(settings: Settings) -> Iterator[Exposure]:
    """The risks of settings that are valid. Raises ConfigError for others."""
    yield from _list_mqtt(settings.mqtt)
    yield from _list_store(settings.store.dsn)
    yield from _list_telemetry(settings.telemetry)
    yield from _list_libvirt(settings.libvirt.uri)


def _list_mqtt(chosen: MqttSettings) -> Iterator[Exposure]:
    if chosen.host and chosen.password_file and not chosen.tls and not is_loopback(chosen.host):
        yield Exposure(
            f"mqtt.password_file: the password is sent unencrypted to {chosen.host}",
            "set mqtt.tls = true, and mqtt.tls_ca_file unless a public authority signed the broker's certificate",
        )

    if chosen.host and 0 < len(chosen.shared_group) < _SECRET_CHARS:
        yield Exposure(
            "mqtt.shared_group can be guessed: a user of the broker that joins it takes a part of the messages",
            "set a random text on all daemons (openssl rand -hex 16), unless the broker refuses that to guests",
        )


def _list_store(dsn: str) -> Iterator[Exposure]:
    options = read_options(dsn) or {}  # nothing is known of a service
    hosts, mode = ", ".join(list_remote_hosts(options)), options.get("sslmode")
    if hosts and mode in OPTIONAL_TLS:
        yield Exposure(
            f"store.dsn: with sslmode={mode} the connection to {hosts} may be unencrypted",
            "add sslmode=verify-full and sslrootcert to store.dsn",
        )
    elif hosts and mode == "require":
        yield Exposure(
            f"store.dsn: with sslmode=require the name of {hosts} is not verified",
            "set sslmode=verify-full, and sslrootcert, in store.dsn",
        )


def _list_telemetry(chosen: TelemetrySettings) -> Iterator[Exposure]:
    auth = read_web_config(chosen.web_config_file)
    if auth.users and auth.tls is None and not is_loopback(chosen.listen_host):
        yield Exposure(
            "telemetry.web_config_file: basic_auth_users without tls_server_config: passwords are sent unencrypted",
            "add tls_server_config, or set telemetry.listen_host to 127.0.0.1",
        )


def _list_libvirt(uri: str) -> Iterator[Exposure]:
    check_uri(uri)
    if uri and get_transport(uri) == "tcp":
        yield Exposure("libvirt.uri: the transport tcp is unencrypted", "use qemu+tls:// or a local qemu:///system")
    if uri and get_query(uri, "no_verify") not in ("", "0"):
        yield Exposure("libvirt.uri: no_verify accepts any server", "remove no_verify")
