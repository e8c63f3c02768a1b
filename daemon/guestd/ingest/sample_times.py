"""When samples were taken: the times that messages claim, and free timestamps in the store.

The first is decided when a message is prepared, the second when the batch before it is stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from guestd.rows.batch import Moment, Placed, Prepared, find_free_moments, keep_order, line_digest
from guestd.rows.run_times import Claim, RunTimes, find_ceilings, plausible_times, read_claim
from guestd.rows.times import guest_time, sample_time
from guestd.spool.file import Frame
from guestd.telemetry.registry import PrepareMetrics
from guestd.wire.line import LineId, read_line
from guestd.wire.schema import Metrics

_MILLISECOND = timedelta(milliseconds=1)

# Which of these (machine, timestamp) have a sample in the store.
FindOccupied = Callable[[Sequence[Moment]], Awaitable[set[Moment]]]
# The timestamps of the samples of (machine, digest, time to search around) that are stored, by machine and digest.
FindSamples = Callable[[Sequence[tuple[UUID, int, datetime]]], Awaitable[Mapping[tuple[UUID, int], datetime]]]


async def find_none(_: Sequence[tuple[UUID, int, datetime]]) -> Mapping[tuple[UUID, int], datetime]:
    """For a caller that has no store to ask."""
    return {}


class ClaimedTimes:
    """The timestamps that messages claim, corrected; remembers of each machine the run of its agent."""

    def __init__(self, metrics: PrepareMetrics) -> None:
        self._metrics = metrics
        self._runs: dict[UUID, RunTimes] = {}

    def get(self, frame: Frame, message: Metrics, ceiling: datetime | None) -> datetime:
        """The timestamp of a frame's sample; `ceiling` as `find_batch_ceilings` found it."""
        claimed = guest_time(message.timestamp)
        skew = None if claimed is None else claimed - frame.received_at
        if frame.line_id is None:
            moment = sample_time(claimed, frame.received_at, frame.transport)
        else:
            claim = Claim(claimed, message.age_ms, frame.received_at, frame.transport)
            run = self._run_of(frame.machine_id, frame.line_id)
            moment = run.place(frame.line_id.seq, claim, ceiling)
            # Not the time for which the line waited.
            skew = run.skew if claim.is_exact else skew
        if skew is not None:
            self._metrics.skew_seconds.observe(abs(skew.total_seconds()))
        if claimed is None or abs(claimed - moment) >= _MILLISECOND:
            self._metrics.adjusted.labels("guest_time").inc()
        return moment

    def _run_of(self, machine_id: UUID, line_id: LineId) -> RunTimes:
        """What is known of the run of a line; a machine's run ends when another begins."""
        run = self._runs.get(machine_id)
        if run is None or run.boot_id != line_id.boot_id:
            run = self._runs[machine_id] = RunTimes(line_id.boot_id)
        return run

    def forget(self, is_known: Callable[[UUID], bool]) -> None:
        """Forget what is remembered of machines that are gone."""
        self._runs = {machine_id: run for machine_id, run in self._runs.items() if is_known(machine_id)}


async def find_batch_ceilings(frames: Sequence[Frame], pause: Callable[[], Awaitable[None]]) -> dict[int, datetime]:
    """By a frame's number in the spool: before which time its sample was taken, as later lines of its run show.

    `pause` is called for every line: a batch may have a million.
    """
    runs: defaultdict[tuple[UUID, str], list[Frame]] = defaultdict(list)
    for frame in frames:
        await pause()
        if frame.line_id is not None:
            runs[frame.machine_id, frame.line_id.boot_id].append(frame)
    found: dict[int, datetime] = {}
    for lines in runs.values():
        if len(lines) > 1:
            # A broker may deliver them in another order.
            lines.sort(key=_number)
            times = []
            claims = (read_claim(frame.payload, frame.received_at, frame.transport) for frame in lines)
            for time in plausible_times(claims):
                await pause()
                times.append(time)
            for frame, ceiling in zip(reversed(lines), find_ceilings(times), strict=True):
                await pause()
                if ceiling is not None:
                    found[frame.seq] = ceiling
    return found


def _number(frame: Frame) -> int:
    return 0 if frame.line_id is None else frame.line_id.seq


