"""One frozen struct from one TOML file. Unknown keys are refused with their path; names carry their units."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from guestd.core.errors import ConfigError

CommandLines = Literal["full", "redacted", "off"]
"""How command lines are stored."""
Positive = Annotated[int, Meta(gt=0)]
PositiveSeconds = Annotated[float, Meta(gt=0)]


class Store(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where rows go."""

    dsn: str = "host=/var/run/postgresql dbname=guestd"
    """Of PostgreSQL; several hosts may be given, the writable one is used. Environment: GUESTD_DATABASE_DSN."""
    password_file: str = ""
    """Holds the password, where the server wants one, in its first line; such as a systemd credential."""
    batch_bytes: Positive = 4 * 1024 * 1024
    """A batch is written when so many bytes of frames wait,"""
    batch_frames: Positive = 2000
    """or at most so many frames,"""
    flush_seconds: PositiveSeconds = 0.2
    """or when the first of them has waited so long."""


class Spool(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The durable queue on local disk."""

    directory: str = "/var/lib/guestd/spool"
    """One guestd per directory."""
    max_bytes: Positive = 4 * 1024**3
    """When so much waits for the store, nothing more is read or acknowledged until there is room."""
    machine_share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """The part of it that one machine may fill."""


class Virtio(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Virtio-serial channels, as unix sockets that QEMU serves."""

    discovery: Literal["directory", "libvirt"] = "directory"
    """How sockets are found: by their names in a directory, or in the domains of libvirt.uri."""
    directory: str = "/opt/infinibay/sockets"
    """Holds `<Machine.id>.socket`."""
    max_frame_bytes: Positive = 4 * 1024 * 1024
    """A longer line is refused."""
    master_secret_file: str = ""
    """Signs what is said to guests, for agents from 2026-06 on: the file's first line; empty: nothing is signed."""


class Mqtt(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A broker that guests report to."""

    host: str = ""
    """Its name or address; empty: there is none."""
    port: Annotated[int, Meta(gt=0, le=65535)] = 1883
    """8883 is usual with TLS."""
    version: Literal["5", "3.1.1"] = "5"
    """Of the protocol. With 3.1.1 the broker's own max_inflight_messages bounds what it sends ahead."""
    client_id: str = ""
    """Names the session that the broker keeps for us: one guestd each; empty: guestd-<host name>."""
    prefix: Annotated[str, Meta(pattern="^[^#+$/][^#+]*[^#+/]$")] = "guestd/v1"
    """Guests publish to <prefix>/<Machine.id>/metrics."""
    shared_group: Annotated[str, Meta(pattern="^[^#+/]*$")] = ""
    """Several guestd with one group divide the messages ($share/<group>/); empty: this one gets all."""
    username: str = ""
    """Empty: none."""
    password_file: str = ""
    """Its first line."""
    tls: bool = False
    """Encrypt, and check the broker's certificate,"""
    tls_ca_file: str = ""
    """against these authorities (PEM); empty: the system's."""
    tls_certificate_file: str = ""
    """Our own certificate, where the broker asks for one,"""
    tls_key_file: str = ""
    """and its key."""
    keepalive_seconds: Annotated[int, Meta(gt=0, le=65535)] = 30
    """A broker that says nothing for so long is asked whether it is there."""
    session_seconds: Annotated[int, Meta(gt=0, le=4_294_967_295)] = 7 * 24 * 3600
    """MQTT 5: the broker keeps what comes for us while we are away for so long."""
    receive_maximum: Annotated[int, Meta(gt=0, le=65535)] = 2000
    """So many messages may be on their way to our disk,"""
    unacknowledged_bytes: Positive = 64 * 1024**2
    """and so many bytes, beyond which we do not read on."""
    max_frame_bytes: Positive = 4 * 1024**2
    """A longer message is refused."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one guest may send. Beyond it guestd does not read on from that guest until time has made up for it."""

    bytes_per_second: Positive = 1024**2
    """In the long run,"""
    burst_bytes: Positive = 8 * 1024**2
    """and at once, after a rest."""
    frames_per_second: Positive = 200
    """In the long run,"""
    burst_frames: Positive = 1000
    """and at once, after a rest."""
    rows_per_second: Positive = 5000
    """Made of its frames, in the long run,"""
    burst_rows: Positive = 50_000
    """and at once, after a rest."""


class Privacy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What guests say that not everybody should read."""

    command_lines: CommandLines = "redacted"
    """Of processes: full, redacted (without passwords and the like) or off. Machine.commandLines overrides it."""


class Libvirt(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The virtual machines of this host; docs/vms.md says how they are kept."""

    uri: str = ""
    """Of libvirt, such as qemu:///system; empty: guestd has nothing to do with it. Needs guestd[libvirt]."""
    vms: Literal["observe", "converge"] = "observe"
    """observe: rows follow domains; converge: and domains follow Machine.desiredStatus where it is set."""
    host_name: str = ""
    """Names this host in the store, where no two may have the same; empty: the system's host name."""
    channel_names: tuple[str, ...] = ("org.infinibay.agent",)
    """Names of the agent's virtio-serial port; the first that a domain has is its channel."""
    shutdown_seconds: PositiveSeconds = 120.0
    """How long a guest may take to shut down before it is asked again, or destroyed."""
    may_destroy: bool = False
    """Whether a guest that does not shut down, or is in error and wanted off, loses its power."""


class Filters(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network filters of this host's machines; docs/filters.md says how they are kept."""

    attach: Literal["off", "report", "enforce"] = "report"
    """enforce: interfaces are given their machine's filter; report: those without it are told of; off: neither."""
    interval_seconds: PositiveSeconds = 30.0
    """All of libvirt is looked at so often, for what was changed by hand; edits of rows do not wait for it."""
    most_removals: Annotated[int, Meta(ge=0)] = 20
    """More filters than so many are not removed or emptied at once,"""
    most_removals_share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """nor a larger part of them: that waits for guestd apply --yes."""


class Events(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What guests report besides metrics: errors of their agents, changes of their connections and the like."""

    keep_days: Positive = 90
    """Older ones are deleted."""
    keep_per_machine: Positive = 1000
    """Of each machine the newest so many are kept."""


class Quarantine(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Frames that were set aside, for all hosts of a store; `guestd quarantine` shows, retries and drops them."""

    max_frames: Positive = 10_000
    """The newest so many are kept, of one machine at most a tenth of it,"""
    max_bytes: Positive = 1024**3
    """and of their bytes so many, of one machine at most a tenth as well,"""
    keep_days: Positive = 30
    """and none for longer."""


class Telemetry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What guestd tells about itself."""

    listen_host: str = "127.0.0.1"
    """For /metrics, /healthz, /readyz and a page for people."""
    listen_port: Annotated[int, Meta(ge=0, le=65535)] = 9478
    """0 takes a free port and logs it."""
    web_config_file: str = ""
    """TLS and users of these pages, as in Prometheus' web configuration file; empty: in the clear, for everybody."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """guestd's configuration file."""

    store: Store = Store()
    spool: Spool = Spool()
    virtio: Virtio = Virtio()
    mqtt: Mqtt = Mqtt()
    limits: Limits = Limits()
    privacy: Privacy = Privacy()
    libvirt: Libvirt = Libvirt()
    filters: Filters = Filters()
    events: Events = Events()
    quarantine: Quarantine = Quarantine()
    telemetry: Telemetry = Telemetry()
    stop_grace_seconds: PositiveSeconds = 10.0
    """How long stopping may take; what is not stored by then stays in the spool."""


def load(path: Path) -> Settings:
    """Read a file; ConfigError names the file, the key and what is wrong."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Settings)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8") from exc


def host_name(chosen: Libvirt) -> str:
    """What this host is called in the store."""
    return chosen.host_name or platform.node()
