"""What guestd needs of its host: the spool's disk, descriptors, its port; and whether it runs, by its own pages."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

from guestd.core.config import Settings, SpoolSettings, TelemetrySettings, VirtioSettings
from guestd.core.errors import ConfigError
from guestd.doctor.finding import Finding, fault, ok, warning
from guestd.service import http_auth
from guestd.service.http import UNAUTHORIZED
from guestd.spool import file as spoolfile

# A descriptor a channel, and some for itself.
FEWEST_DESCRIPTORS = 4096
FULL_SHARE = 0.8
ANSWER_SECONDS = 5.0
_IN_MEMORY = ("tmpfs", "ramfs")
_EVERYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 -- to warn of


def examined(settings: Settings) -> Iterator[Finding]:
    """All of them."""
    yield from _rights()
    yield from _spool(settings.spool)
    yield from _channels(settings.virtio)
    yield from _descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield from _port(settings.telemetry)


def _rights() -> Iterator[Finding]:
    if os.geteuid() == 0:
        fix = "run it as guestd's user: runuser -u guestd -- guestd doctor --config FILE"
        yield warning("rights", "the doctor runs as root, who may do what guestd may not", fix)


def _spool(chosen: SpoolSettings) -> Iterator[Finding]:
    directory = Path(chosen.directory)
    make = f"install -d -o guestd -g guestd -m 0750 {directory}, or StateDirectory= in the unit; or set spool.directory"
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        yield fault("spool", f"spool.directory {directory} {what}", make)
        return
    if not os.access(directory, os.W_OK | os.X_OK):
        yield fault("spool", f"spool.directory {directory} cannot be written by this user", make)
        return
    yield from _spool_disk(directory, chosen.max_bytes)
    yield from _spool_file(directory / spoolfile.FILE, chosen.max_bytes)
    aside = [each.name for each in spoolfile.list_damaged_files(directory)]
    if aside:
        fix = "what it holds was not stored: keep it for whoever can read it, then delete it"
        yield warning("spool", f"damaged files were set aside: {', '.join(aside)}", fix)


def _spool_disk(directory: Path, max_bytes: int) -> Iterator[Finding]:
    if _kind_of_filesystem(directory) in _IN_MEMORY:
        fix = "set spool.directory to a place on a disk"
        yield warning("spool", f"{directory} is in memory: accepted frames do not survive a restart of the host", fix)
    file = directory / spoolfile.FILE
    held_bytes = file.stat().st_size if file.exists() else 0
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes + held_bytes < max_bytes:
        fix = f"make room, or set spool.max_bytes below {free_bytes + held_bytes}"
        text = (
            f"{free_bytes} bytes are free on its disk, and spool.max_bytes is {max_bytes}: the disk is full before it"
        )
        yield warning("disk", text, fix)
    else:
        yield ok("disk", f"{free_bytes} bytes are free for a spool of at most {max_bytes}")


def _kind_of_filesystem(directory: Path) -> str:
    """As the kernel names it; an empty text where it does not tell."""
    places = {
        fields[1]: fields[2] for line in Path("/proc/self/mounts").read_text().splitlines() if (fields := line.split())
    }
    resolved = directory.resolve()
    return next((places[str(each)] for each in (resolved, *resolved.parents) if str(each) in places), "")


def _spool_file(file: Path, max_bytes: int) -> Iterator[Finding]:
    if not file.exists():
        yield ok("spool", f"{file} is not there yet: the first start makes it")
        return
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=ANSWER_SECONDS)) as connection:
            # Whether it can be read at all: reading all of it is for guestd's start.
            connection.execute("SELECT spool_id FROM identity").fetchone()
            connection.execute("SELECT max(seq) FROM frame").fetchone()
            used_bytes = _used_bytes(connection)
    except sqlite3.OperationalError as exc:
        yield fault("spool", f"{file} cannot be read: {exc}", f"let guestd's user read and write {file.parent}")
        return
    except sqlite3.DatabaseError as exc:
        fix = "restart guestd: it sets the file aside and begins a new one; what was not stored is in the old one"
        yield fault("spool", f"{file} is damaged: {exc}", fix)
        return
    if used_bytes > FULL_SHARE * max_bytes:
        fix = "bring the store back: the spool empties by itself; at its limit guests are not read on"
        yield warning("spool", f"{used_bytes} of {max_bytes} bytes wait for the store", fix)
    else:
        yield ok("spool", f"{used_bytes} of {max_bytes} bytes are used")


def _used_bytes(connection: sqlite3.Connection) -> int:
    page_bytes, pages, free_pages = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_size", "page_count", "freelist_count")
    )
    return page_bytes * (pages - free_pages)


def _channels(chosen: VirtioSettings) -> Iterator[Finding]:
    directory = Path(chosen.directory)
    if chosen.discovery != "directory":
        return
    if not directory.is_dir():
        fix = (
            f'make it for QEMU\'s sockets, or set virtio.directory, or virtio.discovery to "libvirt" (now {directory})'
        )
        yield warning("channels", f"virtio.directory {directory} does not exist: there are no channels to read", fix)
    elif not os.access(directory, os.R_OK | os.X_OK):
        fix = f"let guestd's user list it: chgrp guestd {directory} && chmod g+rx {directory}"
        yield fault("channels", f"virtio.directory {directory} cannot be listed by this user", fix)


def _descriptors(most: int) -> Iterator[Finding]:
    if most != resource.RLIM_INFINITY and most < FEWEST_DESCRIPTORS:
        fix = "LimitNOFILE=1048576 in the unit, or ulimit -Hn"
        yield warning("descriptors", f"at most {most} files may be open, and each channel is one", fix)


def _port(chosen: TelemetrySettings) -> Iterator[Finding]:
    if chosen.listen_host in _EVERYWHERE:
        fix = "telemetry.listen_host = the address that Prometheus asks, or telemetry.web_config_file with users"
        yield warning("telemetry", "/metrics is shown to every network of this host", fix)
    if not chosen.listen_port:
        yield warning("telemetry", "telemetry.listen_port is 0: each start takes another port", "set it, say to 9478")
        return
    try:
        yield from _pages(chosen)
    except ConfigError:
        return  # the configuration's own finding


def metrics_page(chosen: TelemetrySettings) -> str:
    """/metrics of the guestd that runs; empty where none does."""
    try:
        return page(chosen, "/metrics")
    except (OSError, HTTPException, ConfigError):
        return ""


def _asked(chosen: TelemetrySettings) -> str:
    return "127.0.0.1" if chosen.listen_host in _EVERYWHERE else chosen.listen_host


def _pages(chosen: TelemetrySettings) -> Iterator[Finding]:
    """What guestd's own pages say; where nobody listens it does not run."""
    host, port = _asked(chosen), chosen.listen_port
    try:
        alive = page(chosen, "/healthz")
    except ConnectionRefusedError:
        yield warning("guestd", f"it does not run: nobody listens on {host} port {port}", "systemctl start guestd")
        return
    except (OSError, HTTPException) as exc:
        alive = str(exc)
    if alive == UNAUTHORIZED:
        yield ok("guestd", f"it runs, and its pages are for users (port {port})")
        return
    if alive != "alive\n":
        fix = "set telemetry.listen_port to a free port, or end whoever has it: ss -ltnp"
        yield fault("port", f"port {port} of {host} is not guestd's: another program answers there", fix)
        return
    problems = [line for line in page(chosen, "/readyz").splitlines() if line != "ready"]
    if not problems:
        yield ok("guestd", f"it runs and is ready (port {port})")
    for problem in problems:
        yield warning("guestd", f"it runs and says: {problem}", "docs/failure-modes.md has the row for it")


def page(chosen: TelemetrySettings, path: str) -> str:
    """The text of a page of guestd's, whatever its status. OSError when nobody answers."""
    host = _asked(chosen)
    shown = f"[{host}]" if ":" in host else host
    scheme = "http" if http_auth.read_web_config(chosen.web_config_file).tls is None else "https"
    # Nothing is between us and our own port: no proxy of the environment, and nobody to be told from another by name.
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    ways = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=anybody))
    opener = urllib.request.build_opener(*ways)
    try:
        with opener.open(f"{scheme}://{shown}:{chosen.listen_port}{path}", timeout=ANSWER_SECONDS) as answer:
            text: bytes = answer.read()
    except urllib.error.HTTPError as exc:
        text = exc.read()
    except urllib.error.URLError as exc:
        raise exc.reason if isinstance(exc.reason, OSError) else OSError(str(exc.reason)) from exc
    return text.decode("utf-8", "replace")
