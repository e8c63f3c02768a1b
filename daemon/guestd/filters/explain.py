"""The effective rules of a machine as text, in the order in which they match, and the rule that decides on a packet.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from guestd.core.address import parse_host, parse_host_port
from guestd.filters import frame_match
from guestd.filters.addresses import read_addresses
from guestd.filters.chain_conflict import find_chain_conflict
from guestd.filters.desired import CompiledRows
from guestd.filters.graph import list_edges, reach
from guestd.filters.model import Filter, Match, canonical_address, has_ports
from guestd.filters.packet_match import (
    OPPOSITE,
    UNKNOWN,
    Decision,
    Packet,
    PlacedRule,
    build_packet_rules,
    find_contradictions,
    order_rules,
)
from guestd.filters.snapshot import Interface, MachineRow
from guestd.filters.variables import NotEvaluated

# The source port of a client: any of the ephemeral ports; rules that name one are rare.
CLIENT_PORT = 49152
VERDICTS = {
    "accept": "passes", "return": "passes", "drop": "is dropped", "reject": "is rejected",
    UNKNOWN: "cannot be evaluated",
}  # fmt: skip
_DESCRIBED_ELSEWHERE = ("dstportstart", "dstportend", "srcportstart", "srcportend", "srcipmask", "dstipmask", "comment")


@dataclass(frozen=True, slots=True)
class Question:
    """A connection: the address of the peer, its direction as the machine sees it, and the destination port."""

    protocol: str
    peer: str
    port: int | None
    direction: str


def find_machine(machines: Sequence[MachineRow], key: str) -> MachineRow:
    """The machine with this id, internalName or name. ValueError where none or several machines match."""
    found = [each for each in machines if key in (str(each.id), each.internal_name)]
    found = found or [each for each in machines if each.name == key]
    if len(found) != 1:
        ids = f"; use one of their ids: {', '.join(str(each.id) for each in found)}" if found else ""
        raise ValueError(f"{len(found)} machines are called {key!r}{ids}")
    return found[0]


@dataclass(frozen=True, slots=True)
class PacketVerdict:
    """What happens to a packet: it is passed, dropped or rejected; if this cannot be evaluated, `unknown` explains why.

    `rule` decides, None where no rule matches.
    """

    packet: str
    direction: str
    verdict: str
    rule: PlacedRule | None
    unknown: str = ""


def parse_question(protocol: str, peer: str, direction: str) -> Question:
    """Parse ADDRESS:PORT, [ADDRESS]:PORT or ADDRESS. ValueError says what is wrong with it."""
    port = None
    if not has_ports(protocol):
        host = parse_host(peer)
    else:
        try:
            host, port = parse_host_port(peer, default_port=None)
        except ValueError as exc:
            raise ValueError(f"{protocol} needs ADDRESS:PORT: {exc}") from exc
    return Question(protocol, canonical_address(host), port, direction)


def list_unfiltered(interfaces: Iterable[Interface], machine: MachineRow, top: str) -> list[str]:
    """A sentence for each interface of a machine that does not name its machine filter `top`, and what to do."""
    command = 'set filters.attach = "enforce"'
    found = []
    for each in interfaces:
        current = each.stored if each.live is None else each.live
        if each.domain != machine.internal_name or current == top:
            continue
        if current:
            text = f"names {current}: that is enforced, and not what follows; {command}, then guestd apply --take"
        else:
            text = f"names no filter: everything passes, and nothing of what follows is enforced; {command}"
        found.append(f"{'not its filter' if current else 'unfiltered'}: interface {each.mac} {text}")
    return found


def list_filters(compiled: CompiledRows, machine: MachineRow) -> set[str]:
    """The names of a machine's filter and of all that it includes."""
    top = compiled.machine_filters[machine.id]
    return set(reach([top.name], list_edges({**compiled.filters, top.name: top})))


