"""The one level-triggered loop: observe, plan, apply, sleep or be woken.

libvirt's events, a changed wish in the store and a timer only wake it; what it does follows from what it then sees.
After any failure it stops, backs off and looks again: no step is resumed; what was tried is read from the audit.
While libvirt or the store is away nothing is written, and ingest neither knows nor waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import structlog

from guestd.core import tasks
from guestd.core.errors import RowsRejected, SourceLost, StoreUnavailable
from guestd.core.tasks import Backoff, run_with_retry
from guestd.hypervisor.connection import Hypervisor
from guestd.hypervisor.domains import Domain
from guestd.vms import plan as vms
from guestd.vms.plan import (
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
from guestd.vms.store import HostLocked, VmStore, listen_for_desired_state, open_vm_store, read_host_machines

log = structlog.get_logger()

RECONCILE_SECONDS = 10.0
# Half a look less than a pass: every pass that is not woken early gives a sign of life.
HEARTBEAT_SECONDS = 9.0
NOBODY = UUID(int=0)
_FAILURES = (SourceLost, StoreUnavailable, RowsRejected)


@dataclass(frozen=True, slots=True)
class Counters:
    """What the loop counts; telemetry gives the functions."""

    passed: Callable[[float], None]  # seconds
    wrote: Callable[[str], None]  # kind of write
    acted: Callable[[str, str], None]  # action; done, refused or no_answer
    moved: Callable[[int], None]  # writes that found something else than they expected
    reports: Callable[[Sequence[VmReport]], None]
    lost: Callable[[], None]


class VmReconciler:
    """Keeps the machines of one host. `rules.host_id` is filled in when the store has told it."""

    def __init__(
        self, hypervisor: Hypervisor, *, dsn: str, host_name: str, rules: VmPolicy, counters: Counters
    ) -> None:
        self._hypervisor = hypervisor
        self._dsn = dsn
        self._host_name = host_name
        self._rules = rules
        self._counters = counters
        self._wake = hypervisor.subscribe()
        self._used_look: float | None = None
        self._tries: dict[UUID, Attempts] = {}
        self._acting: set[UUID] = set()
        self._reported: frozenset[VmReport] = frozenset()
        self._touched = float("-inf")
        self.error: str | None = "not begun yet"

    async def run(self) -> None:
        """Keep them, for ever."""

        def lost(exc: Exception, seconds: float) -> None:
            if str(exc) != self.error:
                say = log.error if isinstance(exc, HostLocked | RowsRejected) else log.warning
                say("machines are not being kept", error=str(exc), retry=round(seconds, 1))
            self.error = str(exc)
            self._counters.lost()

        await run_with_retry(self._life, expected=_FAILURES, backoff=Backoff(cap_seconds=5), on_failure=lost)

    async def watch_desired_state(self) -> None:
        """Wake the loop when what is wanted of a machine changes, for ever."""
        await run_with_retry(
            lambda: listen_for_desired_state(self._dsn, self._wake),
            expected=StoreUnavailable,
            backoff=Backoff(cap_seconds=5),
            on_failure=lambda exc, _: log.debug("wishes are not heard of", error=str(exc)),
        )

    async def _life(self) -> None:
        """From one failure to the next."""
        version = await self._hypervisor.version()
        async with open_vm_store(self._dsn, name=self._host_name, uri=self._hypervisor.uri, version=version) as store:
            self._rules = replace(self._rules, host_id=store.host_id)
            log.info("machines are kept", host=self._host_name, uri=self._hypervisor.uri, id=str(store.host_id))
            self._used_look = None
            # What this guestd remembers itself is newer.
            self._tries = await store.tries(time.monotonic()) | self._tries
            async with tasks.unwrapping_task_group() as actions:
                while True:
                    seconds = await self._pass(store, actions)
                    await tasks.wait_for_event(self._wake, seconds)

    async def _pass(self, store: VmStore, actions: asyncio.TaskGroup) -> float:
        """Look, plan, apply; gives the seconds after which to look again if nothing wakes us."""
        if self._hypervisor.observed_at == self._used_look:
            await self._hypervisor.observe()
        began = time.monotonic()
        self._used_look, domains = self._hypervisor.observed_at, self._hypervisor.domains
        self._wake.clear()
        machines = await store.machines([domain.name for domain in domains])
        self._tries = vms.keep_recent_attempts(self._tries, machines, domains, began)
        plan = vms.plan_vms(machines, domains, tries=self._tries, now=began, rules=self._rules)
        await self._write(store, plan)
        for action in plan.actions:
            if action.machine_id not in self._acting:
                self._acting.add(action.machine_id)
                actions.create_task(self._perform(store, action), name=f"vms-{action.name}")
        self._tell(plan.reports)
        if began - self._touched >= HEARTBEAT_SECONDS:
            await store.touch()
            self._touched = began
        self.error = None
        self._counters.passed(time.monotonic() - began)
        # A claim is a row that this host may act on only when it has read it again.
        if any(isinstance(write, Claim) for write in plan.writes):
            return 0.0
        return min(RECONCILE_SECONDS, plan.recheck_seconds or RECONCILE_SECONDS)

    async def _write(self, store: VmStore, plan: VmPlan) -> None:
        if not plan.writes:
            return
        moved = await store.write(plan.writes)
        self._counters.moved(moved)
        for write in plan.writes:
            self._counters.wrote(type(write).__name__)
            log.info("written", what=str(write), machine=str(write.machine_id))

    async def _perform(self, store: VmStore, action: PowerAction) -> None:
        """One action, from its row of the audit to what came of it."""
        try:
            attempt = vms.record_attempt(self._tries.get(action.machine_id), action, time.monotonic()).count
            event_id = await store.begin(action, attempt)
            if event_id is None:
                return
            log.info("acting", what=str(action), machine=str(action.machine_id))
            try:
                refused = await self._apply(action)
                result = "done" if refused is None else "refused"
            except SourceLost as exc:
                refused, result = str(exc), "no_answer"
            self._counters.acted(type(action).__name__.lower(), result)
            if refused is not None:
                log.warning("an action failed", what=str(action), machine=str(action.machine_id), error=refused)
            await store.end(event_id, "done" if refused is None else f"{result}: {refused}")
        finally:
            self._tries[action.machine_id] = vms.record_attempt(
                self._tries.get(action.machine_id), action, time.monotonic()
            )
            self._acting.discard(action.machine_id)
            self._wake.set()

    async def _apply(self, action: PowerAction) -> str | None:
        """One call of libvirt; what it refused."""
        match action:
            case Start():
                refused = await self._hypervisor.start(action.domain_uuid)
            case Resume():
                refused = await self._hypervisor.resume(action.domain_uuid)
            case Suspend():
                refused = await self._hypervisor.suspend(action.domain_uuid)
            case Shutdown():
                refused = await self._hypervisor.shutdown(action.domain_uuid)
            case Destroy():
                refused = await self._hypervisor.destroy(action.domain_uuid)
            case _:
                raise AssertionError(action)
        return refused

    def _tell(self, reports: Sequence[VmReport]) -> None:
        """Each report once, when it comes and when it goes."""
        found = frozenset(reports)
        for report in found - self._reported:
            log.warning("needs a look", what=str(report))
        for report in self._reported - found:
            log.info("needs no look any more", what=str(report))
        self._reported = found
        self._counters.reports(reports)


async def preview_vm_plan(hypervisor: Hypervisor, *, dsn: str, host_name: str, rules: VmPolicy) -> VmPlan:
    """What a loop that begins now would do, with a hypervisor that is connected; nothing is done."""
    # Off is off: there is nobody who could wait here for what comes of it.
    domains: list[Domain] = [replace(domain, since=float("-inf")) for domain in await hypervisor.observe()]
    names = [domain.name for domain in domains]
    host_id, machines = await read_host_machines(dsn, name=host_name, uri=hypervisor.uri, domains=names)
    rules = replace(rules, host_id=host_id or NOBODY)
    return vms.plan_vms(machines, domains, tries={}, now=time.monotonic(), rules=rules)
