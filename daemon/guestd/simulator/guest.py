"""One simulated guest: a machine of some kind whose values move as those of real machines do.

Deterministic: the same seed, number and moments give the same bytes.
"""

from __future__ import annotations

import base64
import struct
import zlib
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid5

import msgspec

from guestd.simulator.processes import ProcessTable
from guestd.simulator.profiles import SERVER, WINDOWS, WORKSTATION, Desktop, Profile

# Any fixed UUID will do; this one keeps our machine ids apart from all others.
_NAMESPACE = UUID("5b7a4a0e-3c55-4f5e-9d5e-6a8f0f6f2c11")
# Every fifth guest is Windows; servers and workstations share the others.
_KINDS = (SERVER, WORKSTATION, SERVER, WINDOWS, WORKSTATION)
KIB_PER_GIB = 1024 * 1024
ICON_PIXELS = 64
MOST_CONNECTIONS = 24
# Temporary ports begin here on Linux and, near enough, on Windows.
FIRST_TEMPORARY_PORT = 49152


def machine_id(number: int, seed: int) -> UUID:
    """The machine id of the guest with this number, counted from 0."""
    return uuid5(_NAMESPACE, f"{seed}/{number}")


def machine_ids(guests: int, seed: int, first: int = 0) -> list[UUID]:
    """The machine ids of a fleet, in the order of its guests; the same for the same seed."""
    return [machine_id(number, seed) for number in range(first, first + guests)]


