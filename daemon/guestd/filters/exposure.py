"""Which machines a plan makes more open: something that their filters block now would pass.

Pure. The trees before and after decide on packets that the tree before blocks (`filters.probes`). So a new rule that
accepts one port opens nothing here, and a lost reference to a filter that drops everything does, whatever else the
machine includes. An address that a machine gets in addition opens it where another machine has that address, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from guestd.filters import frame_match
from guestd.filters.graph import list_edges, list_includers, reach
from guestd.filters.model import Filter, Reference, Rule
from guestd.filters.packet_match import (
    Packet,
    find_unknown,
)
from guestd.filters.probes import OWN, list_probes
from guestd.filters.rule_tree import BLOCKING, RuleTree, Work, build_tree
from guestd.filters.snapshot import is_stand_in
from guestd.filters.variables import NotEvaluated, NotInstallable, list_instances


def find_opened(tops: Collection[str], before: Mapping[str, Filter], after: Mapping[str, Filter]) -> dict[str, str]:
    """The filters of `tops` that would pass what they block now, each with a sentence on what that is.

    `before` and `after` are all of libvirt's filters. What cannot be evaluated afterwards counts as passing.
    """
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    includers = list_includers({**list_edges(before), **list_edges(after)})
    for name, targets in list_includers(list_edges(before)).items():
        includers.setdefault(name, []).extend(targets)
    # Machines of a department differ in their addresses only, so one of them is judged.
    judged: dict[tuple[object, object], str | None] = {}
    found, work = {}, Work()
    unread = {name for name, each in before.items() if is_stand_in(each)}
    owners = _list_owners(tops, after)
    for top in sorted({*reach(changed, includers)} & {*tops} & before.keys() & after.keys()):
        key = _without_addresses(before[top]), _without_addresses(after[top])
        if key not in judged:
            judged[key] = _find_opening(top, before, after, work)
        shared = _find_shared(top, before, after, owners)
        if (opening := judged[key] or shared or _find_lost(unread, top, before, after)) is not None:
            found[top] = opening
    return found


def _list_owners(tops: Collection[str], after: Mapping[str, Filter]) -> dict[str, list[str]]:
    """The machine filters that pass each address to the filters that they include."""
    owners: dict[str, list[str]] = {}
    for top in sorted(after.keys() & {*tops}):
        for address in _list_addresses(after[top]):
            owners.setdefault(address, []).append(top)
    return owners


def _find_shared(
    top: str, before: Mapping[str, Filter], after: Mapping[str, Filter], owners: Mapping[str, Sequence[str]]
) -> str | None:
    """An address that a machine gets in addition, and that is another machine's as well: it may send as that one."""
    had = _list_addresses(before[top])
    for address in sorted(_list_addresses(after[top]) - had) if had else ():
        if others := [each for each in owners[address] if each != top]:
            return f"packets from {address} would pass, which is also the address of {others[0]}"
    return None


def _list_addresses(definition: Filter) -> set[str]:
    return {value for each in definition.references for name, value in each.parameters if name in OWN}


def _find_lost(unread: set[str], top: str, before: Mapping[str, Filter], after: Mapping[str, Filter]) -> str | None:
    """A filter that cannot be read and would not be included any more: what it blocks is unknown."""
    if not unread:
        return None
    lost = unread.intersection(reach([top], list_edges(before))) - {*reach([top], list_edges(after))}
    return f"it would not include {min(lost)} any more, which cannot be read now" if lost else None


def _keep_addresses(before: Filter, after: Filter) -> Filter:
    """A machine filter with the addresses that it passes now: other ones are judged by themselves (`_find_shared`)."""
    there = {each.target: each for each in before.references}

    def keep(each: Rule | Reference) -> Rule | Reference:
        known = there.get(each.target) if isinstance(each, Reference) else None
        return each if known is None or _list_variables(known) != _list_variables(each) else known

    return replace(after, entries=tuple(map(keep, after.entries)))


def _list_variables(each: Rule | Reference) -> set[str]:
    return {name for name, _ in each.parameters} if isinstance(each, Reference) else set()


def _without_addresses(definition: Filter) -> object:
    entries = [
        (each.target, tuple(name for name, _ in each.parameters)) if isinstance(each, Reference) else each
        for each in definition.entries
    ]
    return definition.chain, definition.priority, tuple(entries)


def _find_opening(top: str, before: Mapping[str, Filter], after: Mapping[str, Filter], work: Work) -> str | None:
    try:
        was = build_tree(before[top], before)
    except NotInstallable:
        return None  # libvirt enforces nothing of it
    except NotEvaluated as exc:
        return f"what it blocks now cannot be evaluated: {exc}"
    try:
        becomes = build_tree(_keep_addresses(before[top], after[top]), after)
        for packet in dict.fromkeys(list_probes(was, becomes, work)):
            if not becomes.blocks(packet, work) and was.blocks(packet, work):
                return f"{_describe(packet)} would pass, and is blocked now"
    except NotEvaluated as exc:
        return f"what it would block cannot be evaluated: {exc}"
    lost = _list_unprobed(was) - _list_unprobed(becomes)
    return f"the rule {min(map(str, lost))} would be gone" if lost else None


def _list_unprobed(tree: RuleTree) -> set[Rule]:
    """The blocking rules of which no packet can be made."""
    frames = (each for each in tree.placed if each.rule.is_link and each.rule.action in BLOCKING)
    return {each.placed.rule for each in tree.packet_rules if each.unknown and each.verdict in BLOCKING} | {
        each.rule
        for each in frames
        if any(find_unknown(rule, frame_match.EVALUATED) for rule in list_instances(each.rule, each.variables))
    }


def _describe(packet: Packet) -> str:
    def end(address: str, port: int | None) -> str:
        return address if port is None else f"{f'[{address}]' if ':' in address else address}:{port}"

    source, destination = end(packet.source, packet.source_port), end(packet.destination, packet.destination_port)
    return f"{packet.protocol} {packet.direction} from {source} to {destination}"
