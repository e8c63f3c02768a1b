"""libvirt's statistics under the names that dashboards use."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from guestd.telemetry.domains import _INDEXED, _PLAIN, Statistics, build_families
from guestd.telemetry.exposition import render

# As libvirt gives them for a running QEMU, shortened.
STATISTICS: Statistics = {
    "state.state": 1, "state.reason": 1, "cpu.time": 2_500_000_000, "cpu.user": 1, "cpu.system": 1,
    "balloon.current": 98304, "balloon.maximum": 131072, "balloon.available": 90000, "balloon.usable": 45000,
    "balloon.rss": 153600, "vcpu.current": 1, "vcpu.maximum": 2, "vcpu.0.state": 1, "vcpu.0.time": 1_000_000_000,
    "vcpu.0.delay": 500_000_000, "net.count": 1, "net.0.name": "vnet0", "net.0.rx.bytes": 1000, "net.0.tx.drop": 3,
    "block.count": 2, "block.0.name": "vda", "block.0.rd.bytes": 4096, "block.0.rd.times": 2_000_000_000,
    "block.0.capacity": 1073741824, "block.1.name": "vda", "block.1.rd.bytes": 1,
}  # fmt: skip


def samples(**statistics: Statistics) -> dict[tuple[str, ...], float]:
    return {
        (family.name.removeprefix("libvirt_domain_"), *labels): value
        for family in build_families(statistics, ["hung"])
        for labels, value in family.samples
    }


def test_names_labels_and_units_are_those_of_the_exporters() -> None:
    found = samples(vm=STATISTICS)
    assert {key: value for key, value in found.items() if key[0] != "timed_out"} == {
        ("info_state", "vm"): 1,
        ("info_vstate", "vm"): 1,
        ("info_cpu_time_seconds_total", "vm"): 2.5,
        ("info_memory_usage_bytes", "vm"): 98304 * 1024,
        ("info_maximum_memory_bytes", "vm"): 131072 * 1024,
        ("memory_stats_current_balloon_bytes", "vm"): 98304 * 1024,
        ("memory_stats_maximum_bytes", "vm"): 131072 * 1024,
        ("memory_stats_available_bytes", "vm"): 90000 * 1024,
        ("memory_stats_usable_bytes", "vm"): 45000 * 1024,
        ("memory_stats_rss_bytes", "vm"): 153600 * 1024,
        ("memory_stats_used_percent", "vm"): 50,
        ("info_virtual_cpus", "vm"): 1,
        ("vcpu_current", "vm"): 1,
        ("vcpu_maximum", "vm"): 2,
        ("vcpu_state", "vm", "0"): 1,
        ("vcpu_time_seconds_total", "vm", "0"): 1,
        ("vcpu_delay_seconds_total", "vm", "0"): 0.5,
        ("interface_stats_receive_bytes_total", "vm", "vnet0"): 1000,
        ("interface_stats_transmit_drops_total", "vm", "vnet0"): 3,
        ("block_stats_read_bytes_total", "vm", "vda"): 4096,
        ("block_stats_read_time_seconds_total", "vm", "vda"): 2,
        ("block_stats_capacity_bytes", "vm", "vda"): 1073741824,
    }


def test_a_domain_that_did_not_answer_is_timed_out() -> None:
    found = samples(vm=STATISTICS)
    assert (found["timed_out", "hung"], found["timed_out", "vm"]) == (1, 0)


def test_every_counter_has_the_name_of_a_counter() -> None:
    for family in build_families({}, []):
        assert family.is_counter == family.name.endswith("_total")
        assert family.samples == []


@pytest.mark.parametrize(
    ("available", "usable", "used"),
    [
        (1000, 1200, 0),  # seen of a guest whose balloon was just inflated
        (1000, 1000, 0),
        (1000, 0, 100),
        (0, 500, None),
        (-1, 500, None),
        (2**64 - 1, 500, None),
        (1000, 2**64 - 1, None),
        (1000, -1, None),
        (1000, math.nan, None),
        (1000, "500", None),
        (1000, None, None),
    ],
)
def test_used_memory_is_a_percentage_or_absent(available: Any, usable: Any, used: float | None) -> None:
    statistics = {"balloon.available": available, "balloon.usable": usable}
    assert samples(vm=statistics).get(("memory_stats_used_percent", "vm")) == used


_KEYS = st.sampled_from(
    [
        *(key for key, *_ in _PLAIN),
        *(f"{kind}.{n}.{key}" for kind, (table, _) in _INDEXED.items() for key, *_ in table for n in (0, 1)),
        *("net.0.name", "block.0.name", "vcpu.x.time", "vcpu.\u0663.time", "block..rd.bytes", "net.count"),
    ]
)
_VALUES = st.one_of(
    st.integers(),
    st.floats(),
    st.text(),
    st.booleans(),
    st.none(),
    st.sampled_from([2**64 - 1, 2**63, -1, 10**400, "\ud800"]),
)


@given(st.dictionaries(st.text(), st.dictionaries(_KEYS, _VALUES)))
def test_whatever_libvirt_reports_every_metric_can_be_scraped_and_is_an_amount(statistics: dict[str, Any]) -> None:
    families = build_families(statistics, ["hung"])
    for family in families:
        assert len({labels for labels, _ in family.samples}) == len(family.samples), family.name
        for _, value in family.samples:
            assert math.isfinite(value), family.name
            assert value >= 0, family.name
            assert not family.name.endswith("_percent") or value <= 100
    page = render(families, is_openmetrics=False).decode()
    scraped = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    assert len(scraped) == sum(len(family.samples) for family in families)
