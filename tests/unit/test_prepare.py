"""What is remembered of machines between frames; a bug that guests can reach fills no log."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from guestd.core.errors import BadFrame
from guestd.core.transport import Transport
from guestd.ingest.prepare import Preparer
from guestd.spool.file import Frame
from guestd.telemetry.registry import Telemetry
from guestd.wire.line import METRICS


@pytest.mark.asyncio
async def test_of_a_machine_that_nobody_knows_any_more_nothing_is_remembered() -> None:
    kept, gone = UUID(int=1), UUID(int=2)
    asked: list[UUID] = []

    async def taken(moments: Sequence[tuple[UUID, datetime]]) -> set[tuple[UUID, datetime]]:
        asked.extend(machine_id for machine_id, _ in moments)
        return set()

    preparer = Preparer(Telemetry().writer.preparing)
    now = datetime.now(UTC)
    for minute in range(2):
        moment = now + timedelta(minutes=minute)
        await preparer.find_free([(kept, moment), (gone, moment)], taken)
    assert asked == [kept, gone], "the store is asked only where it is not known that time goes forward"
    preparer.forget(lambda machine_id: machine_id == kept)
    moment = now + timedelta(minutes=2)
    await preparer.find_free([(kept, moment), (gone, moment)], taken)
    assert asked == [kept, gone, gone]


def test_the_traceback_of_a_bug_is_logged_once_however_many_frames_reach_it() -> None:
    telemetry = Telemetry()
    preparer = Preparer(telemetry.writer.preparing)

    def one_bug(_: Frame) -> None:
        raise LookupError("one")

    def another(_: Frame) -> None:
        raise LookupError("another")

    with capture_logs() as told:
        for seq, step in enumerate([one_bug] * 100 + [another]):
            frame = Frame(seq, UUID(int=1), datetime.now(UTC), b"{}", Transport.VIRTIO, METRICS, None)
            assert isinstance(preparer.guard(frame, step), BadFrame)
    assert telemetry.registry.get_sample_value("guestd_bugs_total") == 101
    assert [entry["seq"] for entry in told] == [0, 100]
