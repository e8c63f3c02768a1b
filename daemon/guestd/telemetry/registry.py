"""Every metric of guestd in one table. `pages` shows them.

No label value ever comes from a guest. Reasons are closed sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from guestd import __version__
from guestd.telemetry.domains import Family

COMMIT_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
SKEW_BUCKETS = (0.1, 1, 5, 30, 60, 300, 3600, 86400)
LAG_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)

REFUSED_HELP = (
    "Lines not accepted: oversize, rate, share, fragment, topic, unknown_machine, not_collected, event_flood; "
    "asked for again: out_of_order, rewound, cut_off."
)
SESSIONS_HELP = "Reconnects to a broker that had forgotten our session, and what it had queued."
LATE_HELP = "Acknowledgements that were not sent, because their connection was gone."
MISSING_HELP = (
    "Numbered lines passed over: given up by agents, or dropped by the broker. Not counted in a shared group."
)
DROPPED_HELP = "The broker's own count of messages it dropped ($SYS); outside what guestd can answer for."
DONE_HELP = "Accepted frames by what became of them: stored, stored_in_part, quarantined, duplicate."
SKEW_HELP = "How far the clocks of guests are from this host's, either way."
SCHEMA_HELP = "What of the live schema differs from what the migrations make: `gueststore check` names it."
SPOOL_HELP = "From when the spool got a group's oldest frame to its fsync: what an acknowledgement waits for."
LAG_HELP = "From the receipt of a batch's oldest frame to its commit."


class VmMetrics:
    """Metrics of libvirt and of the VM reconciler. `registry` None: metrics that nobody scrapes."""

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
        self._sources: list[Callable[[], Sequence[Family]]] = []

    def add_source(self, families: Callable[[], Sequence[Family]]) -> None:
        """Add a function that returns further metric families at each scrape."""
        self._sources.append(families)

    def families(self) -> list[Family]:
        """List the families of all sources."""
        return [family for families in self._sources for family in families()]


class FilterMetrics:
    """Metrics of the filter reconciler. `registry` None: metrics that nobody scrapes."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        self.desired = gauge("guestd_filters_wanted", "Filters that this host should have: rows and machine filters.")
        self.in_force = gauge("guestd_filters_in_force", "Of those, filters that libvirt has as desired.")
        self.pending = gauge("guestd_filters_pending", "Of those, filters that are not in force.")
        self.held = gauge("guestd_filters_held", "1 while a plan needs guestd apply --yes.")
        self.drift = counter("guestd_filters_drift", "Filters in force that somebody else changed or removed.")
        self.actions = counter("guestd_filters_actions", "Steps on filters and interfaces.", ["action", "outcome"])
        self.reports = gauge("guestd_filters_reports", "Open issues of filters, by kind.", ["kind"])
        self.lost = counter("guestd_filters_lost", "Filter reconciler restarts: libvirt or store lost.")
        self.run_seconds = Histogram(
            "guestd_filters_pass_seconds", "Time of one reconcile run.", registry=registry, buckets=LAG_BUCKETS
        )


class TimingMetrics:
    """How long frames take on their way."""

    def __init__(self, registry: CollectorRegistry) -> None:
        timed = partial(Histogram, registry=registry, buckets=COMMIT_BUCKETS)
        self.spool_commit = timed("guestd_spool_commit_seconds", "Time of one group commit to the spool.")
        self.to_spool = timed("guestd_receive_to_spool_seconds", SPOOL_HELP)
        self.copy = timed("guestd_copy_seconds", "Of a batch's transaction, the time of its COPY statements.")
        self.write = timed("guestd_write_seconds", "Time of one batch's transaction.")
        self.to_commit = Histogram("guestd_receive_to_commit_seconds", LAG_HELP, registry=registry, buckets=LAG_BUCKETS)


