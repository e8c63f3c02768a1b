"""A plan that is interrupted after any of its steps, by a kill of guestd or libvirtd: the next run finishes it."""

import signal
import subprocess
import sys
from uuid import UUID, uuid4

import pytest
from psycopg.conninfo import make_conninfo

from guestd.filters.machine_filter import machine_filter_name
from support.daemon import REPOSITORY, environment
from support.faults import Reliability
from support.filters import ENFORCE, OTHER, WRITER, FilterHost

pytestmark = pytest.mark.timeout(600)
RULE = "<rule action='drop' direction='in' priority='7'><all/></rule>"
STEPS = 12


class Changing:
    """A host with two running machines, and changes that always need a plan of STEPS steps."""

    def __init__(self, host: FilterHost) -> None:
        self.host = host
        host.define(OTHER, RULE)
        self.first, self.second = host.add_machine(is_running=True), host.add_machine(is_running=True)
        self._times = 0
        host.reconcile(ENFORCE)
        self.change()
        host.reconcile(ENFORCE)

    def change(self) -> None:
        """Edit two rules, delete three filters and add three; manually detach one interface and unbind another."""
        host, self._times = self.host, self._times + 1
        host.edit("Use SSH service", "dstPortStart", self._times)
        host.edit("Use Ping", "comment", f"edit {self._times}")
        host.run('DELETE FROM "NWFilter" WHERE "name" LIKE %s', "made %")
        for number in range(3):
            host.run('INSERT INTO "NWFilter" ("name", "internalName", "uuid") VALUES (%s, %s, gen_random_uuid())',
                     f"made {number}", f"ibay-{uuid4().hex[:16]}")  # fmt: skip
            host.run(
                """INSERT INTO "FilterReference" ("sourceFilterId", "targetFilterId") SELECT one."id", other."id"
                FROM "NWFilter" AS one, "NWFilter" AS other WHERE one."name" = %s AND other."name" = %s""",
                f"made {number}", f"made {number - 1}",
            )  # fmt: skip
        host.assign(self.first[0], "made 2")
        host.detach(self.first[1])
        host.libvirt.nwfilterBindingLookupByPortDev(host.port(self.second[1])).delete()

    def is_right(self) -> bool:
        """Whether filters and interfaces are in their desired state, and foreign filters unchanged."""
        bindings = self.host.bindings()
        return (
            self.host.is_settled()
            and all(self._is_protected(machine_id, name, bindings) for machine_id, name in (self.first, self.second))
            and bool(self.host.filters()[OTHER].rules)
        )

    def _is_protected(self, machine_id: UUID, name: str, bindings: dict[str, str]) -> bool:
        top = machine_filter_name(machine_id)
        return self.host.filters_named(name) == ({top}, {top}) and bindings.get(self.host.port(name)) == top


def start_halting_run(host: FilterHost, steps: int) -> subprocess.Popen[bytes]:
    """Start a run in another process that halts after so many steps."""
    dsn, variables = make_conninfo(host.dsn, options=WRITER), environment()
    variables["PYTHONPATH"] += f":{REPOSITORY}:{REPOSITORY / 'tests'}"
    process = subprocess.Popen(
        # as a module: with its folder in sys.path, support/libvirt.py would hide libvirt
        [sys.executable, "-m", "support.halting_run", dsn, host.lab.uri, str(steps)],
        env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"halted\n"
    return process


@pytest.mark.parametrize("who", ["guestd", "libvirtd"])
def test_after_a_kill_at_any_step_of_a_plan_the_rows_are_in_force(
    filter_host: FilterHost, reliability: Reliability, who: str
) -> None:
    host, changing = filter_host, Changing(filter_host)
    changing.change()
    assert len(host.reconcile(ENFORCE).steps) == STEPS
    wrong, before = 0, len(host.audit())
    prefixes = range(0, STEPS + 1, reliability.rounds(quick=STEPS // 2, full=1))
    for steps in prefixes:
        changing.change()
        with start_halting_run(host, steps) as process:
            if who == "libvirtd":
                host.lab.stop_libvirtd(signal.SIGKILL)
                host.lab.start_libvirtd()
                host.reconnect()
                process.communicate(b"\n", timeout=120)
                assert process.returncode == 1  # its connection is gone
            else:
                process.kill()
        host.reconcile(ENFORCE)
        wrong += not (changing.is_right() and host.reconcile(ENFORCE).steps == ())
    reliability.record_filters(
        f"kill -9 of {who} after each step of a plan of {STEPS}", rounds=len(prefixes),
        actions=len(host.audit()) - before, kills=len(prefixes), wrong=wrong,
    )  # fmt: skip
