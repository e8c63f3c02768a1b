"""One pass over a host's filters: rows and libvirt compared, the calls that lead from one to the other, their outcome.

Level-triggered: what is done follows from what is seen now, and a step that fails is told and leaves the others be.
Every step is in the audit before it begins, and a filter is known to be guestd's before libvirt hears of it: whoever
dies in between is followed by somebody who can finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import structlog

from guestd.core.tasks import unwrapping_task_group
from guestd.filters import plan
from guestd.filters.cache import Memory
from guestd.filters.desired import MachineRow
from guestd.filters.diff import Allowed, Compared, compare, compare_interfaces, digest, reports_of
from guestd.filters.driver import Look, NWFilters
from guestd.filters.interface_plan import Attach, Bind
from guestd.filters.model import Filter
from guestd.filters.plan import Define, Remove, Report
from guestd.filters.store import FilterStore, HostState, Step

log = structlog.get_logger()

# Steps between two writes to the store: few enough that little is unknown after a crash.
STEPS_AT_ONCE = 50
REPORT_KINDS = (
    "refused",
    "clash",
    "failed",
    "foreign",
    "used",
    "held",
    "unenforceable",
    "unattached",
    "taken",
    "blind",
)

Action = Define | Remove | Attach | Bind
Steps = tuple[tuple[Action, str], ...]
Flushed = Callable[[Look, Mapping[str, Filter]], Awaitable[tuple[Mapping[str, str], Sequence[Report]]]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass has found and left: counts of filters, what it did (with the outcome of each), what to tell."""

    wanted: int
    in_force: int
    done: Steps
    drifted: int
    held: str | None
    reports: tuple[Report, ...]


