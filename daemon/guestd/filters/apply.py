"""One reconcile run over a host's filters: compare rows with libvirt, apply the plan, record the outcome.

Level-triggered: every action follows from what the run observes. A step that fails is reported, and the others are
done. A definition that libvirt refused is tried once more after them.
Each step is in the audit before it begins, and the store knows a filter as guestd's before libvirt does: whatever dies
in between, the next run can finish.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import structlog

from guestd.core.tasks import unwrapping_task_group
from guestd.filters.cache import FilterCache
from guestd.filters.diff import (
    FilterDiff,
    Permissions,
    diff_filters,
    find_hold,
    list_reports,
    plan_host_interfaces,
)
from guestd.filters.driver import FilterDriver
from guestd.filters.interface_plan import Attach, Bind
from guestd.filters.model import Filter
from guestd.filters.plan import Define, FilterAction, FilterPlan, FilterReport, Past, Remove, list_used
from guestd.filters.snapshot import HELD, FilterHostState, HostSnapshot, MachineRow
from guestd.filters.store import AuditStep, FilterStore

log = structlog.get_logger()

# Steps between two writes to the store: few enough that little is unknown after a crash.
STEPS_AT_ONCE = 50

Action = Define | Remove | Attach | Bind
DoneSteps = tuple[tuple[Action, str], ...]
FindFlushed = Callable[
    [HostSnapshot, Mapping[str, Filter]], Awaitable[tuple[Mapping[str, str], Sequence[FilterReport]]]
]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run did and left: numbers of filters, its steps with the outcome of each, and reports.

    `held` is the reason why the plan needs to be confirmed first, or None.
    """

    desired: int
    in_force: int
    steps: DoneSteps
    drifted: int
    held: str | None
    reports: tuple[FilterReport, ...]


class RecentChanges:
    """When filters were opened and lost, for the guard of the next plans. In memory: a restart allows as many again."""

    def __init__(self) -> None:
        self._opened: dict[str, float] = {}
        self._lost: dict[str, float] = {}

    def note(self, plan: FilterPlan, now: float) -> None:
        """A plan is applied now, by a monotonic clock, in seconds."""
        self._opened |= dict.fromkeys(plan.opened, now)
        self._lost |= dict.fromkeys(plan.lost, now)

    def get_past(self, now: float) -> Past:
        """What a plan must know of it now."""
        return Past(
            opened_seconds_ago={name: now - then for name, then in self._opened.items()},
            lost_seconds_ago={name: now - then for name, then in self._lost.items()},
        )


