"""What runs in a lab guest where samples are to be counted: the agent's own outbox and channel, with numbered samples.

    lab_sender.py MILLISECONDS

A sample's number stands in its uptime, which reaches the table: BASE + 1, BASE + 2, ... with a BASE of this run. The
console says, whenever that changed and at most five times a second, `lab-sender BASE POSTED ACKNOWLEDGED GIVEN_UP`.
No sample is made while /run/stop is there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

from guestd.agent.outbox import Outbox
from guestd.agent.transport import ReliableSender, serve_port

DEVICE = Path("/dev/virtio-ports/org.infinibay.agent")
STOP = Path("/run/stop")
BUFFER_BYTES = 8 * 1024 * 1024
REPORT_SECONDS = 0.2
# Seconds since then, times the samples that fit into one: a base of its own for every run, and a valid uptime.
EPOCH_SECONDS = 1_760_000_000
SAMPLES_PER_SECOND = 100


def body(number: int) -> bytes:
    """A small D1 message."""
    system = {
        "cpu": {"usage_percent": 7.5, "cores_usage": [5.0, 10.0], "temperature": None},
        "memory": {"total_kb": 163840, "used_kb": 81920, "available_kb": 81920},
        "disk": {"usage_stats": [], "io_stats": {}},
        "network": {"interfaces": []},
        "system": {"uptime_seconds": number, "load_average": None},
        "processes": [{"id": 1, "name": "init", "cpu_usage_percent": 0.1, "memory_usage_kb": 1024}],
        "ports": [],
        "windows_services": [],
    }
    message = {"timestamp": datetime.now(UTC).isoformat(), "data": {"system": system}}
    return json.dumps(message, separators=(",", ":")).encode()


async def main(interval_seconds: float) -> None:
    """Post samples until the process ends."""
    base = (int(time.time()) - EPOCH_SECONDS) * SAMPLES_PER_SECOND
    outbox = Outbox(str(uuid.uuid4()), BUFFER_BYTES)
    sender = ReliableSender(outbox, on_request=lambda: None)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_port(DEVICE, sender))
        tasks.create_task(report(base, outbox, max(interval_seconds, REPORT_SECONDS)))
        while True:
            if not STOP.exists():  # noqa: ASYNC240 -- in memory
                sender.post(body(base + outbox.last + 1))
            await asyncio.sleep(interval_seconds)


async def report(base: int, outbox: Outbox, every_seconds: float) -> None:
    """Print the progress on the console."""
    last = ""
    while True:
        state = f"{base} {outbox.last} {outbox.last - outbox.held_lines} {outbox.dropped + outbox.unconfirmed}"
        if state != last:
            print(f"lab-sender {state}", flush=True)
            last = state
        await asyncio.sleep(every_seconds)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) / 1000))