class Passes:
    """Passes over one host, through one connection each to libvirt and the store; remembers libvirt between them."""

    def __init__(self, driver: NWFilters, store: FilterStore, allowed: Allowed, flushed: Flushed) -> None:
        self._driver = driver
        self._store = store
        self._allowed = allowed
        self._flushed = flushed
        self._look: Look | None = None
        self._memory = Memory()
        self._digests: dict[str, tuple[Filter, str]] = {}

    async def full(self, edited: asyncio.Event | None = None) -> Outcome:
        """Look at everything, and put it right; whoever sets `edited` while it is looked at need not wait for that."""
        async with self._store.alone():
            done, drifted = await self._looked(asyncio.Event() if edited is None else edited)
            assert self._look is not None
            outcome = await self._once(await self._compared(self._look), is_fresh=True)
            self._memory.end_pass()
            return replace(outcome, done=(*done, *outcome.done), drifted=drifted + outcome.drifted)

    async def quick(self) -> Outcome:
        """Put right what follows from changed rows, libvirt being as it was; nothing is removed by memory alone."""
        if self._look is None:
            return await self.full()
        async with self._store.alone():
            return await self._quick(self._look)

    async def _quick(self, look: Look) -> Outcome:
        found = await self._compared(look)
        if is_fresh := any(isinstance(action, Remove) for action in found.plan.actions):
            self._look = await self._driver.look(self._memory)
            found = await self._compared(self._look)
        return await self._once(found, is_fresh=is_fresh)

    async def _looked(self, edited: asyncio.Event) -> tuple[Steps, int]:
        """Look at all that libvirt has; what was done meanwhile, and how much of it was drift.

        To look at a thousand filters takes half a second, in which edits are followed with what the look before found.
        """
        before, drifted = self._look, 0
        done: Steps = ()
        async with unwrapping_task_group() as tasks:
            looking = tasks.create_task(self._driver.look(self._memory), name="filters-look")
            looking.add_done_callback(lambda _: edited.set())
            while before is not None and self._look is before:
                await edited.wait()
                edited.clear()
                if looking.done():  # what was edited just now is among the rows that are read next
                    break
                outcome = await self._quick(before)
                done, drifted = (*done, *outcome.done), drifted + outcome.drifted
        if self._look is before:  # else the edit took another look since
            self._look = look = looking.result()
            for name in {_name(action) for action, _ in done}:
                assert before is not None
                _copy(name, before.seen.filters, look.seen.filters)
        return done, drifted

    async def _compared(self, look: Look) -> Compared:
        rows, states = await self._store.rows(self._memory), await self._store.states()
        # On a thread: of many filters that are new it takes a second, and guests would wait.
        return await asyncio.to_thread(compare, rows, states, look, self._allowed.guard, self._memory)

    async def _once(self, found: Compared, *, is_fresh: bool) -> Outcome:
        held = None if self._allowed.is_confirmed else found.plan.guarded
        actions = () if held else found.plan.actions
        drifted = sum(isinstance(each, Define) and found.why(each).startswith("drift") for each in found.plan.actions)
        done = await self._carry_out(actions, found)
        flushed: Mapping[str, str] = {}
        reports: Sequence[Report] = ()
        if self._allowed.attach != "off":
            flushed, reports = await self._flushed(found.look, found.wanted.filters)
        attaching = compare_interfaces(found, flushed, self._allowed)
        attached = await self._carry_out(attaching.actions, found)
        if attached:
            found = replace(found, look=await self._driver.look(self._memory))
            self._look = found.look
        failures = {_name(action): outcome for action, outcome in [*done, *attached] if outcome != "done"}
        held_names = {_name(action): held for action in found.plan.actions} if held else {}
        await self._settle(found, held_names | failures, is_fresh=is_fresh)
        told = [*reports_of(found), *reports, *attaching.reports]
        told += [Report("failed", name, text) for name, text in failures.items()]
        return Outcome(
            wanted=len(found.wanted.filters) + len(found.asked.problems),
            in_force=sum(map(found.is_in_force, found.wanted.filters)),
            done=(*done, *attached),
            drifted=drifted,
            held=held,
            reports=tuple(each for each in told if held or each.kind != "held"),
        )

    async def _carry_out(self, actions: Sequence[Action], found: Compared) -> list[tuple[Action, str]]:
        """One call of libvirt after the other; each with what came of it."""
        outcomes: list[tuple[Action, str]] = []
        for start in range(0, len(actions), STEPS_AT_ONCE):
            chunk = actions[start : start + STEPS_AT_ONCE]
            steps = [_step(action, found) for action in chunk]
            defined = [(each.definition.name, each.definition.uuid) for each in chunk if isinstance(each, Define)]
            await self._store.begin(steps, defined)
            results: dict[str, str] = {step.id: "not done: libvirt went away before" for step in steps}
            try:
                for step, action in zip(steps, chunk, strict=True):
                    results[step.id] = "no_answer: libvirt may have done it"
                    results[step.id] = await self._perform(action, found.look) or "done"
                    outcomes.append((action, results[step.id]))
            finally:
                await self._store.end(results)
            if len(actions) > STEPS_AT_ONCE:
                log.info("filters are being put into libvirt", done=start + len(chunk), of=len(actions))
        return outcomes

    async def _perform(self, action: Action, look: Look) -> str | None:
        """One call; why it was not done."""
        there = look.seen.filters
        match action:
            case Define(definition=definition):
                refused = await self._define(definition, look)
            case Remove(name=name, uuid=uuid):
                users = sorted(each.name for each in there.values() if any(name == to.target for to in each.references))
                refused = f"{users[0]} still includes it" if users else await self._driver.remove(name, uuid)
                if refused is None:
                    there.pop(name, None)
            case Attach():
                refused = await self._driver.attach(action)
            case Bind():
                refused = await self._driver.bind(action)
        if refused is not None:
            log.warning("libvirt's filters: a step failed", what=str(action), error=refused)
        return refused

    async def _define(self, definition: Filter, look: Look) -> str | None:
        missing = [each.target for each in definition.references if each.target not in look.seen.filters]
        if missing:
            return f"it includes {missing[0]}, which libvirt does not have"
        has = await self._driver.define(definition)
        if isinstance(has, str):
            return has
        look.seen.filters[definition.name] = has
        return None if has == definition else "libvirt took it, and has something else than it was told"

    async def _settle(self, found: Compared, problems: Mapping[str, str], *, is_fresh: bool) -> None:
        states = self._states(found, problems)
        changed = [
            state
            for state in states
            if (old := found.known.get((state.name, state.uuid))) is None or replace(old, is_known=False) != state
        ]
        kept = {(state.name, state.uuid) for state in states}
        there = {(each.name, each.uuid) for each in found.look.seen.filters.values()}
        # By an old look alone nothing is forgotten: somebody else's `guestd apply` may have defined it since.
        await self._store.settle(changed, found.known.keys() - kept - there if is_fresh else ())
        bound = found.look.seen.bound
        machines = [each for each in found.here if self._is_open(found, each, bound)]
        await self._store.open_ports((each.id, port) for each in machines for port in each.ports)

    def _is_open(self, found: Compared, machine: MachineRow, bound: frozenset[str]) -> bool:
        """Whether a machine's own filter holds: libvirt has it, and an interface names it."""
        name = found.asked.umbrellas[machine.id].name
        return bool(machine.ports) and name in bound and found.is_in_force(name)

    def _states(self, found: Compared, problems: Mapping[str, str]) -> list[HostState]:
        bound = plan.included(found.look.seen)
        refused = {each.name: each.text for each in found.plan.reports if each.kind in ("refused", "clash")}
        refused |= problems
        states = [
            HostState(
                name, each.uuid, False, self._digest(each) if found.is_in_force(name) else None, name in bound,
                refused.get(name),
            )
            for name, each in found.wanted.filters.items()
        ]  # fmt: skip
        for row in found.rows.filters:
            if exc := found.asked.problems.get(row.internal_name):
                name = row.internal_name
                states.append(HostState(name, row.uuid, False, None, name in bound, "; ".join(map(str, exc))))
        return states

    def _digest(self, each: Filter) -> str:
        before = self._digests.get(each.name)
        if before is None or (before[0] is not each and before[0] != each):
            before = self._digests[each.name] = (each, digest(each))
        return before[1]


def _copy(name: str, of: Mapping[str, Filter], to: dict[str, Filter]) -> None:
    """Have `to` say of a filter what `of` says."""
    if name in of:
        to[name] = of[name]
    else:
        to.pop(name, None)


def _name(action: Action) -> str:
    match action:
        case Define(definition=definition):
            return definition.name
        case Remove(name=name) | Attach(filter=name) | Bind(filter=name):
            return name


def _step(action: Action, found: Compared) -> Step:
    name, owners = _name(action), found.owners()
    exc = found.why(action) if isinstance(action, Define) else str(action) if isinstance(action, Attach) else action.why
    return Step(str(uuid4()), owners.get(name), name, type(action).__name__.lower(), exc)


async def nothing_flushed(_look: Look, _filters: Mapping[str, Filter]) -> tuple[Mapping[str, str], Sequence[Report]]:
    """For whoever may not look at the kernel's rules."""
    return {}, ()
