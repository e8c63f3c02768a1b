"""The rules of the VM plan are held by its tests: each rule taken out of a copy makes them fail."""

from pathlib import Path

import pytest

from support.mutants import copied, mutate, survives

TESTS = ("tests/unit/test_vm_plan.py", "tests/unit/test_domains.py")
PLAN, DOMAINS = "vms/plan.py", "hypervisor/domains.py"
MISSING_IS_OFF = "steps.append(SetStatus(machine.id, machine.name, machine.status, 'off', ''))"
# What breaks, the file, its text, the text that takes its place.
MUTANTS = [
    ("an unknown status is overwritten", PLAN, "return status in _SETTLED_STATUSES", "return True"),
    ("an inactive domain claims", PLAN, "elif not domain.is_active:\n        pass", "elif False:\n        pass"),
    ("a live holder is robbed", PLAN, "elif not machine.is_holder_live:", "elif True:"),
    ("what is missing is off", PLAN, "steps += _plan_missing(machine)", MISSING_IS_OFF),
    ("other hosts' rows are written", PLAN, "return\n        yield Claim", "pass\n        yield Claim"),
    ("a reboot flaps the row", PLAN, 'if domain.state == "shutoff" and left > 0:', "if False:"),
    ("an observer acts", PLAN, "if policy.is_converging and", "if"),
    ("destroyed without leave", PLAN, "if was_requested and policy.may_destroy", "if was_requested"),
    ("a crash loop goes on", PLAN, "count >= MAX_START_ATTEMPTS", "False"),
    ("no backoff", PLAN, "    if left > 0:\n        return Recheck(left)\n", ""),
    ("paused is off", DOMAINS, 'in _FAILED_PAUSES else "suspended"', 'in _FAILED_PAUSES else "off"'),
    ("an I/O error is a pause", DOMAINS, 'return "error" if domain.reason in _FAILED_PAUSES else', "return"),
    ("migrating is suspended", DOMAINS, "if domain.reason in _TRANSIENT_PAUSES:", "if False:"),
    ("migrated away is off", DOMAINS, '("shutoff", "migrated")', '("shutoff", "never")'),
    ("its words are fought over", PLAN, "_SYNONYMS.get(machine.status, machine.status) ==", "machine.status =="),
]  # fmt: skip


def test_an_unchanged_copy_passes(tmp_path: Path) -> None:
    copied(tmp_path)
    assert survives(tmp_path, TESTS)


@pytest.mark.parametrize(("what", "file", "text", "instead"), MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_rule_that_is_taken_out_is_missed(tmp_path: Path, what: str, file: str, text: str, instead: str) -> None:
    mutate(copied(tmp_path) / file, text, instead)
    assert not survives(tmp_path, TESTS)
