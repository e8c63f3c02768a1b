"""Calls that may never return, each on a daemon thread with a deadline.

A file system that no longer answers (NFS, FUSE) holds every thread that touches it; so does a lock in the kernel. Such
a thread cannot be ended. Its call is abandoned, and not made again before it has returned.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

# Threads that hang, of one kind of call. Beyond it no such call is made.
MOST_HANGING = 64
# In one run over many keys: each new one costs a deadline, and the sample waits for it. The rest waits for the next.
MOST_NEW_HANGING = 4
# One run over many keys, however many there are.
RUN_SECONDS = 20.0

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class NoAnswer(Exception):
    """A call did not return by its deadline, or was not made: an earlier one hangs, or there is no thread for it."""


class Deadlines:
    """Makes calls on threads, and remembers which have not returned. For one caller at a time of each kind."""

    def __init__(self) -> None:
        self._hanging: dict[str, set[Hashable]] = {}

    def hanging(self, kind: str) -> int:
        """How many calls of a kind have not returned."""
        return len(self._hanging.get(kind, ()))

    def call(self, kind: str, function: Callable[[], Value], seconds: float) -> Value:
        """The result of a function, or its exception. NoAnswer after so many seconds, or while an earlier one hangs."""
        outcome = self.each(kind, [kind], lambda _: function(), seconds)[kind]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def each(
        self,
        kind: str,
        keys: Sequence[Key],
        read: Callable[[Key], Value],
        seconds: float,
        group: Callable[[Key], Hashable] = lambda key: key,
    ) -> dict[Key, Value | Exception]:
        """The result or exception of `read` for each key, in order.

        A call that does not return within `seconds` (at most twice that) is abandoned, and reading continues after it.
        Other keys of its `group` are left out until it has returned: all files of one mount hang together.
        """
        outcomes: dict[Key, Value | Exception] = {}
        hanging = self._hanging.setdefault(kind, set())
        ends_at = time.monotonic() + RUN_SECONDS
        pending, new = list(keys), 0
        while pending:
            blocked = frozenset(hanging)  # a call may return at any time
            held = [key for key in pending if group(key) in blocked]
            outcomes.update(dict.fromkeys(held, NoAnswer("an earlier call has not returned")))
            pending = [key for key in pending if group(key) not in blocked]
            if (refusal := _refuse_run(len(hanging), new, ends_at)) is not None:
                outcomes.update(dict.fromkeys(pending, refusal))
                break
            reading = _Reading(pending, read)
            try:
                threading.Thread(target=reading.work, name=f"read {kind}", daemon=True).start()
            except RuntimeError as exc:  # the limit of threads
                outcomes.update(dict.fromkeys(pending, NoAnswer(f"no call was made: {exc}")))
                break
            done = reading.wait(seconds, ends_at, lambda key: _hold(hanging, group(key)))
            outcomes.update(zip(pending, done, strict=False))
            pending = pending[len(done) :]
            if pending:
                outcomes[pending.pop(0)] = NoAnswer(f"no answer within {seconds:g} s")
                new += 1
        return outcomes


def _refuse_run(hanging: int, new: int, ends_at: float) -> NoAnswer | None:
    if hanging >= MOST_HANGING:
        return NoAnswer(f"{hanging} calls hang: no more are made")
    if new >= MOST_NEW_HANGING:
        return NoAnswer(f"left out of this sample: {new} others gave no answer")
    if time.monotonic() >= ends_at:
        return NoAnswer(f"left out of this sample: more than {RUN_SECONDS:g} s")
    return None


def _hold(hanging: set[Hashable], key: Hashable) -> Callable[[], None]:
    """Remember a call as hanging; returns what to call when it has returned."""
    hanging.add(key)
    return partial(hanging.discard, key)


class _Reading(Generic[Key, Value]):
    """One thread that reads keys in order until all are read or it is abandoned."""

    def __init__(self, keys: Sequence[Key], read: Callable[[Key], Value]) -> None:
        self._keys = keys
        self._read = read
        self._outcomes: list[Value | Exception] = []
        self._on_late_return: Callable[[], None] | None = None
        # Either the thread adds an outcome or the other side abandons it.
        self._lock = threading.Lock()
        self._has_ended = threading.Event()

    def work(self) -> None:
        """Read. What any reader of an odd machine raises is an outcome: of that key, and of no other."""
        for key in self._keys:
            outcome: Value | Exception
            try:
                outcome = self._read(key)
            except Exception as exc:
                outcome = exc
            with self._lock:
                if self._on_late_return is not None:
                    self._on_late_return()
                    return
                self._outcomes.append(outcome)
        self._has_ended.set()

    def wait(
        self, seconds: float, ends_at: float, abandon: Callable[[Key], Callable[[], None]]
    ) -> list[Value | Exception]:
        """The outcomes of all keys, or of those before the one that hangs, for which `abandon` is called."""
        seen = 0
        while not self._has_ended.wait(seconds):
            with self._lock:
                done = len(self._outcomes)
                if done < len(self._keys) and (done == seen or time.monotonic() >= ends_at):
                    self._on_late_return = abandon(self._keys[done])
                    break
                seen = done
        return self._outcomes
