"""A real TCP proxy on loopback that cuts connections where a test wants it to."""

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType

CHUNK_BYTES = 4096


class Proxy:
    """Forwards to a loopback port; each connection is cut when so many bytes have passed, either way.

    Or instead of the answer to a chunk that `is_last`.
    """

    def __init__(
        self, target_port: int, cut_after: Callable[[], int], is_last: Callable[[bytes], bool] = lambda _: False
    ) -> None:
        self._target_port = target_port
        self._cut_after = cut_after
        self._is_last = is_last
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cuts = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        _shut(self._listener)
        self._listener.close()
        with self._lock:
            for end in self._open:
                _shut(end)
        for thread in list(self._threads):
            thread.join()

    def stop_cutting(self) -> None:
        """Cut no new connection any more."""
        self._cut_after = lambda: sys.maxsize
        self._is_last = lambda _: False

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._forward, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _forward(self, client: socket.socket) -> None:
        """One connection's life, in two threads."""
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target_port)) as server:
            with self._lock:
                self._open |= {client, server}
            left = [self._cut_after()]
            back = threading.Thread(target=self._pump, args=(server, client, left))
            back.start()
            self._pump(client, server, left)
            back.join()
            with self._lock:
                self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        try:
            while chunk := source.recv(CHUNK_BYTES):
                with self._lock:
                    allowed = chunk[: max(0, left[0])]
                    left[0] = 0 if self._is_last(chunk) else left[0] - len(chunk)
                sink.sendall(allowed)
                if len(allowed) < len(chunk):
                    self.cuts += 1
                    break
        except OSError:
            pass
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
