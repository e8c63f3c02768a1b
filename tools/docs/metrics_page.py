"""Writes docs/metrics.md, the list of all metrics, from the code: `python -m tools.docs.metrics_page`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from guestd.store.rollups import RollupRefresher
from guestd.telemetry import domains
from guestd.telemetry.exposition import Family
from guestd.telemetry.guests import LatestSamples
from guestd.telemetry.registry import MaintenanceMetrics, Telemetry, VmMetrics

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
HEAD = """\
# Metrics

The metrics of `/metrics`. `python -m tools.docs.metrics_page` writes this page from the code; a test compares.
Counters have the name that a query uses, with `_total`; a histogram has `_bucket`, `_sum` and `_count`.
Not listed: `guestd_build_info` (its label is the version), and the client library's `process_*` and `python_info`.

## Where to look

Everything that is dropped, refused, quarantined, retried, limited or late is counted:
"""
# What can happen to a guest's data, in processing order, and the metric that counts it.
QUESTIONS = (
    ("a line is refused before it is accepted, by reason", "guestd_frames_refused_total"),
    ("a line is a duplicate", "guestd_frames_duplicate_total"),
    ("an agent dropped lines, or lines are missing between two others", "guestd_agent_lines_dropped_total"),
    ("a guest is over its rate limit and paused: how many, for how long", "guestd_guests_held_back"),
    ("", "guestd_held_back_seconds_total"),
    ("a channel is lost, belongs to an unknown machine, or is excluded from collection", "guestd_channels_lost_total"),
    ("", "guestd_channels_unknown_machine"),
    ("", "guestd_channels_not_collected"),
    (
        "the connection to the broker is lost, the broker lost its queue, or drops messages",
        "guestd_mqtt_connections_lost_total",
    ),
    ("", "guestd_mqtt_sessions_lost_total"),
    ("", "guestd_mqtt_broker_dropped_messages"),
    ("", "guestd_mqtt_lines_missing_total"),
    ("a broker's message is not acknowledged yet, acknowledged too late, or retained", "guestd_mqtt_unacknowledged"),
    ("", "guestd_mqtt_late_acknowledgements_total"),
    ("", "guestd_mqtt_retained_ignored_total"),
    ("used size of the spool, and its size limit", "guestd_spool_bytes"),
    ("", "guestd_spool_limit_bytes"),
    ("time from receipt to the spool", "guestd_receive_to_spool_seconds"),
    ("", "guestd_spool_commit_seconds"),
    ("time from receipt to COMMIT, time of the transaction, time of COPY", "guestd_receive_to_commit_seconds"),
    ("", "guestd_write_seconds"),
    ("", "guestd_copy_seconds"),
    ("accepted frames by outcome: stored, stored in part, quarantined, duplicate", "guestd_frames_done_total"),
    (
        "a frame is quarantined, by reason; number of quarantined frames, limit, frames deleted over the limit",
        "guestd_frames_quarantined_total",
    ),
    ("", "guestd_quarantine_frames"),
    ("", "guestd_quarantine_limit_frames"),
    ("", "guestd_quarantine_dropped_total"),
    ("a value was adjusted", "guestd_values_adjusted_total"),
    ("a guest's clock is wrong", "guestd_guest_clock_skew_seconds"),
    ("a batch is retried: the store was lost, a key was occupied", "guestd_store_lost_total"),
    ("", "guestd_key_conflicts_total"),
    ("a single frame takes the store longer than its deadline", "guestd_frame_timeouts"),
    ("the store's health check fails: roll-ups or retention behind, bloat", "guestd_store_alarms"),
    ("the schema differs from the migrations", "guestd_schema_differences"),
    ("maintenance or roll-ups wait for a lock of another session", "guestd_maintenance_delayed"),
    ("listening ports have no row in VmPort: beyond the limit of a machine", "guestd_ports_left_out"),
    ("a machine runs and does not report: number, name, time of the last sample", "guestd_machines_without_data"),
    ("", "guestd_machine_without_data_since_timestamp_seconds"),
    ("the connection to libvirt is lost, a call is slow or hangs", "guestd_libvirt_lost_total"),
    ("", "guestd_libvirt_call_seconds"),
    ("", "guestd_libvirt_calls_given_up_total"),
    ("", "guestd_libvirt_calls_stuck"),
    (
        "a machine is not in its desired state; actions taken; actions that somebody else took first",
        "guestd_vms_reports",
    ),
    ("", "guestd_vms_actions_total"),
    ("", "guestd_vms_moved_total"),
    ("a filter drifted, is pending, was refused, or a plan is held", "guestd_filters_drift_total"),
    ("", "guestd_filters_pending"),
    ("", "guestd_filters_reports"),
    ("", "guestd_filters_held"),
    ("a connection of the pages was ended, a login to them was refused", "guestd_pages_connections_closed_total"),
    ("", "guestd_pages_logins_refused_total"),
    ("a frame triggered a bug", "guestd_bugs_total"),
    ("a line triggered a bug on arrival", "guestd_gate_bugs_total"),
    ("a task failed; tasks that fail now", "guestd_task_failures_total"),
    ("", "guestd_tasks_failing"),
)


def page() -> str:
    """The whole text. SystemExit when a question names a metric that does not exist."""
    metrics = {name: (name, *rest) for name, *rest in _all()}
    unknown = [name for _, name in QUESTIONS if name not in metrics]
    if unknown:
        raise SystemExit(f"no such metric: {', '.join(unknown)}")
    answers = "\n".join(f"| {question} | `{name}` |" for question, name in QUESTIONS)
    rows = "\n".join(
        f"| `{name}` | {kind} | {', '.join(labels) or '-'} | {text} |" for name, kind, labels, text in metrics.values()
    )
    return (
        f"{HEAD}\n| what | metric |\n|---|---|\n{answers}\n\n"
        f"## All\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n{rows}\n"
    )


def _all() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, kind, labels and explanation of each: the registry's, then those that exist only in a scrape."""
    telemetry = Telemetry()
    groups = [
        telemetry.tasks, telemetry.channels, telemetry.gate, telemetry.broker, telemetry.spool, telemetry.writer,
        telemetry.writer.preparing, telemetry.maintenance, telemetry.vms, telemetry.filters,
        telemetry.pages,
    ]  # fmt: skip
    for group in groups:
        for metric in vars(group).values():
            if hasattr(metric, "describe"):
                (described,) = metric.describe()
                name = f"{described.name}_total" if described.type == "counter" else described.name
                # The library's public interface has label names only for metrics that have samples.
                yield name, described.type, vars(metric)["_labelnames"], described.documentation
    for family in _at_a_scrape():
        yield family.name, "counter" if family.is_counter else "gauge", family.labels, family.text


def _at_a_scrape() -> Iterator[Family]:
    refresher = RollupRefresher("", host_name="", uri="", metrics=VmMetrics(), maintenance=MaintenanceMetrics())
    yield from refresher.build_families()
    yield from LatestSamples().build_families({}, datetime.now(UTC))
    yield from domains.build_families({}, [])


if __name__ == "__main__":
    PAGE.write_text(page())
