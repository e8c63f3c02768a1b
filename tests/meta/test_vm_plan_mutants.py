"""The rules of the VM plan are held by its unit tests: whatever is changed in it, they notice."""

from pathlib import Path

import pytest

from support.mutants import survivors

MODULES = (
    "guestd.vms.plan", "guestd.vms.power", "guestd.vms.leases", "guestd.vms.guard", "guestd.vms.model",
    "guestd.hypervisor.domains",
)  # fmt: skip
TESTS = (
    "tests/unit/test_vm_plan.py", "tests/unit/test_vm_plan_gone.py", "tests/unit/test_vm_power.py",
    "tests/unit/test_vm_leases.py", "tests/unit/test_vm_guard.py", "tests/unit/test_domains.py",
)  # fmt: skip
# Mutants that change nothing that can be observed, and why.
EQUIVALENT = {
    "plan.find_absences: if false 3": "no domain stops under the UUID None: for the type checker",
    "plan._plan_renamed: operand dropped 1": "a renamed domain implies facts: for the type checker",
}


@pytest.mark.timeout(900)  # runs its unit tests once for each of some 350 mutants: a minute of processor time
def test_the_unit_tests_notice_every_mutant(tmp_path: Path) -> None:
    found = survivors(MODULES, TESTS, tmp_path)
    assert {name: code for name, code in found.items() if name not in EQUIVALENT} == {}
    assert EQUIVALENT.keys() - found.keys() == set(), "these are noticed now: strike them from the list"
