"""Filters that are wanted and filters that are seen to the calls that lead from one to the other.

Pure. What must hold after every single action of a plan, for guestd may die between any two:

* Nothing is named that is not guestd's: a filter is its own when its name has the prefix and it is either the very
  row's (same name, same uuid) or one that guestd is known to have defined on this host.
* No filter is undefined that an interface uses, directly or through others: no machine is without its rules for a
  moment. So a filter is redefined in place, under the same name and uuid.
* Whatever a filter includes is there before it, and is what it will be: definitions go targets first, through filters
  that stay as they are as well, for what one of those leads to now may lead back. Removals go referrers first.
* What is refused (a row that libvirt would not take as it is, a cycle, a missing target, filters that libvirt cannot
  lay together) stays as libvirt last had it.

A uuid cannot move to another name, nor a name to another uuid: there the old filter and all that include it are removed
first, which is only done where no interface uses any of them. What that waits for may be in the same plan: it is done
after the next look.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from guestd.filters import ordering
from guestd.filters.chain_conflict import Clash
from guestd.filters.desired import Asked
from guestd.filters.model import PREFIX, Filter


@dataclass(frozen=True, slots=True)
class Define:
    """Tell libvirt what a filter is from now on."""

    definition: Filter
    why: str

    def __str__(self) -> str:
        return f"define {self.definition.name}: {self.why}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Have libvirt forget a filter."""

    name: str
    uuid: UUID
    why: str

    def __str__(self) -> str:
        return f"remove {self.name}: {self.why}"


Action = Define | Remove


@dataclass(frozen=True, slots=True)
class Report:
    """What a person should know of a filter. `kind` is refused, clash, foreign or used."""

    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.text}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the store asks for, by name; `held` are the names whose rows are refused.

    `known` is what guestd has defined on this host: names with their uuids. `tops` are machines' own filters.
    """

    filters: Mapping[str, Filter]
    held: frozenset[str] = frozenset()
    known: frozenset[tuple[str, UUID]] = frozenset()
    tops: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Seen:
    """All of libvirt's filters by name; `bound` are those that an interface names, live or in a stored definition.

    Whoever carries out a plan keeps `filters` as they are then.
    """

    filters: dict[str, Filter]
    bound: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in their order, and what to tell. `guarded` says why a person must say yes before any of it is done."""

    actions: tuple[Action, ...]
    reports: tuple[Report, ...]
    guarded: str | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """More removals at once, or a larger part of guestd's filters, are taken for a mistake until a person says yes."""

    most_removals: int
    most_removals_share: float = 1.0


def wished(asked: Asked, machines: Collection[UUID], known: frozenset[tuple[str, UUID]] = frozenset()) -> Wanted:
    """What a host that has these machines should have: every filter of the store, and the machines' own."""
    umbrellas = [each for machine_id, each in asked.umbrellas.items() if machine_id in machines]
    filters = {**asked.filters, **{each.name: each for each in umbrellas}}
    tops = frozenset(each.name for each in umbrellas)
    return Wanted(filters, held=frozenset(asked.problems), known=known, tops=tops)


def plan(wanted: Wanted, seen: Seen, guard: Guard) -> Plan:
    """What leads from what is seen to what is wanted. A plan that takes away too much says so in `guarded`."""
    refused: dict[str, str] = {}
    clashes: dict[str, Clash] = {}
    while True:
        while found := _refusals(wanted, seen, refused):
            refused |= found
        accepted = {name: each for name, each in wanted.filters.items() if name not in refused}
        first = _in_the_way(accepted, seen)
        changed = [name for name, each in accepted.items() if name in first or seen.filters.get(name) != each]
        there = {name: each for name, each in seen.filters.items() if name not in first}
        tops = wanted.tops | seen.bound
        targets_first = [accepted[name] for name in _targets_first(changed, {**there, **accepted})]
        definitions, unlaid = ordering.in_order(targets_first, there, tops)
        if not unlaid:
            break
        clashes |= unlaid
        refused |= {name: str(exc) for name, exc in unlaid.items()}
    left, used = _left_over(accepted, wanted, seen)
    actions: tuple[Action, ...] = (
        *_removals(first, seen, "its name or uuid is another filter's now"),
        *(Define(each, _why(seen.filters.get(each.name), each)) for each in definitions),
        *_removals(left - first, seen, "the store has no such filter"),
    )
    standing = ordering.standing({**there, **{each.name: each for each in definitions}}, tops)
    reports = (
        *(Report("refused", name, text) for name, text in sorted(refused.items())),
        *_clashing([*clashes.items(), *standing], refused),
        *(Report("used", name, "the store has no such filter, and it is still used") for name in sorted(used)),
        *(Report("foreign", name, "it has guestd's prefix and is not known") for name in _strays(wanted, seen)),
    )
    return Plan(actions, reports, _guarded(actions, wanted, seen, guard))


