"""A hostile guest: the guest's side of one channel, which writes as fast as guestd reads, until it is ended.

python -m tools.bench.flood SOCKET KIND: serves SOCKET as QEMU would and floods its client.
"""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

FRAME_BYTES = 4 * 1024 * 1024
HEAD = b'{"type":"metrics","data":{"system":{"cpu":{"usage_percent":1,"cores_usage":[]},"memory":{"total_kb":1,'
HEAD += b'"used_kb":1,"available_kb":1},"uptime_seconds":1,'


def small_frames() -> bytes:
    """A megabyte of the smallest samples there are."""
    line = HEAD[:-1] + b"}}}\n"
    return line * (1024 * 1024 // len(line))


def large_frames() -> bytes:
    """One frame just below the cap, of as many sockets as fit."""
    port = b'{"port":%d,"protocol":"TCP","state":"Established","process_id":%d,"process_name":"p%d"}'
    ports: list[bytes] = []
    room = FRAME_BYTES - 1024
    while room > 0:
        number = len(ports)
        ports.append(port % (number % 65536, number, number))
        room -= len(ports[-1]) + 1
    return HEAD + b'"ports":[' + b",".join(ports) + b"]}}}\n"


def hostile_command_lines() -> bytes:
    """One frame just below the cap whose every command line makes the search for secrets as expensive as possible."""
    line = ("password mysql curl key x://" + "mysql -p" * 600)[:4000]
    process = '{"id":%d,"name":"p","memory_usage_kb":1,"command_line":%s}'
    processes = [process % (number, json.dumps(f"{number} {line}")) for number in range(FRAME_BYTES // 4100)]
    return HEAD + b'"processes":[' + ",".join(processes).encode() + b"]}}}\n"


def wrong_values() -> bytes:
    """One frame just below the cap in which no value fits its field, so that each is repaired by itself."""
    process = b'{"id":%d,"name":"p","memory_usage_kb":-1.5,"cpu_usage_percent":"NaN","parent_id":1e300,"status":[]}'
    entries = b",".join(process % number for number in range(FRAME_BYTES // 130))
    return HEAD + b'"processes":[' + entries + b"]}}}\n"


def never_a_newline() -> bytes:
    """A line without an end."""
    return HEAD + b"x" * (1024 * 1024)


KINDS: dict[str, Callable[[], bytes]] = {
    "small-frames": small_frames,
    "large-frames": large_frames,
    "hostile-command-lines": hostile_command_lines,
    "wrong-values": wrong_values,
    "never-a-newline": never_a_newline,
}


def main() -> None:
    """Flood until the process is ended."""
    path, kind = Path(sys.argv[1]), sys.argv[2]
    content = KINDS[kind]()
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(content)
                except OSError:
                    continue


if __name__ == "__main__":
    main()
