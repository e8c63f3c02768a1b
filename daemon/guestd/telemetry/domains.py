"""libvirt's statistics of domains as metric families, under the names that people's dashboards use.

Pure. Names, labels and units are those of the exporters that are kept (inovex's, and Tinkoff's where they differ and
both are in use). Labels are the domain's name and its host-side devices: nothing a guest says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Statistics = Mapping[str, int | float | str | bool]
NANOSECONDS, KIB, ONE = 1e-9, 1024.0, 1.0


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its labels' names, and its samples as (labels' values, value); `lines` are samples written before."""

    name: str
    text: str
    is_counter: bool
    labels: tuple[str, ...]
    samples: list[tuple[tuple[str, ...], float]] = field(default_factory=list)
    lines: Sequence[str] = ()


# libvirt's key (N stands for an index), our name behind libvirt_domain_, unit factor, explanation.
_PLAIN = (
    ("state.state", "info_state", ONE, "State, as libvirt numbers it: 1 running, 3 paused, 5 off, 6 crashed."),
    ("state.state", "info_vstate", ONE, "The same, under the name of other exporters."),
    ("cpu.time", "info_cpu_time_seconds_total", NANOSECONDS, "CPU time used, with that of QEMU itself."),
    ("balloon.maximum", "info_maximum_memory_bytes", KIB, "Memory it may have."),
    ("balloon.current", "info_memory_usage_bytes", KIB, "Memory it has."),
    ("vcpu.current", "info_virtual_cpus", ONE, "Virtual CPUs that are plugged in."),
    ("vcpu.current", "vcpu_current", ONE, "Virtual CPUs that are plugged in."),
    ("vcpu.maximum", "vcpu_maximum", ONE, "Virtual CPUs it may have."),
    ("balloon.current", "memory_stats_current_balloon_bytes", KIB, "Memory it has."),
    ("balloon.maximum", "memory_stats_maximum_bytes", KIB, "Memory it may have."),
    ("balloon.available", "memory_stats_available_bytes", KIB, "Memory that the guest's system manages."),
    ("balloon.unused", "memory_stats_unused_bytes", KIB, "Memory that the guest leaves wholly unused."),
    ("balloon.usable", "memory_stats_usable_bytes", KIB, "Memory that the guest could give back without swapping."),
    ("balloon.rss", "memory_stats_rss_bytes", KIB, "Resident memory of QEMU on the host."),
    ("balloon.disk_caches", "memory_stats_disk_caches_bytes", KIB, "Memory that the guest caches disks in."),
    ("balloon.swap_in", "memory_stats_swap_in_bytes", KIB, "Memory that the guest has read back from swap."),
    ("balloon.swap_out", "memory_stats_swap_out_bytes", KIB, "Memory that the guest has written to swap."),
    ("balloon.major_fault", "memory_stats_major_fault_total", ONE, "Page faults of the guest that needed a disk."),
    ("balloon.minor_fault", "memory_stats_minor_fault_total", ONE, "Page faults of the guest that needed none."),
)
_VCPU = (
    ("state", "vcpu_state", ONE, "0 offline, 1 running, 2 blocked."),
    ("time", "vcpu_time_seconds_total", NANOSECONDS, "Time that the virtual CPU has run."),
    ("wait", "vcpu_wait_seconds_total", NANOSECONDS, "Time that it has waited for I/O."),
    ("delay", "vcpu_delay_seconds_total", NANOSECONDS, "Time that it has waited for a CPU of the host."),
)
_BLOCK = (
    ("rd.bytes", "block_stats_read_bytes_total", ONE, "Bytes read."),
    ("rd.reqs", "block_stats_read_requests_total", ONE, "Requests to read."),
    ("rd.times", "block_stats_read_time_seconds_total", NANOSECONDS, "Time that reads have taken."),
    ("wr.bytes", "block_stats_write_bytes_total", ONE, "Bytes written."),
    ("wr.reqs", "block_stats_write_requests_total", ONE, "Requests to write."),
    ("wr.times", "block_stats_write_time_seconds_total", NANOSECONDS, "Time that writes have taken."),
    ("fl.reqs", "block_stats_flush_requests_total", ONE, "Requests to flush."),
    ("fl.times", "block_stats_flush_time_seconds_total", NANOSECONDS, "Time that flushes have taken."),
    ("allocation", "block_stats_allocation", ONE, "Bytes, up to the highest that was written."),
    ("capacity", "block_stats_capacity_bytes", ONE, "Size that the guest sees."),
    ("physical", "block_stats_physicalsize_bytes", ONE, "Size of the file or device on the host."),
)
_NET = tuple(
    (f"{key}.{count}", f"interface_stats_{direction}_{name}_total", ONE, f"{text}, {direction} by the guest.")
    for key, direction in (("rx", "receive"), ("tx", "transmit"))
    for count, name, text in (
        ("bytes", "bytes", "Bytes"),
        ("pkts", "packets", "Packets"),
        ("errs", "errors", "Errors"),
        ("drop", "drops", "Packets dropped"),
    )
)
_INDEXED = {"vcpu": (_VCPU, "vcpu"), "block": (_BLOCK, "target_device"), "net": (_NET, "target_device")}
_KEY = re.compile(r"(vcpu|block|net)\.(\d+)\.(.+)")


def families(statistics: Mapping[str, Statistics], timed_out: Iterable[str]) -> list[Family]:
    """Everything there is to tell of domains, by their names; `timed_out` are those that did not answer."""
    made = {name: Family(_full(name), text, name.endswith("_total"), labels) for name, text, labels in _all()}
    for domain, values in statistics.items():
        for key, name, factor, _ in _PLAIN:
            if key in values:
                made[name].samples.append(((domain,), float(values[key]) * factor))
        available, usable = float(values.get("balloon.available", 0)), values.get("balloon.usable")
        if available and usable is not None:
            used = 100.0 * (1.0 - float(usable) / available)
            made["memory_stats_used_percent"].samples.append(((domain,), used))
        for name, device, value in _of_devices(values):
            made[name].samples.append(((domain, device), value))
    slow = frozenset(timed_out)
    made["timed_out"].samples.extend(((domain,), float(domain in slow)) for domain in sorted(slow.union(statistics)))
    return list(made.values())


def _full(name: str) -> str:
    return f"libvirt_domain_{name}"


def _all() -> Iterable[tuple[str, str, tuple[str, ...]]]:
    """Name, explanation and labels of every metric."""
    for _, name, _, text in _PLAIN:
        yield name, text, ("domain",)
    yield "memory_stats_used_percent", "Memory that the guest could not give back, of what it manages.", ("domain",)
    yield "timed_out", "1 where a domain's statistics were not to be had in time.", ("domain",)
    for table, label in _INDEXED.values():
        for _, name, _, text in table:
            yield name, text, ("domain", label)


_NAMES = {(kind, key): (name, factor) for kind, (table, _) in _INDEXED.items() for key, name, factor, _ in table}


def _of_devices(values: Statistics) -> Iterable[tuple[str, str, float]]:
    """Metric, device and value of each virtual CPU, disk and interface; of two disks of one name the first counts."""
    told = set()
    for key, value in values.items():
        match = _KEY.fullmatch(key)
        if match is None or (match[1], match[3]) not in _NAMES:
            continue
        name, factor = _NAMES[match[1], match[3]]
        device = match[2] if match[1] == "vcpu" else str(values.get(f"{match[1]}.{match[2]}.name", match[2]))
        if (name, device) not in told:
            told.add((name, device))
            yield name, device, float(value) * factor
