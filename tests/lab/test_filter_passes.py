"""Passes over a host's filters on a real libvirt: what the rows say is in force, and stays so."""

import pytest

from fix_filters import FilterHost
from guestd.filters.effective import umbrella_name

pytestmark = pytest.mark.timeout(600)
ANY_PORT = "Use SSH service"


def test_every_filter_of_the_store_is_put_into_libvirt_once_and_read_back(filter_host: FilterHost) -> None:
    machine_id, _ = filter_host.machine()
    before = {name: each for name, each in filter_host.filters().items() if not name.startswith("ibay-")}
    first = filter_host.passed()
    assert (first.wanted, first.in_force, len(first.done), first.held) == (68, 68, 68, None)
    assert umbrella_name(machine_id) in filter_host.own()
    assert filter_host.run('SELECT count(*) FROM "NWFilter" WHERE "flushedAt" IS NULL OR "problem" IS NOT NULL') == [
        (0,)
    ]
    assert filter_host.audit() == [("define", "done")] * 68
    again = filter_host.passed()
    assert (again.in_force, again.done) == (68, ())
    assert {name: each for name, each in filter_host.filters().items() if name in before} == before
