"""`guestd filters explain` predicts what happens to packets on the wire between a peer and a guest's interface."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4, uuid5

import pytest

from guestd.filters.desired import CompiledRows, build_desired, compile_rows
from guestd.filters.explain import CLIENT_PORT, VERDICTS, Question, decide_packets, explain_connection
from guestd.filters.model import ROOT, Filter, Reference, Rule, build_matches
from guestd.filters.packet_match import OPPOSITE, UNKNOWN, Packet
from guestd.filters.plan import Define, Guard, plan_filters
from guestd.filters.snapshot import ObservedFilters, StoreSnapshot
from guestd.filters.xml import parse_filter, render_filter
from support.faults import Reliability
from support.filter_trees import (
    GUEST,
    PEERS,
    SPACE,
    all_services,
    generated,
    lone_packets,
    ordered,
    ordered_packets,
    questions,
    service_questions,
)
from support.nwfilter import PORT
from support.packets import ACK, GUEST_MAC, SYN, SYN_ACK
from support.wire import Wire

pytestmark = pytest.mark.timeout(900)
FIRST_SEED = 1
CONNECTIONS = 16


@dataclass(frozen=True)
class Trial:
    """One packet: whether guestd predicted that it passes (None: it cannot evaluate that), and whether it did."""

    what: str
    predicted: bool | None
    passed: bool

    @property
    def is_wrong(self) -> bool:
        return self.predicted is not None and self.predicted != self.passed


@pytest.fixture
def guest(nwfilters: Any, wire: Wire) -> Iterator["Guest"]:
    guest = Guest(nwfilters, wire)
    yield guest
    guest.unbind()


class Guest:
    """A guest's interface that libvirt filters as when a machine starts; no guest kernel is behind it."""

    def __init__(self, connection: Any, wire: Wire) -> None:
        self.connection = connection
        self.wire = wire
        self.binding: Any = None

    def unbind(self) -> None:
        if self.binding is not None:
            self.binding.delete()
            self.binding = None

    def observe(self) -> dict[str, Filter]:
        found = [parse_filter(each.XMLDesc()) for each in self.connection.listAllNWFilters()]
        return {each.name: each for each in found}

    def protect(self, rows: StoreSnapshot) -> CompiledRows:
        """Apply guestd's plan for the rows to libvirt, and bind the machine filter."""
        self.unbind()
        found = compile_rows(rows)
        assert not found.problems
        desired = build_desired(found, [rows.machines[0].id])
        for action in plan_filters(desired, ObservedFilters(self.observe()), Guard(0)).actions:
            assert isinstance(action, Define), action
            self.connection.nwfilterDefineXML(render_filter(action.definition))
        self.bind(found.machine_filters[rows.machines[0].id])
        return found

    def install(self, tree: Sequence[Filter]) -> None:
        """Define filters as they are, and bind the last."""
        self.unbind()
        for each in tree:
            self.connection.nwfilterDefineXML(render_filter(each))
        self.bind(tree[-1])

    def bind(self, top: Filter) -> None:
        self.binding = self.connection.nwfilterBindingCreateXML(
            f"<filterbinding><owner><name>m</name><uuid>{uuid4()}</uuid></owner><portdev name='{PORT}'/>"
            f"<mac address='{GUEST_MAC}'/><filterref filter='{top.name}'/></filterbinding>"
        )

    def try_connection(self, found: CompiledRows, rows: StoreSnapshot, question: Question) -> Iterator[Trial]:
        """Open a connection, answer, continue: for as long as packets pass, because the kernel tracks only those."""
        self.wire.forget_connections()
        lines = [line for line in explain_connection(found, rows.machines[0], question) if line.startswith(_STEPS)]
        for (packet, flags), line in zip(_conversation(rows, question), lines, strict=True):
            verdict = line.split(": ")[1]
            is_predicted = None if verdict == VERDICTS[UNKNOWN] else verdict.startswith("passes")
            tried = Trial(f"{question}\n{line}", is_predicted, self.wire.arrives(packet, flags))
            yield tried
            if not tried.passed:
                return

    def try_packet(self, found: CompiledRows, rows: StoreSnapshot, packet: Packet) -> Trial:
        """Send a single packet."""
        return self.compare(packet, [*found.filters.values(), found.machine_filters[rows.machines[0].id]])

    def compare(self, packet: Packet, tree: Sequence[Filter]) -> Trial:
        """Send a single packet, on which the last of these filters decides."""
        self.wire.forget_connections()
        (found,) = decide_packets([packet], tree[-1], {each.name: each for each in tree})
        flags = SYN_ACK if packet.state == "INVALID" else SYN
        passed = self.wire.arrives(packet, flags)
        is_predicted = None if found.action == UNKNOWN else found.action in ("accept", "return")
        return Trial(f"{packet}: {found.action} by {found.rule and found.rule.rule}", is_predicted, passed)


