"""A guest's interface and a peer, each in a network namespace of its own, on a bridge of the lab that libvirt filters.

Frames are sent and received unchanged: no kernel of guest or peer handles them, so a frame that does not arrive
was dropped between them.
"""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from tools.harness.lab import Lab

from guestd.filters.packet_match import Packet
from support.nwfilter import PORT
from support.packets import SYN, frame, mark

_ALL_TYPES, _OUTGOING, _CLONE_NEWNET = 3, 4, 0x40000000
_NETLINK_NETFILTER, _DELETE_ALL_CONNECTIONS = 12, 1 << 8 | 2
_SIDES = {"guest": f"{PORT}in", "peer": "ptapin", "marker": "mtapin"}


class Wire:
    """Frames from guest to peer and back. Deterministic: a marker that was sent after a frame arrives after it."""

    def __init__(self, lab: Lab) -> None:
        self._tags = count(1)
        self._sockets = {side: _packet_socket(_namespace(lab, name), name) for side, name in _SIDES.items()}
        self._sockets["guest"].setblocking(False)
        with _inside(f"/proc/{lab.init_pid()}/ns/net"):
            self._connections = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)

    def arrives(self, packet: Packet, flags: int = SYN) -> bool:
        """Put a packet on the wire, and say whether it came out on the other side."""
        here, there = ("guest", "peer") if packet.direction == "out" else ("peer", "guest")
        tag, end = self._tag(b"p"), self._tag(b"m")
        with _one_processor():  # which then handles one after the other
            self._sockets[here].send(frame(packet, tag, flags))
            self._sockets["marker"].send(mark(end))
        if there == "peer":
            return tag in self._until(end)
        self._until(end)
        return tag in self._waiting()

    def forget_connections(self) -> None:
        """Let the kernel that filters forget all connections."""
        request = struct.pack("=IHHIIBBH", 20, _DELETE_ALL_CONNECTIONS, 5, 1, 0, 0, 0, 0)
        self._connections.send(request)
        (code,) = struct.unpack_from("=i", self._connections.recv(4096), 16)
        assert code == 0, os.strerror(-code)

    def close(self) -> None:
        for each in (*self._sockets.values(), self._connections):
            each.close()

    def _tag(self, kind: bytes) -> bytes:
        return b"guestd" + kind + struct.pack(">Q", next(self._tags))

    def _until(self, end: bytes) -> set[bytes]:
        """The tags that reached the peer before this one."""
        peer, found = self._sockets["peer"], set[bytes]()
        while end not in found:
            found |= _tags_in(peer)
        return found

    def _waiting(self) -> set[bytes]:
        """The tags that have reached the guest."""
        found = set[bytes]()
        while True:
            try:
                found |= _tags_in(self._sockets["guest"])
            except BlockingIOError:
                return found


def _tags_in(source: socket.socket) -> set[bytes]:
    octets, address = source.recvfrom(65536)
    place = octets.find(b"guestd")
    return set() if place < 0 or address[2] == _OUTGOING else {octets[place : place + 15]}


@contextmanager
def _one_processor() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _packet_socket(namespace: str, interface: str) -> socket.socket:
    with _inside(namespace):
        found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_TYPES))
    found.settimeout(60)
    found.bind((interface, _ALL_TYPES))
    return found


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread within a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    own, other = (
        os.open(path, os.O_RDONLY) for path in (f"/proc/self/task/{threading.get_native_id()}/ns/net", namespace)
    )
    try:
        assert libc.setns(other, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(own, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(own)
        os.close(other)


def _namespace(lab: Lab, interface: str) -> str:
    """A new network namespace of the lab, which ends with it, that has this interface; its file."""
    keeper = lab.run(
        "busybox", "sh", "-c", "busybox unshare -n busybox sleep 999999 >/dev/null 2>&1 </dev/null & echo $!"
    )
    lab.run("ip", "link", "set", interface, "netns", keeper.strip())
    file = str(Path("/proc", str(lab.init_pid()), "root", "proc", keeper.strip(), "ns", "net"))
    with _inside(file):
        pass
    lab.run("busybox", "nsenter", f"--net=/proc/{keeper.strip()}/ns/net", "ip", "link", "set", interface, "up")
    return file


@pytest.fixture(scope="session")
def wire(lab: Lab, bridge_port: Callable[..., str]) -> Iterator[Wire]:
    """The wire of the lab."""
    for command in (
        "link add ptap type veth peer name ptapin",
        "link add mtap type veth peer name mtapin",
        "link set ptap master fbr0 up",
        "link set mtap master fbr0 up",
        # Without learning, every frame reaches every port, whatever addresses were seen before.
        *(f"link set dev {each} type bridge_slave learning off flood on" for each in (PORT, "ptap", "mtap")),
    ):
        bridge_port("ip", *command.split())
    for module_setting in ("iptables", "ip6tables"):
        bridge_port("busybox", "sh", "-c", f"echo 1 >/proc/sys/net/bridge/bridge-nf-call-{module_setting}")
    found = Wire(lab)
    yield found
    found.close()
