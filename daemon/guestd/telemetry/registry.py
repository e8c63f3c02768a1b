"""Every metric of guestd, grouped by the part that counts with it; `service.http` serves them.

No label value ever comes from a guest. Reasons are closed sets. A group without a registry is not scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from guestd import __version__
from guestd.core.bugs import BugLog
from guestd.telemetry.exposition import Family, render
from guestd.telemetry.isolation import IsolatingRegistry

COMMIT_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
SKEW_BUCKETS = (0.1, 1, 5, 30, 60, 300, 3600, 86400)
LAG_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)

REFUSED_HELP = (
    "Lines not accepted: oversize, memory, rate, share, fragment, topic, unknown_machine, not_collected, event_flood; "
    "requested again: out_of_order, rewound, cut_off (also lines lost with their channel)."
)
AGENT_DROPPED_HELP = (
    "Lines that agents no longer had, by their numbers. At most so many are lost: some may have been accepted by "
    "another host of a migrated machine, or into a spool of which an older copy is used."
)
GATE_BUGS_HELP = (
    "Lines that triggered a bug in guestd on arrival and were accepted unchecked; the log has the traceback."
)
SESSIONS_HELP = (
    "Connections to a broker that no longer had guestd's session, with the messages queued in it, also over a restart."
)
EXPIRED_HELP = "The same, after guestd was away for longer than the broker keeps a session."
TAKEN_OVER_HELP = "Connections to a broker that another client with guestd's client id ended, as far as it shows."
LATE_HELP = "Acknowledgements not sent because their connection was closed."
MISSING_HELP = (
    "Numbered lines that had not arrived when a later one did: discarded by agents, or dropped by the broker. At most "
    "so many are lost: one that comes late is not subtracted. Not counted in a shared group."
)
DROPPED_HELP = "Messages dropped by the broker, by its own count ($SYS)."
DONE_HELP = "Accepted frames by outcome: stored, stored_in_part, quarantined, duplicate."
SKEW_HELP = (
    "Absolute difference between a guest's clock and this host's, without the time for which our agent held a line."
)
SCHEMA_HELP = "Differences between the live schema and the migrations; `gueststore check` lists them."
DELAYED_HELP = "1 while the last attempt of a step of maintenance or roll-ups failed for a lock of another session."
TASK_FAILURES_HELP = (
    "Unexpected errors, by task: the task starts again; the log has the traceback. `metrics`: a family left out of a"
    " scrape; `callback` and `thread`: what ran outside of a task."
)
TASKS_FAILING_HELP = "Tasks that failed and are not healthy again yet, by task."
STEP_FAILURES_HELP = "Failed steps of maintenance and roll-ups, other than for a lock of another session, by step."
PORTS_HELP = "Listening ports of all machines of the store without a row in VmPort: beyond the limit of a machine."
SPOOL_HELP = "Time from the first append of a group commit to its fsync; acknowledgements wait for it."
PAGES_CLOSED_HELP = (
    "Connections of the pages that guestd ended: deadline (slow or idle), replaced (by a newer one), descriptors "
    "(refused: the last ones are kept)."
)
LOGINS_HELP = "Logins to the pages without success: wrong, busy (not checked, because too many others waited)."
FRAME_TIMEOUTS_HELP = "How often in a row the store did not finish the one frame that is written alone in time."
LAG_HELP = "Time from the receipt of a batch's oldest frame to its commit."


class TaskMetrics:
    """The tasks that guestd supervises."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self.failures = counter("guestd_task_failures", TASK_FAILURES_HELP, ["task"])
        self.failing = gauge("guestd_tasks_failing", TASKS_FAILING_HELP, ["task"])

    def show_failing(self, task: str, number: int) -> None:
        """Set how many tasks of a name fail; both metrics exist from then on."""
        self.failures.labels(task)
        self.failing.labels(task).set(number)

    def count_failure(self, task: str) -> None:
        """Count a failure."""
        self.failures.labels(task).inc()


