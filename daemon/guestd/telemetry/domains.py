"""libvirt's statistics of domains as metric families, under the names that existing dashboards use. Pure.

Names, labels and units are those of the maintained exporters (inovex's, and Tinkoff's where they differ and both are in
use). Labels are the domain's name and its host-side devices: nothing that a guest sends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from guestd.telemetry.exposition import Family

Statistics = Mapping[str, int | float | str | bool]
NANOSECONDS, KIB, ONE = 1e-9, 1024.0, 1.0
# The upper half of libvirt's unsigned 64-bit numbers are negative ones.
MOST_AMOUNT = 2**63 - 1


# libvirt's key (N stands for an index), our name after libvirt_domain_, unit factor, help text.
_PLAIN = (
    ("state.state", "info_state", ONE, "State, as libvirt numbers it: 1 running, 3 paused, 5 off, 6 crashed."),
    ("state.state", "info_vstate", ONE, "The same state, under the name of other exporters."),
    ("cpu.time", "info_cpu_time_seconds_total", NANOSECONDS, "CPU time used, including QEMU's own."),
    ("balloon.maximum", "info_maximum_memory_bytes", KIB, "Maximum memory of the domain."),
    ("balloon.current", "info_memory_usage_bytes", KIB, "Current memory of the domain."),
    ("vcpu.current", "info_virtual_cpus", ONE, "Virtual CPUs that are plugged in."),
    ("vcpu.current", "vcpu_current", ONE, "Virtual CPUs that are plugged in."),
    ("vcpu.maximum", "vcpu_maximum", ONE, "Maximum number of virtual CPUs."),
    ("balloon.current", "memory_stats_current_balloon_bytes", KIB, "Current memory of the domain."),
    ("balloon.maximum", "memory_stats_maximum_bytes", KIB, "Maximum memory of the domain."),
    ("balloon.available", "memory_stats_available_bytes", KIB, "Memory that the guest's operating system manages."),
    ("balloon.unused", "memory_stats_unused_bytes", KIB, "Memory of the guest that is unused."),
    ("balloon.usable", "memory_stats_usable_bytes", KIB, "Memory that the guest could free without swapping."),
    ("balloon.rss", "memory_stats_rss_bytes", KIB, "Resident memory of QEMU on the host."),
    ("balloon.disk_caches", "memory_stats_disk_caches_bytes", KIB, "Memory that the guest uses as disk cache."),
    ("balloon.swap_in", "memory_stats_swap_in_bytes", KIB, "Memory that the guest has read from swap."),
    ("balloon.swap_out", "memory_stats_swap_out_bytes", KIB, "Memory that the guest has written to swap."),
    ("balloon.major_fault", "memory_stats_major_fault_total", ONE, "Major page faults of the guest."),
    ("balloon.minor_fault", "memory_stats_minor_fault_total", ONE, "Minor page faults of the guest."),
)
_VCPU = (
    ("state", "vcpu_state", ONE, "0 offline, 1 running, 2 blocked."),
    ("time", "vcpu_time_seconds_total", NANOSECONDS, "Time that the virtual CPU ran."),
    ("wait", "vcpu_wait_seconds_total", NANOSECONDS, "Time that it waited for I/O."),
    ("delay", "vcpu_delay_seconds_total", NANOSECONDS, "Time that it waited for a CPU of the host."),
)
_BLOCK = (
    ("rd.bytes", "block_stats_read_bytes_total", ONE, "Bytes read."),
    ("rd.reqs", "block_stats_read_requests_total", ONE, "Read requests."),
    ("rd.times", "block_stats_read_time_seconds_total", NANOSECONDS, "Total time of reads."),
    ("wr.bytes", "block_stats_write_bytes_total", ONE, "Bytes written."),
    ("wr.reqs", "block_stats_write_requests_total", ONE, "Write requests."),
    ("wr.times", "block_stats_write_time_seconds_total", NANOSECONDS, "Total time of writes."),
    ("fl.reqs", "block_stats_flush_requests_total", ONE, "Flush requests."),
    ("fl.times", "block_stats_flush_time_seconds_total", NANOSECONDS, "Total time of flushes."),
    ("allocation", "block_stats_allocation", ONE, "Offset of the highest byte written."),
    ("capacity", "block_stats_capacity_bytes", ONE, "Size of the disk in the guest."),
    ("physical", "block_stats_physicalsize_bytes", ONE, "Size of the file or device on the host."),
)
_NET = tuple(
    (f"{key}.{count}", f"interface_stats_{direction}_{name}_total", ONE, f"{text} {done} by the guest.")
    for key, direction, done in (("rx", "receive", "received"), ("tx", "transmit", "transmitted"))
    for count, name, text in (
        ("bytes", "bytes", "Bytes"),
        ("pkts", "packets", "Packets"),
        ("errs", "errors", "Errors of packets"),
        ("drop", "drops", "Drops of packets"),
    )
)
_INDEXED = {"vcpu": (_VCPU, "vcpu"), "block": (_BLOCK, "target_device"), "net": (_NET, "target_device")}
_KEY = re.compile(r"(vcpu|block|net)\.([0-9]+)\.(.+)")


def build_families(statistics: Mapping[str, Statistics], timed_out: Iterable[str]) -> list[Family]:
    """The families of all domains; `timed_out` are the domains whose statistics did not arrive in time."""
    made = {
        name: Family(_full_name(name), text, name.endswith("_total"), labels) for name, text, labels in _list_metrics()
    }
    for domain, values in statistics.items():
        for key, name, factor, _ in _PLAIN:
            if (value := _read_amount(values, key)) is not None:
                made[name].samples.append(((domain,), value * factor))
        if (used := _compute_used_percent(values)) is not None:
            made["memory_stats_used_percent"].samples.append(((domain,), used))
        for name, device, value in _read_devices(values):
            made[name].samples.append(((domain, device), value))
    slow = frozenset(timed_out)
    made["timed_out"].samples.extend(((domain,), float(domain in slow)) for domain in sorted(slow.union(statistics)))
    return list(made.values())


def _read_amount(values: Statistics, key: str) -> float | None:
    """The value of a key; None where it is missing or no amount."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= MOST_AMOUNT else None


