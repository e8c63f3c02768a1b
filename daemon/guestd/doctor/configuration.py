"""Validation of the configuration without connecting to anything: `guestd check`, and the doctor's first lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from guestd.core.config import Settings
from guestd.core.errors import ConfigError
from guestd.core.secrets import read_secret
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.hypervisor.connection import require_bindings
from guestd.mqtt.options import read_options
from guestd.service import http_auth
from guestd.service.exposures import list_exposures
from guestd.store.connection import check_dsn

FIXES = {
    "unknown field": "remove the key, or correct its name: deploy/guestd.toml lists all keys",
    "/run/credentials/": "it exists while the unit runs: start the unit; its source is in /etc/guestd/credentials",
    "No such file": "create the file, or correct its name",
    "world-readable": "chmod o-rwx the file",
    "Permission denied": "let guestd's user read the file, or make it a credential of the unit",
    "its first line is not UTF-8": "store the password in UTF-8 in the file",
    "its first line is empty": "put the secret in the file's first line",
    "libvirt-python": "install guestd[libvirt], or leave libvirt.uri empty",
    "virtio.discovery": 'set libvirt.uri, for example to "qemu:///system", or virtio.discovery to "directory"',
}


def check_configuration(settings: Settings) -> Iterator[Finding]:
    """Report a fault for each invalid setting; if there is none, a warning for each risk of the valid ones."""
    errors = [str(error) for error in map(_find_error, _list_checks(settings)) if error is not None]
    yield from (explain_config_error(each) for each in errors)
    if not errors:
        yield ok("configuration", "every setting is valid")
        yield from (warning("exposure", each.text, each.fix) for each in list_exposures(settings))


def explain_config_error(error: str) -> Finding:
    """Find the fix for the text of a ConfigError."""
    fix = next(
        (fix for words, fix in FIXES.items() if words in error), "correct it; deploy/guestd.toml explains each key"
    )
    return fault("configuration", error, fix)


def _list_checks(settings: Settings) -> Iterator[Callable[[], object]]:
    yield lambda: check_dsn(settings.store.dsn)
    if settings.virtio.master_secret_file:
        yield lambda: read_secret(Path(settings.virtio.master_secret_file), "virtio.master_secret_file")
    if settings.mqtt.host:
        yield lambda: read_options(settings.mqtt)
    yield lambda: http_auth.read_web_config(settings.telemetry.web_config_file)
    yield lambda: require_bindings(settings.libvirt.uri)
    if settings.virtio.discovery == "libvirt" and not settings.libvirt.uri:
        yield _reject_missing_uri


def _reject_missing_uri() -> None:
    raise ConfigError('virtio.discovery is "libvirt", but libvirt.uri is empty')


def _find_error(check: Callable[[], object]) -> ConfigError | None:
    try:
        check()
    except ConfigError as exc:
        return exc
    return None
