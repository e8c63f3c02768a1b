"""The machine as a whole: CPU, memory, disks, network, system; rates are since the last sample."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from guestd.agent.payload import Cpu, Disk, DiskIo, DiskUsage, Interface, LoadAverage, Machine, Memory, Network

BYTES_PER_GIB = 1024**3
# Images that are full by nature; the packages of a desktop bring dozens.
_ALWAYS_FULL = frozenset({"squashfs", "iso9660", "udf"})
# Where the kernel's drivers report the CPU itself, and not a disk or a battery.
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")

Counters = tuple[int, ...]


class MachineWatch:
    """The counters of the last sample, from which rates are computed."""

    def __init__(self) -> None:
        # The first sample is taken a moment later and has CPU and disk rates; those of the network are null in it,
        # as docs/wire.md says.
        psutil.cpu_percent(percpu=True)
        self._disks = _disk_counters()
        self._disks_at = time.monotonic()
        self._interfaces: dict[str, Counters] = {}
        self._interfaces_at = 0.0
        self._os_name, self._os_version = _os_names()

    def cpu(self) -> Cpu:
        """Use of each core since the last sample, and their mean."""
        cores = psutil.cpu_percent(percpu=True)
        mean = round(sum(cores) / len(cores), 1) if cores else None
        return Cpu(usage_percent=mean, cores_usage=cores, temperature=_temperature())

    def disk(self) -> Disk:
        """File systems now, and rates since the last sample."""
        before, before_at = self._disks, self._disks_at
        self._disks, self._disks_at = _disk_counters(), time.monotonic()
        return Disk(usage_stats=_file_systems(), io_stats=_disk_io(before, self._disks, self._disks_at - before_at))

    def network(self) -> Network:
        """Interfaces now, and rates since the last sample."""
        before, before_at = self._interfaces, self._interfaces_at
        self._interfaces, self._interfaces_at = _interface_counters(), time.monotonic()
        found = rates(before, self._interfaces, self._interfaces_at - before_at)
        addresses, states = psutil.net_if_addrs(), psutil.net_if_stats()
        return Network(
            [
                _interface(name, found.get(name), addresses.get(name, ()), name in states and states[name].isup)
                for name in self._interfaces
            ]
        )

    def system(self) -> Machine:
        """Names, uptime and load."""
        load = None if sys.platform == "win32" else LoadAverage(*(round(value, 2) for value in os.getloadavg()))
        return Machine(
            uptime_seconds=max(0, int(time.time() - psutil.boot_time())),
            name=self._os_name,
            os_version=self._os_version,
            kernel_version=platform.release(),
            hostname=socket.gethostname(),
            load_average=load,
        )


def memory() -> Memory:
    """KiB."""
    now, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Memory(
        total_kb=now.total // 1024,
        used_kb=max(0, now.total - now.available) // 1024,
        available_kb=now.available // 1024,
        swap_total_kb=swap.total // 1024 if swap.total else None,
        swap_used_kb=swap.used // 1024 if swap.total else None,
    )


def rates(before: Mapping[str, Counters], after: Mapping[str, Counters], seconds: float) -> dict[str, Counters]:
    """Whole units per second of each name that is in both; not of one whose counters were reset."""
    if seconds <= 0:
        return {}
    return {
        name: tuple(round((new - old) / seconds) for new, old in zip(counters, before[name], strict=True))
        for name, counters in after.items()
        if name in before and all(new >= old for new, old in zip(counters, before[name], strict=True))
    }


def is_whole_disk(name: str, system_block: Path = Path("/sys/block")) -> bool:
    """Whether a Linux block device is a disk, so that each byte is counted once: partitions are not in that folder, and
    what is built on other devices (loop, dm, md, zram) has no device behind it.
    """
    return (system_block / name.replace("/", "!") / "device").exists()


def _disk_counters() -> dict[str, Counters]:
    disks = psutil.disk_io_counters(perdisk=True)
    return {
        name: (disk.read_bytes, disk.write_bytes, disk.read_count, disk.write_count)
        for name, disk in disks.items()
        if sys.platform != "linux" or is_whole_disk(name)
    }


def _disk_io(before: Mapping[str, Counters], after: Mapping[str, Counters], seconds: float) -> DiskIo | None:
    found = rates(before, after, seconds)
    return DiskIo(*(sum(column) for column in zip(*found.values(), strict=True))) if found else None


def _file_systems() -> list[DiskUsage]:
    """Each file system once, where it is mounted nearest to the root; the root whatever it is on."""
    partitions = {
        partition.device: partition
        for partition in sorted(psutil.disk_partitions(), key=lambda known: -len(known.mountpoint))
        if partition.fstype not in _ALWAYS_FULL
    }
    mounts = {partition.mountpoint: partition.fstype for partition in partitions.values()}
    if sys.platform != "win32":
        # In a container the root is an overlay, which is no block device.
        mounts.setdefault("/", "overlay")
    usages = [_disk_usage(mount_point, filesystem) for mount_point, filesystem in sorted(mounts.items())]
    return [usage for usage in usages if usage is not None]


def _disk_usage(mount_point: str, filesystem: str) -> DiskUsage | None:
    try:
        usage = psutil.disk_usage(mount_point)
    except OSError:
        # A drive without a medium, a mount that this user may not read.
        return None
    return DiskUsage(
        mount_point=mount_point,
        total_gb=round(usage.total / BYTES_PER_GIB, 3),
        used_gb=round(usage.used / BYTES_PER_GIB, 3),
        available_gb=round(usage.free / BYTES_PER_GIB, 3),
        filesystem=filesystem,
    )


def _interface_counters() -> dict[str, Counters]:
    return {
        name: (nic.bytes_recv, nic.bytes_sent, nic.packets_recv, nic.packets_sent, nic.errin, nic.errout)
        for name, nic in psutil.net_io_counters(pernic=True).items()
        if name != "lo" and not name.startswith("Loopback")
    }


def _interface(name: str, known: Counters | None, addresses: Iterable[Any], is_up: bool) -> Interface:
    received, sent, packets_received, packets_sent, errors_in, errors_out = known or (None,) * 6
    internet = (socket.AF_INET, socket.AF_INET6)
    return Interface(
        name=name,
        bytes_received=received,
        bytes_sent=sent,
        packets_received=packets_received,
        packets_sent=packets_sent,
        errors_in=errors_in,
        errors_out=errors_out,
        ip_addresses=[address.address.partition("%")[0] for address in addresses if address.family in internet],
        is_up=is_up,
    )


def _temperature() -> float | None:
    if sys.platform != "linux":
        return None
    sensors = psutil.sensors_temperatures()
    readings = [sensors[name][0].current for name in _CPU_SENSORS if sensors.get(name)]
    return round(readings[0], 1) if readings else None


def _os_names() -> tuple[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system(), platform.version()
    return release.get("NAME", "Linux"), release.get("VERSION_ID", "")
