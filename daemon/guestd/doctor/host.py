"""Checks of the host: the spool and its disk, open files, the HTTP port, and whether guestd runs and is ready."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator, Set
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

from guestd.core.address import format_host_port, format_url
from guestd.core.config import Settings, SpoolSettings, TelemetrySettings, VirtioSettings
from guestd.core.errors import ConfigError
from guestd.core.groups import GROUP, TAKE_GROUP, USER, find_group_name, list_groups
from guestd.core.mounts import parse_mounts
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.hypervisor.uri import get_socket
from guestd.service import http_auth
from guestd.service.http import UNAUTHORIZED
from guestd.spool.file import FILE, FORMAT, list_damaged_files

# One per channel, and some for guestd itself.
MIN_DESCRIPTORS = 4096
FULL_SHARE = 0.8
ANSWER_SECONDS = 5.0
_IN_MEMORY = ("tmpfs", "ramfs")
# All addresses of this host, and one of them. Who listens on `::` is not reached over IPv4.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 -- to warn about them


def check_host(settings: Settings) -> Iterator[Finding]:
    """Run all checks of the host."""
    yield from _check_user()
    yield from _report_errors("libvirt", check_libvirt_group(settings.libvirt.uri, list_groups()))
    yield from _report_errors("spool", _check_spool(settings.spool))
    yield from _report_errors("channels", _check_channels(settings.virtio))
    yield from _check_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield from _check_port(settings.telemetry)


def _report_errors(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """A path that cannot be examined (a parent is closed, it is too long, its disk fails) is a fault."""
    try:
        yield from findings
    except OSError as exc:
        fix = "let this user reach the path that the error names, or correct the setting"
        yield fault(subject, f"cannot be examined: {exc}", fix)


def _check_user() -> Iterator[Finding]:
    if os.geteuid() == 0:
        fix = "run it as guestd's user: runuser -u guestd -- guestd doctor --config FILE"
        yield warning("rights", "runs as root: access rights of guestd's user are not checked", fix)


def check_libvirt_group(uri: str, groups: Set[str]) -> Iterator[Finding]:
    """Check that guestd's user, who has these groups, has that of libvirt's socket if it needs it, and only then."""
    socket = get_socket(uri)
    if not socket and GROUP in groups:
        text = f"{USER} is in the group {GROUP}, which can do what root can, and libvirt.uri needs no socket here"
        yield warning("rights", text, TAKE_GROUP)
    elif socket and groups and Path(socket).exists():
        status = Path(socket).stat()
        group = find_group_name(status.st_gid)
        if group not in groups and not status.st_mode & stat.S_IWOTH:
            fix = f"as root: guestd setup (group {GROUP}), or usermod -aG {group} {USER}; then systemctl restart guestd"
            yield fault("libvirt", f"{USER} is not in the group {group} of {socket}, and cannot connect", fix)


def _check_spool(settings: SpoolSettings) -> Iterator[Finding]:
    directory = Path(settings.directory)
    create = (
        f"install -d -o guestd -g guestd -m 0750 {directory}, or StateDirectory= in the unit; or set spool.directory"
    )
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        yield fault("spool", f"spool.directory {directory} {what}", create)
        return
    if not os.access(directory, os.W_OK | os.X_OK):
        yield fault("spool", f"spool.directory {directory} is not writable by this user", create)
        return
    yield from _check_disk(directory, settings.max_bytes)
    yield from _check_spool_file(directory / FILE, settings.max_bytes)
    damaged = [each.name for each in list_damaged_files(directory)]
    if damaged:
        fix = "their frames may not be stored: keep the files until they have been examined, then delete them"
        yield warning("spool", f"damaged spool files: {', '.join(damaged)}", fix)


def _check_disk(directory: Path, max_bytes: int) -> Iterator[Finding]:
    if _get_filesystem(directory) in _IN_MEMORY:
        fix = "set spool.directory to a directory on disk"
        yield warning("spool", f"{directory} is in memory: accepted frames are lost when the host restarts", fix)
    file = directory / FILE
    held_bytes = file.stat().st_size if file.exists() else 0
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes + held_bytes < max_bytes:
        fix = f"free space, or set spool.max_bytes below {free_bytes + held_bytes}"
        text = f"{free_bytes} bytes are free on its disk, spool.max_bytes is {max_bytes}: the disk fills up first"
        yield warning("disk", text, fix)
    else:
        yield ok("disk", f"{free_bytes} bytes are free for a spool of at most {max_bytes}")


def _get_filesystem(directory: Path) -> str:
    """Get the kernel's name of a directory's file system; empty if unknown."""
    mounts = parse_mounts(Path("/proc/self/mounts").read_text(errors="surrogateescape"))
    resolved = directory.resolve()
    return next((mounts[str(each)] for each in (resolved, *resolved.parents) if str(each) in mounts), "")


def _check_spool_file(file: Path, max_bytes: int) -> Iterator[Finding]:
    if not file.exists():
        yield ok("spool", f"{file} does not exist yet: the first start creates it")
        return
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=ANSWER_SECONDS)) as connection:
            # Only whether it can be opened and read; guestd checks all of it at its start.
            connection.execute("SELECT spool_id FROM identity").fetchone()
            connection.execute("SELECT max(seq) FROM frame").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            used_bytes = _read_used_bytes(connection)
    except sqlite3.OperationalError as exc:
        yield fault("spool", f"{file} cannot be read: {exc}", f"let guestd's user read and write {file.parent}")
        return
    except sqlite3.DatabaseError as exc:
        fix = "restart guestd: it keeps the damaged file under another name and creates a new one"
        yield fault("spool", f"{file} is damaged: {exc}", fix)
        return
    if version > FORMAT:
        fix = "install that guestd again, and let it store everything before you go back"
        yield fault("spool", f"{file} has format {version}, of a newer guestd; this one knows up to {FORMAT}", fix)
        return
    if used_bytes > FULL_SHARE * max_bytes:
        fix = "restore the store; the spool then drains by itself. At its limit guestd stops reading"
        yield warning("spool", f"{used_bytes} of {max_bytes} bytes wait for the store", fix)
    else:
        yield ok("spool", f"{used_bytes} of {max_bytes} bytes are used")


def _read_used_bytes(connection: sqlite3.Connection) -> int:
    page_bytes, pages, free_pages = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_size", "page_count", "freelist_count")
    )
    return page_bytes * (pages - free_pages)


def _check_channels(settings: VirtioSettings) -> Iterator[Finding]:
    directory = Path(settings.directory)
    if settings.discovery != "directory":
        return
    if not directory.is_dir():
        fix = (
            f'create {directory} for QEMU\'s sockets, or correct virtio.directory, or set virtio.discovery to "libvirt"'
        )
        yield warning("channels", f"virtio.directory {directory} does not exist: no channel is read", fix)
    elif not os.access(directory, os.R_OK | os.X_OK):
        fix = f"let guestd's user list it: chgrp guestd {directory} && chmod g+rx {directory}"
        yield fault("channels", f"virtio.directory {directory} cannot be listed by this user", fix)


def _check_descriptors(limit: int) -> Iterator[Finding]:
    if limit != resource.RLIM_INFINITY and limit < MIN_DESCRIPTORS:
        fix = "set LimitNOFILE=1048576 in the unit, or raise ulimit -Hn"
        yield warning("descriptors", f"the limit of open files is {limit}, and each channel needs one", fix)


def _check_port(settings: TelemetrySettings) -> Iterator[Finding]:
    if settings.listen_host in _EVERYWHERE:
        fix = "set telemetry.listen_host to the address that Prometheus uses, or telemetry.web_config_file with users"
        yield warning("telemetry", "/metrics is open to every network of this host", fix)
    if not settings.listen_port:
        yield warning(
            "telemetry", "telemetry.listen_port is 0: each start uses another port", "set it, for example to 9478"
        )
        return
    try:
        yield from _check_pages(settings)
    except ConfigError:
        return  # reported by check_configuration


def fetch_metrics(settings: TelemetrySettings) -> str:
    """Fetch /metrics of the running guestd; empty if none runs."""
    try:
        return _fetch_page(settings, "/metrics")
    except (OSError, HTTPException, ConfigError):
        return ""


def _get_host(settings: TelemetrySettings) -> str:
    return _EVERYWHERE.get(settings.listen_host, settings.listen_host)


def _check_pages(settings: TelemetrySettings) -> Iterator[Finding]:
    """Check whether guestd runs and is ready, through its pages."""
    host, port = _get_host(settings), settings.listen_port
    try:
        healthz = _fetch_page(settings, "/healthz")
    except ConnectionRefusedError:
        yield warning(
            "guestd", f"does not run: nothing listens on {format_host_port(host, port)}", "systemctl start guestd"
        )
        return
    except (OSError, HTTPException) as exc:
        healthz = str(exc)
    if healthz == UNAUTHORIZED:
        yield ok("guestd", f"runs; its pages require a login (port {port})")
        return
    if healthz != "alive\n":
        fix = "set telemetry.listen_port to a free port, or stop the program that uses it: ss -ltnp"
        yield fault("port", f"another program answers on {format_host_port(host, port)}", fix)
        return
    problems = [line for line in _fetch_page(settings, "/readyz").splitlines() if line != "ready"]
    if not problems:
        yield ok("guestd", f"runs and is ready (port {port})")
    for problem in problems:
        yield warning("guestd", f"runs and is not ready: {problem}", "see docs/failure-modes.md")


def _fetch_page(settings: TelemetrySettings, path: str) -> str:
    """Fetch the text of a page, whatever its status. Raises OSError if nothing answers."""
    host = _get_host(settings)
    scheme = "http" if http_auth.read_web_config(settings.web_config_file).tls is None else "https"
    url = format_url(scheme, host, settings.listen_port, path)
    # guestd's own port on this host: no proxy, and the certificate need not match the address.
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    ways = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anybody))
    opener = urllib.request.build_opener(*ways)
    try:
        with opener.open(url, timeout=ANSWER_SECONDS) as answer:
            text: bytes = answer.read()
    except urllib.error.HTTPError as exc:
        text = exc.read()
    except urllib.error.URLError as exc:
        raise exc.reason if isinstance(exc.reason, OSError) else OSError(str(exc.reason)) from exc
    return text.decode("utf-8", "replace")
