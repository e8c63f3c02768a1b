"""The lines of the host, as the agent splits and reads them."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from guestd.agent.hostlines import HostLine, HostLines
from guestd.agent.outbox import Outbox
from guestd.agent.transport import ReliableSender

ACK = b'{"type":"ack","boot_id":"b","seq":12}\n'


def test_an_acknowledgement_is_read() -> None:
    assert HostLines().feed(ACK) == [HostLine("ack", boot_id="b", seq=12)]


def test_a_resend_request_is_read() -> None:
    line = b'{"type":"ack","boot_id":"b","seq":8,"resend":true}\n'
    assert HostLines().feed(line) == [HostLine("ack", boot_id="b", seq=8, resend=True)]


@given(st.lists(st.integers(1, 30)))
def test_lines_are_found_wherever_the_stream_is_cut(sizes: list[int]) -> None:
    stream, lines, found = ACK * 3, HostLines(), []
    for size in sizes:
        found += lines.feed(stream[:size])
        stream = stream[size:]
    found += lines.feed(stream)
    assert found == [HostLine("ack", boot_id="b", seq=12)] * 3


def test_what_is_no_object_with_a_type_is_ignored() -> None:
    rubbish = (
        b"\n",
        b"hello\n",
        b"[1]\n",
        b"{}\n",
        b'{"type":7}\n',
        b'{"type":"ack","boot_id":"b","seq":"x"}\n',
        b"\xff\xfe\n",
        b"[" * 5000 + b"\n",
    )
    assert HostLines().feed(b"".join(rubbish) + ACK) == [HostLine("ack", boot_id="b", seq=12)]


def test_unknown_fields_are_ignored() -> None:
    assert HostLines().feed(b'{"type":"SafeCommand","id":"c","params":[]}\n') == [HostLine("SafeCommand")]


def test_a_line_over_the_limit_is_dropped_in_one_piece_and_in_many() -> None:
    long = b'{"type":"ack","boot_id":"' + b"x" * 100 + b'","seq":1}\n'
    lines = HostLines(limit_bytes=60)
    assert lines.feed(long + ACK) == [HostLine("ack", boot_id="b", seq=12)]
    pieces = [lines.feed(long[place : place + 7]) for place in range(0, len(long), 7)]
    assert pieces == [[]] * len(pieces)
    assert lines.feed(ACK) == [HostLine("ack", boot_id="b", seq=12)]


def test_what_is_kept_of_an_endless_line_is_bounded() -> None:
    lines = HostLines(limit_bytes=60)
    for _ in range(100):
        assert lines.feed(b"x" * 50) == []
    assert len(lines._partial) <= 60


def test_only_a_request_for_metrics_asks_for_a_sample() -> None:
    async def scenario() -> list[str]:
        asked: list[str] = []
        sender = ReliableSender(Outbox("b", 1000), on_request=lambda: asked.append("now"))
        for kind in ("Metrics", "metrics", "SafeCommand", "keep_alive", "ack"):
            sender.handle_line(HostLine(kind))
        return asked

    assert asyncio.run(scenario()) == ["now"]
