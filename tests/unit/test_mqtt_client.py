"""The client of a broker: what it reads from the bytes that arrive, however they are divided."""

import itertools
import socket
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from guestd.mqtt.client import ManualClient, Message
from guestd.mqtt.options import BrokerOptions

OPTIONS = BrokerOptions(
    host="127.0.0.1", port=1883, client_id="x", version=MQTTProtocolVersion.MQTTv5, username="", password=None,
    tls=None, keepalive_seconds=60, session_seconds=0, receive_maximum=10, max_message_bytes=10_000,
    unacknowledged_bytes=10_000, will_topic="",
)  # fmt: skip
PING_ANSWER = b"\xd0\x00"
MESSAGES = st.builds(
    Message, st.text("ab/\u00fc", max_size=20), st.binary(max_size=300), st.booleans(), st.integers(0, 65535)
)


def encode(message: Message, *, is_5: bool) -> bytes:
    topic = message.topic.encode()
    body = struct.pack("!H", len(topic)) + topic
    body += struct.pack("!H", message.mid) if message.mid else b""
    body += b"\x02\x01\x01" if is_5 else b""
    body += message.payload
    head = 0x30 | (0x02 if message.mid else 0) | message.is_retained
    size = [len(body) & 0x7F | 0x80, len(body) >> 7] if len(body) > 0x7F else [len(body)]
    return bytes([head, *size]) + body


def read_all(client: ManualClient, ours: socket.socket, theirs: socket.socket, parts: list[bytes]) -> MQTTErrorCode:
    """Let the client read these parts, one after the other, as far as it can."""
    client._sock = ours
    for part in parts:
        theirs.sendall(part)
        while True:
            before = len(client.received), client.has_read_ahead
            result = client.loop_read()
            if result != MQTTErrorCode.MQTT_ERR_SUCCESS:
                return result
            if not client.has_read_ahead and before == (len(client.received), False):
                break
    return MQTTErrorCode.MQTT_ERR_SUCCESS


@given(st.lists(MESSAGES, max_size=8), st.lists(st.integers(0, 2000), max_size=6), st.booleans())
def test_messages_are_read_in_order_however_their_bytes_arrive(
    messages: list[Message], cuts: list[int], is_5: bool
) -> None:
    version = MQTTProtocolVersion.MQTTv5 if is_5 else MQTTProtocolVersion.MQTTv311
    stream = PING_ANSWER.join([b"", *(encode(each, is_5=is_5) for each in messages), b""])
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parts = [stream[begin:end] for begin, end in itertools.pairwise(places)]
    client = ManualClient(replace(OPTIONS, version=version))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert read_all(client, ours, theirs, [part for part in parts if part]) == MQTTErrorCode.MQTT_ERR_SUCCESS
    assert list(client.received) == messages


@pytest.mark.parametrize("packet", [b"\x32\x01\x00", b"\x32\x03\x00\x01\xff", b"\x32\x03\x00\x01x"])
def test_a_message_that_cannot_be_read_is_an_error_also_behind_others(packet: bytes) -> None:
    good = Message("a", b"b", False, 1)
    client = ManualClient(OPTIONS)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert read_all(client, ours, theirs, [encode(good, is_5=True) * 3 + packet]) != MQTTErrorCode.MQTT_ERR_SUCCESS
    assert list(client.received) == [good] * 3


def test_acknowledgements_leave_in_the_order_in_which_they_were_given() -> None:
    client = ManualClient(OPTIONS)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        client._sock = ours
        client.acknowledge([])
        client.acknowledge([7, 65535])
        client.acknowledge([1])
        client.loop_write()
        assert theirs.recv(100) == b"\x40\x02\x00\x07\x40\x02\xff\xff\x40\x02\x00\x01"