def _clashing(found: Iterable[tuple[str, Clash]], refused: Collection[str]) -> list[Report]:
    """What to tell of filters that machines include, and that libvirt cannot lay together."""
    told = {
        each.name: Report("clash", each.name, f"within {top}: {exc}")
        for top, exc in found
        for each in (exc.early, exc.late)
        if each.name not in refused
    }
    return [told[name] for name in sorted(told)]


def included(seen: Seen) -> frozenset[str]:
    """The filters that interfaces use: those that they name, and all that these include."""
    edges = _edges(seen.filters)
    return frozenset(_reached(seen.bound, lambda name: edges.get(name, ())))


def _is_own(name: str, wanted: Wanted, seen: Seen) -> bool:
    """Whether a filter that is seen may be touched at all."""
    there = seen.filters[name]
    row = wanted.filters.get(name)
    is_row = row is not None and row.uuid == there.uuid
    return name.startswith(PREFIX) and (is_row or (name, there.uuid) in wanted.known)


def _refusals(wanted: Wanted, seen: Seen, refused: Mapping[str, str]) -> dict[str, str]:
    """Further filters that cannot be defined, given those that are refused already; empty when there are none."""
    accepted = {name: each for name, each in wanted.filters.items() if name not in refused}
    names = {each.uuid: name for name, each in seen.filters.items()}
    found = {}
    for name, each in accepted.items():
        if exc := _conflict(each, _taken_by_others(each, seen, names), accepted, wanted, seen):
            found[name] = exc
    if not found:
        gone = _in_the_way(accepted, seen)
        edges = _edges({name: each for name, each in seen.filters.items() if name not in gone}) | _edges(accepted)
        found = {name: exc for name in _unsettled(edges) if name in accepted and (exc := _bad_path(name, edges))}
    return found


def _unsettled(edges: Mapping[str, Sequence[str]]) -> set[str]:
    """The filters from which a way leads back to itself or to one that is not there: those that peeling leaves."""
    includers: dict[str, list[str]] = {}
    missing = {name: len(targets) for name, targets in edges.items()}
    for name, targets in edges.items():
        for target in targets:
            includers.setdefault(target, []).append(name)
    settled = [name for name, count in missing.items() if count == 0]
    for name in settled:
        for includer in includers.get(name, ()):
            missing[includer] -= 1
            if missing[includer] == 0:
                settled.append(includer)
    return edges.keys() - settled


def _conflict(
    each: Filter, taken: Iterable[str], accepted: Mapping[str, Filter], wanted: Wanted, seen: Seen
) -> str | None:
    """Why a filter's name or uuid cannot be its own, or None."""
    if not each.name.startswith(PREFIX):
        return f"its name does not begin with {PREFIX}"
    for name in taken:
        if not _is_own(name, wanted, seen):
            return f"libvirt has {name} with uuid {seen.filters[name].uuid}, which guestd did not define"
        for user in _users([name], seen):
            if user in seen.bound:
                return f"it would take the name or uuid of {name}, and an interface uses {user}"
            is_staying = user in wanted.held or (user in wanted.filters and user not in accepted)
            if is_staying or not _is_own(user, wanted, seen):
                return f"it would take the name or uuid of {name}, which {user} includes"
    return None


def _taken_by_others(each: Filter, seen: Seen, names: Mapping[UUID, str]) -> list[str]:
    """What stands where this filter would be: its name with another uuid, its uuid (in `names`) under another name."""
    there = seen.filters.get(each.name)
    taken = [each.name] if there is not None and there.uuid != each.uuid else []
    other = names.get(each.uuid, each.name)
    return taken if other == each.name else [*taken, other]


def _in_the_way(accepted: Mapping[str, Filter], seen: Seen) -> set[str]:
    names = {each.uuid: name for name, each in seen.filters.items()}
    taken = [name for each in accepted.values() for name in _taken_by_others(each, seen, names)]
    return set(_users(taken, seen))