_STEPS = ("first packet", "answers", "later packets")


def _conversation(rows: StoreSnapshot, question: Question) -> Iterator[tuple[Packet, int]]:
    own = next(each for each in rows.machines[0].allowed_ips if (":" in each) == (":" in question.peer))
    source, destination = (question.peer, own) if question.direction == "in" else (own, question.peer)
    client = None if question.port is None else CLIENT_PORT
    first = Packet(question.direction, question.protocol, source, destination, client, question.port)
    yield first, SYN
    back = Packet(
        OPPOSITE[question.direction], question.protocol, destination, source, question.port, client, "ESTABLISHED", True
    )
    yield back, SYN_ACK
    yield replace(first, state="ESTABLISHED"), ACK


def describe_rows(rows: StoreSnapshot) -> str:
    """The rows of a failing tree, for a person."""
    made = [row for row in rows.filters if row.internal_name.startswith("ibay-tree")]
    rules = "\n".join(f"  {row.internal_name}: {rule}" for row in made for rule in row.rules)
    heads = "\n".join(f"{replace(row, rules=())}" for row in made)
    return f"{heads}\n{rules}\n{rows.machines[0]}\n{rows.services}"


def test_packets_pass_or_drop_as_explain_predicts(guest: Guest, reliability: Reliability) -> None:
    wrong, pairs, passed, unknown = list[str](), 0, 0, 0
    rounds = reliability.rounds(quick=2, full=30)
    for seed in range(FIRST_SEED, FIRST_SEED + rounds):
        dice = random.Random(seed)
        rows = generated(dice)
        found = guest.protect(rows)
        tried = [
            each for question in questions(dice, CONNECTIONS) for each in guest.try_connection(found, rows, question)
        ]
        tried += [guest.try_packet(found, rows, packet) for packet in lone_packets(dice)]
        pairs += len(tried)
        passed += sum(each.passed for each in tried)
        wrong += [f"seed {seed}: {each}\n{describe_rows(rows)}" for each in tried if each.is_wrong]
        unknown += sum(each.predicted is None for each in tried)
    assert not wrong, "\n\n".join(wrong)
    assert pairs >= 30 * rounds
    assert unknown < 0.05 * pairs  # only where two chains have one priority
    assert 0.1 < passed / pairs < 0.95
    reliability.record_filters(
        f"explain against the kernel: rounds are trees, actions packets, of which {passed:,} pass",
        rounds=rounds, actions=pairs, kills=0, wrong=len(wrong),
    )  # fmt: skip


def test_rules_and_references_in_any_order_and_lists_of_values_decide_as_predicted(
    guest: Guest, reliability: Reliability
) -> None:
    dice, wrong, tried = random.Random(11), list[str](), list[Trial]()
    rounds = reliability.rounds(quick=15, full=150)
    for _ in range(rounds):
        tree = ordered(dice)
        guest.install(tree)
        found = [guest.compare(packet, tree) for packet in ordered_packets()]
        described = "\n".join(f"  {each.name}: {each.chain} {entry}" for each in tree for entry in each.entries)
        wrong += [f"{each}\n{described}" for each in found if each.is_wrong or each.predicted is None]
        tried += found
    assert not wrong, "\n\n".join(wrong)
    assert {each.passed for each in tried} == {True, False}
    reliability.record_filters(
        "trees with references among the rules and lists of values: rounds are trees, actions packets",
        rounds=rounds, actions=len(tried), kills=0, wrong=0,
    )  # fmt: skip


@pytest.mark.parametrize("is_rule_first", [True, False])
def test_a_rule_and_a_reference_of_equal_priority_decide_by_their_order(guest: Guest, is_rule_first: bool) -> None:
    accept = Rule("accept", "in", 500, "tcp", build_matches([("dstportstart", "22")]))
    drops = Filter("ibay-ordered1", uuid5(SPACE, "ibay-ordered1"), ROOT, 0, (replace(accept, action="drop"),))
    entries = (accept, Reference(drops.name)) if is_rule_first else (Reference(drops.name), accept)
    top = Filter("ibay-ordered3", uuid5(SPACE, "ibay-ordered3"), ROOT, 0, entries)
    guest.install([drops, top])
    tried = guest.compare(Packet("in", "tcp", PEERS[0], GUEST[0], 49152, 22), [drops, top])
    assert (tried.predicted, tried.passed) == (is_rule_first, is_rule_first)


def test_every_service_and_three_levels_of_the_seed_behave_as_explain_predicts(guest: Guest) -> None:
    rows = all_services()
    found = guest.protect(rows)
    desired = build_desired(found, [rows.machines[0].id]).filters
    assert {name: each for name, each in guest.observe().items() if name in desired} == desired
    tried = [each for question in service_questions() for each in guest.try_connection(found, rows, question)]
    assert [each for each in tried if each.is_wrong or each.predicted is None] == []
    assert {each.passed for each in tried} == {True, False}
