"""The rules of the VM plan are held by its tests: each rule taken out of a copy makes them fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAN, DOMAINS = "plans/vms.py", "domains.py"
MISSING_IS_OFF = "steps.append(SetStatus(machine.id, machine.name, machine.status, 'off', ''))"
# What breaks, the file, its text, the text that takes its place.
MUTANTS = [
    ("an unknown status is overwritten", PLAN, "return status in _SETTLED", "return True"),
    ("an inactive domain claims", PLAN, "elif not domain.is_active:\n        pass", "elif False:\n        pass"),
    ("a live holder is robbed", PLAN, "elif not machine.is_holder_live:", "elif True:"),
    ("what is missing is off", PLAN, "steps += _missing(machine)", MISSING_IS_OFF),
    ("other hosts' rows are written", PLAN, "return\n        yield Claim", "pass\n        yield Claim"),
    ("a reboot flaps the row", PLAN, 'if domain.state == "shutoff" and left > 0:', "if False:"),
    ("an observer acts", PLAN, "if rules.is_converging and", "if"),
    ("destroyed without leave", PLAN, "if was_asked and rules.may_destroy", "if was_asked"),
    ("a crash loop goes on", PLAN, "count >= STARTS_BEFORE_LEFT", "False"),
    ("no backoff", PLAN, "    if left > 0:\n        return Wait(left)\n", ""),
    ("paused is off", DOMAINS, 'in _BROKEN_PAUSES else "suspended"', 'in _BROKEN_PAUSES else "off"'),
    ("an I/O error is a pause", DOMAINS, 'return "error" if domain.reason in _BROKEN_PAUSES else', "return"),
    ("migrating is suspended", DOMAINS, "if domain.reason in _PASSING_PAUSES:", "if False:"),
    ("migrated away is off", DOMAINS, '("shutoff", "migrated")', '("shutoff", "never")'),
    ("its words are fought over", PLAN, "_SAME.get(machine.status, machine.status) ==", "machine.status =="),
]  # fmt: skip


def survives(directory: Path) -> bool:
    """Whether the tests of the plan pass with the copy of guestd in `directory`."""
    tests = ["tests/unit/test_vm_plan.py", "tests/unit/test_domains.py"]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", f"pythonpath={directory} schema tests ."]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(directory), str(ROOT / "schema")])}
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 0


def copied(directory: Path) -> Path:
    shutil.copytree(ROOT / "daemon/guestd", directory / "guestd", ignore=shutil.ignore_patterns("__pycache__"))
    return directory / "guestd"


def test_an_unchanged_copy_passes(tmp_path: Path) -> None:
    copied(tmp_path)
    assert survives(tmp_path)


@pytest.mark.parametrize(("what", "file", "text", "instead"), MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_rule_that_is_taken_out_is_missed(tmp_path: Path, what: str, file: str, text: str, instead: str) -> None:
    source = copied(tmp_path) / file
    before = source.read_text()
    assert before.count(text) == 1, "the mutant no longer fits the code"
    source.write_text(before.replace(text, instead))
    assert not survives(tmp_path)
