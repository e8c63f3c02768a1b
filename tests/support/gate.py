"""A gate on a real spool, with a clock that is set by hand, and the lines that its tests send it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from guestd.ingest.gate import Gate
from guestd.ingest.mqtt_gate import MqttGate
from guestd.ingest.rate_limit import Rate, RateLimit, Rates
from guestd.spool.file import Frame
from guestd.spool.queue import Spool, open_spool
from guestd.telemetry.registry import Telemetry
from guestd.wire import line as wire_line
from guestd.wire.framing import Oversize
from guestd.wire.line import Line

DEADLINE_SECONDS = 5
MACHINE, OTHER = UUID(int=1), UUID(int=2)
BOOT, NEXT_BOOT = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11", "5d5e4a2f-7c11-4a55-9c0b-0d3f3a5e8d0b"
PLAIN = b'{"type":"metrics","data":{}}'
# A burst of 1,000 bytes, 10 frames, 500 rows; of each a thousandth more comes back in a second.
RATES = Rates(size_bytes=Rate(1, 1000), frames=Rate(0.01, 10), rows=Rate(0.5, 500))
# What the gate's metrics are called here; of those with a label its value.
NAMES = {
    "guestd_frames_accepted_total": "accepted",
    "guestd_accepted_bytes_total": "accepted_bytes",
    "guestd_frames_duplicate_total": "duplicate",
    "guestd_agent_lines_dropped_total": "dropped_by_agent",
    "guestd_guests_held_back": "held_back",
    "guestd_mqtt_lines_missing_total": "missing",
}


def numbered(seq: int, *, oldest: int = 1, boot_id: str = BOOT) -> bytes:
    return b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":%d,"data":{}}' % (boot_id.encode(), seq, oldest)


def ack(seq: int, boot_id: str = BOOT) -> dict[str, object]:
    return {"type": "ack", "boot_id": boot_id, "seq": seq}


def resend(seq: int, boot_id: str = BOOT) -> dict[str, object]:
    return {**ack(seq, boot_id), "resend": True}


def read_lines(*lines: bytes | Oversize) -> list[Line]:
    return [message for line in lines for message in wire_line.read_lines(line)]


class GateRig:
    """A gate on a spool, its counts, and a clock that is set by hand."""

    def __init__(self, spool: Spool, telemetry: Telemetry) -> None:
        self.spool = spool
        self.telemetry = telemetry
        self.now_ms = 1_000_000
        self.gate = Gate(spool, telemetry.gate, lambda: self.now_ms, RateLimit(RATES))

    @property
    def counts(self) -> Counter[str]:
        """What was counted in the registry: by reason, by type, and by the names above."""
        counts: Counter[str] = Counter()
        for family in self.telemetry.registry.collect():
            for sample in family.samples:
                if sample.name in NAMES:
                    counts[NAMES[sample.name]] += int(sample.value)
                elif sample.name in ("guestd_frames_refused_total", "guestd_other_messages_total"):
                    (label,) = sample.labels.values()
                    counts[label] += int(sample.value)
        return +counts

    async def accept(self, *lines: bytes | Oversize, machine_id: UUID = MACHINE) -> dict[str, object] | None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            answers = await self.gate.accept(machine_id, read_lines(*lines))
        assert len(answers) <= 1
        return json.loads(answers[0]) if answers else None

    async def replies(self, *lines: bytes | Oversize) -> list[dict[str, object]]:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return [json.loads(line) for line in await self.gate.accept(MACHINE, read_lines(*lines))]

    async def frames(self) -> Sequence[Frame]:
        return await self.spool.read(0, max_frames=1000, max_bytes=1_000_000)

    async def payloads(self) -> list[bytes]:
        return [frame.payload for frame in await self.frames()]


def mqtt_gate(
    rig: GateRig, *, count_missing: Callable[[int], None] | None = None, cpu_seconds: Callable[[], float] = lambda: 0.0
) -> MqttGate:
    """The gate behind a broker, in front of that of a rig."""
    return MqttGate(
        rig.spool,
        rig.gate,
        metrics=rig.telemetry.gate,
        count_missing=count_missing or rig.telemetry.broker.missing.inc,
        now_ms=lambda: rig.now_ms,
        max_frame_bytes=10_000,
        cpu_seconds=cpu_seconds,
    )


@asynccontextmanager
async def gate_on(directory: Path, *, is_running: bool = True, max_bytes: int = 1_000_000) -> AsyncIterator[GateRig]:
    telemetry = Telemetry()
    spool = open_spool(directory, max_bytes=max_bytes, share=0.1, metrics=telemetry.spool)
    writing = asyncio.create_task(spool.run()) if is_running else None
    try:
        yield GateRig(spool, telemetry)
    finally:
        spool.seal()
        if writing is not None:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await writing
        spool.close()


def marked(seq: int, after: str, mark: str, *, oldest: int = 1) -> bytes:
    numbers = numbered(seq, oldest=oldest).removesuffix(b'"data":{}}')
    return numbers + b'"after":"%s","mark":"%s","data":{}}' % (after.encode() * 16, mark.encode() * 16)