class FilterRuns:
    """Reconcile runs over one host, through one connection each to libvirt and the store.

    Between runs it keeps only the last snapshot of libvirt, for `run_quick`, and caches.
    """

    def __init__(
        self, driver: FilterDriver, store: FilterStore, permissions: Permissions, find_flushed: FindFlushed,
        recent: RecentChanges | None = None,
    ) -> None:  # fmt: skip
        self._driver = driver
        self._store = store
        self._permissions = permissions
        self._find_flushed = find_flushed
        self._recent = recent or RecentChanges()
        self._host: HostSnapshot | None = None
        self._cache = FilterCache()

    async def run_full(self, edited: asyncio.Event | None = None) -> RunResult:
        """Observe everything and reconcile it. While it does, setting `edited` applies an edit."""
        async with self._store.lock():
            steps, drifted = await self._observe(asyncio.Event() if edited is None else edited)
            assert self._host is not None
            result = await self._reconcile(await self._diff(self._host), is_fresh=True)
            self._cache.end_run()
            return replace(result, steps=(*steps, *result.steps), drifted=drifted + result.drifted)

    async def run_quick(self) -> RunResult:
        """Apply changed rows to libvirt as it was last observed; a plan with removals takes a new snapshot first."""
        if self._host is None:
            return await self.run_full()
        async with self._store.lock():
            return await self._run_quick(self._host)

    async def _run_quick(self, host: HostSnapshot) -> RunResult:
        diff = await self._diff(host)
        if is_fresh := any(isinstance(action, Remove) for action in diff.plan.actions):
            self._host = await self._driver.observe(self._cache)
            diff = await self._diff(self._host)
        return await self._reconcile(diff, is_fresh=is_fresh)

    async def _observe(self, edited: asyncio.Event) -> tuple[DoneSteps, int]:
        """Take a new snapshot of libvirt; returns the steps done meanwhile, and how many of them were drift.

        A snapshot of a thousand filters takes half a second. Edits that arrive meanwhile are applied to the one before.
        """
        before, drifted = self._host, 0
        steps: DoneSteps = ()
        async with unwrapping_task_group() as tasks:
            observing = tasks.create_task(self._driver.observe(self._cache), name="filters-snapshot")
            observing.add_done_callback(lambda _: edited.set())
            while before is not None and self._host is before:
                await edited.wait()
                edited.clear()
                if observing.done():  # the rows that are read next include the latest edit
                    break
                result = await self._run_quick(before)
                steps, drifted = (*steps, *result.steps), drifted + result.drifted
        if self._host is before:  # otherwise an edit took another snapshot since
            self._host = host = observing.result()
            for name in {_name(action) for action, _ in steps}:
                assert before is not None
                _copy_filter(name, before.observed.filters, host.observed.filters)
        return steps, drifted

    async def _diff(self, host: HostSnapshot) -> FilterDiff:
        store, states = await self._store.read_snapshot(self._cache), await self._store.read_states()
        # On a thread: a thousand new filters take a second, and ingest must not wait for them.
        past = self._recent.get_past(time.monotonic())
        return await asyncio.to_thread(diff_filters, store, states, host, self._permissions.guard, self._cache, past)

    async def _reconcile(self, diff: FilterDiff, *, is_fresh: bool) -> RunResult:
        held = find_hold(diff.plan, self._permissions.confirmed)
        if not held:
            self._recent.note(diff.plan, time.monotonic())
        planned = diff.plan.actions
        drifted = sum(isinstance(each, Define) and diff.explain_define(each).startswith("drift") for each in planned)
        steps = await self._apply_definitions(() if held else planned, diff)
        flushed: Mapping[str, str] = {}
        kernel_reports: Sequence[FilterReport] = ()
        if self._permissions.attach != "off":
            flushed, kernel_reports = await self._find_flushed(diff.host, diff.desired.filters)
        interfaces = plan_host_interfaces(diff, flushed, self._permissions)
        attached = await self._apply(interfaces.actions, diff)
        if attached:
            diff = replace(diff, host=await self._driver.observe(self._cache))
            self._host = diff.host
        failed = [(action, outcome) for action, outcome in [*steps, *attached] if outcome != "done"]
        for action, outcome in failed:
            log.warning(
                "filter step failed, the other steps are done; the next run retries it", step=str(action), error=outcome
            )
        failures = {_name(action): outcome for action, outcome in failed}
        names = [*map(_name, diff.plan.actions), *diff.plan.opened] if held else []
        held_names = dict.fromkeys(names, f"{HELD if diff.plan.needs_confirmation else ''}{held}")
        await self._write_states(diff, held_names | failures, is_fresh=is_fresh)
        reports = [*list_reports(diff, held), *kernel_reports, *interfaces.reports]
        reports += [FilterReport("failed", name, text) for name, text in failures.items()]
        return RunResult(
            desired=len(diff.desired.filters) + len(diff.compiled.problems),
            in_force=sum(map(diff.is_in_force, diff.desired.filters)),
            steps=(*steps, *attached),
            drifted=drifted,
            held=held,
            reports=tuple(reports),
        )

    async def _apply_definitions(self, actions: Sequence[FilterAction], diff: FilterDiff) -> list[tuple[Action, str]]:
        """As `_apply`; repeats definitions that libvirt refused, where others succeeded after them.

        libvirt installs a changed filter for each running machine that includes it, and refuses it if one of them lacks
        an address that the filter names now. The machine filters, which pass the addresses, come after it.
        """
        outcomes = await self._apply(actions, diff)
        refused = [
            number
            for number, (action, outcome) in enumerate(outcomes)
            if isinstance(action, Define) and outcome != "done" and any(each == "done" for _, each in outcomes[number:])
        ]
        repeated = await self._apply([outcomes[number][0] for number in refused], diff)
        for number, outcome in zip(refused, repeated, strict=True):
            outcomes[number] = outcome
        return outcomes

    async def _apply(self, actions: Sequence[Action], diff: FilterDiff) -> list[tuple[Action, str]]:
        """One libvirt call after the other; returns each action with its outcome."""
        outcomes: list[tuple[Action, str]] = []
        for start in range(0, len(actions), STEPS_AT_ONCE):
            chunk = actions[start : start + STEPS_AT_ONCE]
            steps = [_audit_step(action, diff) for action in chunk]
            defined = [(each.definition.name, each.definition.uuid) for each in chunk if isinstance(each, Define)]
            await self._store.begin_steps(steps, defined)
            results: dict[str, str] = {step.id: "not done: libvirt connection lost before this step" for step in steps}
            try:
                for step, action in zip(steps, chunk, strict=True):
                    results[step.id] = "no_answer: libvirt may have done it"
                    results[step.id] = await self._perform(action, diff.host) or "done"
                    outcomes.append((action, results[step.id]))
            finally:
                await self._store.end_steps(results)
            if len(actions) > STEPS_AT_ONCE:
                log.info("applying filter steps to libvirt", done=start + len(chunk), total=len(actions))
        return outcomes

    async def _perform(self, action: Action, host: HostSnapshot) -> str | None:
        """One libvirt call; returns why it failed, or None."""
        there = host.observed.filters
        match action:
            case Define(definition=definition):
                error = await self._define(definition, host)
            case Remove(name=name, uuid=uuid):
                users = sorted(each.name for each in there.values() if any(name == to.target for to in each.references))
                error = f"{users[0]} still includes it" if users else await self._driver.remove(name, uuid)
                if error is None:
                    there.pop(name, None)
            case Attach():
                error = await self._driver.attach(action)
            case Bind():
                error = await self._driver.bind(action)
        return error

    async def _define(self, definition: Filter, host: HostSnapshot) -> str | None:
        missing = [each.target for each in definition.references if each.target not in host.observed.filters]
        if missing:
            return f"it includes {missing[0]}, which libvirt does not have"
        installed = await self._driver.define(definition)
        if isinstance(installed, str):
            return installed
        host.observed.filters[definition.name] = installed
        return None if installed == definition else "libvirt accepted it, and has another definition than it was given"

    async def _write_states(self, diff: FilterDiff, problems: Mapping[str, str], *, is_fresh: bool) -> None:
        states = self._list_states(diff, problems)
        changed = [
            state
            for state in states
            if (old := diff.states.get((state.name, state.uuid))) is None or replace(old, is_known=False) != state
        ]
        kept = {(state.name, state.uuid) for state in states}
        there = {(each.name, each.uuid) for each in diff.host.observed.filters.values()}
        # An older snapshot deletes no state: a concurrent `guestd apply` may have defined the filter since.
        await self._store.write_states(changed, diff.states.keys() - kept - there if is_fresh else ())
        bound = diff.host.observed.bound
        machines = [each for each in diff.machines if self._is_open(diff, each, bound)]
        await self._store.mark_ports_open((each.id, port) for each in machines for port in each.ports)

    def _is_open(self, diff: FilterDiff, machine: MachineRow, bound: frozenset[str]) -> bool:
        """Whether the ports of a machine are open: libvirt has its machine filter, and an interface names it."""
        name = diff.compiled.machine_filters[machine.id].name
        return bool(machine.ports) and name in bound and diff.is_in_force(name)

    def _list_states(self, diff: FilterDiff, problems: Mapping[str, str]) -> list[FilterHostState]:
        used = list_used(diff.host.observed)
        texts = {each.name: each.text for each in diff.plan.reports if each.kind in ("refused", "clash")}
        texts |= problems
        states = [
            FilterHostState(
                name=name,
                uuid=each.uuid,
                is_known=False,
                digest=diff.digests[name] if diff.is_in_force(name) else None,
                is_bound=name in used,
                problem=texts.get(name),
            )
            for name, each in diff.desired.filters.items()
        ]
        for row in diff.store.filters:
            name = row.internal_name
            if row_problems := diff.compiled.problems.get(name):
                text = "; ".join(map(str, row_problems))
                states.append(FilterHostState(name, row.uuid, False, None, name in used, text))
        return states


def _copy_filter(name: str, source: Mapping[str, Filter], target: dict[str, Filter]) -> None:
    """Make `target` have of a filter what `source` has."""
    if name in source:
        target[name] = source[name]
    else:
        target.pop(name, None)


def _name(action: Action) -> str:
    match action:
        case Define(definition=definition):
            return definition.name
        case Remove(name=name) | Attach(filter=name) | Bind(filter=name):
            return name


def _audit_step(action: Action, diff: FilterDiff) -> AuditStep:
    name, owners = _name(action), diff.get_owners()
    match action:
        case Define():
            reason = diff.explain_define(action)
        case Attach():
            reason = str(action)
        case Remove() | Bind():
            reason = action.why
    return AuditStep(str(uuid4()), owners.get(name), name, type(action).__name__.lower(), reason)


async def assume_kernel_unchanged(
    _host: HostSnapshot, _desired: Mapping[str, Filter]
) -> tuple[Mapping[str, str], Sequence[FilterReport]]:
    """A `FindFlushed` for processes that cannot inspect the kernel's rules."""
    return {}, ()
