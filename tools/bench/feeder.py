"""Guests that write what they have as fast as it is read: the load of `./dev bench ingest`, `scale` and `drain`."""

import multiprocessing
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Semaphore
from pathlib import Path

from tools.bench.server import SEED

from guestd.simulator.guest import Guest


def lines_of(guests: int, messages: int, processes: int) -> dict[uuid.UUID, bytes]:
    """All that each guest will write, without sequence headers: what real agents send."""
    start_s = int(time.time()) - 200
    feeds = {}
    for number in range(guests):
        guest = Guest(number, seed=SEED, processes=processes, start_s=start_s)
        bodies = [guest.body(start_s * 1000 + 1000 * message) for message in range(messages)]
        feeds[guest.machine_id] = b"".join(b'{"type":"metrics",' + body[1:] + b"\n" for body in bodies)
    return feeds


@contextmanager
def feeder(channels: Path, *parts: Mapping[uuid.UUID, bytes]) -> Iterator[Semaphore]:
    """A process that serves every guest's socket, and writes the next part whenever the semaphore is released."""
    go = multiprocessing.Semaphore(0)
    listeners = {}
    for machine_id in parts[0]:
        listeners[machine_id] = listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(channels / f"{machine_id}.socket"))
        listener.listen(1)
    process = multiprocessing.Process(target=_feed, args=(listeners, parts, go), daemon=True)
    process.start()
    for listener in listeners.values():
        listener.close()
    try:
        yield go
    finally:
        process.kill()
        process.join()


def _feed(
    listeners: Mapping[uuid.UUID, socket.socket], parts: Sequence[Mapping[uuid.UUID, bytes]], go: Semaphore
) -> None:
    connections = {}
    for machine_id, listener in listeners.items():
        connections[machine_id], _ = listener.accept()
        connections[machine_id].setblocking(False)
        # Both of ten thousand guests would be more files than many hosts allow a process.
        listener.close()
    for part in parts:
        unsent = [(connections[machine_id], memoryview(feed)) for machine_id, feed in part.items()]
        go.acquire()
        while unsent:
            rest = [(connection, feed[_sent(connection, feed) :]) for connection, feed in unsent]
            if sum(len(feed) for _, feed in rest) == sum(len(feed) for _, feed in unsent):
                time.sleep(0.001)  # every buffer is full
            unsent = [(connection, feed) for connection, feed in rest if feed]
    # The connections stay open until we are killed: closing one would lose what guestd has not read.
    signal.pause()


def _sent(connection: socket.socket, feed: memoryview) -> int:
    try:
        return connection.send(feed[:65536])
    except BlockingIOError:
        return 0