class ChannelMetrics:
    """The virtio channels."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self.channels = gauge("guestd_channels", "Channels to be read.")
        self.connected = gauge("guestd_channels_connected", "Channels that are connected.")
        self.lost = counter("guestd_channels_lost", "Connections to channels that ended or failed.")
        self.unknown_machines = gauge(
            "guestd_channels_unknown_machine", "Channels not read: the store has no such machine."
        )
        self.not_collected = gauge("guestd_channels_not_collected", "Channels not read: collection is off for them.")
        self.machines = gauge("guestd_machines", "Machines in the store, as last read.")


class GateMetrics:
    """What the gate to the spool accepts and refuses."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self.accepted = counter("guestd_frames_accepted", "Frames fsynced in the spool.")
        self.accepted_bytes = counter("guestd_accepted_bytes", "Bytes of those frames.")
        self.refused = counter("guestd_frames_refused", REFUSED_HELP, ["reason"])
        self.duplicate = counter("guestd_frames_duplicate", "Lines sent again that were already on disk.")
        self.agent_dropped = counter("guestd_agent_lines_dropped", AGENT_DROPPED_HELP)
        self.bugs = counter("guestd_gate_bugs", GATE_BUGS_HELP)
        self.other_messages = counter("guestd_other_messages", "Guest messages without metrics, by type.", ["type"])
        self.held_back = gauge(
            "guestd_guests_held_back", "Guests over their rate limit or waiting for a turn, not read."
        )
        self.held_back_seconds = counter("guestd_held_back_seconds", "Time that guests over their limit were not read.")


class BrokerMetrics:
    """The MQTT broker."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self.connected = gauge("guestd_mqtt_connected", "1 while subscribed to the broker.")
        self.lost = counter("guestd_mqtt_connections_lost", "Connections to the broker that ended or failed.")
        self.sessions_lost = counter("guestd_mqtt_sessions_lost", SESSIONS_HELP)
        self.sessions_expired = counter("guestd_mqtt_sessions_expired", EXPIRED_HELP)
        self.taken_over = counter("guestd_mqtt_sessions_taken_over", TAKEN_OVER_HELP)
        self.received = counter("guestd_mqtt_messages_received", "QoS 1 messages delivered by the broker.")
        self.acknowledged = counter("guestd_mqtt_messages_acknowledged", "Messages acknowledged to the broker.")
        self.late = counter("guestd_mqtt_late_acknowledgements", LATE_HELP)
        self.retained = counter("guestd_mqtt_retained_ignored", "Retained metrics messages, ignored as outdated.")
        self.unacknowledged = gauge("guestd_mqtt_unacknowledged", "Messages received and not yet on disk.")
        self.missing = counter("guestd_mqtt_lines_missing", MISSING_HELP)
        self.guests_online = gauge("guestd_mqtt_guests_online", "Guests whose last status message was `online`.")
        self.dropped = gauge("guestd_mqtt_broker_dropped_messages", DROPPED_HELP)


class SpoolMetrics:
    """The queue on disk."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge = partial(Gauge, registry=registry)
        timed = partial(Histogram, registry=registry, buckets=COMMIT_BUCKETS)
        self.bytes = gauge("guestd_spool_bytes", "Bytes of the file with frames that wait for the store.")
        self.limit = gauge("guestd_spool_limit_bytes", "Size limit of the spool; guestd stops reading when it is full.")
        self.damaged_files = gauge(
            "guestd_spool_damaged_files", "Damaged spool files that were renamed; their frames may not be stored."
        )
        self.frames = gauge("guestd_spool_frames", "Frames waiting for the store.")
        self.commit_seconds = timed("guestd_spool_commit_seconds", "Time of one group commit to the spool.")
        self.receive_to_spool_seconds = timed("guestd_receive_to_spool_seconds", SPOOL_HELP)


