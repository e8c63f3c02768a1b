"""The rules that libvirt makes of one that names variables. The kernel's rules were compared in the lab."""

import re

import pytest

from guestd.filters.model import Reference, Rule, build_matches
from guestd.filters.variables import (
    MAX_COMBINATIONS,
    NotEvaluated,
    NotInstallable,
    find_variable,
    list_instances,
    pass_on,
)

A, B = (("A", "10.0.0.1"), ("A", "10.0.0.2")), (("B", "80"), ("B", "90"))


def instances(source: str, port: str, *variables: tuple[str, str]) -> list[tuple[str | None, str | None]]:
    matches = build_matches([("srcipaddr", source), ("dstportstart", port)])
    rule = Rule("accept", "in", 500, "tcp", matches)
    return [(each.value("srcipaddr"), each.value("dstportstart")) for each in list_instances(rule, variables)]


@pytest.mark.parametrize(("source", "port"), [("$A", "$B"), ("$A[@1]", "$B[@1]"), ("$A[@0]", "$B")])
def test_one_iterator_takes_the_values_by_position(source: str, port: str) -> None:
    assert instances(source, port, *A, *B) == [("10.0.0.1", "80"), ("10.0.0.2", "90")]
    assert instances(source, port, *A, *B[::-1]) == [("10.0.0.1", "90"), ("10.0.0.2", "80")]


@pytest.mark.parametrize(("source", "port"), [("$A[@1]", "$B[@2]"), ("$A", "$B[@2]")])
def test_several_iterators_make_every_combination(source: str, port: str) -> None:
    expected = {("10.0.0.1", "80"), ("10.0.0.1", "90"), ("10.0.0.2", "80"), ("10.0.0.2", "90")}
    found = instances(source, port, *A, *B)
    assert set(found) == expected
    assert len(found) == 4


def test_an_element_is_one_value_by_its_position() -> None:
    assert instances("$A[1]", "$B[0]", *A, *B) == [("10.0.0.2", "80")]
    assert instances("$A[1]", "$B", *A, *B) == [("10.0.0.2", "80"), ("10.0.0.2", "90")]


def test_a_combination_that_occurred_before_is_left_out() -> None:
    assert instances("$A", "$B", *A, A[0], *B, B[0]) == [("10.0.0.1", "80"), ("10.0.0.2", "90")]
    assert len(instances("$A", "$B", *A, A[0], *B, B[1])) == 3


def test_a_variable_that_is_named_twice_has_one_value_at_a_time() -> None:
    rule = Rule("drop", "in", 500, "tcp", build_matches([("srcipaddr", "$A"), ("dstipaddr", "$A")]))
    assert [{match.value for match in each.matches} for each in list_instances(rule, A)] == [{"10.0.0.1"}, {"10.0.0.2"}]


@pytest.mark.parametrize(
    ("source", "port", "reason"),
    [
        ("$C", "80", "$C has no value"),
        ("$A[2]", "80", "$A[2] has no value"),
        ("$A", "$B", "$B and $A have different numbers of values"),
        ("$A[", "80", "'$A[' is no variable"),
    ],
)
def test_what_libvirt_cannot_install_has_a_reason(source: str, port: str, reason: str) -> None:
    with pytest.raises(NotInstallable, match=re.escape(reason)):
        instances(source, port, *A, *B, ("B", "100"))


def test_more_combinations_than_guestd_makes_are_named_and_not_made() -> None:
    many = [*(("A", f"10.0.0.{number}") for number in range(64)), *(("B", str(number)) for number in range(64))]
    assert len(instances("$A[@1]", "$B[@2]", *many)) == MAX_COMBINATIONS
    with pytest.raises(NotEvaluated, match=r"^rule .*: its variables have 4160 combinations, more than 4096$"):
        instances("$A[@1]", "$B[@2]", *many, ("B", "64"))
    # Not even counted one by one.
    rule = Rule("drop", "in", 1, "tcp", build_matches([(f"a{number}", f"$A[@{number}]") for number in range(100)]))
    with pytest.raises(NotEvaluated):
        list_instances(rule, A)


def test_the_interfaces_own_mac_stands_for_itself() -> None:
    rule = Rule("drop", "in", 500, "tcp", build_matches([("srcmacaddr", "$MAC")]))
    assert list_instances(rule, (("MAC", "52:54:00:00:00:01"),)) == [rule]
    beside = Rule("drop", "in", 500, "tcp", build_matches([("srcmacaddr", "$MAC"), ("srcipaddr", "$A")]))
    with pytest.raises(NotInstallable):
        list_instances(beside, A)


def test_what_the_includer_has_itself_overrides_what_it_passes() -> None:
    reference = Reference("ibay-x", (("A", "10.0.0.9"), ("B", "80")))
    assert pass_on(A, reference) == (*A, ("B", "80"))
    assert pass_on((), reference) == reference.parameters


def test_a_variable_is_found_however_it_is_named() -> None:
    assert [find_variable(value) for value in ("$IP", "$IP[@1]", "$IP[2]", "10.0.0.1")] == ["$IP"] * 3 + [None]
