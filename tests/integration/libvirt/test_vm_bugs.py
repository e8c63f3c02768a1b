"""What one machine's action fails with costs no other machine: on a real store and libvirt's test driver."""

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from guestd.hypervisor.driver import Hypervisor, Target
from guestd.telemetry.registry import VmMetrics
from support.daemon import execute
from support.libvirt import domain_xml, uri_of
from support.vm_host import Host, add, events, reconciling, set_desired

pytestmark = pytest.mark.asyncio


class BuggyHypervisor(Hypervisor):
    """Its call for one domain raises; that for another one waits until it may be made."""

    def __init__(self, uri: str, fail: Callable[[], None]) -> None:
        super().__init__(uri, VmMetrics())
        self._fail = fail
        self.may_call = asyncio.Event()
        self.calls = Counter[str]()
        self.was_cancelled = False

    async def suspend(self, target: Target) -> str | None:
        self.calls[target.name] += 1
        if target.name == "buggy":
            self._fail()
        try:
            await self.may_call.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return await super().suspend(target)


def buggy_hypervisor(directory: Path, fail: Callable[[], None]) -> BuggyHypervisor:
    domains = [domain_xml(name, number) for number, name in enumerate(("buggy", "other", "third"), 1)]
    return BuggyHypervisor(uri_of(directory / "node.xml", domains), fail)


async def test_a_bug_in_the_action_of_one_machine_cancels_no_other(dsn: str, tmp_path: Path) -> None:
    def fail() -> None:
        raise LookupError("a bug")

    hypervisor = buggy_hypervisor(tmp_path, fail)
    for name in ("buggy", "other", "third"):
        add(dsn, name, "running")
    async with reconciling(Host(dsn, hypervisor, most_changes_share=1.0)) as host:
        await host.becomes("buggy", status="running", hostName="host")
        with capture_logs() as logged:
            for name in ("other", "buggy"):
                set_desired(dsn, name, "suspended")
            await host.eventually(lambda: host.count_actions("suspend", "bug"), "the bug is counted")
            await host.eventually(lambda: hypervisor.calls["other"], "the other call")
            # The loop goes on: another machine's action is not held up either.
            hypervisor.may_call.set()
            set_desired(dsn, "third", "suspended")
            for name in ("other", "third"):
                await host.becomes(name, status="suspended")
        assert not hypervisor.was_cancelled
        assert (hypervisor.calls["other"], host.count_actions("suspend")) == (1, 2)
        assert host.domain("buggy").isActive()
        assert host.lost == 0
    (line,) = [each for each in logged if "report the traceback" in each["event"]]
    assert type(line["exc_info"]) is LookupError
    assert "buggy" in line["action"]


async def test_an_action_whose_audit_row_the_store_rejects_cancels_no_other(dsn: str, tmp_path: Path) -> None:
    hypervisor = buggy_hypervisor(tmp_path, lambda: None)
    for name in ("buggy", "other"):
        add(dsn, name, "running")
    async with reconciling(Host(dsn, hypervisor)) as host:
        await host.becomes("buggy", status="running", hostName="host")
        await host.becomes("other", status="running", hostName="host")
        execute(dsn, """ALTER TABLE "ReconcileEvent" ADD CONSTRAINT "test_only" CHECK ("name" <> 'buggy') NOT VALID""")
        set_desired(dsn, "other", "suspended")
        await host.eventually(lambda: hypervisor.calls["other"], "the other call")
        set_desired(dsn, "buggy", "suspended")
        await host.another_run(3)
        hypervisor.may_call.set()
        await host.becomes("other", status="suspended")
        assert not hypervisor.was_cancelled
        assert hypervisor.calls["buggy"] == 0
        execute(dsn, 'ALTER TABLE "ReconcileEvent" DROP CONSTRAINT "test_only"')
        await host.becomes("buggy", status="suspended")
    assert ("suspend", "done") in {(action, outcome) for action, _, outcome in events(dsn, "buggy")}
