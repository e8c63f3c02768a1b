"""The rules of the filter plan are held by its tests: each rule taken out of a copy makes them fail."""

from pathlib import Path

import pytest

from support.mutants import copied, mutate, survives

TESTS = ("tests/unit/test_filter_plan.py",)
# What breaks, the text of the plan, the text that takes its place.
MUTANTS = [
    ("definitions backwards", "in _targets_first(changed, {**there, **accepted})]", "in sorted(changed)]"),
    ("removals run backwards", "referrers_first = reversed(", "referrers_first = list("),
    ("whatever has the prefix is ours", "(is_row or (name, there.uuid) in wanted.known)", "True"),
    ("whatever is known is ours", "return name.startswith(PREFIX) and", "return"),
    ("what is left over stays", "*_removals(left - first,", "*_removals(first - left,"),
    ("what is bound may go", "or name in seen.bound]", "]"),
    ("what a bound filter includes may go", "set(_reached(staying, lambda name: edges.get(name, ())))", "set(staying)"),
    ("a refused row is taken for a deleted one", "and name not in wanted.held and _is_own", "and _is_own"),
    ("a used name is taken over", "if user in seen.bound:", "if False:"),
    ("who includes a renamed filter is forgotten", "    return set(_users(taken, seen))", "    return set(taken)"),
    ("a cycle goes through", "if target == start:", "if False:"),
    ("a missing target goes through", "if target not in edges:", "if False:"),
    ("everything is defined again", "if name in first or seen.filters.get(name) != each]", "]"),
    ("nobody is asked", "if not taken or", "if True or"),
    ("a part of them is nobody's matter", "guard.most_removals_share * len(own)", "len(own)"),
    ("emptied is not removed", "if was_something and not", "if False and not"),
]  # fmt: skip


def test_an_unchanged_copy_passes(tmp_path: Path) -> None:
    copied(tmp_path)
    assert survives(tmp_path, TESTS)


@pytest.mark.parametrize(("what", "text", "instead"), MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_rule_that_is_taken_out_is_missed(tmp_path: Path, what: str, text: str, instead: str) -> None:
    mutate(copied(tmp_path) / "filters/plan.py", text, instead)
    assert not survives(tmp_path, TESTS)
