"""Writes docs/metrics.md, every metric, from guestd.telemetry.registry: `python -m tools.docs.metrics_page`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from guestd.store.rollups import RollupRefresher
from guestd.telemetry import domains
from guestd.telemetry.domains import Family
from guestd.telemetry.guests import LatestSamples
from guestd.telemetry.registry import Telemetry

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
HEAD = """\
# Metrics

What `/metrics` says. Written by `python -m tools.docs.metrics_page` from the code; a test compares. Counters are named
as they are asked for, with `_total`; a histogram has `_bucket`, `_sum` and `_count`.

## Where to look

Whatever is dropped, refused, set aside, tried again, bounded or late has a number:
"""
# What can happen to what a guest sends, in the order in which it does, and what counts it.
QUESTIONS = (
    ("a line is refused before it is accepted, by reason", "guestd_frames_refused_total"),
    ("a line comes twice and is known", "guestd_frames_duplicate_total"),
    ("an agent gave lines up, or lines are missing in between", "guestd_agent_lines_dropped_total"),
    ("a guest is over its budget and held back: how many, for how long", "guestd_guests_held_back"),
    ("", "guestd_held_back_seconds_total"),
    ("a channel breaks, is of nobody that the store knows, or is not to be read", "guestd_channels_lost_total"),
    ("", "guestd_channels_unknown_machine"),
    ("", "guestd_channels_not_collected"),
    ("the broker is lost, has forgotten what it queued, or drops", "guestd_mqtt_connections_lost_total"),
    ("", "guestd_mqtt_sessions_lost_total"),
    ("", "guestd_mqtt_broker_dropped_messages"),
    ("", "guestd_mqtt_lines_missing_total"),
    ("a broker's message is not acknowledged yet, too late, or of the past", "guestd_mqtt_unacknowledged"),
    ("", "guestd_mqtt_late_acknowledgements_total"),
    ("", "guestd_mqtt_retained_ignored_total"),
    ("how full the spool is, and its bound", "guestd_spool_bytes"),
    ("", "guestd_spool_limit_bytes"),
    ("how long a frame waits for the disk", "guestd_receive_to_spool_seconds"),
    ("", "guestd_spool_commit_seconds"),
    ("how long it waits for its commit, and what of that is COPY", "guestd_receive_to_commit_seconds"),
    ("", "guestd_write_seconds"),
    ("", "guestd_copy_seconds"),
    ("what became of accepted frames: stored, in part, set aside, twice", "guestd_frames_done_total"),
    (
        "a frame is set aside, by reason; how many are kept, the bound, what went over it",
        "guestd_frames_quarantined_total",
    ),
    ("", "guestd_quarantine_frames"),
    ("", "guestd_quarantine_limit_frames"),
    ("", "guestd_quarantine_dropped_total"),
    ("a value was put right", "guestd_values_adjusted_total"),
    ("a guest's clock is off", "guestd_guest_clock_skew_seconds"),
    ("a batch is tried again: the store was lost, a key was taken", "guestd_store_lost_total"),
    ("", "guestd_key_conflicts_total"),
    ("the store ages badly: roll-ups or retention behind, rows that wait for ever", "guestd_store_alarms"),
    ("the schema is not what the migrations make", "guestd_schema_differences"),
    ("a machine runs and does not report: how many, which, since when", "guestd_machines_without_data"),
    ("", "guestd_machine_without_data_since_timestamp_seconds"),
    ("libvirt is lost, slow, or a call of it hangs", "guestd_libvirt_lost_total"),
    ("", "guestd_libvirt_call_seconds"),
    ("", "guestd_libvirt_calls_given_up_total"),
    ("", "guestd_libvirt_calls_stuck"),
    ("a machine is not as it should be, what was done, what somebody else was faster with", "guestd_vms_reports"),
    ("", "guestd_vms_actions_total"),
    ("", "guestd_vms_moved_total"),
    ("a filter drifted, is not in force, was refused, or a plan waits for a yes", "guestd_filters_drift_total"),
    ("", "guestd_filters_pending"),
    ("", "guestd_filters_reports"),
    ("", "guestd_filters_held"),
    ("a frame reached a bug", "guestd_bugs_total"),
)


def page() -> str:
    """The whole text. SystemExit when a question names a metric that there is not."""
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
        f"## All\n\n| metric | kind | labels | what it says |\n|---|---|---|---|\n{rows}\n"
    )


def _all() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, kind, labels and explanation of each: the registry's, then what is made at a scrape."""
    telemetry = Telemetry()
    for holder in (telemetry, telemetry.timing, telemetry.vms, telemetry.filters):
        for metric in vars(holder).values():
            if hasattr(metric, "describe"):
                (described,) = metric.describe()
                name = f"{described.name}_total" if described.type == "counter" else described.name
                # The library tells the names of labels of those only that have samples.
                yield name, described.type, vars(metric)["_labelnames"], described.documentation
    for family in _at_a_scrape():
        yield family.name, "counter" if family.is_counter else "gauge", family.labels, family.text


def _at_a_scrape() -> Iterator[Family]:
    yield from RollupRefresher("", host_name="", uri="", silent=lambda _: None).families()
    yield from LatestSamples().families({}, datetime.now(UTC))
    yield from domains.families({}, [])


if __name__ == "__main__":
    PAGE.write_text(page())
