"""The agent's side of the sampler: starts its process, asks it for samples, and replaces it when it ends or hangs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import structlog

from guestd.agent.outbox import LINE_LIMIT_BYTES

# More than `parts.SAMPLE_SECONDS` and the part that is read then. Beyond this the process itself hangs.
SAMPLE_SECONDS = 180.0
# For the last save of the state.
STOP_SECONDS = 5.0
# Processes that cannot be ended hold memory: beyond this many there are no samples until one has ended.
MOST_LEFT_BEHIND = 3

_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """What the process is started with. `most_processes` None: all; `state` None: application minutes are not kept."""

    most_processes: int | None
    state: str | None

    def to_arguments(self) -> list[str]:
        """Each one by itself: a path may be any bytes."""
        return [
            "all" if self.most_processes is None else str(self.most_processes),
            *([self.state] if self.state else []),
        ]


def read_arguments(arguments: list[str]) -> SamplerOptions:
    """The options that `to_arguments` gave."""
    most_processes, *state = arguments
    return SamplerOptions(None if most_processes == "all" else int(most_processes), state[0] if state else None)


class NoSample(Exception):
    """No sample could be taken this time."""


class Sampler:
    """One process at a time that takes samples; the next call starts another one for one that was lost."""

    def __init__(self, options: SamplerOptions) -> None:
        # -P: -m alone looks for modules in the working directory first, where any user may have put them.
        self._command = [sys.executable, "-P", "-m", "guestd.agent.sampler", *options.to_arguments()]
        self._running: _Running | None = None
        self._left_behind: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        """Start the process, unless it runs. Raises NoSample."""
        if self._running is None:
            self._running = await self._start()

    async def sample(self) -> bytes:
        """The body of a message. Raises NoSample."""
        await self.start()
        assert self._running is not None
        try:
            async with asyncio.timeout(SAMPLE_SECONDS):
                return await self._running.request()
        except TimeoutError:
            reason = f"it gave no sample within {SAMPLE_SECONDS:g} s"
        except (OSError, EOFError, asyncio.LimitOverrunError) as exc:
            reason = f"it has ended: {exc!r}"
        self._leave()
        raise NoSample(f"the process that takes samples was lost: {reason}")

    async def close(self) -> None:
        """Let it save its state and end; leave it when it does not."""
        if self._running is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._running.end()
        except TimeoutError:
            _log.warning(
                "the process that takes samples does not end: a call in it hangs; it ends when that returns",
                pid=self._running.process.pid,
            )
            self._leave()

    async def _start(self) -> _Running:
        self._left_behind = [process for process in self._left_behind if process.poll() is None]
        if len(self._left_behind) >= MOST_LEFT_BEHIND:
            raise NoSample(f"{len(self._left_behind)} processes that took samples hang and cannot be ended")
        ours, process = self._spawn()
        reader, writer = await asyncio.open_connection(sock=ours, limit=2 * LINE_LIMIT_BYTES)
        return _Running(process, reader, writer)

    def _spawn(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        try:
            ours, theirs = socket.socketpair()
            with theirs, ExitStack() as on_error:
                on_error.enter_context(ours)
                process = subprocess.Popen(self._command, stdin=theirs.fileno(), stdout=theirs.fileno())
                on_error.pop_all()
                return ours, process
        except OSError as exc:  # no more descriptors, processes or memory
            raise NoSample(f"the process that takes samples cannot be started: {exc}") from exc

    def _leave(self) -> None:
        """End the process if it can be ended; it is not waited for."""
        if self._running is not None:
            self._running.close()
            self._left_behind.append(self._running.process)
            self._running = None


class _Running:
    """A process that takes samples, and the socket that is its input and output."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """One sample. Raises OSError, EOFError or LimitOverrunError when it has ended, or writes something else."""
        self._writer.write(b"\n")
        await self._writer.drain()
        return (await self._reader.readuntil(b"\n"))[:-1]

    async def end(self) -> None:
        """Close its input, and wait until it has closed its output."""
        with suppress(OSError):
            self._writer.write_eof()
            while await self._reader.read(LINE_LIMIT_BYTES):
                pass
        self.close()

    def close(self) -> None:
        """Close the socket, and end the process if it can be ended."""
        self._writer.close()
        self.process.kill()
