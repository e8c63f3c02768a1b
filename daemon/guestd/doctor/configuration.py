"""What of a configuration no world could make good: `guestd check`, and the doctor's first lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from guestd.core.config import Settings
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret
from guestd.doctor.finding import Finding, fault, ok
from guestd.hypervisor import connection
from guestd.mqtt.options import read_options
from guestd.service import http_auth
from guestd.store.connection import check_dsn

FIXES = {
    "unknown field": "take the key out, or correct its name: deploy/guestd.toml lists them all",
    "/run/credentials/": "it is there while the unit runs: start it; its file belongs to /etc/guestd/credentials",
    "No such file": "make the file, or correct its name",
    "world-readable": "chmod o-rwx the file",
    "Permission denied": "let guestd's user read the file, or give it as a credential of the unit",
    "its first line is empty": "put the secret in the file's first line",
    "libvirt-python": "install guestd[libvirt], or leave libvirt.uri empty",
    "virtio.discovery": 'set libvirt.uri, say to "qemu:///system", or virtio.discovery to "directory"',
}


def examined(settings: Settings) -> Iterator[Finding]:
    """A fault for each setting that cannot be worked with."""
    refusals = [str(exc) for exc in map(_refusal, _parts(settings)) if exc is not None]
    yield from (refused(each) for each in refusals)
    if not refusals:
        yield ok("configuration", "every setting can be worked with")


def refused(exc: str) -> Finding:
    """The finding for a ConfigError's text."""
    fix = next(
        (fix for words, fix in FIXES.items() if words in exc), "correct it; deploy/guestd.toml explains each key"
    )
    return fault("configuration", exc, fix)


def _parts(settings: Settings) -> Iterator[Callable[[], object]]:
    yield lambda: check_dsn(settings.store.dsn)
    if settings.virtio.master_secret_file:
        yield lambda: read_secret(Path(settings.virtio.master_secret_file), "virtio.master_secret_file")
    if settings.mqtt.host:
        yield lambda: read_options(settings.mqtt)
    yield lambda: http_auth.read_web_config(settings.telemetry.web_config_file)
    yield lambda: connection.require_bindings(settings.libvirt.uri)
    if settings.virtio.discovery == "libvirt" and not settings.libvirt.uri:
        yield _no_libvirt


def _no_libvirt() -> None:
    raise ConfigError('virtio.discovery is "libvirt", and libvirt.uri is empty')


def _refusal(part: Callable[[], object]) -> ConfigError | None:
    try:
        part()
    except ConfigError as exc:
        return exc
    return None
