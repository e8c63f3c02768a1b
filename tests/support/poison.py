"""Every value that was ever seen to break a store or a decoder, and every field of a guest's message to put it in."""

import copy
import json
from collections.abc import Iterator
from typing import Any

# As JSON texts: some of them are no JSON at all.
POISON: dict[str, bytes] = {
    "nul": rb'"a\u0000b"',
    "only nul": rb'"\u0000"',
    "lone surrogate": rb'"\ud800"',
    "reversed surrogates": rb'"\udc00\ud800"',
    "raw nul": b'"a\x00b"',
    "raw control": b'"\x1b[2J\x07"',
    "invalid UTF-8": b'"\xff\xfe"',
    "surrogate as bytes": b'"\xed\xa0\x80"',
    "overlong": b'"\xc0\x80"',
    "long text": b'"' + b"x" * 9_000 + b'"',
    "long text of four bytes": b'"' + "\N{GRINNING FACE}".encode() * 3_000 + b'"',
    "empty text": b'""',
    "NaN": b"NaN",
    "NaN as text": b'"NaN"',
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "1.#INF": b"1.#INF",
    "1e400": b"1e400",
    "-1e400": b"-1e400",
    "1e308": b"1e308",
    "1e-400": b"1e-400",
    "huge exponent": b"1e999999999999",
    "minus zero": b"-0.0",
    "-1": b"-1",
    "-1.5": b"-1.5",
    "0.5": b"0.5",
    "whole as float": b"7.0",
    "2^31": b"2147483648",
    "2^31 + 5": b"2147483653",
    "-2^31 - 1": b"-2147483649",
    "2^32": b"4294967296",
    "65536": b"65536",
    "2^63 - 1": b"9223372036854775807",
    "2^63": b"9223372036854775808",
    "2^64": b"18446744073709551616",
    "-2^63 - 1": b"-9223372036854775809",
    "20 digits": b"9" * 20,
    "400 digits": b"9" * 400,
    "5000 digits": b"9" * 5_000,
    "30,000 digits": b"9" * 30_000,
    "true": b"true",
    "null": b"null",
    "number as text": b'"12"',
    "list": b"[]",
    "list of lists": b"[[1],[2]]",
    "object": b"{}",
    "object with keys twice": b'{"id":1,"id":2,"name":"a","name":"b"}',
    "deep list": b"[" * 500 + b"]" * 500,
    "deeper list": b"[" * 20_000 + b"]" * 20_000,
    "deep object": b'{"a":' * 500 + b"1" + b"}" * 500,
    "year 0": b'"0000-00-00T00:00:00Z"',
    "year 1": b'"0001-01-01T00:00:00+14:00"',
    "year 9999": b'"9999-12-31T23:59:59-14:00"',
    "year 99999": b'"99999-01-01T00:00:00Z"',
    "seconds of year 1": b"-62135596800",
    "far seconds": b"99999999999999999",
    "terminal": rb'"\u001b[2J\r\n"',
    "pg null": rb'"\\N"',
    "quotes": b'"\\"\'; DROP TABLE x; --"',
}

