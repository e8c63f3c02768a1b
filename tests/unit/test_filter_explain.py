"""What `guestd filters explain` says where guestd cannot know the verdict."""

from dataclasses import replace
from uuid import UUID

import pytest

from guestd.filters.desired import CompiledRows, compile_rows
from guestd.filters.explain import (
    Question,
    describe_failures,
    explain_connection,
    list_doubts,
    list_problems,
    list_unfiltered,
    list_verdicts,
)
from guestd.filters.model import Filter, Match, Reference, Rule
from guestd.filters.snapshot import Interface, MachineRow, StoreSnapshot
from support.filter_rows import filter_row, rule_row

DROPS, PASSES = UUID(int=1), UUID(int=2)
MACHINE = MachineRow(UUID(int=5), "web", "vm-web", ("10.9.0.2",), (DROPS, PASSES), (), False, {}, {}, ())
QUESTION = Question("tcp", "10.9.0.5", 80, "in")


def compiled(second_priority: int) -> CompiledRows:
    drops = filter_row(
        rule_row(protocol="ip", action="drop"),
        id=DROPS,
        uuid=DROPS,
        internal_name="ibay-a",
        chain="ipv4-a",
        priority=-700,
    )
    passes = filter_row(
        rule_row(protocol="ip"),
        id=PASSES,
        uuid=PASSES,
        internal_name="ibay-b",
        chain="ipv4-b",
        priority=second_priority,
    )
    return compile_rows(StoreSnapshot((drops, passes), (MACHINE,), {}))


def test_chains_without_an_order_are_a_doubt_and_no_verdict() -> None:
    found = compiled(-700)
    first = list_verdicts(found, MACHINE, QUESTION)[0]
    assert (first.verdict, first.unknown) == (
        "cannot be evaluated", "another chain has the same priority, and libvirt may process it first",
    )  # fmt: skip
    assert any(
        line.startswith("first packet (in): cannot be evaluated: another chain has the same priority")
        for line in explain_connection(found, MACHINE, QUESTION)
    )
    (doubt,) = list_doubts(found, MACHINE)
    assert doubt.startswith("undecided: chains of equal priority: ipv4-a  and  ipv4-b, in: ")


def test_chains_with_an_order_have_a_verdict() -> None:
    for priority, expected in ((-701, "passes"), (-699, "is dropped")):
        found = compiled(priority)
        assert [each.verdict for each in list_verdicts(found, MACHINE, QUESTION)][:1] == [expected]
        assert list_doubts(found, MACHINE) == []


def test_a_tree_that_libvirt_cannot_install_has_no_verdict() -> None:
    found = compiled(-699)
    strange = Rule("accept", "in", 500, "tcp", (Match("dstportstart", "$PORT"),))
    top = replace(found.machine_filters[MACHINE.id], entries=(strange, Reference("ibay-a")))
    machine_filters: dict[UUID, Filter] = {MACHINE.id: top}
    found = replace(found, machine_filters=machine_filters)
    reason = "libvirt cannot install rule accept in 500 tcp dstportstart=$PORT: $PORT has no value"
    assert {(each.verdict, each.unknown) for each in list_verdicts(found, MACHINE, QUESTION)} == {
        ("cannot be evaluated", reason)
    }
    assert list_doubts(found, MACHINE) == [f"undecided: {reason}"]


def test_what_a_host_could_not_apply_is_left_out_only_where_the_same_is_said_of_the_same_filter() -> None:
    bad = filter_row(rule_row(action="nonsense"), id=DROPS, uuid=DROPS, internal_name="ibay-a")
    good = filter_row(rule_row(), id=PASSES, uuid=PASSES, internal_name="ibay-b")
    found = compile_rows(StoreSnapshot((bad, good), (MACHINE,), {}))
    text = "; ".join(map(str, found.problems["ibay-a"]))
    failures = [("h", "ibay-a", text), ("h", "ibay-a", text[:9]), ("h", "ibay-a", ""), ("h", "ibay-b", text)]
    printed = [line.partition("(ibay-")[2] for line in describe_failures(found, MACHINE, failures)]
    assert printed == [f"a) on host h: {text[:9]}", "a) on host h: ", f"b) on host h: {text}"]


def test_a_chain_conflict_that_is_a_problem_already_is_not_repeated_as_a_failure() -> None:
    rows = [
        filter_row(
            rule_row(id=number, protocol="ip", priority=priority),
            id=number, uuid=number, internal_name=name, chain="ipv4", priority=priority,
        )
        for number, name, priority in ((DROPS, "ibay-a", 100), (PASSES, "ibay-b", 500))
    ]  # fmt: skip
    found = compile_rows(StoreSnapshot(tuple(rows), (MACHINE,), {}))
    top = found.machine_filters[MACHINE.id].name
    (problem,) = [line.removeprefix("refused: ") for line in list_problems(found, MACHINE) if "cannot install" in line]
    failures = [("h", "ibay-a", problem), ("h", "ibay-b", f"within {top}: {problem}"), ("h", top, "another")]
    assert [line[-7:] for line in describe_failures(found, MACHINE, failures)] == ["another"]


@pytest.mark.parametrize(
    ("live", "stored", "expected"),
    [
        ("", "", "unfiltered: interface 52:54:00:00:00:01 names no filter: everything passes"),
        (None, "", "unfiltered: interface 52:54:00:00:00:01 names no filter: everything passes"),
        ("clean-traffic", "ibay-top", "not its filter: interface 52:54:00:00:00:01 names clean-traffic"),
        ("ibay-top", "", None),
        (None, "ibay-top", None),
    ],
)
def test_an_interface_that_does_not_name_its_machine_filter_is_told_with_what_to_do(
    live: str | None, stored: str | None, expected: str | None
) -> None:
    each = Interface("vm-web", UUID(int=1), "52:54:00:00:00:01", "vnet0", live, stored)
    found = list_unfiltered([each, replace(each, domain="vm-other", live="")], MACHINE, "ibay-top")
    if expected is None:
        assert found == []
    else:
        (line,) = found
        assert line.startswith(expected)
        assert 'filters.attach = "enforce"' in line
