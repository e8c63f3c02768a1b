"""The machine as a whole: CPU, memory, disks, network, system; rates are since the last sample that had them."""

from __future__ import annotations

import errno
import math
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from guestd.agent.parts import Parts
from guestd.agent.payload import (
    Cpu,
    Disk,
    DiskIo,
    DiskUsage,
    Interface,
    LoadAverage,
    Machine,
    Memory,
    Network,
    clean,
)

BYTES_PER_GIB = 1024**3
# A file system answers at once or not for a long time.
FILE_SYSTEM_SECONDS = 2.0
# The unit of /proc/diskstats, whatever the disk's own is.
_SECTOR_BYTES = 512
# Images that are full by nature; the packages of a desktop bring dozens.
_ALWAYS_FULL = frozenset({"squashfs", "iso9660", "udf"})
# Where the kernel's drivers report the CPU itself, and not a disk or a battery.
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "acpitz")

Counters = tuple[int, ...]
CoreTimes = Mapping[str, float]


class UnreadableFile(Exception):
    """A file of this machine lacks what its reader needs."""


class MachineWatch:
    """The counters of the last sample, from which rates are computed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        # The first sample is taken a moment later and has CPU and disk rates; those of the network are null in it,
        # as docs/wire.md says.
        self._core_times: Sequence[CoreTimes] = ()
        self._disk_rates = _Rates(lambda: _disk_counters(self._fail_disks))
        self._interface_rates = _Rates(_interface_counters)
        parts.read("cpu", self._core_percents, list[float]())
        self._disk_io()

    def cpu(self) -> Cpu:
        """Use of each core since the last sample, and their mean."""
        cores: list[float] = self._parts.read("cpu", self._core_percents, [])
        mean = round(sum(cores) / len(cores), 1) if cores else None
        return Cpu(
            usage_percent=mean, cores_usage=cores, temperature=self._parts.read("temperature", _temperature, None)
        )

    def memory(self) -> Memory:
        """KiB."""
        memory = self._parts.read("memory", _memory, Memory(0, 0, 0, None, None))
        nothing: tuple[int | None, int | None] = (None, None)
        memory.swap_total_kb, memory.swap_used_kb = self._parts.read("swap", _swap_kb, nothing)
        return memory

    def disk(self) -> Disk:
        """File systems now, and rates since the last sample."""
        mounts: dict[str, str] = self._parts.read("file_systems", _list_mounts, {})
        usages = self._parts.read_each(
            "file_systems", sorted(mounts), lambda mount: _disk_usage(mount, mounts[mount]), FILE_SYSTEM_SECONDS
        )
        return Disk(usage_stats=[usage for usage in usages.values() if usage is not None], io_stats=self._disk_io())

    def network(self) -> Network:
        """Interfaces now, and rates since the last sample."""
        found: dict[str, Counters | None] = self._parts.read("network", self._interface_rates.read, {})
        addresses: Mapping[str, Iterable[Any]] = self._parts.read("addresses", psutil.net_if_addrs, {})
        states: Mapping[str, Any] = self._parts.read("links", psutil.net_if_stats, {})
        names = found or [name for name in addresses if not _is_loopback(name)]
        return Network(
            [
                _interface(
                    name, found.get(name), addresses.get(name, ()), states[name].isup if name in states else None
                )
                for name in names
            ]
        )

    def system(self) -> Machine:
        """Names, uptime and load."""
        name, version = self._parts.read("names", _os_names, (platform.system(), ""))
        return Machine(
            uptime_seconds=self._parts.read("uptime", _uptime_seconds, None),
            name=clean(name),
            os_version=clean(version),
            kernel_version=clean(platform.release()),
            hostname=clean(socket.gethostname()),
            load_average=self._parts.read("load", _load_average, None),
        )

    def _fail_disks(self, reason: str) -> None:
        self._parts.fail("disks", reason)

    def _core_percents(self) -> list[float]:
        before, self._core_times = self._core_times, _read_core_times()
        return [busy_percent(old, new) for old, new in zip(before, self._core_times, strict=False)]

    def _disk_io(self) -> DiskIo | None:
        disks: dict[str, Counters | None] = self._parts.read("disks", self._disk_rates.read, {})
        known = [rate for rate in disks.values() if rate is not None]
        return DiskIo(*(sum(column) for column in zip(*known, strict=True))) if known else None


class _Rates:
    """Counters by name, read again and again."""

    def __init__(self, read: Callable[[], dict[str, Counters]]) -> None:
        self._read = read
        self._counters: dict[str, Counters] = {}
        self._read_at = 0.0

    def read(self) -> dict[str, Counters | None]:
        """The rate of each name since the last call that did not fail; None for a name that has none yet."""
        counters, now = self._read(), time.monotonic()
        found = rates(self._counters, counters, now - self._read_at)
        self._counters, self._read_at = counters, now
        return {name: found.get(name) for name in counters}


def rates(before: Mapping[str, Counters], after: Mapping[str, Counters], seconds: float) -> dict[str, Counters]:
    """Whole units per second of each name that is in both; not of one whose counters were reset."""
    if seconds <= 0:
        return {}
    return {
        name: tuple(round((new - old) / seconds) for new, old in zip(counters, before[name], strict=True))
        for name, counters in after.items()
        if name in before and all(new >= old for new, old in zip(counters, before[name], strict=True))
    }


def busy_percent(before: CoreTimes, after: CoreTimes) -> float:
    """How much of the time between two readings of /proc/stat a core worked; 0 to 100.

    Times that run backwards, as the kernel's do now and then, count as none. Waiting for I/O is idle time; the time of
    a guest is within its user's.
    """
    passed = {name: max(0.0, seconds - before.get(name, seconds)) for name, seconds in after.items()}
    total = sum(seconds for name, seconds in passed.items() if name not in ("guest", "guest_nice"))
    idle = passed.get("idle", 0.0) + passed.get("iowait", 0.0)
    return round(min(max(100 * (total - idle) / total, 0.0), 100.0), 1) if 0 < total < math.inf else 0.0


def is_whole_disk(name: str, system_block: Path = Path("/sys/block")) -> bool:
    """Whether a Linux block device is a disk, so that each byte is counted once: partitions are not in that folder, and
    what is built on other devices (loop, dm, md, zram) has no device behind it.
    """
    try:
        return (system_block / name.replace("/", "!") / "device").exists()
    except OSError:  # longer than any name of a file
        return False


def parse_diskstats(text: str) -> tuple[dict[str, Counters], list[str]]:
    """Bytes read and written, operations read and written, by name, from /proc/diskstats; and the lines without them.

    psutil refuses the whole file when one line has a number of fields that it does not know, as lxcfs writes them. The
    fields that count are the same in every form since Linux 2.6.
    """
    disks: dict[str, Counters] = {}
    unreadable = []
    for line in filter(str.strip, text.splitlines()):
        fields = line.split()
        try:
            reads, read_sectors, writes, written_sectors = (int(fields[place]) for place in (3, 5, 7, 9))
        except (ValueError, IndexError):
            unreadable.append(line)
            continue
        disks[fields[2]] = (read_sectors * _SECTOR_BYTES, written_sectors * _SECTOR_BYTES, reads, writes)
    return disks, unreadable


def _read_core_times() -> list[CoreTimes]:
    return [core._asdict() for core in psutil.cpu_times(percpu=True)]


def _disk_counters(fail: Callable[[str], None]) -> dict[str, Counters]:
    """Of every disk that can be read; `fail` gets the first line of another one."""
    if sys.platform == "linux":
        file = Path(psutil.PROCFS_PATH, "diskstats")
        disks, unreadable = parse_diskstats(file.read_text(errors="replace"))
        for line in unreadable:
            # A line of what is no disk is not needed.
            if len(fields := line.split()) < 3 or is_whole_disk(fields[2]):
                fail(f"{file} has a line that cannot be read: {line.strip()}")
                break
        return {name: counters for name, counters in disks.items() if is_whole_disk(name)}
    return {
        name: (disk.read_bytes, disk.write_bytes, disk.read_count, disk.write_count)
        for name, disk in psutil.disk_io_counters(perdisk=True).items()
    }


def _memory() -> Memory:
    file = Path(psutil.PROCFS_PATH, "meminfo")
    try:
        now = psutil.virtual_memory()
    except KeyError as exc:
        raise UnreadableFile(f"{file} has no line {exc.args[0].decode().rstrip(':')}") from exc
    except (ValueError, IndexError) as exc:
        raise UnreadableFile(f"{file} has a line that cannot be read: {exc}") from exc
    available = min(max(now.available, 0), now.total)
    return Memory(
        total_kb=now.total // 1024,
        used_kb=(now.total - available) // 1024,
        available_kb=available // 1024,
        swap_total_kb=None,
        swap_used_kb=None,
    )


def _swap_kb() -> tuple[int | None, int | None]:
    swap = psutil.swap_memory()
    # In a container the free part may be the host's, and more than the total.
    return (swap.total // 1024, max(swap.used, 0) // 1024) if swap.total else (None, None)


def _list_mounts() -> dict[str, str]:
    """The mount points whose use is reported, with their kind.

    Each file system once, where it is mounted nearest to the root; the root whatever it is on.
    """
    partitions = {
        partition.device: partition
        for partition in sorted(psutil.disk_partitions(), key=lambda known: -len(known.mountpoint))
        if partition.fstype not in _ALWAYS_FULL
    }
    mounts = {partition.mountpoint: partition.fstype for partition in partitions.values()}
    if sys.platform != "win32":
        # In a container the root is an overlay, which is no block device.
        mounts.setdefault("/", "overlay")
    return mounts


def _disk_usage(mount_point: str, filesystem: str) -> DiskUsage | None:
    try:
        usage = psutil.disk_usage(mount_point)
    except OSError as exc:
        # A drive without a medium, a mount that this user may not read or that has just gone.
        if exc.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOMEDIUM):
            return None
        raise
    return DiskUsage(
        mount_point=clean(mount_point),
        total_gb=round(max(usage.total, 0) / BYTES_PER_GIB, 3),
        used_gb=round(max(usage.used, 0) / BYTES_PER_GIB, 3),
        available_gb=round(max(usage.free, 0) / BYTES_PER_GIB, 3),
        filesystem=clean(filesystem),
    )


def _interface_counters() -> dict[str, Counters]:
    return {
        name: (nic.bytes_recv, nic.bytes_sent, nic.packets_recv, nic.packets_sent, nic.errin, nic.errout)
        for name, nic in psutil.net_io_counters(pernic=True).items()
        if not _is_loopback(name)
    }


def _is_loopback(name: str) -> bool:
    return name == "lo" or name.startswith("Loopback")


def _interface(name: str, known: Counters | None, addresses: Iterable[Any], is_up: bool | None) -> Interface:
    received, sent, packets_received, packets_sent, errors_in, errors_out = known or (None,) * 6
    internet = (socket.AF_INET, socket.AF_INET6)
    return Interface(
        name=clean(name),
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


def _uptime_seconds() -> int:
    try:
        seconds = time.time() - psutil.boot_time()
    except (RuntimeError, ValueError, IndexError):  # a container's /proc/stat may lack the time of boot
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(0, int(seconds))


def _load_average() -> LoadAverage | None:
    return None if sys.platform == "win32" else LoadAverage(*(round(value, 2) for value in os.getloadavg()))


def _os_names() -> tuple[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.system(), platform.version()
    return release.get("NAME", "Linux"), release.get("VERSION_ID", "")
