"""The rules of the filter plan are held by its unit tests: whatever is changed in it, they notice."""

from pathlib import Path

import pytest

from support.mutants import survivors

MODULES = ("guestd.filters.plan", "guestd.filters.refusals", "guestd.filters.graph")
TESTS = (
    "tests/unit/test_filter_plan.py",
    "tests/unit/test_filter_guard.py",
    "tests/unit/test_filter_cycles.py",
    "tests/unit/test_filter_graph.py",
    "tests/unit/test_filter_ordering.py",
)
SHORTCUT = "spares time and decides nothing: _find_bad_path does"
# Mutants that change nothing that can be observed, and why.
EQUIVALENT = {
    "plan.plan_filters: if true 2": "nothing that is accepted refers to a filter that is removed first",
    "refusals._find_bad_trees: call dropped 1": SHORTCUT,
    "refusals._find_unresolvable: left alone 0": SHORTCUT,
    "refusals._find_unresolvable: right alone 0": SHORTCUT,
    "refusals._find_unresolvable: left alone 1": SHORTCUT,
    "plan._targets_first: if true 0": "spares time: no name is in an empty list",
}


@pytest.mark.timeout(600)  # runs the tests once for each of some 300 mutants: 50 s of processor time
def test_the_unit_tests_notice_every_mutant(tmp_path: Path) -> None:
    found = survivors(MODULES, TESTS, tmp_path)
    assert {name: code for name, code in found.items() if name not in EQUIVALENT} == {}
    assert EQUIVALENT.keys() - found.keys() == set(), "these are noticed now: strike them from the list"
