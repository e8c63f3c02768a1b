"""Which metric each part of the pipeline counts with."""

from __future__ import annotations

from guestd.ingest import gate as intake
from guestd.ingest import mqtt, prepare, virtio, writer
from guestd.ingest.gate import Intake
from guestd.spool import file
from guestd.spool.queue import Spool
from guestd.store.batch_writer import Outcome
from guestd.store.maintenance import StoreMaintenance
from guestd.telemetry.guests import LatestSamples
from guestd.telemetry.registry import Telemetry


def show_spool(telemetry: Telemetry, spool: Spool) -> None:
    """How full the spool is, and how long its commits take."""
    telemetry.spool_limit.set(spool.max_bytes)
    telemetry.spool_bytes.set_function(lambda: spool.bytes)
    telemetry.spool_frames.set_function(lambda: spool.frames)
    telemetry.spool_set_aside.set_function(lambda: len(file.set_aside(spool.directory)))
    spool.commit_seconds = telemetry.timing.spool_commit.observe
    spool.waited_seconds = telemetry.timing.to_spool.observe


def of_intake(telemetry: Telemetry) -> intake.Counters:
    """What the gate counts."""

    def accepted(frames: int, size_bytes: int) -> None:
        telemetry.frames_accepted.inc(frames)
        telemetry.bytes_accepted.inc(size_bytes)

    return intake.Counters(
        accepted=accepted,
        refused=lambda reason: telemetry.frames_refused.labels(reason).inc(),
        duplicate=telemetry.frames_resent.inc,
        dropped_by_agent=telemetry.agent_dropped.inc,
        other=lambda name: telemetry.other_messages.labels(name).inc(),
        held_back=telemetry.held_back.set,
        held_back_seconds=telemetry.held_back_seconds.inc,
    )


def of_channels(telemetry: Telemetry) -> virtio.Gauges:
    """What the channels' source counts."""
    return virtio.Gauges(
        connected=telemetry.channels_connected.set,
        channels=telemetry.channels.set,
        unknown_machines=telemetry.unknown_machines.set,
        not_collected=telemetry.not_collected.set,
        lost=telemetry.channels_lost.inc,
    )


def of_broker(telemetry: Telemetry) -> mqtt.Counters:
    """What the broker's source counts."""
    return mqtt.Counters(
        connected=telemetry.broker_connected.set,
        lost=telemetry.broker_lost.inc,
        sessions_lost=telemetry.broker_sessions_lost.inc,
        received=telemetry.broker_received.inc,
        acknowledged=telemetry.broker_acknowledged.inc,
        late=telemetry.broker_late.inc,
        retained=telemetry.broker_retained.inc,
        refused=lambda reason: telemetry.frames_refused.labels(reason).inc(),
        unacknowledged=telemetry.broker_unacknowledged.set,
        guests_online=telemetry.broker_guests.set,
        broker_dropped=telemetry.broker_dropped.set,
    )


def of_writer(telemetry: Telemetry, gate: Intake, samples: LatestSamples, tidying: StoreMaintenance) -> writer.Counters:
    """What the writer counts; `gate` charges the rows to their guests, `samples` keeps the last of each.

    `tidying` is told what was set aside.
    """

    def outcome(became: Outcome) -> None:
        telemetry.frames_done.labels("stored").inc(became.stored)
        telemetry.frames_done.labels("stored_in_part").inc(became.stored_in_part)
        telemetry.frames_done.labels("duplicate").inc(became.duplicate)
        telemetry.frames_done.labels("quarantined").inc(became.quarantined.total())
        for reason, frames in became.quarantined.items():
            telemetry.quarantined.labels(reason).inc(frames)
        telemetry.timing.copy.observe(became.copy_seconds)
        if became.left_out:
            telemetry.adjusted.labels("inventory_full").inc(became.left_out)
        tidying.note(became)
        for table, rows in became.rows.items():
            telemetry.rows_written.labels(table).inc(rows)

    def committed(write_seconds: float, lag_seconds: float) -> None:
        telemetry.timing.write.observe(write_seconds)
        telemetry.timing.to_commit.observe(lag_seconds)

    return writer.Counters(
        outcome=outcome,
        committed=committed,
        store_lost=telemetry.store_lost.inc,
        key_taken=telemetry.key_conflicts.inc,
        preparing=prepare.Counters(
            adjusted=lambda reason, times: telemetry.adjusted.labels(reason).inc(times),
            bug=telemetry.bugs.inc,
            skew_seconds=lambda seconds: telemetry.skew.observe(abs(seconds)),
            rows=gate.charge_rows,
            sample=samples.note,
        ),
    )
