"""What holds for a machine, in sentences: its rules in the order in which they match, and which decides on a packet.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from guestd.filters import frame_match
from guestd.filters.chain_conflict import clash
from guestd.filters.desired import Asked, MachineRow
from guestd.filters.model import Filter, Match
from guestd.filters.packet_match import OPPOSITE, Packet, Placed, contradictions, lines, ordered

# A client's own port is any of these; rules that name it are rare.
CLIENT_PORT = 49152
WITH_PORTS = ("tcp", "udp", "sctp")
_UNSAID = ("dstportstart", "dstportend", "srcportstart", "srcportend", "srcipmask", "dstipmask", "comment")


@dataclass(frozen=True, slots=True)
class Question:
    """A connection: who the other side is, its way as the machine sees it, and the port that is connected to."""

    protocol: str
    peer: str
    port: int | None
    way: str


def find(machines: Sequence[MachineRow], wanted: str) -> MachineRow:
    """The machine of this id, internalName or name. ValueError for none, and for a name that several have."""
    found = [each for each in machines if wanted in (str(each.id), each.internal_name)]
    found = found or [each for each in machines if each.name == wanted]
    if len(found) != 1:
        several = f"; its ids: {', '.join(str(each.id) for each in found)}" if found else ""
        raise ValueError(f"{len(found)} machines are called {wanted!r}{several}")
    return found[0]


def question(protocol: str, peer: str, way: str) -> Question:
    """ADDRESS:PORT, [ADDRESS]:PORT or ADDRESS. ValueError says what cannot be asked."""
    text, _, tail = peer.rpartition(":")
    has_port = protocol in WITH_PORTS
    if not has_port:
        text, tail = peer, ""
    elif not tail.isascii() or not tail.isdigit() or not 0 <= int(tail) <= 65535:
        raise ValueError(f"{peer!r}: {protocol} wants ADDRESS:PORT")
    address = ip_address(text.removeprefix("[").removesuffix("]"))
    return Question(protocol, str(address), int(tail) if has_port else None, way)


def show(asked: Asked, machine: MachineRow) -> Iterator[str]:
    """The effective rules of a machine in the order in which they match, then what is wrong."""
    top = asked.umbrellas[machine.id]
    placed = ordered(top, asked.filters)
    yield f"machine {machine.name} ({machine.id}), filter {top.name}"
    for title, is_link in (("packets (iptables), first match decides", False), ("frames (ebtables)", True)):
        chosen = [each for each in placed if each.rule.is_link == is_link]
        if chosen:
            yield f"{title}:"
            yield from (f"  {_told(each, asked.titles)}" for each in chosen)
    if not placed:
        yield "no rules: everything passes"
    yield from _wrong(asked, machine, placed)


def explain(asked: Asked, machine: MachineRow, asking: Question) -> Iterator[str]:
    """Which rule decides on the first packet of a connection, on its answers and on what follows."""
    placed = ordered(asked.umbrellas[machine.id], asked.filters)
    told = lines(placed)
    first, guest = _packet(machine, asking)
    if guest is None:
        yield f"{machine.name} has no such address in Machine.allowedIps: rules that name its address are not met"
    back = replace(
        first, way=OPPOSITE[first.way], source=first.destination, destination=first.source, answer=True,
        source_port=first.destination_port, destination_port=first.source_port, state="ESTABLISHED",
    )  # fmt: skip
    for title, packet in (
        ("opening it", first),
        ("the answers", back),
        ("what follows", replace(first, state="ESTABLISHED")),
    ):
        yield f"{title} ({packet.way}): {_decision(*frame_match.outcome(packet, placed, told), asked.titles)}"
    yield from _wrong(asked, machine, placed)


def _packet(machine: MachineRow, asking: Question) -> tuple[Packet, str | None]:
    version = ip_address(asking.peer).version
    own = [each for each in machine.allowed_ips or machine.static_ips if _version(each) == version]
    guest = own[0] if own else None
    unknown = "0.0.0.0" if version == 4 else "::"  # noqa: S104 -- no address to listen on
    client = None if asking.port is None else CLIENT_PORT
    sides = (asking.peer, guest or unknown) if asking.way == "in" else (guest or unknown, asking.peer)
    return Packet(asking.way, asking.protocol, *sides, client, asking.port), guest


def _version(text: str) -> int | None:
    try:
        return ip_address(text).version
    except ValueError:
        return None


def _decision(action: str, placed: Placed | None, titles: Mapping[str, str]) -> str:
    if placed is None:
        return "passes, for no rule decides"
    word = {"accept": "passes", "return": "passes", "drop": "is dropped", "reject": "is rejected"}[action]
    return f"{word}: {_told(placed, titles)}"


def _told(placed: Placed, titles: Mapping[str, str]) -> str:
    rule = placed.rule
    words = [f"{rule.priority:5}", rule.action, rule.direction, rule.protocol]
    for side in ("src", "dst"):
        words += _side(rule.matches, side)
    words += [f"{each.name}{'!=' if each.is_negated else '='}{each.value}" for each in rule.matches if _is_rest(each)]
    if not rule.is_stateful:
        words.append("stateless")
    comment = rule.value("comment")
    where = f"{titles.get(placed.filter.name, '?')} ({placed.filter.name}, chain {placed.filter.chain})"
    return f"{' '.join(words)}{f' -- {comment}' if comment else ''} [{where}]"


def _is_rest(match: Match) -> bool:
    return match.is_negated or match.name not in (*_UNSAID, "srcipaddr", "dstipaddr")


def _side(matches: Sequence[Match], side: str) -> list[str]:
    values = {each.name: each.value for each in matches if not each.is_negated}
    words = []
    if address := values.get(f"{side}ipaddr"):
        mask = values.get(f"{side}ipmask")
        words.append(f"{side} {address}{f'/{mask}' if mask else ''}")
    if first := values.get(f"{side}portstart"):
        last = values.get(f"{side}portend", first)
        words.append(f"{side}port {first if first == last else f'{first}-{last}'}")
    return words


def _wrong(asked: Asked, machine: MachineRow, placed: Sequence[Placed]) -> Iterator[str]:
    for name in sorted(_tree(asked.umbrellas[machine.id], asked.filters)):
        for problem in asked.problems.get(name, ()):
            yield f"refused: {asked.titles[name]} ({name}): {problem}"
    yield from (f"not enforced: {text}" for text in asked.reports[machine.id])
    if (found := clash(asked.umbrellas[machine.id], asked.filters)) is not None:
        yield f"refused: {found}"
    yield from _doubts(placed, asked.titles)


def doubts(asked: Asked, machine: MachineRow) -> list[str]:
    """What of a machine's rules may not be meant so: it is told, and never changed."""
    return list(_doubts(ordered(asked.umbrellas[machine.id], asked.filters), asked.titles))


def _doubts(placed: Sequence[Placed], titles: Mapping[str, str]) -> Iterator[str]:
    pairs = {(one.placed, two.placed): None for one, two in contradictions(lines(placed))}
    for one, two in pairs:
        yield f"undecided: of one priority: {_told(one, titles)}  and  {_told(two, titles)}"
    for chain, way in frame_match.open_ends(placed):
        yield (
            f"open end: chain {chain}, {way}: what none of its rules for frames matches is asked no later one, and "
            "passes: end it with return or drop of its whole protocol"
        )


def _tree(top: Filter, filters: Mapping[str, Filter]) -> set[str]:
    """The names of all that a filter includes, refused rows among them."""
    met, waiting = set[str](), [reference.target for reference in top.references]
    while waiting:
        name = waiting.pop()
        if name not in met:
            met.add(name)
            waiting += [reference.target for reference in filters[name].references] if name in filters else []
    return met
