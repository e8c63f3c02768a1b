"""The newest sample of each guest as gauges. Labels have nothing that a guest sends. Pure.

A machine that the store no longer has, or that has been silent for a while, is not shown: a gauge that stays would
report a guest as healthy that is long gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any
from uuid import UUID

import msgspec

from guestd.rows.batch import Prepared
from guestd.rows.model import Rows
from guestd.rows.times import CLOCK_TOLERANCE
from guestd.telemetry.exposition import Family, format_labels, format_sample
from guestd.wire.line import LineId
from gueststore.contract import SystemMetrics

SHOWN_SECONDS = 600.0
# For so long an older sample is taken for a late one. Then it is shown: its guest's clock was set back. Shorter than
# SHOWN_SECONDS, so that the machine never disappears meanwhile.
LATE_SECONDS = SHOWN_SECONDS / 2
# More than a host has; the one that was silent for the longest time is dropped.
MAX_GUESTS = 5000
KIB, GIB = 1024.0, 1024.0**3
AGENT_HELP = (
    "Always 1; the labels are the agent's channel and dialect. Numbered lines are resent until they are acknowledged."
)
_LABELS = ("machine", "domain")
_AGENT_LABELS = (*_LABELS, "channel", "dialect")


@dataclass(frozen=True, slots=True)
class Sample:
    """A machine's newest sample: the row of SystemMetrics, its timestamp, when it was received (host time), and how."""

    machine_id: UUID
    at: datetime
    received_at: datetime
    row: SystemMetrics
    channel: str
    line_id: LineId | None
    failed_parts: int

    def is_behind(self, known: Sample) -> bool:
        """Whether it is older than a sample that was received before: a broker delivered it late, or it waited there.

        A sample with an earlier timestamp is not, if the guest's clock was set back: a little, or nothing newer has
        come for a while, or the guest has been restarted. A backlog that a broker delivers then is shown in its order,
        up to the newest.
        """
        is_silent = (self.received_at - known.received_at).total_seconds() > LATE_SECONDS
        if self.at >= known.at or is_silent or _is_other_run(self.line_id, known.line_id):
            return False
        return self.at < self.received_at - CLOCK_TOLERANCE or _is_earlier_line(self.line_id, known.line_id)


def _is_other_run(line: LineId | None, other: LineId | None) -> bool:
    return line is not None and other is not None and line.boot_id != other.boot_id


def _is_earlier_line(line: LineId | None, other: LineId | None) -> bool:
    return line is not None and other is not None and line.boot_id == other.boot_id and line.seq < other.seq