def _users(names: Iterable[str], seen: Seen) -> list[str]:
    """These filters and all that include one of them, directly or through others."""
    includers: dict[str, list[str]] = {}
    for name, targets in _edges(seen.filters).items():
        for target in targets:
            includers.setdefault(target, []).append(name)
    return list(_reached(names, lambda name: includers.get(name, ())))


def _left_over(accepted: Mapping[str, Filter], wanted: Wanted, seen: Seen) -> tuple[set[str], set[str]]:
    """Filters without a row: those that nothing uses, and those that something still does."""
    rowless = {
        name
        for name in seen.filters
        if name not in wanted.filters and name not in wanted.held and _is_own(name, wanted, seen)
    }
    edges = _edges(seen.filters) | _edges(accepted)
    staying = [name for name in edges if name not in rowless or name in seen.bound]
    used = rowless & set(_reached(staying, lambda name: edges.get(name, ())))
    return rowless - used, used


def _strays(wanted: Wanted, seen: Seen) -> list[str]:
    names = [name for name in seen.filters if name.startswith(PREFIX) and name not in wanted.held]
    return sorted(name for name in names if name not in wanted.filters and not _is_own(name, wanted, seen))


def _edges(filters: Mapping[str, Filter]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(reference.target for reference in each.references) for name, each in filters.items()}


def _reached(names: Iterable[str], following: Callable[[str], Sequence[str]]) -> Iterator[str]:
    """These names and all that follow from them, each once."""
    waiting, met = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in met:
            met.add(name)
            yield name
            waiting += following(name)


def _bad_path(start: str, edges: Mapping[str, Sequence[str]]) -> str | None:
    """The way from a filter back to itself, or to one that is not there; None when all it includes is."""
    paths: list[tuple[str, ...]] = [(start,)]
    met = {start}
    while paths:
        path = paths.pop()
        for target in edges[path[-1]]:
            if target == start:
                return f"it includes itself: {' -> '.join((*path, target))}"
            if target not in edges:
                return f"it includes what libvirt does not have: {' -> '.join((*path, target))}"
            if target not in met:
                met.add(target)
                paths.append((*path, target))
    return None


def _targets_first(names: Iterable[str], filters: Mapping[str, Filter]) -> list[str]:
    """Names in an order in which each comes after all that it includes."""
    edges, chosen, ordered = _edges(filters), set(names), dict[str, None]()
    for name in sorted(chosen):
        waiting = [(name, False)]
        while waiting:
            current, is_done = waiting.pop()
            if is_done:
                ordered[current] = None
            elif current not in ordered:
                waiting.append((current, True))
                waiting += [(target, False) for target in edges.get(current, ())]
    return [name for name in ordered if name in chosen]


def _removals(names: Iterable[str], seen: Seen, exc: str) -> list[Remove]:
    referrers_first = reversed(_targets_first(names, seen.filters))
    return [Remove(name, seen.filters[name].uuid, exc) for name in referrers_first]


def _why(before: Filter | None, after: Filter) -> str:
    if before is None:
        return f"new, {len(after.rules)} rules, {len(after.references)} references"
    if before.uuid != after.uuid:
        return "it had another uuid"
    words = []
    for what, was, becomes in (
        ("rules", set(map(str, before.rules)), set(map(str, after.rules))),
        ("references", set(before.references), set(after.references)),
    ):
        if was != becomes:
            words.append(f"{len(becomes - was)} {what} more, {len(was - becomes)} less")
    if (before.chain, before.priority) != (after.chain, after.priority):
        words.append(f"chain {before.chain} {before.priority} becomes {after.chain} {after.priority}")
    return "; ".join(words) or "the order of its rules or references differs"


def _guarded(actions: Iterable[Action], wanted: Wanted, seen: Seen, guard: Guard) -> str | None:
    """Why a person should say yes first: removed or emptied, filters of ours protect nobody any longer."""
    own = [name for name in seen.filters if _is_own(name, wanted, seen)]
    taken = {action.name for action in actions if isinstance(action, Remove)}
    for action in actions:
        if isinstance(action, Define):
            taken.discard(action.definition.name)
            before = seen.filters.get(action.definition.name)
            was_something = before is not None and bool(before.rules or before.references)
            if was_something and not (action.definition.rules or action.definition.references):
                taken.add(action.definition.name)
    most = min(float(guard.most_removals), guard.most_removals_share * len(own), len(own) - 1.0)
    if not taken or len(taken) <= most:
        return None
    return f"it would remove or empty {len(taken)} of {len(own)} filters, and {max(0, int(most))} are allowed at once"
