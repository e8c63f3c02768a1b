"""The VM reconciler, a level-triggered loop: observe, plan, apply, then sleep until the next event or timer.

libvirt's events, a changed desired state and the timer only wake it; what it does follows from what it then observes.
After any failure it stops, backs off and starts over: no step is resumed, earlier attempts are read from the audit.
While libvirt or the store is unavailable it writes nothing; ingest does not depend on it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import structlog

from guestd.core.bugs import BugLog
from guestd.core.errors import RowsRejected, SourceLost, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry, unwrapping_task_group, wait_for_event, warn_once
from guestd.hypervisor.blocking import NotSent
from guestd.hypervisor.domains import Domain
from guestd.hypervisor.driver import Hypervisor, Target
from guestd.telemetry.registry import VmMetrics
from guestd.vms.guard import note_begun
from guestd.vms.identity import HostIdentity
from guestd.vms.model import (
    REPORT_KINDS,
    Absence,
    Attempts,
    Claim,
    Destroy,
    DropLease,
    PowerAction,
    Resume,
    Shutdown,
    Start,
    Suspend,
    VmPlan,
    VmPolicy,
    VmReport,
    VmRow,
    Write,
)
from guestd.vms.plan import find_absences, keep_recent_attempts, plan_vms
from guestd.vms.power import record_accepted, record_failed
from guestd.vms.reported import Reported
from guestd.vms.store import (
    HostLocked,
    HostRefused,
    VmStore,
    listen_for_desired_state,
    open_vm_store,
    read_host_machines,
)

log = structlog.get_logger()

RECONCILE_SECONDS = 10.0
# A second less than the interval, so that every run that the timer starts also reports the host as live.
HEARTBEAT_SECONDS = 9.0
# After the store was lost, or restored from a backup, the other hosts have as long to report what they run, before this
# one starts anything: they connect again within 5 s. The same for a machine that this host has just claimed.
SETTLE_SECONDS = 15.0
# An action that was not due any more when its turn came is planned again after this.
AGAIN_SECONDS = 1.0
# What the store allowed is sent to libvirt no later than this after guestd asked the store: a store or a libvirtd that
# hangs, or a guestd that was stopped, may answer when nobody wants it any more.
SEND_SECONDS = 10.0
UNKNOWN_HOST = UUID(int=0)
WENT_BACK = "the store was restored from a backup, or lost transactions"
# Which of these it is cannot be told: in the last two cases what is desired may be what nobody wants of these domains.
NEW_ROW = "the row of this host was deleted, or the store is another one, or restored from a backup of before this host"
_FAILURES = (SourceLost, StoreUnavailable, RowsRejected)


class VmReconciler:
    """Reconciles the machines of one host. `policy.host_id` is set once the store has assigned it."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        *,
        dsn: str,
        host_name: str,
        policy: VmPolicy,
        metrics: VmMetrics,
        settle_seconds: float = SETTLE_SECONDS,
        send_seconds: float = SEND_SECONDS,
        reports_file: Path | None = None,
    ) -> None:
        """`reports_file` remembers how often this host has reported to the store; None: only this process does."""
        self._hypervisor = hypervisor
        self._dsn = dsn
        self._host_name = host_name
        self._policy = policy
        self._settle_seconds = settle_seconds
        self._send_seconds = send_seconds
        self._metrics = metrics
        self._wake = hypervisor.subscribe()
        self._used_snapshot: float | None = None
        self._attempts: dict[UUID, Attempts] = {}
        self._absences: dict[UUID, Absence] = {}
        self._acting: set[UUID] = set()
        # When the last action of each machine ended: a snapshot that began before may not show what it did.
        self._acted_at: dict[UUID, float] = {}
        self._claimed_at: dict[UUID, float] = {}
        self._bugs = BugLog()
        self._reports: frozenset[VmReport] = frozenset()
        self._heartbeat_at = float("-inf")
        self._reported = Reported(reports_file, host=host_name, uri=hypervisor.uri)
        # The connection to libvirt whose host is known to be that of the store.
        self._identified: int | None = None
        self.error: str | None = "not started yet"

    async def run(self) -> None:
        """Reconcile; never returns."""

        def on_failure(exc: Exception, delay_seconds: float) -> None:
            if str(exc) != self.error:
                emit = log.error if isinstance(exc, HostLocked | HostRefused | RowsRejected) else log.warning
                emit("VM reconciler stopped, retrying", error=str(exc), retry_seconds=round(delay_seconds, 1))
            self.error = str(exc)
            self._metrics.reconciler_lost.inc()

        await run_with_retry(
            self._reconcile_until_failure, expected=_FAILURES, backoff=Backoff(cap_seconds=5), on_failure=on_failure
        )

    async def watch_desired_state(self) -> None:
        """Wake the loop when the desired state of a machine changes; never returns."""
        await run_with_retry(
            lambda: listen_for_desired_state(self._dsn, self._wake),
            expected=(StoreUnavailable, RowsRejected),
            backoff=Backoff(cap_seconds=5),
            on_failure=warn_once("LISTEN lost, reconciling by timer until it is back"),
        )

    async def _reconcile_until_failure(self) -> None:
        version = await self._hypervisor.get_version()
        uri = self._hypervisor.uri
        async with open_vm_store(self._dsn, name=self._host_name, uri=uri, version=version) as store:
            starts_from = time.monotonic() + self._settle_seconds
            self._policy = replace(self._policy, host_id=store.host_id, starts_from=starts_from)
            log.info("VM reconciler started", host=self._host_name, uri=uri, id=str(store.host_id))
            self._used_snapshot = self._identified = None
            # What this process knows is more recent than the stored: attempts, and when its changes began.
            self._attempts = await store.read_attempts(time.monotonic()) | self._attempts
            self._policy = replace(self._policy, begun={**await store.read_begun(), **self._policy.begun})
            async with unwrapping_task_group() as actions:
                while True:
                    seconds = await self._reconcile_once(store, actions)
                    await wait_for_event(self._wake, seconds)

    async def _reconcile_once(self, store: VmStore, actions: asyncio.TaskGroup) -> float:
        """Observe, plan, apply; returns the seconds until the next run if no event arrives."""
        if self._hypervisor.observed_at == self._used_snapshot:
            await self._hypervisor.observe()
        if self._identified != self._hypervisor.connection_count:
            await self._identify(store)
            # What was observed before may be of an earlier connection.
            await self._hypervisor.observe()
            if self._identified != self._hypervisor.connection_count:
                return 0.0  # libvirt was connected again meanwhile
        began = time.monotonic()
        self._used_snapshot, domains = self._hypervisor.observed_at, self._hypervisor.domains
        stops = self._hypervisor.stops
        self._wake.clear()
        machines, silent_hosts = await self._read_machines(store, domains)
        self._attempts = keep_recent_attempts(self._attempts, machines, domains, began)
        self._absences = find_absences(
            self._absences,
            machines,
            domains,
            stops=stops,
            host_id=store.host_id,
            now=began,
        )
        plan = plan_vms(
            machines,
            domains,
            attempts=self._attempts,
            absences=self._absences,
            now=began,
            policy=replace(self._policy, silent_hosts=silent_hosts),
        )
        written, unwritten = await self._write(store, plan)
        due = [each for each in plan.actions if each.machine_id not in self._acting]
        due = [each for each in due if not self._is_just_claimed(each, began)]
        begun = note_begun(due, {machine.id: machine for machine in machines}, began, self._policy)
        self._policy = replace(self._policy, begun=begun)
        for action in due:
            self._acting.add(action.machine_id)
            actions.create_task(self._perform_isolated(store, action), name=f"vms-{action.name}")
        self._report((*plan.reports, *unwritten))
        # What was written is lost with a report, if the store loses it: it is then noticed.
        if written or began - self._heartbeat_at >= HEARTBEAT_SECONDS:
            await self._reported.note(store.host_id, await store.touch_host(self._reported.reports))
            self._heartbeat_at = began
        self.error = None
        self._metrics.reconcile_seconds.observe(time.monotonic() - began)
        # A claimed machine can be acted on only after its row has been read again.
        if any(isinstance(write, Claim) for write in written):
            return 0.0
        return min(RECONCILE_SECONDS, plan.recheck_seconds or RECONCILE_SECONDS)

    async def _identify(self, store: VmStore) -> None:
        """Check that this is the host of the store's row; raises HostRefused if it may be another one."""
        connection = self._hypervisor.connection_count
        uuid = await self._hypervisor.get_host_uuid()
        if await store.identify(HostIdentity(uuid, self._policy.host_machine, self._policy.host_boot)):
            log.warning(
                "libvirt has made up another UUID for this host: after the next restart of the host guestd takes it "
                "for another one; set host_uuid or host_uuid_source in libvirtd.conf (docs/vms.md)",
                uuid=uuid,
            )
        self._identified = connection

    async def _read_machines(self, store: VmStore, domains: Sequence[Domain]) -> tuple[list[VmRow], tuple[str, ...]]:
        """Read the machines, and the hosts that do not report.

        If the store went back, first hold all that is desired.
        """
        machines, silent_hosts = await store.read_machines(domains)
        # After the machines: if these are of a store that was restored in between, so is this.
        reports, known = await store.read_reports(), self._reported.reports
        is_new = self._reported.host_id not in (None, store.host_id)
        if reports >= known and not is_new:
            await self._reported.note(store.host_id, reports)
            return machines, silent_hosts
        why = NEW_ROW if is_new else WENT_BACK
        count, reports_now = await store.hold_restored(
            domains, expected=reports, known=0 if is_new else known, is_new=is_new, why=why
        )
        await self._reported.note(store.host_id, reports_now)
        log.error(
            f"{why}: its desired states may be out of date, none that is not reached is acted on before it is "
            "confirmed, or set to another value and back; see guestd plan",
            machines=count, reports=reports, reports_known=known,
        )  # fmt: skip
        return await store.read_machines(domains)

    async def _write(self, store: VmStore, plan: VmPlan) -> tuple[list[Write], list[VmReport]]:
        writes = [write for write in plan.writes if not (isinstance(write, DropLease) and self._is_acted_on(write))]
        if not writes:
            return [], []
        written, unwritten = await store.write(writes)
        for write in writes:
            self._metrics.writes.labels(type(write).__name__).inc()
        self._metrics.writes_skipped.inc(len(writes) - len(written))
        for write in written:
            if isinstance(write, Claim):
                self._claimed_at[write.machine_id] = time.monotonic()
            log.info("VM row written", change=str(write), machine=str(write.machine_id))
        return written, unwritten

    def _is_acted_on(self, write: DropLease) -> bool:
        """Whether an action has begun that the snapshot may not show: it may be a start, which keeps its lease.

        A call that was given up may take effect yet, of whichever machine it is.
        """
        ended_at, began = self._acted_at.get(write.machine_id, float("-inf")), self._used_snapshot
        is_shown = began is not None and began > ended_at
        return write.machine_id in self._acting or not is_shown or self._hypervisor.stuck > 0

    def _is_just_claimed(self, action: PowerAction, now: float) -> bool:
        """Whether a machine is to start that this host has claimed a moment ago: it may run on a host that has not."""
        claimed_at = self._claimed_at.get(action.machine_id, float("-inf"))
        return isinstance(action, Start) and now - claimed_at < self._settle_seconds

    async def _perform_isolated(self, store: VmStore, action: PowerAction) -> None:
        """Perform one action; what fails in it costs only its machine, unless libvirt or the store is lost.

        The other actions of this host would be cancelled with it, and some of them have been sent.
        """
        try:
            await self._perform(store, action)
        except (SourceLost, StoreUnavailable):
            raise
        except Exception as exc:
            self._metrics.actions.labels(type(action).__name__.lower(), "bug").inc()
            self._bugs.error(
                "VM action failed unexpectedly, retrying; the other machines are not affected, report the traceback",
                exc,
                action=str(action),
                machine=str(action.machine_id),
            )

    async def _perform(self, store: VmStore, action: PowerAction) -> None:
        """Perform one action if it is still due when its turn has come: that may take a minute."""
        again_seconds = AGAIN_SECONDS
        try:
            async with self._hypervisor.action_slot():
                begun, target = None, _get_target(action, time.monotonic() + self._send_seconds)
                if self._hypervisor.is_current(target):
                    attempts = self._attempts.get(action.machine_id)
                    attempt = record_accepted(attempts, action, time.monotonic()).accepted
                    begun = await store.begin_action(
                        action, attempt, self._policy.host_boot, known=self._reported.reports
                    )
                # Without a row nothing is recorded: the domain was left alone.
                if begun is not None:
                    again_seconds = 0.0
                    event_id, reports = begun
                    # Before libvirt is called: a store that loses this action is noticed.
                    await self._reported.note(store.host_id, reports)
                    await self._perform_audited(store, action, target, event_id)
        finally:
            self._acting.discard(action.machine_id)
            self._acted_at[action.machine_id] = time.monotonic()
            asyncio.get_running_loop().call_later(again_seconds, self._wake.set)

    async def _perform_audited(self, store: VmStore, action: PowerAction, target: Target, event_id: UUID) -> None:
        """Perform an action whose audit row is written, and store its outcome."""
        log.info("VM action started", action=str(action), machine=str(action.machine_id))
        # If this task is cancelled, the call may have been made.
        result, error = "no_answer", "guestd did not wait for the answer"
        try:
            result, error = await self._call(action, target)
        finally:
            self._record(action, result, error)
        if isinstance(action, Start) and result in ("refused", "not_sent"):
            await store.delete_lease(action.machine_id)
        await store.end_action(event_id, result if result == "done" else f"{result}: {error}")

    async def _call(self, action: PowerAction, target: Target) -> tuple[str, str]:
        """Make the libvirt call of an action; returns done, refused, not_sent or no_answer, and the error."""
        try:
            error = await self._apply(action, target)
        except NotSent as exc:
            return "not_sent", str(exc)
        except SourceLost as exc:
            return "no_answer", str(exc)
        return ("done", "") if error is None else ("refused", error)

    def _record(self, action: PowerAction, result: str, error: str) -> None:
        """Record the result of an action: only what libvirt accepted counts as done."""
        self._metrics.actions.labels(type(action).__name__.lower(), result).inc()
        before, now = self._attempts.get(action.machine_id), time.monotonic()
        if result == "done":
            self._attempts[action.machine_id] = record_accepted(before, action, now)
            return
        self._attempts[action.machine_id] = record_failed(before, action, error, now)
        log.warning(
            "VM action failed, retrying after a delay",
            action=str(action),
            machine=str(action.machine_id),
            error=error,
        )

    async def _apply(self, action: PowerAction, target: Target) -> str | None:
        """Make the libvirt call of an action; returns libvirt's error message, None on success."""
        match action:
            case Start():
                error = await self._hypervisor.start(target)
            case Resume():
                error = await self._hypervisor.resume(target)
            case Suspend():
                error = await self._hypervisor.suspend(target)
            case Shutdown():
                error = await self._hypervisor.shutdown(target)
            case Destroy():
                error = await self._hypervisor.destroy(target)
            case _:
                raise AssertionError(action)
        return error

    def _report(self, reports: Sequence[VmReport]) -> None:
        """Log each report once when it is raised and once when it is resolved; count them by kind."""
        current = frozenset(reports)
        for report in current - self._reports:
            log.warning("VM issue raised", issue=str(report))
        for report in self._reports - current:
            log.info("VM issue resolved", issue=str(report))
        self._reports = current
        kinds = Counter(report.kind for report in reports)
        for kind in REPORT_KINDS:
            self._metrics.reports.labels(kind).set(kinds[kind])


def _get_target(action: PowerAction, send_until: float) -> Target:
    return Target(action.domain_uuid, action.name, action.state, action.boot, send_until)


async def preview_vm_plan(hypervisor: Hypervisor, *, dsn: str, host_name: str, policy: VmPolicy) -> VmPlan:
    """Plan what a reconciler that starts now would do, with a connected hypervisor; changes nothing."""
    # No debounce: a single plan cannot wait for a domain that is off, or gone, to come back.
    long_ago = float("-inf")
    domains: list[Domain] = [replace(domain, since=long_ago) for domain in await hypervisor.observe()]
    identity = HostIdentity(await hypervisor.get_host_uuid(), policy.host_machine, policy.host_boot)
    host_id, machines, silent_hosts, begun = await read_host_machines(
        dsn, name=host_name, uri=hypervisor.uri, identity=identity, domains=domains
    )
    policy = replace(policy, host_id=host_id or UNKNOWN_HOST, silent_hosts=silent_hosts, begun=begun)
    absences = find_absences({}, machines, domains, stops={}, host_id=policy.host_id, now=long_ago)
    return plan_vms(machines, domains, attempts={}, absences=absences, now=time.monotonic(), policy=policy)
