"""A bug that guests can reach fills no log."""

from datetime import UTC, datetime
from uuid import UUID

from structlog.testing import capture_logs

from guestd.errors import BadFrame
from guestd.normalise import Channel
from guestd.prepare import Counters, Preparer
from guestd.spoolfile import Frame


def test_the_traceback_of_a_bug_is_logged_once_however_many_frames_reach_it() -> None:
    counted: list[None] = []
    silent = Counters(
        adjusted=lambda *_: None, bug=lambda: counted.append(None), skew_seconds=lambda _: None, rows=lambda *_: None
    )
    preparer = Preparer(silent)

    def one_bug(_: Frame) -> None:
        raise LookupError("one")

    def another(_: Frame) -> None:
        raise LookupError("another")

    with capture_logs() as told:
        for seq, step in enumerate([one_bug] * 100 + [another]):
            frame = Frame(seq, UUID(int=1), datetime.now(UTC), b"{}", Channel.VIRTIO)
            assert isinstance(preparer.guarded(frame, step), BadFrame)
    assert len(counted) == 101
    assert [entry["seq"] for entry in told] == [0, 100]
