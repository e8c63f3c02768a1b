"""Opening, using and closing connections to libvirt, and libvirt's event loop.

Two calls that wait on one connection must not crash guestd (docs/decisions/0048), hence no connection uses libvirt's
keepalive, and none is closed while a call waits on it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from guestd.core.bugs import BugLog
from guestd.core.errors import ConfigError, SourceLost
from guestd.core.text import escape_controls
from guestd.hypervisor.uri import check_uri
from guestd.hypervisor.xml import Unreadable, parse_xml

try:
    import libvirt
except ImportError:  # guestd[libvirt] is not installed; `require_bindings` raises if it is needed
    libvirt = None

T = TypeVar("T")
# Longer than our event loop needs to drop its references to a connection.
RELEASE_SECONDS = 1.0

# While one open hangs, later ones wait here; when it returns they find that they were abandoned, and open nothing.
_open_lock = threading.Lock()
_events_thread: threading.Thread | None = None


def require_bindings(uri: str) -> None:
    """Raise ConfigError if libvirt is configured without its bindings, or for a URI that `check_uri` refuses."""
    check_uri(uri)
    if uri and libvirt is None:
        raise ConfigError(
            "libvirt.uri is set but libvirt-python is not installed: install guestd[libvirt] (needs libvirt's headers)"
            " or leave libvirt.uri empty"
        )


def open_read_write(uri: str, abandoned: threading.Event) -> Any:
    """Open a connection; blocks. Raises SourceLost, also if `abandoned` is set before it is open."""
    return _open(libvirt.open, uri, abandoned)


def open_read_only(uri: str, abandoned: threading.Event) -> Any:
    """Open a connection that can change nothing; blocks. Raises SourceLost as `open_read_write` does."""
    return _open(libvirt.openReadOnly, uri, abandoned)


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Raise libvirt's errors as SourceLost."""
    try:
        yield
    except libvirt.libvirtError as exc:
        raise SourceLost(f"{uri}: {exc}") from exc


def call_or_refuse(connection: Any, call: Callable[[Any], T]) -> T | str:
    """Return the result of `call(connection)`, or libvirt's error message if the connection is still alive; blocks."""
    try:
        return call(connection)
    except libvirt.libvirtError as exc:
        if connection.isAlive() != 1:
            raise
        return _describe(exc)


def read_xml(connection: Any, read: Callable[[], str | None], gone: int) -> str | Unreadable | None:
    """What `read` returns; None if libvirt's error is `gone`, Unreadable if libvirt does not print it; blocks.

    libvirt refuses, for example, what is larger than 4 MiB when escaped. Raises libvirt's error if the connection is
    lost.
    """
    try:
        return read()
    except UnicodeDecodeError as exc:
        # libvirt cuts a long comment after 256 bytes, which may be within a character.
        return exc.object.decode("utf-8", "replace")
    except libvirt.libvirtError as exc:
        if exc.get_error_code() == gone:
            return None
        if connection.isAlive() != 1:
            raise
        return Unreadable(f"libvirt does not print it: {_describe(exc)}")


def _describe(exc: Exception) -> str:
    """An error's message on one line: libvirt quotes the XML that it refuses."""
    return escape_controls(" ".join(str(exc).split()))


def describe_version(connection: Any) -> str:
    """Describe the version of libvirt and the name of the connection's driver; blocks."""
    number = connection.getLibVersion()
    return f"libvirt {number // 1_000_000}.{number // 1000 % 1000}.{number % 1000} {connection.getType()}"


def read_host_uuid(connection: Any) -> str:
    """Read libvirt's UUID of the host, empty if the driver has none; blocks."""
    return parse_xml(connection.getCapabilities()).findtext("host/uuid", "").strip()


@contextmanager
def abandoned_on_failure() -> Iterator[threading.Event]:
    """Yield an event that is set if the block fails, so that a connection that opens later is closed."""
    abandoned = threading.Event()
    try:
        yield abandoned
    except BaseException:
        abandoned.set()
        raise


def close_if_abandoned(connection: Any, abandoned: threading.Event, uri: str, callback_ids: Sequence[int] = ()) -> None:
    """Close a new connection and raise SourceLost if nobody waits for it; it would otherwise deliver events forever."""
    if abandoned.is_set():
        close_unused(connection, callback_ids)
        raise SourceLost(f"{uri}: connected after the deadline")


def start_closing(connection: Any, callback_ids: Sequence[int] = ()) -> None:
    """Remove a connection's callbacks on a thread of its own, and drop the last reference, which closes it.

    Not awaited: a libvirtd that hangs does not answer. A call that still waits keeps its own reference, so that the
    connection is closed after it; an explicit `close` would free the memory that the call uses.
    """
    threading.Thread(target=_release, args=(connection, callback_ids), name="libvirt-close", daemon=True).start()


def close_unused(connection: Any, callback_ids: Sequence[int] = ()) -> None:
    """Close a connection on which no call waits; blocks."""
    _remove_callbacks(connection, callback_ids)
    with suppress(libvirt.libvirtError):  # libvirtd is gone
        connection.close()


def _release(connection: Any, callback_ids: Sequence[int]) -> None:
    _remove_callbacks(connection, callback_ids)
    # The thread that drops the last reference closes, and waits for libvirtd. It must not be the event loop's.
    time.sleep(RELEASE_SECONDS)


def _remove_callbacks(connection: Any, callback_ids: Sequence[int]) -> None:
    for callback_id in callback_ids:
        with suppress(libvirt.libvirtError):  # libvirtd is gone
            connection.domainEventDeregisterAny(callback_id)
    with suppress(libvirt.libvirtError):  # there is none
        connection.unregisterCloseCallback()


def _open(open_uri: Callable[[str], Any], uri: str, abandoned: threading.Event) -> Any:
    with _open_lock, translate_errors(uri):
        _start_event_loop()
        if abandoned.is_set():
            raise SourceLost(f"{uri}: abandoned while it waited for another connection to open")
        connection = open_uri(uri)
    close_if_abandoned(connection, abandoned, uri)
    return connection


def _start_event_loop() -> None:
    """Start libvirt's event loop, once per process and before the first connection; `_open_lock` is held."""
    global _events_thread  # noqa: PLW0603 -- libvirt supports one event loop per process
    if _events_thread is not None:
        return
    libvirt.registerErrorHandler(lambda *_: None, None)  # errors are raised as exceptions; do not print them as well
    libvirt.virEventRegisterDefaultImpl()

    bugs = BugLog()

    def run_loop() -> None:
        while True:
            try:
                libvirt.virEventRunDefaultImpl()
            except Exception as exc:
                # Without this thread no event arrives and no timer runs, for as long as guestd runs.
                bugs.error("libvirt's event loop failed, running it again; report the traceback", exc)
                time.sleep(RELEASE_SECONDS)

    _events_thread = threading.Thread(target=run_loop, name="libvirt-events", daemon=True)
    _events_thread.start()
