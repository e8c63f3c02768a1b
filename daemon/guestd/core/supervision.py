"""Supervision: a task that fails is started again after a delay, and no other task is affected.

What a task handles by itself (a lost connection) never arrives here. Whatever else it raises is logged with its
traceback, counted and reported until the task is healthy again. Only what makes ingest impossible ends guestd: the
exceptions that the caller names in `ends_with`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from guestd.core.bugs import BugLog, describe_error
from guestd.core.tasks import Backoff, TaskFunction, UnexpectedExit

T = TypeVar("T")
log = structlog.get_logger()

# A task is healthy again when it has run for this long, and for twice the time after which it failed.
HEALTHY_SECONDS = 10.0


class Supervisor:
    """Keeps tasks running. `count_failure` is called with a task's name, `show_failing` with name and number failing.

    Several tasks may have one name, each with another `subject`: the channels.
    """

    def __init__(
        self,
        *,
        count_failure: Callable[[str], None],
        show_failing: Callable[[str, int], None],
        healthy_seconds: float = HEALTHY_SECONDS,
    ) -> None:
        self._healthy_seconds = healthy_seconds
        self._count_failure = count_failure
        self._show_failing = show_failing
        self._problems: dict[tuple[str, str], str] = {}
        self._bugs: defaultdict[str, BugLog] = defaultdict(BugLog)

    async def run(
        self,
        name: str,
        task: TaskFunction,
        *,
        subject: str = "",
        backoff: Backoff | None = None,
        ends_with: tuple[type[Exception], ...] = (),
        may_return: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run a task, and again after each failure, until it is cancelled. It must not return unless `may_return`.

        Raises only the exceptions of `ends_with`.
        """
        key, backoff, loop = (name, subject), backoff or Backoff(), asyncio.get_running_loop()
        lived_seconds = 0.0
        self._show(name)
        try:
            while True:
                started = loop.time()
                is_done = await self._attempt(key, task, lived_seconds, ends_with, may_return)
                if is_done:
                    return
                lived_seconds = loop.time() - started
                await asyncio.sleep(backoff.next_delay_seconds(lived_seconds))
        finally:
            self._problems.pop(key, None)
            self._show(name)

    async def _attempt(
        self,
        key: tuple[str, str],
        task: TaskFunction,
        lived_seconds: float,
        ends_with: tuple[type[Exception], ...],
        may_return: Callable[[], bool],
    ) -> bool:
        """Run a task once; returns whether it ended as it may. `lived_seconds`: how long the last attempt lasted."""
        recovery = asyncio.get_running_loop().call_later(
            max(self._healthy_seconds, 2 * lived_seconds), self._note_healthy, key
        )
        try:
            await task()
        except ends_with:
            raise
        except asyncio.CancelledError as exc:
            # Nobody has cancelled this task: something within it was.
            if not _is_cancelled():
                self._note_failure(key, exc)
        except Exception as exc:
            self._note_failure(key, exc)
        else:
            if may_return():
                return True
            if not _is_cancelled():
                self._note_failure(key, UnexpectedExit("it returned"))
        finally:
            recovery.cancel()
        if _is_cancelled():
            raise asyncio.CancelledError
        return False

    def note_bug(self, name: str, exc: BaseException, **details: Any) -> None:
        """Log and count an exception outside of a supervised task; nothing is restarted."""
        self._count_failure(name)
        self._bugs[name].error("unexpected error, guestd continues; report the traceback", exc, task=name, **details)

    def guard(self, name: str, callback: Callable[[T], None]) -> Callable[[T], None]:
        """The same function, that never raises: what it raises is noted as by `note_bug`."""

        def guarded(value: T) -> None:
            try:
                callback(value)
            except Exception as exc:
                self.note_bug(name, exc)

        return guarded

    def list_problems(self) -> list[str]:
        """List the tasks that fail, a sentence each."""
        failing = Counter(name for name, _ in self._problems)
        sentences: dict[str, str] = {}
        for (name, subject), error in self._problems.items():
            others = f" (and {failing[name] - 1} more)" if failing[name] > 1 else ""
            of_subject = f" of {subject}" if subject else ""
            sentences.setdefault(name, f"{name}{of_subject}{others}: failed, retrying: {error}")
        return list(sentences.values())

    def _note_failure(self, key: tuple[str, str], exc: BaseException) -> None:
        name, subject = key
        self._count_failure(name)
        self._problems[key] = describe_error(exc)
        self._show(name)
        details = {"task": name} | ({"subject": subject} if subject else {})
        self._bugs[name].error("task failed, retrying, ingest continues; report the traceback", exc, **details)

    def _note_healthy(self, key: tuple[str, str]) -> None:
        if self._problems.pop(key, None) is not None:
            name, subject = key
            self._show(name)
            log.info("task runs again", task=name, **({"subject": subject} if subject else {}))

    def _show(self, name: str) -> None:
        self._show_failing(name, sum(1 for each, _ in self._problems if each == name))


def _is_cancelled() -> bool:
    """Whether the current task was asked to end, also if what it ran has ended with another exception."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
