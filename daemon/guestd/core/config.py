"""One frozen struct from one TOML file. Unknown keys are rejected with their path; names carry their units."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from guestd.core.address import parse_host, reject_port_without_brackets
from guestd.core.errors import ConfigError

CommandLines = Literal["full", "redacted", "off"]
"""How the command lines of processes are stored."""
# Each number has a largest value that the code behind it can bear: none is infinite, and none is larger than an integer
# of the store or of SQLite.
Count = Annotated[int, Meta(gt=0, le=2**31 - 1)]
Bytes = Annotated[int, Meta(gt=0, le=2**50)]
# What is held in memory whole.
BufferBytes = Annotated[int, Meta(gt=0, le=2**30)]
# The largest remaining length of an MQTT packet: no message is longer.
MessageBytes = Annotated[int, Meta(gt=0, le=268_435_455)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
# Names, paths and addresses; libraries and kernels end a text at a NUL.
Text = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z", max_length=4096)]
Name = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]*\Z", max_length=255)]
Directory = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z", max_length=4096)]
PREFIX_PATTERN = r"\A[^#+$/\x00-\x1f\x7f][^#+\x00-\x1f\x7f]{0,1000}[^#+/\x00-\x1f\x7f]\Z"
# 2,700 years; PostgreSQL's first date is 6,700 years back.
Days = Annotated[int, Meta(gt=0, le=1_000_000)]


def _set_host(settings: Struct, key: str) -> None:
    """Check the host of a setting, and take an IPv6 address out of its brackets; empty stays empty.

    Raises ValueError, which msgspec reports with the table.
    """
    host, port_key = getattr(settings, key), key.replace("host", "port")
    try:
        reject_port_without_brackets(host)
        msgspec.structs.force_setattr(settings, key, host and parse_host(host))
    except ValueError as exc:
        raise ValueError(f"{key}: {exc}; the port has a key of its own, {port_key}") from exc


class StoreSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The PostgreSQL database with TimescaleDB, and how batches are written to it."""

    dsn: Text = "host=/var/run/postgresql dbname=guestd"
    """Connection string. With several hosts the writable one is used. Environment variable: GUESTD_DATABASE_DSN."""
    password_file: Text = ""
    """File with the password in its first line, for example a systemd credential; empty: no password."""
    batch_bytes: BufferBytes = 4 * 1024 * 1024
    """A batch is written when the waiting frames reach this many bytes."""
    batch_frames: Annotated[int, Meta(gt=0, le=1_000_000)] = 2000
    """Maximum number of frames in a batch."""
    flush_seconds: Annotated[float, Meta(gt=0, le=3600)] = 0.2
    """A batch is written when its oldest frame has waited this long."""


class SpoolSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The durable queue on local disk, between sources and store."""

    directory: Directory = "/var/lib/guestd/spool"
    """Directory of the spool file; only one guestd may use it."""
    max_bytes: Bytes = 4 * 1024**3
    """Size limit of the spool file. When it is reached, guestd stops reading and acknowledging until there is room."""
    machine_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Maximum share of max_bytes that one machine may use (0 to 1)."""


class VirtioSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Virtio-serial channels: unix sockets that QEMU listens on."""

    discovery: Literal["directory", "libvirt"] = "directory"
    """How sockets are found. directory: by file name in `directory`; libvirt: from the domains of libvirt.uri."""
    directory: Directory = "/opt/infinibay/sockets"
    """Directory with the sockets, named `<Machine.id>.socket`."""
    max_frame_bytes: BufferBytes = 4 * 1024 * 1024
    """Maximum length of a line; longer lines are rejected."""
    partial_bytes: BufferBytes = 64 * 1024 * 1024
    """Memory for lines that have not arrived whole, of all channels; above it the oldest are refused."""
    master_secret_file: Text = ""
    """File with the secret that signs lines to guests (agents since 2026-06), in its first line; empty: unsigned."""


class MqttSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An MQTT broker that guests publish to."""

    host: Text = ""
    """Host name or address of the broker; empty: no broker."""
    port: Annotated[int, Meta(gt=0, le=65535)] = 1883
    """TCP port of the broker; usually 8883 with TLS."""
    version: Literal["5", "3.1.1"] = "5"
    """MQTT protocol version. With 3.1.1 the broker's max_inflight_messages limits unacknowledged messages."""
    client_id: Name = ""
    """Client ID: names the session at the broker; unique per guestd; empty: a random one, kept beside the spool."""
    prefix: Annotated[str, Meta(pattern=PREFIX_PATTERN)] = "guestd/v1"
    """Topic prefix; guests publish to <prefix>/<Machine.id>/metrics."""
    shared_group: Annotated[str, Meta(pattern=r"\A[^#+/\x00-\x1f\x7f]*\Z", max_length=255)] = ""
    """Shared subscription ($share/<group>/): guestds of one group share the messages; a secret; empty: not shared."""
    username: Text = ""
    """User name at the broker; empty: anonymous."""
    password_file: Text = ""
    """File with the password in its first line; empty: no password."""
    tls: bool = False
    """Use TLS and verify the broker's certificate."""
    tls_ca_file: Text = ""
    """CA certificates (PEM) that verify the broker; empty: the system's."""
    tls_certificate_file: Text = ""
    """Client certificate (PEM), if the broker requires one; empty: none."""
    tls_key_file: Text = ""
    """Private key (PEM) of tls_certificate_file."""
    keepalive_seconds: Annotated[int, Meta(gt=0, le=65535)] = 30
    """MQTT keepalive: after this long without traffic guestd pings the broker."""
    session_seconds: Annotated[int, Meta(gt=0, le=4_294_967_295)] = 7 * 24 * 3600
    """MQTT 5 session expiry: how long the broker queues messages while guestd is disconnected."""
    receive_maximum: Annotated[int, Meta(gt=0, le=65535)] = 2000
    """Maximum number of unacknowledged messages, that is, received and not yet fsynced to the spool."""
    unacknowledged_bytes: Bytes = 64 * 1024**2
    """Maximum bytes of unacknowledged messages; guestd stops reading from the broker above it."""
    max_frame_bytes: MessageBytes = 4 * 1024**2
    """Maximum length of a message; longer messages are rejected."""

    def __post_init__(self) -> None:
        _set_host(self, "host")


class LimitsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rate limits of one guest (token buckets). Above them guestd stops reading from it until they refill."""

    bytes_per_second: Bytes = 1024**2
    """Sustained rate of received bytes."""
    burst_bytes: Bytes = 8 * 1024**2
    """Burst size in bytes."""
    frames_per_second: Count = 200
    """Sustained rate of frames."""
    burst_frames: Count = 1000
    """Burst size in frames."""
    rows_per_second: Count = 5000
    """Sustained rate of rows made from the frames."""
    burst_rows: Count = 50_000
    """Burst size in rows."""


class PrivacySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sensitive data that guests report."""

    command_lines: CommandLines = "redacted"
    """Command lines of processes: full, redacted (secrets removed) or off. Machine.commandLines overrides it."""


class LibvirtSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The virtual machines of this host, see docs/vms.md."""

    uri: Text = ""
    """libvirt connection URI, for example qemu:///system; empty: no libvirt. Needs guestd[libvirt]."""
    vms: Literal["observe", "converge"] = "observe"
    """observe: rows follow domains. converge: also start and stop domains as Machine.desiredStatus requests."""
    host_name: Name = ""
    """Name of this host in the store, unique there; empty: the system's host name."""
    channel_names: tuple[Name, ...] = ("org.infinibay.agent",)
    """Names of the agent's virtio-serial port; the first one that a domain has is used."""
    shutdown_seconds: Seconds = 120.0
    """Time a guest has to shut down before guestd requests it again, or destroys the domain (may_destroy)."""
    may_destroy: bool = False
    """Allow destroying a domain that does not shut down, or has crashed, when its desired state is off."""
    most_changes: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 10
    """If more VMs than this would change at once, guestd holds the changes; guestd plan shows how to confirm them."""
    most_changes_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """The same for a larger share of the VMs of this host (0 to 1). Two VMs may always change."""


class FiltersSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network filters of this host's machines, see docs/filters.md."""

    attach: Literal["off", "report", "enforce"] = "report"
    """enforce: attach each machine's filter to its interfaces; report: only report missing ones; off: neither."""
    interval_seconds: Seconds = 30.0
    """Interval of full reconcile runs, which find manual changes in libvirt; edits of rows apply at once."""
    most_removals: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 20
    """A plan that removes or empties more filters, or opens more machines, needs confirmation by guestd apply."""
    most_removals_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """A plan that does so to a larger share of the filters, or machines (0 to 1), needs confirmation as well."""


class EventsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Events that guests report besides metrics, such as agent errors and connection changes."""

    keep_days: Days = 90
    """Retention; older events are deleted."""
    keep_per_machine: Annotated[int, Meta(gt=0, le=2**31 - 1)] = 1000
    """Maximum number of events per machine; the oldest are deleted first."""


class QuarantineSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Quarantined frames, of all hosts of a store; `guestd quarantine` shows, retries and drops them."""

    max_frames: Count = 10_000
    """Maximum number of frames, at most a tenth of it per machine; the oldest are dropped first."""
    max_bytes: Bytes = 1024**3
    """Maximum bytes of frames, at most a tenth of it per machine; the oldest are dropped first."""
    keep_days: Days = 30
    """Retention; older frames are dropped."""


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The HTTP pages of guestd: /metrics, /healthz, /readyz and a status page."""

    listen_host: Text = "127.0.0.1"
    """Address to listen on."""
    listen_port: Annotated[int, Meta(ge=0, le=65535)] = 9478
    """TCP port to listen on; 0: any free port, which is logged."""
    web_config_file: Text = ""
    """TLS and users of the pages, in the format of Prometheus' web configuration file; empty: no TLS, no login."""

    def __post_init__(self) -> None:
        _set_host(self, "listen_host")


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The configuration file of guestd."""

    store: StoreSettings = StoreSettings()
    spool: SpoolSettings = SpoolSettings()
    virtio: VirtioSettings = VirtioSettings()
    mqtt: MqttSettings = MqttSettings()
    limits: LimitsSettings = LimitsSettings()
    privacy: PrivacySettings = PrivacySettings()
    libvirt: LibvirtSettings = LibvirtSettings()
    filters: FiltersSettings = FiltersSettings()
    events: EventsSettings = EventsSettings()
    quarantine: QuarantineSettings = QuarantineSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    stop_grace_seconds: Seconds = 10.0
    """Time that stopping may take; frames not stored by then stay in the spool."""


def load_settings(path: Path) -> Settings:
    """Read the configuration file; ConfigError names the file, the key and the fault."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Settings)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8") from exc
    except (ValueError, RecursionError) as exc:  # a number of thousands of digits, endless nesting
        raise ConfigError(f"{path}: {exc}") from exc


def get_host_name(chosen: LibvirtSettings) -> str:
    """Get the name of this host in the store."""
    return chosen.host_name or get_local_name()


def get_local_name() -> str:
    """Get the name that this host has for itself."""
    return platform.node()