def describe_failures(
    compiled: CompiledRows, machine: MachineRow, failures: Iterable[tuple[str, str, str]]
) -> Iterator[str]:
    """What hosts could not apply of a machine's filters; `failures` are host, filter and problem.

    Rows that are refused on every host are not repeated: `list_problems` has them.
    """
    known = {(name, "; ".join(map(str, problems))) for name, problems in compiled.problems.items()}
    top = compiled.machine_filters[machine.id]
    if (conflict := find_chain_conflict(top, compiled.filters)) is not None:
        names, texts = (
            (conflict.early.name, conflict.late.name, top.name),
            (f"{conflict}", f"within {top.name}: {conflict}"),
        )
        known |= {(name, text) for name in names for text in texts}
    for host, name, problem in failures:
        if (name, problem) not in known:
            yield f"failed: {compiled.titles.get(name, name)} ({name}) on host {host}: {problem}"


def list_rules(compiled: CompiledRows, machine: MachineRow) -> list[PlacedRule] | None:
    """The rules of a machine in the order in which they match; None where its filters are no tree (`list_problems`)."""
    try:
        return order_rules(compiled.machine_filters[machine.id], compiled.filters)
    except NotEvaluated:
        return None


def describe_rules(compiled: CompiledRows, machine: MachineRow) -> Iterator[str]:
    """The effective rules of a machine in the order in which they match, then their problems."""
    top, placed = compiled.machine_filters[machine.id], list_rules(compiled, machine)
    yield f"machine {machine.name} ({machine.id}), filter {top.name}"
    for title, is_link in (("packets (iptables), first match decides", False), ("frames (ebtables)", True)):
        chosen = [each for each in placed or () if each.rule.is_link == is_link]
        if chosen:
            yield f"{title}:"
            yield from (f"  {_describe(each, compiled.titles)}" for each in chosen)
    if placed is None:
        yield "the rules cannot be listed"
    elif not placed:
        yield "no rules: everything passes"
    yield from list_problems(compiled, machine)


def explain_connection(compiled: CompiledRows, machine: MachineRow, question: Question) -> Iterator[str]:
    """Which rule decides on the first packet of a connection, on its answers and on the packets after them."""
    if find_own_address(machine, question) is None:
        yield f"{machine.name} has no such address in Machine.allowedIps: rules that name its address do not match"
    for each in list_verdicts(compiled, machine, question):
        rule = "no rule matches" if each.rule is None else _describe(each.rule, compiled.titles)
        yield f"{each.packet} ({each.direction}): {each.verdict}: {each.unknown}{': ' if each.unknown else ''}{rule}"
    yield from list_problems(compiled, machine)


def list_verdicts(compiled: CompiledRows, machine: MachineRow, question: Question) -> list[PacketVerdict]:
    """What happens to the first packet of a connection, to its answers and to the packets after them."""
    first = _first_packet(machine, question)
    answer = replace(
        first, direction=OPPOSITE[first.direction], source=first.destination, destination=first.source, answer=True,
        source_port=first.destination_port, destination_port=first.source_port, state="ESTABLISHED",
    )  # fmt: skip
    packets = {"first packet": first, "answers": answer, "later packets": replace(first, state="ESTABLISHED")}
    decisions = decide_packets(packets.values(), compiled.machine_filters[machine.id], compiled.filters)
    return [
        PacketVerdict(name, packet.direction, VERDICTS[found.action], found.rule, found.unknown)
        for (name, packet), found in zip(packets.items(), decisions, strict=True)
    ]


def decide_packets(packets: Iterable[Packet], top: Filter, filters: Mapping[str, Filter]) -> list[Decision]:
    """What a tree does to each packet."""
    try:
        placed = order_rules(top, filters)
        packet_rules = build_packet_rules(placed)
    except NotEvaluated as exc:
        return [Decision(UNKNOWN, None, str(exc)) for _ in packets]
    return [frame_match.decide(packet, placed, packet_rules) for packet in packets]


def list_doubts(compiled: CompiledRows, machine: MachineRow) -> list[str]:
    """Rules of a machine that are valid and may not do what was meant. They are reported and never changed."""
    try:
        placed = order_rules(compiled.machine_filters[machine.id], compiled.filters)
    except NotEvaluated as exc:
        return [f"undecided: {exc}"]
    return list(_describe_doubts(placed, compiled.titles))


