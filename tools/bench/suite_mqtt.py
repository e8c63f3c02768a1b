"""./dev bench mqtt: messages a second from a publisher through a real broker to guestd's acknowledgement.

Each round, on one private server (fsync on) and a fresh broker with deploy/mosquitto's configuration: a publisher in a
process of its own sends pre-encoded QoS 1 messages of many machines as fast as the broker takes them; the clock runs
from the first one until guestd has acknowledged the last, that is, has it fsynced in its spool.

1. storing: the writer stores meanwhile what it can;
2. idle: there is no store, the writer waits, the spool takes all.

Medians over the rounds, with each process's share of one core.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from tools.bench.daemon import cpu_seconds, guestd, samples
from tools.bench.flood import connect_publisher, publish
from tools.bench.server import SEED, own_store
from tools.bench.suite import add_rounds_option, medians, run
from tools.harness.broker import Broker, prefix
from tools.harness.waiting import eventually

from guestd.simulator import machine_ids

NO_STORE = "host=127.0.0.1 port=9 connect_timeout=1"
CHUNK_BYTES = 256 * 1024
ACKNOWLEDGED = "guestd_mqtt_messages_acknowledged_total"


def main() -> None:
    """Run the rounds of both kinds."""
    run(__doc__, _add_options, _measure)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--guests", type=int, default=1000, help="machines whose messages are published")
    parser.add_argument("--messages", type=int, default=150_000, help="messages of all guests in total")
    parser.add_argument("--bytes", type=int, default=1024, help="bytes of each payload")
    parser.add_argument("--version", choices=["5", "3.1.1"], default="5", help="the protocol that guestd speaks")
    add_rounds_option(parser, 3)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    machines = machine_ids(arguments.guests, SEED)
    messages = arguments.messages // len(machines)
    print(f"{len(machines)} machines x {messages} messages of {arguments.bytes} bytes, MQTT {arguments.version}")
    print(f"{'round':>14} {'acknowledged':>14} {'stored':>10} {'broker':>7} {'publisher':>10} {'guestd':>7}")
    rounds: dict[str, list[dict[str, float]]] = {"storing": [], "idle": []}
    with own_store(len(machines)) as (dsn, directory):
        for number in range(1, arguments.rounds + 1):
            for kind, store in (("storing", dsn), ("idle", NO_STORE)):
                packets = _packets(machines, messages, arguments.bytes)
                rounds[kind].append(_round(store, directory, packets, messages * len(machines), arguments.version))
                _print_round(f"{number} {kind}", rounds[kind][-1])
    median = {kind: medians(each) for kind, each in rounds.items()}
    for kind, figures in median.items():
        _print_round(f"median {kind}", figures)
    return {"median": median, "rounds": rounds}


def _print_round(name: str, figures: Mapping[str, float]) -> None:
    acknowledged, stored, broker, publisher, guestd_share = figures.values()
    shares = f"{broker:7.0%} {publisher:10.0%} {guestd_share:7.0%}"
    print(f"{name:>14} {acknowledged:12.0f}/s {stored:8.0f}/s {shares}", flush=True)


def _round(dsn: str, directory: Path, packets: bytes, messages: int, version: str) -> dict[str, float]:
    home = Path(tempfile.mkdtemp(prefix="m", dir=directory))
    broker = Broker(home / "broker", prefix=prefix())
    for user in ("guestd", "simulator"):
        broker.add_user(user, user)
    broker.start()
    channels = home / "channels"
    channels.mkdir()
    table = {"host": "127.0.0.1", "port": broker.port, "username": "guestd", "version": version}
    table["password_file"] = str(broker.directory / "guestd.password")
    lines = "[mqtt]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
    try:
        with guestd(dsn, channels, lines) as (pid, url), _publisher(broker.port, packets, messages) as (publisher, go):
            eventually(lambda: samples(url).get("guestd_mqtt_connected") == 1, "guestd is subscribed")
            return _measured(url, messages, go, {"broker": _pid(broker), "publisher": publisher, "guestd": pid})
    finally:
        broker.stop()


def _measured(url: str, messages: int, go: Event, pids: dict[str, int]) -> dict[str, float]:
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    started = time.perf_counter()
    go.set()
    found: dict[str, float] = {}

    def is_done() -> bool:
        found.update(samples(url))
        return found.get(ACKNOWLEDGED, 0.0) >= messages

    # Seldom: each scrape costs guestd some milliseconds.
    eventually(is_done, "all is acknowledged", 300, every_seconds=0.1)
    took_seconds = time.perf_counter() - started
    refused = sum(value for name, value in found.items() if name.startswith("guestd_frames_refused_total"))
    if refused or found["guestd_frames_accepted_total"] != messages:
        raise SystemExit(f"not all was accepted ({refused:.0f} refused): the figures would not be comparable")
    stored = found.get("guestd_frames_done_total{stored}", 0.0)
    shares = {f"{name}_share": (cpu_seconds(pid) - before[name]) / took_seconds for name, pid in pids.items()}
    return {"messages_per_second": messages / took_seconds, "stored_per_second": stored / took_seconds, **shares}


def _pid(broker: Broker) -> int:
    pid = broker.pid()
    assert pid is not None
    return pid


def _packets(machines: list[uuid.UUID], messages: int, size_bytes: int) -> bytes:
    """The PUBLISH packets (MQTT 3.1.1, QoS 1) of all messages, one of each machine after the other."""
    runs = {machine_id: str(uuid.uuid4()) for machine_id in machines}
    start_s = time.time() - messages
    packets: list[bytes] = []
    for number in range(1, messages + 1):
        moment = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(start_s + number))
        for machine_id, boot_id in runs.items():
            payload = _payload(boot_id, number, moment, size_bytes)
            packets.append(publish(f"guestd/v1/{machine_id}/metrics".encode(), len(packets) % 65535 + 1, payload))
    return b"".join(packets)


def _payload(boot_id: str, seq: int, moment: str, size_bytes: int) -> bytes:
    """A message as a small agent would send it: five processes, two ports; as long as asked for."""
    processes = ",".join(
        f'{{"id":{100 + each},"name":"worker-{each}","cpu_usage_percent":{each}.5,"memory_usage_kb":{8000 + seq}}}'
        for each in range(5)
    )
    ports = ",".join(
        f'{{"port":{port},"protocol":"TCP","state":"Listen","process_id":100,"is_listening":true}}' for port in (22, 80)
    )
    head = (
        f'{{"type":"metrics","boot_id":"{boot_id}","seq":{seq},"oldest":{seq},"timestamp":"{moment}","data":{{"system":'
    )
    body = (
        '{"cpu":{"usage_percent":7.5,"cores_usage":[5.0,10.0]},'
        '"memory":{"total_kb":4194304,"used_kb":1048576,"available_kb":3145728},'
        f'"system":{{"uptime_seconds":{3600 + seq}}},"processes":[{processes}],"ports":[{ports}]}}}}'
    )
    tail = "}"
    padding = size_bytes - len(head) - len(body) - len(tail) - len(',"unused":""')
    if padding < 0:
        raise SystemExit(f"--bytes must be at least {size_bytes - padding}")
    return f'{head}{body},"unused":"{"x" * padding}"{tail}'.encode()


@contextmanager
def _publisher(port: int, packets: bytes, messages: int) -> Iterator[tuple[int, Event]]:
    """A process that is connected and sends when the event is set."""
    go = multiprocessing.Event()
    process = multiprocessing.Process(target=_send, args=(port, packets, messages, go), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        yield process.pid, go
    finally:
        process.kill()
        process.join()


def _send(port: int, packets: bytes, messages: int, go: Event) -> None:
    os.nice(5)  # a publisher that is ahead only fills the broker's queue
    connection = connect_publisher(port, "bench")
    go.wait()
    connection.setblocking(False)
    unsent, acknowledged_bytes = memoryview(packets), 0
    while acknowledged_bytes < 4 * messages:
        try:
            if unsent:
                unsent = unsent[connection.send(unsent[:CHUNK_BYTES]) :]
        except BlockingIOError:
            time.sleep(0.001)
        try:
            acknowledged_bytes += len(connection.recv(CHUNK_BYTES))
        except BlockingIOError:
            if not unsent:
                time.sleep(0.001)
    connection.close()


if __name__ == "__main__":
    main()