class Guest:
    """A machine; `body` moves it on by one message. `start_s` (unix seconds) is when the simulation began."""

    def __init__(self, number: int, *, seed: int, processes: int, start_s: int) -> None:
        self.machine_id = machine_id(number, seed)
        self._random = Random(f"{seed}/{number}")  # noqa: S311 - repeatable is what it must be, not secret
        self._profile: Profile = _KINDS[number % len(_KINDS)]
        self._hostname = f"{self._profile.system_name.split()[0].lower()}-{number:04d}"
        self._address = f"10.{20 + number // 65536}.{number // 256 % 256}.{number % 256}"
        self._start_s = start_s
        self._boot_s = start_s - self._random.randrange(600, 5_000_000)
        self._table = ProcessTable(self._profile, self._random, processes, self._boot_s)
        self._memory_kib = self._random.choice(self._profile.memory_gib) * KIB_PER_GIB
        self._memory_used = self._random.uniform(0.2, 0.7)
        self._disk_used = [self._random.uniform(0.1, 0.8) for _ in self._profile.mounts]
        self._cores = [self._random.uniform(1.0, 20.0) for _ in range(self._random.choice((2, 4, 8)))]
        self._load = self._random.uniform(0.05, 1.0)
        self._traffic: float | None = None
        self._connections: list[int] = []
        self._stopped_service = -1
        self._icons_sent = False

    def body(self, timestamp_ms: int) -> bytes:
        """The guest's next message, taken at this moment (unix milliseconds), without sequence header."""
        now_s = timestamp_ms // 1000
        self._table.step(now_s)
        system = {
            "cpu": self._cpu(),
            "memory": self._memory(),
            "disk": self._disk(),
            "network": {"interfaces": [self._interface()]},
            "system": self._system(now_s),
            "processes": msgspec.Raw(self._table.rendered()),
            "ports": self._ports(),
            "windows_services": self._services(),
        }
        content = {"system": system, "applications": self._applications(timestamp_ms)}
        return msgspec.json.encode({"timestamp": rfc3339(timestamp_ms), "data": content})

    def _walk(self, value: float, step: float, low: float, high: float) -> float:
        return min(high, max(low, value + self._random.gauss(0.0, step)))

    def _cpu(self) -> dict[str, Any]:
        self._cores = [self._walk(core, 4.0, 0.5, 98.0) for core in self._cores]
        cores = [round(core, 1) for core in self._cores]
        return {"usage_percent": round(sum(cores) / len(cores), 1), "cores_usage": cores, "temperature": None}

    def _memory(self) -> dict[str, Any]:
        self._memory_used = self._walk(self._memory_used, 0.005, 0.1, 0.95)
        used = int(self._memory_kib * self._memory_used)
        return {
            "total_kb": self._memory_kib,
            "used_kb": used,
            "available_kb": self._memory_kib - used,
            "swap_total_kb": None,
            "swap_used_kb": None,
        }

    def _disk(self) -> dict[str, Any]:
        self._disk_used = [self._walk(used, 0.0005, 0.05, 0.97) for used in self._disk_used]
        usage = [
            {
                "mount_point": mount_point,
                "total_gb": total,
                "used_gb": round(total * used, 3),
                "available_gb": round(total * (1 - used), 3),
                "filesystem": filesystem,
            }
            for (mount_point, filesystem, total), used in zip(self._profile.mounts, self._disk_used, strict=True)
        ]
        operations = int(self._random.expovariate(0.1))
        rates = {
            "read_bytes_per_sec": operations * 4096,
            "write_bytes_per_sec": operations * 9000,
            "read_ops_per_sec": operations // 3,
            "write_ops_per_sec": operations,
        }
        return {"usage_stats": usage, "io_stats": rates}

    def _interface(self) -> dict[str, Any]:
        first = self._traffic is None
        self._traffic = self._walk(self._traffic or 40_000.0, 9_000.0, 200.0, 4_000_000.0)
        received = int(self._traffic)
        rates = {
            "bytes_received": received,
            "bytes_sent": received // 3,
            "packets_received": received // 800,
            "packets_sent": received // 1200,
            "errors_in": 0,
            "errors_out": 0,
        }
        known = dict.fromkeys(rates) if first else rates
        return {"name": self._profile.interface, **known, "ip_addresses": [self._address], "is_up": True}

    def _system(self, now_s: int) -> dict[str, Any]:
        self._load = self._walk(self._load, 0.1, 0.0, 8.0)
        load = round(self._load, 2)
        averages = {"load_1min": load, "load_5min": round(0.8 * load, 2), "load_15min": round(0.7 * load, 2)}
        return {
            "uptime_seconds": now_s - self._boot_s,
            "name": self._profile.system_name,
            "os_version": self._profile.os_version,
            "kernel_version": self._profile.kernel_version,
            "hostname": self._hostname,
            "load_average": None if self._profile is WINDOWS else averages,
        }

    def _ports(self) -> list[dict[str, Any]]:
        change = self._random.randrange(-1, 2)
        if change < 0:
            del self._connections[:1]
        elif change > 0 and len(self._connections) < MOST_CONNECTIONS:
            self._connections.append(FIRST_TEMPORARY_PORT + self._random.randrange(16000))
        client = self._table.main[-1]
        listening = [
            _port(number, "Listen", process.pid, process.program.path, process.program.name)
            for number, process in self._table.listening
        ]
        connected = [
            _port(number, "Established", client.pid, client.program.path, client.program.name)
            for number in self._connections
        ]
        return listening + connected

    def _services(self) -> list[dict[str, Any]]:
        services = self._profile.services
        if services and self._random.randrange(20) == 0:
            self._stopped_service = self._random.randrange(len(services))
        return [
            {
                "name": service.name,
                "display_name": service.display_name,
                "state": _service_state(service.start_mode, place == self._stopped_service),
                "start_mode": service.start_mode,
                "status": "OK",
                "process_id": None,
                "path": "C:\\Windows\\System32\\svchost.exe",
            }
            for place, service in enumerate(services)
        ]

    def _applications(self, timestamp_ms: int) -> list[dict[str, Any]]:
        minutes = (timestamp_ms // 1000 - self._start_s) // 60
        applications = [
            {
                "exe_path": application.path,
                "name": application.name,
                "version": application.version,
                "publisher": application.publisher,
                "last_access": rfc3339(timestamp_ms),
                "access_count": 1 + place,
                "usage_minutes": (place + 1) * 60 + minutes,
                "file_size": 1_000_000 * (place + 1),
                "is_active": True,
                **({} if self._icons_sent else _icon_of(application)),
            }
            for place, application in enumerate(self._profile.applications)
        ]
        self._icons_sent = True
        return applications


def rfc3339(timestamp_ms: int) -> str:
    """A moment as our agent writes it: UTC, milliseconds, offset +00:00."""
    # Through a float the last digit would be wrong now and then.
    moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=timestamp_ms)
    return moment.isoformat(timespec="milliseconds")


def _port(number: int, state: str, pid: int, path: str, name: str) -> dict[str, Any]:
    return {
        "port": number,
        "protocol": "TCP",
        "state": state,
        "process_id": pid,
        "process_name": name,
        "exe_path": path,
        "is_listening": state == "Listen",
    }


def _service_state(start_mode: str, halted: bool) -> str:
    return "Running" if start_mode == "Auto" and not halted else "Stopped"


def _icon_of(application: Desktop) -> dict[str, str]:
    return {"icon_base64": _plain_png(zlib.crc32(application.name.encode())), "icon_format": "png"}


def _plain_png(colour: int) -> str:
    """A square of one colour (its low 24 bits), as base64."""
    header = struct.pack(">IIBBBBB", ICON_PIXELS, ICON_PIXELS, 8, 2, 0, 0, 0)
    row = b"\0" + (colour & 0xFFFFFF).to_bytes(3, "big") * ICON_PIXELS
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * ICON_PIXELS)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return base64.b64encode(png).decode()