class PrepareMetrics:
    """The conversion of frames to rows."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        counter = partial(Counter, registry=registry)
        self.adjusted = counter("guestd_values_adjusted", "Wrong values of guests that were corrected.", ["reason"])
        self.skew_seconds = Histogram(
            "guestd_guest_clock_skew_seconds", SKEW_HELP, registry=registry, buckets=SKEW_BUCKETS
        )
        self.bugs = counter("guestd_bugs", "Frames that triggered a bug in guestd; the log has the traceback.")


class WriterMetrics:
    """Batches on their way to the store."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        counter = partial(Counter, registry=registry)
        timed = partial(Histogram, registry=registry, buckets=COMMIT_BUCKETS)
        self.frames_done = counter("guestd_frames_done", DONE_HELP, ["outcome"])
        self.quarantined = counter("guestd_frames_quarantined", "Frames quarantined, by reason.", ["reason"])
        self.rows_written = counter("guestd_rows_written", "Rows committed, by table.", ["table"])
        self.store_lost = counter("guestd_store_lost", "Connections to the store that ended or failed.")
        self.frame_timeouts = Gauge("guestd_frame_timeouts", FRAME_TIMEOUTS_HELP, registry=registry)
        self.key_conflicts = counter("guestd_key_conflicts", "Batches with keys that were occupied by other rows.")
        self.copy_seconds = timed("guestd_copy_seconds", "Of a batch's transaction, the time of its COPY statements.")
        self.write_seconds = timed("guestd_write_seconds", "Time of one batch's transaction.")
        self.receive_to_commit_seconds = Histogram(
            "guestd_receive_to_commit_seconds", LAG_HELP, registry=registry, buckets=LAG_BUCKETS
        )
        self.preparing = PrepareMetrics(registry)


class MaintenanceMetrics:
    """The store's maintenance: quarantine and schema."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self.quarantine_frames = gauge("guestd_quarantine_frames", "Quarantined frames in the store, of all hosts.")
        self.quarantine_limit = gauge("guestd_quarantine_limit_frames", "Size limit; the oldest are dropped beyond it.")
        self.quarantine_dropped = counter(
            "guestd_quarantine_dropped", "Quarantined frames dropped: past their retention, or over the size limit."
        )
        self.schema_differences = gauge("guestd_schema_differences", SCHEMA_HELP)
        self.delayed = gauge("guestd_maintenance_delayed", DELAYED_HELP, ["step"])
        self.ports_left_out = gauge("guestd_ports_left_out", PORTS_HELP)
        self.failures = counter("guestd_maintenance_failures", STEP_FAILURES_HELP, ["step"])


class VmMetrics:
    """Metrics of libvirt and of the VM reconciler."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        timed = partial(Histogram, registry=registry, buckets=COMMIT_BUCKETS)
        self.libvirt_up = gauge("libvirt_up", "1 while libvirt is connected; 0 also if libvirt is not configured.")
        self.libvirt_domains = gauge("libvirt_domains", "Domains in libvirt, running or not.")
        self.libvirt_lost = counter("guestd_libvirt_lost", "Failed or lost connections to libvirt.")
        self.calls_abandoned = counter("guestd_libvirt_calls_given_up", "libvirt calls without an answer in time.")
        self.calls_stuck = gauge("guestd_libvirt_calls_stuck", "Abandoned libvirt calls that have not returned yet.")
        self.call_seconds = timed("guestd_libvirt_call_seconds", "Duration of one libvirt call that was answered.")
        self.snapshot_seconds = timed("guestd_libvirt_look_seconds", "Duration of one snapshot of all domains.")
        self.reconcile_seconds = timed(
            "guestd_vms_pass_seconds", "Duration of one VM reconcile run, without its snapshot."
        )
        self.reconciler_lost = counter(
            "guestd_vms_lost", "Restarts of the VM reconciler because of libvirt, the store or another guestd."
        )
        self.writes = counter("guestd_vms_written", "Planned writes of machine rows, by kind.", ["kind"])
        self.writes_skipped = counter(
            "guestd_vms_moved", "Planned writes that were skipped because another writer was faster."
        )
        self.actions = counter("guestd_vms_actions", "Power actions on domains.", ["action", "outcome"])
        self.machines_without_data = gauge("guestd_machines_without_data", "Running machines that send no data.")
        self.reports = gauge("guestd_vms_reports", "Open issues that need manual action, by kind.", ["kind"])


