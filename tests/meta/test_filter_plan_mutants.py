"""The tests of the filter plan cover its rules: they fail for every copy that lacks one rule."""

from pathlib import Path

import pytest

from support.mutants import copied, mutate, survives

TESTS = ("tests/unit/test_filter_plan.py",)
# What breaks, the text in plan.py, its replacement.
MUTANTS = [
    ("definitions backwards", "in _targets_first(changed, {**remaining, **accepted})]", "in sorted(changed)]"),
    ("removals run backwards", "referrers_first = reversed(", "referrers_first = list("),
    ("everything with the prefix is owned", "(is_row or (name, there.uuid) in desired.known)", "True"),
    ("everything known is owned", "return name.startswith(PREFIX) and", "return"),
    ("filters without a row stay", "*_removals(unused - first,", "*_removals(first - unused,"),
    ("a bound filter may be removed", "or name in observed.bound]", "]"),
    ("a filter that a bound one includes may be removed", "set(reach(staying, edges))", "set(staying)"),
    ("a refused row counts as deleted", "and name not in desired.invalid and _is_own", "and _is_own"),
    ("a used name is occupied", "if user in observed.bound:", "if False:"),
    ("the includers of a renamed filter stay", "return set(_list_users(occupants, observed))", "return set(occupants)"),
    ("a cycle goes through", "if target == start:", "if False:"),
    ("a missing target goes through", "if target not in edges:", "if False:"),
    ("everything is defined again", "if name in first or observed.filters.get(name) != each]", "]"),
    ("nothing needs confirmation", "if not lost or", "if True or"),
    ("the share does not count", "guard.most_removals_share * len(own)", "len(own)"),
    ("emptied does not count as removed", "if was_something and not", "if False and not"),
]  # fmt: skip


def test_an_unchanged_copy_passes(tmp_path: Path) -> None:
    copied(tmp_path)
    assert survives(tmp_path, TESTS)


@pytest.mark.parametrize(("what", "text", "instead"), MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_rule_that_is_taken_out_is_missed(tmp_path: Path, what: str, text: str, instead: str) -> None:
    mutate(copied(tmp_path) / "filters/plan.py", text, instead)
    assert not survives(tmp_path, TESTS)
