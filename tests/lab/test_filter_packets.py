"""What `guestd filters explain` says is what happens to packets on the wire between a peer and a guest's interface."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest

from guestd.filters import frame_match
from guestd.filters.desired import Asked, Rows, asked
from guestd.filters.explain import CLIENT_PORT, Question, explain
from guestd.filters.model import Filter
from guestd.filters.packet_match import OPPOSITE, Packet, lines, ordered
from guestd.filters.plan import Define, Guard, Seen, plan, wished
from guestd.filters.xml import read, write
from support.faults import Reliability
from support.filter_trees import all_services, generated, lone_packets, questions, service_questions
from support.nwfilter import PORT
from support.packets import ACK, GUEST_MAC, SYN, SYN_ACK
from support.wire import Wire

pytestmark = pytest.mark.timeout(900)
FIRST_SEED = 1
CONNECTIONS = 16


@dataclass(frozen=True)
class Tried:
    """One packet: what guestd said, and what happened."""

    what: str
    said: bool
    happened: bool


@pytest.fixture
def guest(nwfilters: Any, wire: Wire) -> Iterator["Guest"]:
    guest = Guest(nwfilters, wire)
    yield guest
    guest.unbind()


class Guest:
    """A guest's interface that libvirt filters, as it does when a machine starts; there is no kernel behind it."""

    def __init__(self, connection: Any, wire: Wire) -> None:
        self.connection = connection
        self.wire = wire
        self.binding: Any = None

    def unbind(self) -> None:
        if self.binding is not None:
            self.binding.delete()
            self.binding = None

    def seen(self) -> dict[str, Filter]:
        found = [read(each.XMLDesc()) for each in self.connection.listAllNWFilters()]
        return {each.name: each for each in found}

    def protect(self, rows: Rows) -> Asked:
        """Tell libvirt what the rows say, by guestd's own plan, and bind the machine's filter."""
        self.unbind()
        found = asked(rows)
        assert not found.problems
        wanted = wished(found, [rows.machines[0].id])
        for action in plan(wanted, Seen(self.seen()), Guard(0)).actions:
            assert isinstance(action, Define), action
            self.connection.nwfilterDefineXML(write(action.definition))
        top = found.umbrellas[rows.machines[0].id]
        self.binding = self.connection.nwfilterBindingCreateXML(
            f"<filterbinding><owner><name>m</name><uuid>{uuid4()}</uuid></owner><portdev name='{PORT}'/>"
            f"<mac address='{GUEST_MAC}'/><filterref filter='{top.name}'/></filterbinding>"
        )
        return found

    def try_connection(self, found: Asked, rows: Rows, asking: Question) -> Iterator[Tried]:
        """Open it, answer, go on: for as long as the kernel would know what it is."""
        self.wire.forget_connections()
        told = [line for line in explain(found, rows.machines[0], asking) if line.startswith(_STEPS)]
        for (packet, flags), line in zip(_conversation(rows, asking), told, strict=True):
            is_said = line.split(": ")[1].startswith("passes")
            tried = Tried(f"{asking}\n{line}", is_said, self.wire.arrives(packet, flags))
            yield tried
            if not tried.happened:
                return

    def try_packet(self, found: Asked, rows: Rows, packet: Packet) -> Tried:
        """A packet by itself."""
        self.wire.forget_connections()
        placed = ordered(found.umbrellas[rows.machines[0].id], found.filters)
        action, by = frame_match.outcome(packet, placed, lines(placed))
        flags = SYN_ACK if packet.state == "INVALID" else SYN
        happened = self.wire.arrives(packet, flags)
        return Tried(f"{packet}: {action} by {by and by.rule}", action in ("accept", "return"), happened)


_STEPS = ("opening it", "the answers", "what follows")


def _conversation(rows: Rows, asking: Question) -> Iterator[tuple[Packet, int]]:
    own = next(each for each in rows.machines[0].allowed_ips if (":" in each) == (":" in asking.peer))
    source, destination = (asking.peer, own) if asking.way == "in" else (own, asking.peer)
    client = None if asking.port is None else CLIENT_PORT
    first = Packet(asking.way, asking.protocol, source, destination, client, asking.port)
    yield first, SYN
    back = Packet(OPPOSITE[asking.way], asking.protocol, destination, source, asking.port, client, "ESTABLISHED", True)
    yield back, SYN_ACK
    yield replace(first, state="ESTABLISHED"), ACK


def told_rows(rows: Rows) -> str:
    """What a person needs to see of a failing tree."""
    made = [row for row in rows.filters if row.internal_name.startswith("ibay-tree")]
    rules = "\n".join(f"  {row.internal_name}: {rule}" for row in made for rule in row.rules)
    heads = "\n".join(f"{replace(row, rules=())}" for row in made)
    return f"{heads}\n{rules}\n{rows.machines[0]}\n{rows.services}"


def test_what_explain_says_happens_to_packets(guest: Guest, reliability: Reliability) -> None:
    wrong, pairs, passed = list[str](), 0, 0
    rounds = reliability.rounds(quick=2, full=30)
    for seed in range(FIRST_SEED, FIRST_SEED + rounds):
        dice = random.Random(seed)
        rows = generated(dice)
        found = guest.protect(rows)
        tried = [each for asking in questions(dice, CONNECTIONS) for each in guest.try_connection(found, rows, asking)]
        tried += [guest.try_packet(found, rows, packet) for packet in lone_packets(dice)]
        pairs += len(tried)
        passed += sum(each.happened for each in tried)
        bad = [each for each in tried if each.said != each.happened]
        wrong += [f"seed {seed}: {each}\n{told_rows(rows)}" for each in bad]
    assert not wrong, "\n\n".join(wrong)
    assert pairs >= 30 * rounds
    assert 0.1 < passed / pairs < 0.95
    reliability.record_filters(
        f"explain against the kernel: rounds are trees, actions packets, of which {passed:,} pass",
        rounds=rounds, actions=pairs, kills=0, wrong=len(wrong),
    )  # fmt: skip


def test_every_service_and_three_levels_of_the_seed_are_taken_and_do_what_explain_says(guest: Guest) -> None:
    rows = all_services()
    found = guest.protect(rows)
    wanted = wished(found, [rows.machines[0].id]).filters
    assert {name: each for name, each in guest.seen().items() if name in wanted} == wanted
    tried = [each for asking in service_questions() for each in guest.try_connection(found, rows, asking)]
    assert [each for each in tried if each.said != each.happened] == []
    assert {each.happened for each in tried} == {True, False}
