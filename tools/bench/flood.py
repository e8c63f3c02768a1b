"""Hostile guests: the guests' side of channels, which write as fast as they are read, or publishers; until ended.

All publishers together send at most PUBLISHED_BYTES and PUBLISHED_MESSAGES in a second, which a broker and guestd on
two cores pass on. What they sent beyond it would wait at the broker, before the messages of others, whatever guestd
does.

python -m tools.bench.flood KIND SOCKET...: serves each socket as QEMU would and floods its client.
python -m tools.bench.flood KIND --broker PORT MACHINE...: publishes for each machine, as the user of that name, whose
password is its name too. Guests of one user would end each other's connections.
"""

import argparse
import itertools
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

FRAME_BYTES = 4 * 1024 * 1024
HEAD = b'{"type":"metrics","data":{"system":{"cpu":{"usage_percent":1,"cores_usage":[]},"memory":{"total_kb":1,'
HEAD += b'"used_kb":1,"available_kb":1},"uptime_seconds":1,'
# Of all publishers, in a second.
PUBLISHED_BYTES, PUBLISHED_MESSAGES = 32 * 1024 * 1024, 4000
# Replaced by another number of as many digits in each line that is sent.
VARIABLE = b"00000000"


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


def escapes() -> bytes:
    """One frame of as many escapes as are decoded, one of which must be removed."""
    return HEAD + b'"x":"' + rb"\ud83d\ude00" * 49_000 + rb"\u0000" + b'"}}}\n'


def new_processes() -> bytes:
    """As many processes as are kept, each with a name that was never seen."""
    process = b'{"id":%d,"name":"' + VARIABLE + b'-%d","memory_usage_kb":1,"cpu_usage_percent":1}'
    return HEAD + b'"processes":[' + b",".join(process % (number, number) for number in range(5000)) + b"]}}}\n"


def few_new_processes() -> bytes:
    """A hundred processes with new names, in a frame of the usual size."""
    process = b'{"id":%d,"name":"' + VARIABLE + b'-%d","memory_usage_kb":1,"cpu_usage_percent":1}'
    return HEAD + b'"processes":[' + b",".join(process % (number, number) for number in range(100)) + b"]}}}\n"


def changing_services() -> bytes:
    """As many services as are kept, each of which changes its state with every sample."""
    service = b'{"name":"s%d","display_name":"' + VARIABLE + b'","start_type":"auto","status":"s' + VARIABLE + b'"}'
    services = b",".join(service % number for number in range(2000))
    return HEAD + b'"x":1},"services":[' + services + b"]}}\n"


def new_applications() -> bytes:
    """As many applications as are kept, none of which was seen before."""
    application = b'{"exe_path":"/%d/' + VARIABLE + b'","name":"n","version":"1"}'
    applications = b",".join(application % number for number in range(2000))
    return HEAD + b'"x":1},"applications":[' + applications + b"]}}\n"


def no_json() -> bytes:
    """A frame below the cap that cannot be read, and is quarantined."""
    return HEAD + b'"x":"' + VARIABLE + b'",y' + b":" * 2_000_000 + b"\n"


def several_messages() -> bytes:
    """A line of eight messages that are broken at their ends, so that each end is searched."""
    broken = b'{"type":"metrics","data":[' + b"[]," * 140_000 + b"]}"
    return broken * 8 + b"\n"


def tiny_messages() -> bytes:
    """Lines of one byte and of none, which are no messages."""
    return b"x\n\n" * 1000


KINDS: dict[str, Callable[[], bytes]] = {
    "tiny-messages": tiny_messages,
    "small-frames": small_frames,
    "large-frames": large_frames,
    "hostile-command-lines": hostile_command_lines,
    "wrong-values": wrong_values,
    "never-a-newline": never_a_newline,
    "escapes": escapes,
    "new-processes": new_processes,
    "few-new-processes": few_new_processes,
    "changing-services": changing_services,
    "new-applications": new_applications,
    "no-json": no_json,
    "several-messages": several_messages,
}


def flood_channel(path: Path, content: bytes) -> None:
    """Serve one socket, and write to whoever connects."""
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        numbers = itertools.count()
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(content.replace(VARIABLE, b"%08d" % next(numbers)))
                except OSError:
                    continue


def flood_broker(port: int, machine: str, content: bytes, publishers: int) -> None:
    """Publish the lines of a text as messages of a machine, again and again, as one of so many publishers."""
    connection = connect_publisher(port, machine)
    threading.Thread(target=_read_on, args=(connection,), daemon=True).start()
    topic, lines, due = f"guestd/v1/{machine}/metrics".encode(), itertools.cycle(content.splitlines()), time.monotonic()
    for number, line in enumerate(lines):
        connection.sendall(publish(topic, number % 65535 + 1, line.replace(VARIABLE, b"%08d" % number)))
        due += publishers * max(len(line) / PUBLISHED_BYTES, 1 / PUBLISHED_MESSAGES)
        time.sleep(max(0.0, due - time.monotonic()))


def _read_on(connection: socket.socket) -> None:
    """Read the broker's acknowledgements, which mean nothing to a flood."""
    while connection.recv(65536):
        pass


def connect_publisher(port: int, user: str) -> socket.socket:
    """A connection to the broker as this user, whose password is its name."""
    connection = socket.create_connection(("127.0.0.1", port))
    texts = (user.encode(),) * 3
    rest = b"\0\4MQTT\4\xc2\0\0" + b"".join(struct.pack("!H", len(text)) + text for text in texts)
    connection.sendall(b"\x10" + _length(len(rest)) + rest)
    if connection.recv(4)[3:] != b"\0":
        raise SystemExit("the broker does not let the publisher in")
    return connection


def publish(topic: bytes, mid: int, payload: bytes) -> bytes:
    """A PUBLISH packet of QoS 1 (MQTT 3.1.1)."""
    rest = struct.pack("!H", len(topic)) + topic + struct.pack("!H", mid) + payload
    return b"\x32" + _length(len(rest)) + rest


def _length(size: int) -> bytes:
    encoded = b""
    while True:
        size, low = divmod(size, 128)
        encoded += bytes([low | (0x80 if size else 0)])
        if not size:
            return encoded


def main() -> None:
    """Flood until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--broker", type=int, help="its port; the targets are machines then")
    parser.add_argument("targets", nargs="+")
    arguments = parser.parse_args()
    os.nice(5)
    content = KINDS[arguments.kind]()
    for target in arguments.targets:
        if arguments.broker:
            flood = partial(flood_broker, arguments.broker, target, content, len(arguments.targets))
        else:
            flood = partial(flood_channel, Path(target), content)
        threading.Thread(target=flood, daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
