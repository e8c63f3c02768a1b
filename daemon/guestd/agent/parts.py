"""The parts of a sample fail one by one. What cannot be read is left empty, named in the message, and logged.

Every reader of this machine runs through here: a file of /proc in a form that nobody expected, a mount that does not
answer or a bug in a reader costs that part, until it can be read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from guestd.agent.deadlines import Deadlines
from guestd.agent.payload import FailedPart, clean

# A part answers in milliseconds; this is a machine under a load that needs its samples all the more.
PART_SECONDS = 5.0
# What changes at every sample is logged this often.
LOG_SECONDS = 60.0
LONGEST_REASON_CHARS = 200
# After so long the parts that are left are left out: a machine on which everything hangs still gives a sample.
SAMPLE_SECONDS = 120.0

_LEFT_OUT = f"left out: this sample has taken more than {SAMPLE_SECONDS:g} s"

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
_log: structlog.stdlib.BoundLogger = structlog.get_logger("guestd.agent")


@dataclass(slots=True)
class _Failure:
    """A part that failed: in how many samples on end, and what was logged of it.

    `logged_reason` is empty when no failure was logged since the part was last read.
    """

    samples: int = 0
    logged_reason: str = ""
    logged_at: float = float("-inf")


class Parts:
    """Reads the parts of one sample after the other, and knows which of them fail."""

    def __init__(
        self,
        deadlines: Deadlines,
        now_seconds: Callable[[], float] = time.monotonic,
        part_seconds: float = PART_SECONDS,
    ) -> None:
        self._deadlines = deadlines
        self._now_seconds = now_seconds
        self._part_seconds = part_seconds
        self._reasons: dict[str, str] = {}
        self._failing: dict[str, _Failure] = {}
        self._ends_at: float | None = None

    def read(self, part: str, read: Callable[[], Value], otherwise: Value, seconds: float | None = None) -> Value:
        """What `read` returns, or `otherwise` when it fails or does not return in time (None: in PART_SECONDS)."""
        if self._is_over():
            self.fail(part, _LEFT_OUT)
            return otherwise
        try:
            return self._deadlines.call(part, read, self._part_seconds if seconds is None else seconds)
        except Exception as exc:
            self.fail(part, describe(exc))
            return otherwise

    def read_each(
        self,
        part: str,
        keys: Sequence[Key],
        read: Callable[[Key], Value],
        seconds: float,
        group: Callable[[Key], Hashable] = lambda key: key,
    ) -> dict[Key, Value]:
        """What `read` returns for each key; those that fail are left out, and the part is named with the first."""
        if keys and self._is_over():
            self.fail(part, _LEFT_OUT)
            return {}
        outcomes = self._deadlines.each(part, keys, read, seconds, group)
        found = {key: outcome for key, outcome in outcomes.items() if not isinstance(outcome, Exception)}
        failed = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Exception)}
        for key, outcome in failed.items():
            self.fail(part, f"{len(failed)} of {len(outcomes)}, the first is {key}: {describe(outcome)}")
            break
        return found

    def fail(self, part: str, reason: str) -> None:
        """Name a part that fails; the first reason counts."""
        self._reasons.setdefault(part, clean(reason)[:LONGEST_REASON_CHARS])

    def end_sample(self) -> list[FailedPart]:
        """The parts that failed since the last call, by name. Logs what changed."""
        reasons, self._reasons = self._reasons, {}
        self._ends_at = None
        for part, failure in self._failing.items():
            if part not in reasons:
                if failure.logged_reason:
                    _log.info("part of the sample is read again", part=part, failed_samples=failure.samples)
                # Its time stays: a part that fails now and then is logged as often as one that always does.
                failure.samples, failure.logged_reason = 0, ""
        for part, reason in reasons.items():
            self._count(part, reason)
        return [FailedPart(part, reason) for part, reason in sorted(reasons.items())]

    def _is_over(self) -> bool:
        now = self._now_seconds()
        self._ends_at = now + SAMPLE_SECONDS if self._ends_at is None else self._ends_at
        return now >= self._ends_at

    def _count(self, part: str, reason: str) -> None:
        failure, now = self._failing.setdefault(part, _Failure()), self._now_seconds()
        failure.samples += 1
        if reason != failure.logged_reason and now - failure.logged_at >= LOG_SECONDS:
            failure.logged_reason, failure.logged_at = reason, now
            _log.warning(
                "part of the sample failed: it is sent without it; examine what the error names",
                part=part, error=reason, failed_samples=failure.samples,
            )  # fmt: skip


def describe(exc: Exception) -> str:
    """An exception as a reason: with its type, as the texts of a parser's errors are often a word."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