class FreeTimes:
    """Free timestamps for samples; remembers of each machine its latest one, and the last line of its agent's run."""

    def __init__(self) -> None:
        self._latest: dict[UUID, datetime] = {}
        self._placed: dict[UUID, Placed] = {}

    async def find_lines_before(self, frames: Sequence[Prepared], find_samples: FindSamples) -> None:
        """Find the samples that these frames follow, of runs of which this process has placed no line.

        After a start in the middle of an agent's run the store alone knows where its last sample was placed. A line
        names the one before it, and the store knows its samples by their lines.
        """
        sought: dict[tuple[UUID, int], Placed] = {}
        seen: set[tuple[UUID, str]] = set()
        for frame in frames:
            line_id, placed = frame.line_id, self._placed.get(frame.machine_id)
            if line_id is None or (placed is not None and placed.boot_id == line_id.boot_id):
                continue
            if line_id.seq > 1 and (frame.machine_id, line_id.boot_id) not in seen:
                before = _line_before(frame, line_id)
                sought[frame.machine_id, line_digest(before)] = Placed(before.boot_id, before.seq, frame.received_at)
            seen.add((frame.machine_id, line_id.boot_id))
        if sought:
            found = await find_samples([(*line, placed.at) for line, placed in sought.items()])
            self._placed |= {line[0]: replace(sought[line], at=at) for line, at in found.items()}

    async def follow_stored(
        self, desired: Sequence[Moment], frames: Sequence[Prepared], find_samples: FindSamples
    ) -> set[int]:
        """Of the frames whose time does not advance, the numbers of those whose samples are stored.

        Later lines of their runs are placed behind those samples.

        Two hosts may store the lines of one machine at the same moment, after a migration. Neither sees the other's
        open transaction, and only equal keys show that a sample is stored twice: both must place a line alike.
        The store is asked only where a machine's time does not advance, or where nothing is remembered of the machine.
        """
        sought = [
            (machine_id, frame.digest, at)
            for (machine_id, at), frame in zip(desired, frames, strict=True)
            if frame.digest is not None and at <= self._latest.get(machine_id, at)
        ]
        found = await find_samples(sought) if sought else {}
        lines = {(frame.machine_id, frame.line_id.boot_id, frame.line_id.seq) for frame in frames if frame.line_id}
        stored: set[int] = set()
        last: dict[UUID, Placed] = {}
        for frame in frames:
            at = None if frame.digest is None else found.get((frame.machine_id, frame.digest))
            if at is None:
                continue
            stored.add(frame.seq)
            if frame.line_id is not None:
                here = Placed(frame.line_id.boot_id, frame.line_id.seq, at)
                last[frame.machine_id] = here.or_later(last.get(frame.machine_id))
        for machine_id, here in last.items():
            placed = self._placed.get(machine_id, here)
            # A line of these frames was placed by an attempt that failed.
            is_undone = (machine_id, placed.boot_id, placed.seq) in lines
            self._placed[machine_id] = here if is_undone else here.or_later(placed)
        return stored

    async def find(
        self, desired: Sequence[Moment], find_occupied: FindOccupied, frames: Sequence[Prepared]
    ) -> list[Moment]:
        """Free timestamps for the frames of a batch; in each run in the order of its lines.

        The store is asked only where a machine's time does not advance, or where nothing is remembered of the machine.
        """
        checked: set[Moment] = set()
        occupied: set[Moment] = set()
        # Doubled in every round: a guest whose clock stopped for days has a long run of occupied times behind it.
        step = _MILLISECOND
        while True:
            desired = keep_order(desired, frames, self._placed)
            moments = find_free_moments(desired, occupied)
            doubtful = {
                (machine_id, moment)
                for machine_id, moment in moments
                if moment <= self._latest.get(machine_id, moment)
            } - checked  # fmt: skip
            found = await find_occupied(sorted(doubtful)) if doubtful else set()
            if not found:
                break
            checked |= doubtful
            occupied |= found
            desired = [
                (machine_id, moment + step if (machine_id, moment) in found else desired_at)
                for (machine_id, desired_at), (_, moment) in zip(desired, moments, strict=True)
            ]
            step *= 2
        self._note(frames, moments)
        return moments

    def _note(self, frames: Sequence[Prepared], moments: Sequence[Moment]) -> None:
        for frame, (machine_id, at) in zip(frames, moments, strict=True):
            self._latest[machine_id] = max(at, self._latest.get(machine_id, at))
            if frame.line_id is not None:
                placed = Placed(frame.line_id.boot_id, frame.line_id.seq, at)
                self._placed[machine_id] = placed.or_later(self._placed.get(machine_id))

    def forget(self, is_known: Callable[[UUID], bool]) -> None:
        """Forget what is remembered of machines that are gone."""
        self._latest = {machine_id: at for machine_id, at in self._latest.items() if is_known(machine_id)}
        self._placed = {machine_id: each for machine_id, each in self._placed.items() if is_known(machine_id)}


def _line_before(frame: Prepared, line_id: LineId) -> LineId:
    header = read_line(frame.payload).header
    return LineId(line_id.boot_id, line_id.seq - 1, header.after if header is not None else None)