def find_own_address(machine: MachineRow, question: Question) -> str | None:
    """The machine's address of the peer's version of IP, if it has one."""
    version = ip_address(question.peer).version
    own = read_addresses(machine.allowed_ips, machine.static_ips)
    return next(iter(own.ipv4 if version == 4 else own.ipv6), None)


def _first_packet(machine: MachineRow, question: Question) -> Packet:
    unknown = "0.0.0.0" if ip_address(question.peer).version == 4 else "::"  # noqa: S104 -- no address to listen on
    client = None if question.port is None else CLIENT_PORT
    guest = find_own_address(machine, question) or unknown
    sides = (question.peer, guest) if question.direction == "in" else (guest, question.peer)
    return Packet(question.direction, question.protocol, *sides, client, question.port)


def _describe(placed: PlacedRule, titles: Mapping[str, str]) -> str:
    rule = placed.rule
    words = [f"{rule.priority:5}", rule.action, rule.direction, rule.protocol]
    for side in ("src", "dst"):
        words += _describe_side(rule.matches, side)
    words += [f"{each.name}{'!=' if each.is_negated else '='}{each.value}" for each in rule.matches if _is_rest(each)]
    if not rule.is_stateful:
        words.append("stateless")
    comment = rule.value("comment")
    origin = f"{titles.get(placed.filter.name, '?')} ({placed.filter.name}, chain {placed.filter.chain})"
    return f"{' '.join(words)}{f' -- {comment}' if comment else ''} [{origin}]"


def _is_rest(match: Match) -> bool:
    return match.is_negated or match.name not in (*_DESCRIBED_ELSEWHERE, "srcipaddr", "dstipaddr")


def _describe_side(matches: Sequence[Match], side: str) -> list[str]:
    values = {each.name: each.value for each in matches if not each.is_negated}
    words = []
    if address := values.get(f"{side}ipaddr"):
        mask = values.get(f"{side}ipmask")
        words.append(f"{side} {address}{f'/{mask}' if mask else ''}")
    if first := values.get(f"{side}portstart"):
        last = values.get(f"{side}portend", first)
        words.append(f"{side}port {first if first == last else f'{first}-{last}'}")
    return words


def list_problems(compiled: CompiledRows, machine: MachineRow) -> Iterator[str]:
    """What is wrong with a machine's rules: refused and unenforced ones, and doubts."""
    top = compiled.machine_filters[machine.id]
    included = reach((reference.target for reference in top.references), list_edges(compiled.filters))
    for name in sorted(included):
        for problem in compiled.problems.get(name, ()):
            yield f"refused: {compiled.titles[name]} ({name}): {problem}"
    yield from (f"not enforced: {text}" for text in compiled.reports[machine.id])
    if (conflict := find_chain_conflict(top, compiled.filters)) is not None:
        yield f"refused: {conflict}"
    yield from list_doubts(compiled, machine)


def _describe_doubts(placed: Sequence[PlacedRule], titles: Mapping[str, str]) -> Iterator[str]:
    try:
        found = find_contradictions(build_packet_rules(placed))
    except NotEvaluated as exc:
        yield f"undecided: {exc}"
        return
    pairs = {(one.placed, two.placed): None for one, two in found}
    for one, two in pairs:
        yield f"undecided: rules of equal priority: {_describe(one, titles)}  and  {_describe(two, titles)}"
    for one_chain, other, direction in frame_match.find_unordered_chains(placed):
        yield (
            f"undecided: chains of equal priority: {one_chain}  and  {other}, {direction}: one may pass frames that "
            "the other drops, and libvirt processes them in an order that changes when it restarts"
        )
    for chain, direction in frame_match.find_open_ends(placed):
        yield (
            f"open end: chain {chain}, {direction}: a frame that no rule of this chain matches passes, and no later "
            "rule for frames sees it: end the chain with return or drop of its whole protocol"
        )
