"""Doctor finds what is wrong with filters, and each step of docs/filters.md from a row to the kernel works."""

from collections.abc import Callable

import pytest

from guestd.filters.machine_filter import machine_filter_name
from support.filters import ENFORCE, OTHER, FilterHost

pytestmark = pytest.mark.timeout(600)
SSH, PING = "Use SSH service", "Use Ping"
RULE = "<rule action='drop' direction='in' priority='7'><all/></rule>"
OK = "libvirt has them as the store describes them"


def drift(host: FilterHost) -> None:
    uuid = host.run('SELECT "uuid" FROM "NWFilter" WHERE "name" = %s', SSH)[0][0]
    host.define(host.internal_name(SSH), RULE, uuid)


def removed(host: FilterHost) -> None:
    host.undefine(host.internal_name(SSH))


def pending(host: FilterHost) -> None:
    host.edit(SSH, "dstPortStart", 2)


def refused(host: FilterHost) -> None:
    host.edit(PING, "dstPortStart", 8)


def circular(host: FilterHost) -> None:
    host.run(
        """INSERT INTO "FilterReference" ("sourceFilterId", "targetFilterId")
        SELECT one."id", other."id" FROM "NWFilter" AS one, "NWFilter" AS other
        WHERE (one."name", other."name") IN ((%s, %s), (%s, %s))""",
        SSH, PING, PING, SSH,
    )  # fmt: skip


def emptied(host: FilterHost) -> None:
    host.run('DELETE FROM "NWFilter" WHERE "name" LIKE %s', "Provides %")


def detached(host: FilterHost) -> None:
    machine_id, name = host.add_machine(is_running=True)
    host.reconcile(ENFORCE)
    assert host.filters_named(name)[0] == {machine_filter_name(machine_id)}
    host.detach(name)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (drift, "libvirt's filters differ from the store's in 1 steps"),
        (removed, "libvirt's filters differ from the store's in 1 steps"),
        (pending, "libvirt's filters differ from the store's in 1 steps"),
        (refused, "refused: ibay-"),
        (circular, "refused: ibay-"),
        (emptied, "needs manual action: it would remove or empty 28 of 67"),
        (detached, "libvirt's filters differ from the store's in 2 steps"),
    ],
)
def test_doctor_finds_what_is_wrong_with_filters(
    filter_host: FilterHost, fault: Callable[[FilterHost], None], text: str
) -> None:
    filter_host.reconcile()
    assert OK in run_doctor(filter_host)
    fault(filter_host)
    printed = run_doctor(filter_host)
    assert text in printed
    assert "guestd filters plan" in printed


def run_doctor(host: FilterHost) -> str:
    """What doctor prints."""
    _, printed = host.guestd("doctor", attach="enforce")
    return "\n".join(printed)


def test_a_rule_is_followed_from_its_row_to_the_kernel_with_the_documented_commands(filter_host: FilterHost) -> None:
    host = filter_host
    machine_id, name = host.add_machine(is_running=True)
    host.define(OTHER, RULE)
    host.assign(machine_id, SSH)
    host.reconcile(ENFORCE)
    host.edit(SSH, "dstPortStart", 21)  # and up to 22, as before
    _, printed = host.guestd("filters", "show", str(machine_id))
    assert any("dstport 21-22" in line and SSH in line for line in printed), printed
    _, printed = host.guestd("filters", "plan", attach="enforce")
    assert [line for line in printed if line.startswith("define ")] == [
        f"define {host.internal_name(SSH)}: 1 rules added, 1 removed"
    ]
    assert host.guestd("apply", attach="enforce")[0] == 0
    events = host.run('SELECT "action", "outcome" FROM "ReconcileEvent" ORDER BY "occurredAt" DESC LIMIT 1')
    assert events == [("define", "done")]
    ((digest, problem),) = host.run(
        'SELECT "digest", "problem" FROM "FilterHostState" WHERE "name" = %s', host.internal_name(SSH)
    )
    assert (len(digest), problem) == (64, None)
    assert host.read_row(SSH)[0] is not None
    assert "dstportstart='21'" in host.lab.run("virsh", "nwfilter-dumpxml", host.internal_name(SSH))
    port = host.port(name)
    listed = host.lab.run("virsh", "nwfilter-binding-list")
    assert any(line.split() == [port, machine_filter_name(machine_id)] for line in listed.splitlines()), listed
    chain = host.lab.run("iptables", "-S", f"FI-{port}")
    assert "--dport 21:22" in chain
    _, printed = host.guestd("filters", "explain", str(machine_id), "tcp", "10.0.0.5:21", "out")
    assert "dstport 21-22" in printed[0] + printed[1]
