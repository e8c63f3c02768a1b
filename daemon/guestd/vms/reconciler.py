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
from uuid import UUID

import structlog

from guestd.core.errors import RowsRejected, SourceLost, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry, unwrapping_task_group, wait_for_event, warn_once
from guestd.hypervisor.domains import Domain
from guestd.hypervisor.driver import Hypervisor
from guestd.telemetry.registry import VmMetrics
from guestd.vms.model import (
    REPORT_KINDS,
    Absence,
    Attempts,
    Claim,
    Destroy,
    PowerAction,
    Resume,
    Shutdown,
    Start,
    Suspend,
    VmPlan,
    VmPolicy,
    VmReport,
)
from guestd.vms.plan import find_absences, keep_recent_attempts, plan_vms, record_attempt
from guestd.vms.store import HostLocked, VmStore, listen_for_desired_state, open_vm_store, read_host_machines

log = structlog.get_logger()

RECONCILE_SECONDS = 10.0
# A second less than the interval, so that every run that the timer starts also reports the host as live.
HEARTBEAT_SECONDS = 9.0
UNKNOWN_HOST = UUID(int=0)
_FAILURES = (SourceLost, StoreUnavailable, RowsRejected)


class VmReconciler:
    """Reconciles the machines of one host. `policy.host_id` is set once the store has assigned it."""

    def __init__(
        self, hypervisor: Hypervisor, *, dsn: str, host_name: str, policy: VmPolicy, metrics: VmMetrics
    ) -> None:
        self._hypervisor = hypervisor
        self._dsn = dsn
        self._host_name = host_name
        self._policy = policy
        self._metrics = metrics
        self._wake = hypervisor.subscribe()
        self._used_snapshot: float | None = None
        self._attempts: dict[UUID, Attempts] = {}
        self._absences: dict[UUID, Absence] = {}
        self._acting: set[UUID] = set()
        self._reports: frozenset[VmReport] = frozenset()
        self._heartbeat_at = float("-inf")
        self.error: str | None = "not started yet"

    async def run(self) -> None:
        """Reconcile; never returns."""

        def on_failure(exc: Exception, delay_seconds: float) -> None:
            if str(exc) != self.error:
                emit = log.error if isinstance(exc, HostLocked | RowsRejected) else log.warning
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
            self._policy = replace(self._policy, host_id=store.host_id)
            log.info("VM reconciler started", host=self._host_name, uri=uri, id=str(store.host_id))
            self._used_snapshot = None
            # The attempts of this process are more recent than the stored ones.
            self._attempts = await store.read_attempts(time.monotonic()) | self._attempts
            async with unwrapping_task_group() as actions:
                while True:
                    seconds = await self._reconcile_once(store, actions)
                    await wait_for_event(self._wake, seconds)

    async def _reconcile_once(self, store: VmStore, actions: asyncio.TaskGroup) -> float:
        """Observe, plan, apply; returns the seconds until the next run if no event arrives."""
        if self._hypervisor.observed_at == self._used_snapshot:
            await self._hypervisor.observe()
        began = time.monotonic()
        self._used_snapshot, domains = self._hypervisor.observed_at, self._hypervisor.domains
        self._wake.clear()
        machines = await store.read_machines([domain.name for domain in domains])
        self._attempts = keep_recent_attempts(self._attempts, machines, domains, began)
        self._absences = find_absences(
            self._absences,
            machines,
            domains,
            stops=self._hypervisor.stops,
            host_id=store.host_id,
            now=began,
        )
        plan = plan_vms(
            machines, domains, attempts=self._attempts, absences=self._absences, now=began, policy=self._policy
        )
        await self._write(store, plan)
        for action in plan.actions:
            if action.machine_id not in self._acting:
                self._acting.add(action.machine_id)
                actions.create_task(self._perform(store, action), name=f"vms-{action.name}")
        self._report(plan.reports)
        if began - self._heartbeat_at >= HEARTBEAT_SECONDS:
            await store.touch_host()
            self._heartbeat_at = began
        self.error = None
        self._metrics.reconcile_seconds.observe(time.monotonic() - began)
        # A claimed machine can be acted on only after its row has been read again.
        if any(isinstance(write, Claim) for write in plan.writes):
            return 0.0
        return min(RECONCILE_SECONDS, plan.recheck_seconds or RECONCILE_SECONDS)

    async def _write(self, store: VmStore, plan: VmPlan) -> None:
        if not plan.writes:
            return
        written = await store.write(plan.writes)
        for write in plan.writes:
            self._metrics.writes.labels(type(write).__name__).inc()
        self._metrics.writes_skipped.inc(len(plan.writes) - len(written))
        for write in written:
            log.info("VM row written", change=str(write), machine=str(write.machine_id))

    async def _perform(self, store: VmStore, action: PowerAction) -> None:
        """Perform one action. What the store does not let begin is no attempt: the domain was left alone."""
        try:
            attempt = record_attempt(self._attempts.get(action.machine_id), action, time.monotonic())
            event_id = await store.begin_action(action, attempt.count)
            if event_id is not None:
                try:
                    await self._perform_audited(store, action, event_id)
                finally:
                    self._attempts[action.machine_id] = replace(attempt, at=time.monotonic())
        finally:
            self._acting.discard(action.machine_id)
            self._wake.set()

    async def _perform_audited(self, store: VmStore, action: PowerAction, event_id: UUID) -> None:
        """Perform an action whose audit row is written, and store its outcome."""
        log.info("VM action started", action=str(action), machine=str(action.machine_id))
        try:
            error = await self._apply(action)
            result = "done" if error is None else "refused"
        except SourceLost as exc:
            error, result = str(exc), "no_answer"
        self._metrics.actions.labels(type(action).__name__.lower(), result).inc()
        if error is not None:
            log.warning(
                "VM action failed, retrying after a delay",
                action=str(action),
                machine=str(action.machine_id),
                error=error,
            )
        await store.end_action(event_id, "done" if error is None else f"{result}: {error}")

    async def _apply(self, action: PowerAction) -> str | None:
        """Make the libvirt call of an action; returns libvirt's error message, None on success."""
        match action:
            case Start():
                error = await self._hypervisor.start(action.domain_uuid)
            case Resume():
                error = await self._hypervisor.resume(action.domain_uuid)
            case Suspend():
                error = await self._hypervisor.suspend(action.domain_uuid)
            case Shutdown():
                error = await self._hypervisor.shutdown(action.domain_uuid)
            case Destroy():
                error = await self._hypervisor.destroy(action.domain_uuid)
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


async def preview_vm_plan(hypervisor: Hypervisor, *, dsn: str, host_name: str, policy: VmPolicy) -> VmPlan:
    """Plan what a reconciler that starts now would do, with a connected hypervisor; changes nothing."""
    # No debounce: a single plan cannot wait for a domain that is off, or gone, to come back.
    long_ago = float("-inf")
    domains: list[Domain] = [replace(domain, since=long_ago) for domain in await hypervisor.observe()]
    names = [domain.name for domain in domains]
    host_id, machines = await read_host_machines(dsn, name=host_name, uri=hypervisor.uri, domains=names)
    policy = replace(policy, host_id=host_id or UNKNOWN_HOST)
    absences = find_absences({}, machines, domains, stops={}, host_id=policy.host_id, now=long_ago)
    return plan_vms(machines, domains, attempts={}, absences=absences, now=time.monotonic(), policy=policy)