class Telemetry:
    """The metrics, each in its place; own registry, so that two daemons in one test do not meet."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        _identify(registry)
        gauge, counter = partial(Gauge, registry=registry), partial(Counter, registry=registry)
        # Channels
        self.channels = gauge("guestd_channels", "Channels that are to be read.")
        self.channels_connected = gauge("guestd_channels_connected", "Channels that are connected.")
        self.channels_lost = counter("guestd_channels_lost", "Connections that ended or failed.")
        self.unknown_machines = gauge(
            "guestd_channels_unknown_machine", "Channels not read: no such machine in the store."
        )
        self.not_collected = gauge("guestd_channels_not_collected", "Channels not read: their machines are set so.")
        self.machines = gauge("guestd_machines", "Machines that the store knows, as last heard.")
        # Intake
        self.frames_accepted = counter("guestd_frames_accepted", "Frames fsynced in the spool.")
        self.bytes_accepted = counter("guestd_accepted_bytes", "Bytes of those frames.")
        self.frames_refused = counter("guestd_frames_refused", REFUSED_HELP, ["reason"])
        self.frames_resent = counter("guestd_frames_duplicate", "Lines sent again that were on disk already.")
        self.agent_dropped = counter(
            "guestd_agent_lines_dropped",
            "Lines that agents no longer had: given up, or taken by another host of a migrated machine.",
        )
        self.other_messages = counter("guestd_other_messages", "Guest messages without metrics, by type.", ["type"])
        self.held_back = gauge("guestd_guests_held_back", "Guests over their budget, not read on from for now.")
        self.held_back_seconds = counter("guestd_held_back_seconds", "Time that guests were not read on from.")
        # Broker
        self.broker_connected = gauge("guestd_mqtt_connected", "1 while subscribed to the broker.")
        self.broker_lost = counter("guestd_mqtt_connections_lost", "Connections to the broker that ended or failed.")
        self.broker_sessions_lost = counter("guestd_mqtt_sessions_lost", SESSIONS_HELP)
        self.broker_received = counter("guestd_mqtt_messages_received", "Messages of QoS 1 that the broker delivered.")
        self.broker_acknowledged = counter("guestd_mqtt_messages_acknowledged", "Messages that it may forget.")
        self.broker_late = counter("guestd_mqtt_late_acknowledgements", LATE_HELP)
        self.broker_retained = counter("guestd_mqtt_retained_ignored", "Retained metrics, which are of the past.")
        self.broker_unacknowledged = gauge("guestd_mqtt_unacknowledged", "Messages on their way to the disk.")
        self.broker_missing = counter("guestd_mqtt_lines_missing", MISSING_HELP)
        self.broker_guests = gauge("guestd_mqtt_guests_online", "Guests that have said so and not left since.")
        self.broker_dropped = gauge("guestd_mqtt_broker_dropped_messages", DROPPED_HELP)
        # Spool
        self.spool_bytes = gauge("guestd_spool_bytes", "Bytes that wait for the store.")
        self.spool_limit = gauge("guestd_spool_limit_bytes", "At so many guestd stops reading.")
        self.spool_set_aside = gauge(
            "guestd_spool_damaged_files", "Damaged spool files that were set aside; what they hold may not be stored."
        )
        self.spool_frames = gauge("guestd_spool_frames", "Frames that wait for the store.")
        # Writer and store
        self.frames_done = counter("guestd_frames_done", DONE_HELP, ["outcome"])
        self.quarantined = counter("guestd_frames_quarantined", "Frames set aside, by reason.", ["reason"])
        self.quarantine_frames = gauge("guestd_quarantine_frames", "Frames that are set aside, of all hosts.")
        self.quarantine_limit = gauge("guestd_quarantine_limit_frames", "Beyond so many the oldest are dropped.")
        self.quarantine_dropped = counter("guestd_quarantine_dropped", "Frames dropped from there: too old, too many.")
        self.rows_written = counter("guestd_rows_written", "Rows committed, by table.", ["table"])
        self.adjusted = counter("guestd_values_adjusted", "What guests got wrong and guestd put right.", ["reason"])
        self.skew = Histogram("guestd_guest_clock_skew_seconds", SKEW_HELP, registry=registry, buckets=SKEW_BUCKETS)
        self.store_lost = counter("guestd_store_lost", "Failed or ended connections to the store.")
        self.key_conflicts = counter("guestd_key_conflicts", "Batches with keys that somebody else's rows had taken.")
        self.bugs = counter("guestd_bugs", "Frames that reached a bug of ours; each is in the log.")
        self.schema_differences = gauge("guestd_schema_differences", SCHEMA_HELP)
        self.timing = TimingMetrics(registry)
        self.vms = VmMetrics(registry)
        self.filters = FilterMetrics(registry)


def _identify(registry: CollectorRegistry) -> None:
    """Which process of which program this is."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    Gauge("guestd_build_info", "1; which guestd this is.", ["version"], registry=registry).labels(__version__).set(1)