D1: dict[str, Any] = {
    "type": "metrics", "timestamp": "2025-10-01T12:00:30+00:00", "boot_id": "x", "vm_id": None,
    "data": {"system": {
        "cpu": {"usage_percent": 12.5, "cores_usage": [20.0, 5.0], "temperature": 40.0},
        "memory": {
            "total_kb": 2097152, "used_kb": 524288, "available_kb": 1572864, "swap_total_kb": 1, "swap_used_kb": 1,
        },
        "disk": {
            "usage_stats": [
                {"mount_point": "/", "total_gb": 32.0, "used_gb": 7.25, "available_gb": 24.75, "filesystem": "xfs"}
            ],
            "io_stats": {
                "read_bytes_per_sec": 1, "write_bytes_per_sec": 8192, "read_ops_per_sec": 1, "write_ops_per_sec": 2,
            },
        },
        "network": {"interfaces": [{
            "name": "ens3", "bytes_received": 1, "bytes_sent": 1, "packets_received": 1, "packets_sent": 1,
            "errors_in": 1, "errors_out": 1, "ip_addresses": ["192.0.2.9"], "is_up": True,
        }]},
        "system": {
            "uptime_seconds": 5400, "name": "Debian", "os_version": "12", "kernel_version": "6", "hostname": "g",
            "load_average": {"load_1min": 0.25, "load_5min": 0.5, "load_15min": 0.75},
        },
        "processes": [{
            "id": 633, "parent_id": 1, "name": "cron", "executable_path": "/usr/sbin/cron", "command_line": "cron -f",
            "cpu_usage_percent": 0.2, "memory_usage_kb": 2816, "disk_read_bytes": 1, "disk_write_bytes": 1,
            "status": "Sleeping", "start_time": 1759314630,
        }],
        "ports": [{
            "port": 22, "protocol": "TCP", "state": "Listen", "process_id": 701, "process_name": "sshd",
            "exe_path": "/sshd", "is_listening": True,
        }],
        "windows_services": [{
            "name": "s", "display_name": "S", "state": "Running", "start_mode": "Auto", "status": "OK", "process_id": 1,
            "path": "C:\\s.exe",
        }],
    }},
}  # fmt: skip
D2: dict[str, Any] = {
    "type": "metrics", "timestamp": 1759314630, "vmId": None,
    "data": {
        "system": {
            "cpu": {"usage_percent": 7.5, "cores_usage": [5, 10]},
            "memory": {"total_kb": 4194304, "used_kb": 1048576, "available_kb": 3145728},
            "disk": {"usage_stats": [], "io_stats": {"read_bytes_per_sec": 0}}, "network": {"interfaces": []},
            "uptime_seconds": 3600, "load_average": {"load_1min": 1, "load_5min": 1, "load_15min": 1},
        },
        "processes": [{
            "pid": 812, "ppid": 1, "name": "sshd", "exe_path": "/usr/sbin/sshd", "cmd_line": "sshd -D",
            "cpu_percent": 0.4, "memory_kb": 9216, "disk_read_bytes": 1, "disk_write_bytes": 1, "status": "sleeping",
            "start_time": "2025-10-01T10:30:30Z",
        }],
        "applications": [{
            "exe_path": "/usr/bin/firefox", "name": "Firefox", "version": "1", "description": "d", "publisher": "p",
            "last_access": "2025-10-01T10:30:30Z", "last_modified": 1759314630, "access_count": 3, "usage_minutes": 45,
            "file_size": 1, "is_active": True, "icon_base64": "AAAA", "icon_format": "png",
        }],
        "ports": [{
            "port": 22, "protocol": "tcp", "state": "LISTEN", "pid": 1, "exe_path": "/s", "is_listening": True,
            "connection_count": 1,
        }],
        "windows_services": [{
            "name": "t", "state": "stopped", "start_type": "auto", "service_type": "win32", "pid": 1, "exe_path": "e",
            "description": "d", "dependencies": ["s"], "is_default": True,
        }],
    },
}  # fmt: skip

_SIGN = "\N{OBJECT REPLACEMENT CHARACTER}"
# Stands in the templates where poison goes.
MARK = f'"{_SIGN}"'.encode()
Path = tuple[str | int, ...]


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place of a message, its lists and objects as well as its leaves."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


def _with_a_mark(message: dict[str, Any], path: Path) -> bytes:
    changed = copy.deepcopy(message)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = _SIGN
    return json.dumps(changed, ensure_ascii=False).encode()


TEMPLATES = [(path, _with_a_mark(message, path)) for message in (D1, D2) for path in places(message)]


def poisoned(name: str) -> Iterator[tuple[Path, bytes]]:
    """Messages with this poison in each place of both dialects."""
    for path, template in TEMPLATES:
        yield path, template.replace(MARK, POISON[name])


# What a terminal acts on, hides or breaks a line at: cursor, title and clipboard sequences, C1 controls, marks of the
# writing direction, invisible characters. Every store and every libvirt accepts such a text.
TERMINAL_POISON = "\x1b[2J\x1b]0;title\x07\x1b]52;c;AAAA\x07\x9b31m\x85\x7f\b"
TERMINAL_POISON += "\r\n\tforged: line\u2028\u202e\u2066\u200b\ufeff\U000e0041"
# What a host's own XML, which has no control characters, may still hold.
XML_POISON = "vm \u202e\u2066\u200b\x85\x9b31m"


def assert_harmless(output: bytes) -> None:
    """Nothing but printable characters and ends of lines, and no line that a text has begun."""
    text = output.decode()
    assert [each for each in text if not each.isprintable() and each != "\n"] == []
    assert not any(line.lstrip().startswith("forged") for line in text.split("\n"))
