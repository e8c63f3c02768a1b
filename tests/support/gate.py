"""An intake on a real spool, with a clock that is set by hand, and the lines that its tests send it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

from guestd.ingest.gate import Counters, Intake
from guestd.ingest.rate_limit import Budget, Rate, Rates
from guestd.spool.file import Frame
from guestd.spool.queue import Spool, open_spool
from guestd.wire.framing import Oversize

DEADLINE_SECONDS = 5
MACHINE, OTHER = UUID(int=1), UUID(int=2)
BOOT, NEXT_BOOT = "0d3f3a5e-8d0b-4a55-9c0b-5d5e4a2f7c11", "5d5e4a2f-7c11-4a55-9c0b-0d3f3a5e8d0b"
PLAIN = b'{"type":"metrics","data":{}}'
# A burst of 1,000 bytes, 10 frames, 50 rows; of each a thousandth more comes back in a second.
RATES = Rates(size_bytes=Rate(1, 1000), frames=Rate(0.01, 10), rows=Rate(0.05, 50))


def numbered(seq: int, *, oldest: int = 1, boot_id: str = BOOT) -> bytes:
    return b'{"type":"metrics","boot_id":"%s","seq":%d,"oldest":%d,"data":{}}' % (boot_id.encode(), seq, oldest)


def ack(seq: int, boot_id: str = BOOT) -> dict[str, object]:
    return {"type": "ack", "boot_id": boot_id, "seq": seq}


def resend(seq: int, boot_id: str = BOOT) -> dict[str, object]:
    return {**ack(seq, boot_id), "resend": True}


class Gate:
    """An intake on a spool, its counts, and a clock that is set by hand."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.counts: Counter[str] = Counter()
        self.now_ms = 1_000_000
        self.counters = Counters(
            accepted=lambda frames, size: self._count(accepted=frames, accepted_bytes=size),
            refused=lambda reason: self._count(**{reason: 1}),
            duplicate=lambda: self._count(duplicate=1),
            dropped_by_agent=lambda lines: self._count(dropped_by_agent=lines),
            other=lambda name: self._count(**{name: 1}),
            held_back=lambda machines: self.counts.update(held_back=machines - self.counts["held_back"]),
            held_back_seconds=lambda seconds: None,
        )
        self.intake = Intake(spool, self.counters, lambda: self.now_ms, Budget(RATES))

    def _count(self, **more: int) -> None:
        self.counts.update(more)

    async def accept(self, *lines: bytes | Oversize, machine_id: UUID = MACHINE) -> dict[str, object] | None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            answers = await self.intake.accept(machine_id, lines)
        assert len(answers) <= 1
        return json.loads(answers[0]) if answers else None

    async def replies(self, *lines: bytes | Oversize) -> list[dict[str, object]]:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return [json.loads(line) for line in await self.intake.accept(MACHINE, lines)]

    async def frames(self) -> Sequence[Frame]:
        return await self.spool.read(0, max_frames=1000, max_bytes=1_000_000)

    async def payloads(self) -> list[bytes]:
        return [frame.payload for frame in await self.frames()]


@asynccontextmanager
async def gate_on(directory: Path, *, is_running: bool = True, max_bytes: int = 1_000_000) -> AsyncIterator[Gate]:
    spool = open_spool(directory, max_bytes=max_bytes, share=0.1)
    writing = asyncio.create_task(spool.run()) if is_running else None
    try:
        yield Gate(spool)
    finally:
        spool.seal()
        if writing is not None:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await writing
        spool.close()


def marked(seq: int, after: str, mark: str, *, oldest: int = 1) -> bytes:
    numbers = numbered(seq, oldest=oldest).removesuffix(b'"data":{}}')
    return numbers + b'"after":"%s","mark":"%s","data":{}}' % (after.encode() * 16, mark.encode() * 16)