def _compute_used_percent(values: Statistics) -> float | None:
    """Memory that the guest could not free, 0 to 100; None where libvirt does not know it.

    The guest's driver reports the two numbers, and not at the same moment: usable may exceed available.
    """
    available, usable = _read_amount(values, "balloon.available"), _read_amount(values, "balloon.usable")
    if not available or usable is None:
        return None
    return max(0.0, 100.0 * (1.0 - usable / available))


def _full_name(name: str) -> str:
    return f"libvirt_domain_{name}"


def _list_metrics() -> Iterable[tuple[str, str, tuple[str, ...]]]:
    """Name, help text and labels of every metric."""
    for _, name, _, text in _PLAIN:
        yield name, text, ("domain",)
    yield (
        "memory_stats_used_percent",
        "Memory that the guest could not free, in percent of what it manages.",
        ("domain",),
    )
    yield "timed_out", "1 if libvirt did not return the domain's statistics in time.", ("domain",)
    for table, label in _INDEXED.values():
        for _, name, _, text in table:
            yield name, text, ("domain", label)


_NAMES = {(kind, key): (name, factor) for kind, (table, _) in _INDEXED.items() for key, name, factor, _ in table}


def _read_devices(values: Statistics) -> Iterable[tuple[str, str, float]]:
    """Metric, device and value of each virtual CPU, disk and interface; of two disks of one name the first is used."""
    seen = set()
    for key in values:
        match = _KEY.fullmatch(key)
        if match is None or (match[1], match[3]) not in _NAMES:
            continue
        name, factor = _NAMES[match[1], match[3]]
        device = match[2] if match[1] == "vcpu" else str(values.get(f"{match[1]}.{match[2]}.name", match[2]))
        value = _read_amount(values, key)
        if value is not None and (name, device) not in seen:
            seen.add((name, device))
            yield name, device, value * factor
