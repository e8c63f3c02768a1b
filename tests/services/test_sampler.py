"""Statistics of domains on libvirt's test driver, which has a state for each and little else."""

import socket
import time
from pathlib import Path

import pytest

from fix_libvirt import domain_xml, running, silent, uri_of
from guestd.domainmetrics import families
from guestd.hypervisor import Hypervisor
from guestd.sampler import Sampler
from guestd.telemetry import Telemetry

pytestmark = pytest.mark.asyncio


def states(sampler: Sampler) -> dict[str, float]:
    (family,) = [family for family in sampler.families() if family.name == "libvirt_domain_info_state"]
    return {labels[0]: value for labels, value in family.samples}


async def test_every_running_domain_has_figures(tmp_path: Path) -> None:
    uri = uri_of(tmp_path / "node.xml", [domain_xml("one", 1), domain_xml("two", 2)])
    async with running(Hypervisor(uri, silent())) as hypervisor:
        sampler = Sampler(uri, lambda: hypervisor.domains, gave_up=lambda: None)
        await sampler.round()
        assert states(sampler) == {"one": 1, "two": 1}
        await hypervisor.destroy(next(domain.uuid for domain in hypervisor.domains if domain.name == "two"))
        await hypervisor.look()
        await sampler.round()
        assert states(sampler) == {"one": 1}


async def test_a_libvirtd_that_never_answers_leaves_no_figures_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        sampler = Sampler(f"test+unix:///default?socket={path}", lambda: (), gave_up=lambda: None)
        began = time.monotonic()
        await sampler.round()
        assert sampler.stuck == 1
        assert time.monotonic() - began < 60
        assert states(sampler) == {}


async def test_figures_are_served_with_the_rest() -> None:
    telemetry = Telemetry()
    telemetry.hosting.show(lambda: families({"one": {"state.state": 1, "cpu.time": 5 * 10**9}}, []))
    value = telemetry.registry.get_sample_value
    assert value("libvirt_domain_info_cpu_time_seconds_total", {"domain": "one"}) == 5
    assert value("libvirt_domain_info_state", {"domain": "one"}) == 1
