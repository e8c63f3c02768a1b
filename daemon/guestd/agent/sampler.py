"""The process that takes samples: for each byte of its standard input it writes a message body to its standard output.

It is a process of its own because a thread that waits for a file system cannot always be ended, not even by SIGKILL (a
FUSE server that has read a request and never answers), and holds its process with it. The agent that started this one
ends without it. It ends when the agent does: at the end of its input.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from guestd.agent.applications import ApplicationWatch
from guestd.agent.collect import Collector
from guestd.agent.deadlines import Deadlines, NoAnswer
from guestd.agent.parts import Parts
from guestd.agent.sampling import SamplerOptions, read_arguments
from guestd.agent.usage_state import UsageState, read_usage_state, write_usage_state
from guestd.core.log import configure_logging

# Time for CPU and disks to have a rate in the first message.
FIRST_SAMPLE_SECONDS = 1.0
# At most this much of the applications' minutes is lost when the machine crashes.
SAVE_SECONDS = 60.0
# The state file's disk answers at once, or the agent continues without it.
STATE_SECONDS = 3.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


class StateFile:
    """The usage of applications in a file; an error of the file or its disk affects nothing else."""

    def __init__(self, path: Path, deadlines: Deadlines) -> None:
        self._path = path
        self._deadlines = deadlines
        self._is_kept = True

    def read(self) -> UsageState:
        """The usage of an earlier run. A file that cannot be read now is not replaced either: it may be whole."""
        try:
            return self._deadlines.call("state", partial(read_usage_state, self._path), STATE_SECONDS)
        except (OSError, NoAnswer) as exc:
            self._is_kept = False
            _log.warning(
                "state file cannot be read: application minutes start from zero and are not kept; fix it, then "
                "restart the agent",
                file=str(self._path), error=str(exc),
            )  # fmt: skip
        return UsageState({})

    def write(self, content: bytes) -> None:
        """Replace the file."""
        if not self._is_kept:
            return
        try:
            self._deadlines.call("state", partial(write_usage_state, self._path, content), STATE_SECONDS)
        except (OSError, NoAnswer) as exc:
            _log.warning(
                "state file not written: application minutes stay in memory, retrying",
                file=str(self._path), error=str(exc), retry_seconds=SAVE_SECONDS,
            )  # fmt: skip


def run(options: SamplerOptions, make_body: Callable[[Collector], bytes] = Collector.body) -> None:
    """Take samples until the input ends; never returns."""
    # Those are for the agent, and reach a whole terminal or unit: this process ends when the agent has ended.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    deadlines = Deadlines()
    state = None if options.state is None else StateFile(Path(options.state), deadlines)
    applications = ApplicationWatch(UsageState({}) if state is None else state.read())
    is_requested = threading.Event()
    make_collector = partial(Collector, applications, options.most_processes, Parts(deadlines))
    # Apart from the thread that sees the end of the input: the state is saved then, even if a sample takes long.
    threading.Thread(
        target=_take_samples, args=(make_collector, make_body, is_requested), name="sample", daemon=True
    ).start()
    while True:
        if state is not None:
            # At once too, so that a file that cannot be written is known early.
            state.write(applications.encode())
        ends_at = time.monotonic() + SAVE_SECONDS
        while (rest_seconds := ends_at - time.monotonic()) > 0:
            if not select.select([0], [], [], rest_seconds)[0]:
                break
            if not os.read(0, 4096):
                _end(state, applications)
            is_requested.set()


def _end(state: StateFile | None, applications: ApplicationWatch) -> None:
    if state is not None:
        state.write(applications.encode())
    # A thread that hangs keeps the descriptors open, and may keep the process: the agent need not wait for that.
    with socket.socket(fileno=os.dup(1)) as output:
        output.shutdown(socket.SHUT_RDWR)
    # Not by returning: a sample may be in progress.
    os._exit(0)


def _take_samples(
    make_collector: Callable[[], Collector], make_body: Callable[[Collector], bytes], is_requested: threading.Event
) -> None:
    try:
        collector = make_collector()
        time.sleep(FIRST_SAMPLE_SECONDS)
        while True:
            is_requested.wait()
            is_requested.clear()
            line = memoryview(make_body(collector) + b"\n")
            while line:
                line = line[os.write(1, line) :]
    except BrokenPipeError:
        return  # the agent has ended: so does the input
    except Exception:
        _log.exception(
            "a sample failed as a whole: the process that takes samples ends, and the agent starts another one"
        )
        # The main thread saves the state, and ends this process.
        with socket.socket(fileno=os.dup(0)) as requests:
            requests.shutdown(socket.SHUT_RD)


if __name__ == "__main__":
    configure_logging()
    # Of figures that are not in /proc and that no sample has.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="psutil")
    run(read_arguments(sys.argv[1:]))
