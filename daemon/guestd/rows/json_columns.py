"""The JSON columns of a sample: disks, rates, interfaces, load. Pure; the names carry the units (sql/migrations/0002).

Numbers below 0, or too large to be summed, are invalid: they become null and are counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from guestd.wire import limits
from guestd.wire.schema import DiskIo, DiskUsage, Interface, LoadAverage, Number

_encode = msgspec.json.Encoder().encode
_PSEUDO_FILE_SYSTEMS = frozenset(
    {
        "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
        "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs", "rpc_pipefs", "securityfs", "selinuxfs",
        "sysfs", "tracefs",
    }
)  # fmt: skip


def encode_list(entries: Sequence[object], adjustments: list[str]) -> bytes:
    """Encode a list, cut until it fits into a column."""
    while len(encoded := _encode(entries)) > limits.JSON_BYTES:
        adjustments.append("json_cut")
        entries = entries[: len(entries) // 2]
    return encoded


def is_real_file_system(disk: DiskUsage) -> bool:
    """Whether it stores files: pseudo file systems cannot fill up."""
    return bool(disk.total_gb) and disk.filesystem not in _PSEUDO_FILE_SYSTEMS


def describe_disk(disk: DiskUsage, adjustments: list[str]) -> dict[str, object]:
    """GiB."""
    return {
        "mountPoint": disk.mount_point[: limits.PATH_CHARS],
        "totalGB": _amount(disk.total_gb, adjustments),
        "usedGB": _amount(disk.used_gb, adjustments),
        "availableGB": _amount(disk.available_gb, adjustments),
        "filesystem": disk.filesystem[: limits.STATE_CHARS] if disk.filesystem else disk.filesystem,
    }


def encode_disk_rates(rates: DiskIo, adjustments: list[str]) -> bytes:
    """Per second."""
    return _encode(
        {
            "readBytesPerSec": _amount(rates.read_bytes_per_sec, adjustments),
            "writeBytesPerSec": _amount(rates.write_bytes_per_sec, adjustments),
            "readOpsPerSec": _amount(rates.read_ops_per_sec, adjustments),
            "writeOpsPerSec": _amount(rates.write_ops_per_sec, adjustments),
        }
    )


def interface_name(interface: Interface) -> str:
    """The name as it is stored."""
    return interface.name[: limits.NAME_CHARS]


def describe_interface(interface: Interface, figures_are_counters: bool, adjustments: list[str]) -> dict[str, object]:
    """Per second; counters since boot have their own member."""
    figures = {
        "bytesReceived": _amount(interface.bytes_received, adjustments),
        "bytesSent": _amount(interface.bytes_sent, adjustments),
        "packetsReceived": _amount(interface.packets_received, adjustments),
        "packetsSent": _amount(interface.packets_sent, adjustments),
        "errorsIn": _amount(interface.errors_in, adjustments),
        "errorsOut": _amount(interface.errors_out, adjustments),
    }
    entry: dict[str, object] = {"interface": interface_name(interface)}
    # A counter under a rate's name would be a spike of gigabytes in every graph, so it gets its own name.
    entry |= {**dict.fromkeys(figures), "countersSinceBoot": figures} if figures_are_counters else figures
    addresses = interface.ip_addresses
    if addresses is not None:
        addresses = [address[: limits.STATE_CHARS] for address in addresses[: limits.ADDRESSES]]
    return entry | {"ipAddresses": addresses, "isUp": interface.is_up}


def load_average(load: LoadAverage, adjustments: list[str]) -> bytes:
    """Runnable tasks."""
    return _encode(
        {
            "load1min": _amount(load.load_1min, adjustments),
            "load5min": _amount(load.load_5min, adjustments),
            "load15min": _amount(load.load_15min, adjustments),
        }
    )


def _amount(value: Number, adjustments: list[str]) -> Number:
    if value is None or 0 <= value <= limits.AMOUNT:
        return value
    adjustments.append("negative_nulled" if value < 0 else "too_large_nulled")
    return None
