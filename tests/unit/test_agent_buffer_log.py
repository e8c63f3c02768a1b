"""What the agent logs of a full buffer: once when lines are dropped, once when there is room again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from guestd.agent.hostlines import HostLine
from guestd.agent.outbox import Outbox
from guestd.agent.transport import ReliableSender

BODY = b'{"n":1}'
BUFFER_LINES = 4

# How lines leave the buffer: by an answer on a channel, and by those of a broker.
FORGET: dict[str, Callable[[ReliableSender, int], None]] = {
    "acknowledged on a channel": lambda sender, seq: sender.handle_line(HostLine("ack", boot_id="b", seq=seq)),
    "accepted by a broker": ReliableSender.confirm,
}


@pytest.mark.parametrize("way", FORGET)
def test_a_full_buffer_is_logged_once_with_what_to_do_and_once_at_its_end_with_what_was_dropped(way: str) -> None:
    sender = ReliableSender(Outbox("b", BUFFER_LINES * (len(BODY) - 1)), on_request=lambda: None)
    for dropped in (92, 3):
        with capture_logs() as logs:
            for _ in range(BUFFER_LINES):
                sender.post(BODY)
            assert logs == []
            for _ in range(dropped):
                sender.post(BODY)
            [full] = logs
            assert full["log_level"] == "warning"
            assert full["event"].startswith("buffer full: the oldest samples are dropped")
            assert "--buffer-bytes" in full["event"]
            assert full["held_lines"] == BUFFER_LINES
            FORGET[way](sender, sender.outbox.last - BUFFER_LINES + 1)
            assert logs == [full], "a host that reads as slowly as samples come is not logged line by line"
            FORGET[way](sender, sender.outbox.last)
            assert [log["event"].partition(":")[0] for log in logs] == ["buffer full", "buffer has room again"]
            assert (logs[1]["dropped"], logs[1]["unconfirmed"]) == (dropped, 0)


@pytest.mark.parametrize("answered", [0, 2])
def test_lines_that_were_sent_before_they_were_dropped_are_logged_as_at_most_lost(answered: int) -> None:
    sender = ReliableSender(Outbox("b", BUFFER_LINES * (len(BODY) - 1)), on_request=lambda: None)
    with capture_logs() as logs:
        for _ in range(BUFFER_LINES):
            sender.post(BODY)
        while sender.outbox.next_line(0.0) is not None:
            pass
        for _ in range(BUFFER_LINES + 3):
            sender.post(BODY)
        while sender.outbox.next_line(0.0) is not None:
            pass
        if answered:  # late
            sender.handle_line(HostLine("ack", boot_id="b", seq=answered))
        sender.handle_line(HostLine("ack", boot_id="b", seq=sender.outbox.last))
    assert "at most all of them are lost" in logs[1]["event"]
    # Three were never sent. Whether the host has the other four, its answers tell up to the number that they name.
    assert (logs[1]["dropped"], logs[1]["unconfirmed"]) == (3, BUFFER_LINES - answered)


def test_lines_that_a_broker_never_takes_are_no_full_buffer() -> None:
    sender = ReliableSender(Outbox("b", 1000), on_request=lambda: None)
    with capture_logs() as logs:
        sender.post(BODY)
        sender.give_up(1)
        sender.post(BODY)
    assert logs == []


def test_lines_that_a_broker_never_takes_end_a_full_buffer() -> None:
    sender = ReliableSender(Outbox("b", BUFFER_LINES * (len(BODY) - 1)), on_request=lambda: None)
    with capture_logs() as logs:
        for _ in range(BUFFER_LINES + 1):
            sender.post(BODY)
        sender.give_up(sender.outbox.last)
    assert [log.get("dropped") for log in logs] == [None, BUFFER_LINES + 1]