class LatestSamples:
    """The last sample of each machine, bounded."""

    def __init__(self) -> None:
        self._samples: dict[UUID, Sample] = {}
        self._rendered: dict[UUID, _Rendered] = {}

    def add(self, batch: Sequence[Prepared]) -> None:
        """Remember the newest samples of a batch."""
        for frame in batch:
            if isinstance(frame.content, Rows):
                self._add(frame.content, frame.transport.value, frame.line_id)

    def _add(self, rows: Rows, channel: str, line_id: LineId | None) -> None:
        machine_id, at, received_at = rows.shared.machine_id, rows.shared.timestamp, rows.shared.received_at
        sample = Sample(machine_id, at, received_at, rows.system_metrics, channel, line_id, rows.failed_parts)
        known = self._samples.get(machine_id)
        if known is not None and sample.is_behind(known):
            return
        # Inserted at the end: the dictionary is ordered by the last sample.
        self._samples.pop(machine_id, None)
        if len(self._samples) >= MAX_GUESTS:
            del self._samples[next(iter(self._samples))]
        self._samples[machine_id] = sample

    def build_families(self, domains: Mapping[UUID, str], now: datetime) -> list[Family]:
        """The gauges of machines that are in `domains` and not silent."""
        before, shown = self._rendered, {}
        # `add` runs in another thread: copy in one step.
        for machine_id, sample in tuple(self._samples.items()):
            if machine_id in domains and (now - sample.received_at).total_seconds() <= SHOWN_SECONDS:
                known, domain = before.get(machine_id), domains[machine_id]
                is_same = known is not None and known.sample is sample and known.domain == domain
                shown[machine_id] = known if known and is_same else _Rendered(sample, domain, _render(sample, domain))
        self._rendered = shown
        lines = zip(*(each.lines for each in shown.values()), strict=True) if shown else [()] * (1 + len(_GAUGES))
        described: list[tuple[str, str, tuple[str, ...]]] = [("guest_agent_info", AGENT_HELP, _AGENT_LABELS)]
        described += [(f"guest_{name}", text, _LABELS) for name, text, _ in _GAUGES]
        return [
            Family(name, text, False, labels, lines=each)
            for (name, text, labels), each in zip(described, lines, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A sample's lines, one a metric, empty where the guest does not report it."""

    sample: Sample
    domain: str
    lines: tuple[str, ...]


def _render(sample: Sample, domain: str) -> tuple[str, ...]:
    labels = (str(sample.machine_id), domain)
    agent = format_labels(_AGENT_LABELS, (*labels, sample.channel, "plain" if sample.line_id is None else "numbered"))
    # The same in every line.
    labelled = format_labels(_LABELS, labels)
    figures = ((f"guest_{name}", figure(sample)) for name, _, figure in _GAUGES)
    return (
        format_sample("guest_agent_info", agent, 1.0),
        *("" if value is None else format_sample(name, labelled, value) for name, value in figures),
    )


Figure = Callable[[Sample], float | None]


def _column(name: str, factor: float = 1.0) -> Figure:
    value_of = attrgetter(name)

    def figure(sample: Sample) -> float | None:
        value: float | None = value_of(sample.row)
        return None if value is None else value * factor

    return figure


def _failed_parts(sample: Sample) -> float | None:
    return float(sample.failed_parts) if sample.line_id is not None else None


def _time(sample: Sample) -> float:
    return sample.received_at.timestamp()


def _decoded(column: bytes | None) -> Any:
    return msgspec.json.decode(column or b"null")


def _disks(key: str) -> Figure:
    def total(sample: Sample) -> float | None:
        figures = [disk[key] for disk in _decoded(sample.row.diskUsageStats) if disk.get(key) is not None]
        return sum(figures) * GIB if figures else None

    return total


def _fullest(sample: Sample) -> float | None:
    sizes = ((disk.get("usedGB"), disk.get("totalGB")) for disk in _decoded(sample.row.diskUsageStats))
    # A guest may report more used than there is.
    return max((min(1.0, used / total) for used, total in sizes if total and used is not None), default=None)


def _network(key: str) -> Figure:
    def total(sample: Sample) -> float | None:
        interfaces = _decoded(sample.row.networkStats)
        figures = [each[key] for each in interfaces if each.get(key) is not None]
        return float(sum(figures)) if figures else None

    return total


def _load(sample: Sample) -> float | None:
    load = _decoded(sample.row.loadAverage)
    return load.get("load1min") if isinstance(load, dict) else None


_GAUGES: tuple[tuple[str, str, Figure], ...] = (
    ("last_sample_timestamp_seconds", "Host time at which its last sample was received.", _time),
    ("cpu_usage_ratio", "CPU in use over all cores, 0 to 1.", _column("cpuUsagePercent", 0.01)),
    ("memory_total_bytes", "Total memory.", _column("totalMemoryKB", KIB)),
    ("memory_used_bytes", "Memory in use.", _column("usedMemoryKB", KIB)),
    ("memory_available_bytes", "Memory available to programs.", _column("availableMemoryKB", KIB)),
    ("swap_used_bytes", "Swap in use.", _column("swapUsedKB", KIB)),
    ("disk_total_bytes", "Total size of its file systems.", _disks("totalGB")),
    ("disk_used_bytes", "Total used space of its file systems.", _disks("usedGB")),
    ("disk_fullest_ratio", "Used part of its fullest file system, 0 to 1.", _fullest),
    ("network_receive_bytes_per_second", "Received by all its interfaces.", _network("bytesReceived")),
    ("network_transmit_bytes_per_second", "Sent by all its interfaces.", _network("bytesSent")),
    ("load1", "Runnable processes, averaged over a minute.", _load),
    ("uptime_seconds", "Time since its boot.", _column("uptime")),
    ("failed_parts", "Parts of the machine that guestd's agent cannot read; its log names them.", _failed_parts),
)