class FilterMetrics:
    """Metrics of the filter reconciler."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self.desired = gauge("guestd_filters_wanted", "Filters that this host should have: rows and machine filters.")
        self.in_force = gauge("guestd_filters_in_force", "Of those, filters that libvirt has as desired.")
        self.pending = gauge("guestd_filters_pending", "Of those, filters that are not in force.")
        self.held = gauge("guestd_filters_held", "1 while a plan needs guestd apply --filters.")
        self.drift = counter("guestd_filters_drift", "Filters in force that somebody else changed or removed.")
        self.actions = counter("guestd_filters_actions", "Steps on filters and interfaces.", ["action", "outcome"])
        self.reports = gauge("guestd_filters_reports", "Open issues of filters, by kind.", ["kind"])
        self.lost = counter("guestd_filters_lost", "Filter reconciler restarts: libvirt or store lost.")
        self.run_seconds = Histogram(
            "guestd_filters_pass_seconds", "Time of one reconcile run.", registry=registry, buckets=LAG_BUCKETS
        )


class PageMetrics:
    """The HTTP pages."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        counter = partial(Counter, registry=registry)
        self.connections = Gauge("guestd_pages_connections", "Open connections of the pages.", registry=registry)
        self.closed = counter("guestd_pages_connections_closed", PAGES_CLOSED_HELP, ["reason"])
        self.logins_refused = counter("guestd_pages_logins_refused", LOGINS_HELP, ["reason"])


class Telemetry:
    """All metrics, grouped by part. It has a registry of its own, so that two daemons in one test do not collide."""

    def __init__(self) -> None:
        registry = self.registry = IsolatingRegistry(self._note_failure)
        _identify(registry)
        self.tasks = TaskMetrics(registry)
        self.channels = ChannelMetrics(registry)
        self.gate = GateMetrics(registry)
        self.broker = BrokerMetrics(registry)
        self.spool = SpoolMetrics(registry)
        self.writer = WriterMetrics(registry)
        self.maintenance = MaintenanceMetrics(registry)
        self.vms = VmMetrics(registry)
        self.filters = FilterMetrics(registry)
        self.pages = PageMetrics(registry)
        self._sources: list[Callable[[], Sequence[Family]]] = []
        self._bugs = BugLog()

    def add_source(self, build_families: Callable[[], Sequence[Family]]) -> None:
        """Add a function that builds further metric families at each scrape."""
        self._sources.append(build_families)

    def render_families(self, *, is_openmetrics: bool) -> bytes:
        """The lines of all sources. One that fails is left out, logged and counted; so is a metric of the registry."""
        return b"".join(self._render_source(build, is_openmetrics) for build in self._sources)

    def _render_source(self, build_families: Callable[[], Sequence[Family]], is_openmetrics: bool) -> bytes:
        try:
            return render(build_families(), is_openmetrics=is_openmetrics)
        except Exception as exc:
            self._note_failure(exc)
            return b""

    def _note_failure(self, exc: Exception) -> None:
        self.tasks.count_failure("metrics")
        self._bugs.error("metrics left out of the page, the others are served; report the traceback", exc)


def _identify(registry: CollectorRegistry | None = None) -> None:
    """Process, platform and version."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Gauge("guestd_build_info", "Always 1; the label is guestd's version.", ["version"], registry=registry).labels(
        __version__
    ).set(1)
