"""Complete Ethernet frames for packets, with valid checksums: the kernel tracks no others."""

import struct
from ipaddress import ip_address

from guestd.filters.packet_match import Packet

GUEST_MAC, PEER_MAC, FALSE_MAC = "52:54:00:00:00:10", "52:54:00:00:00:20", "52:54:00:00:00:99"
# For private use: no filter and no kernel knows it.
MARK_TYPE = 0x88B5
SYN, SYN_ACK, ACK = 0x02, 0x12, 0x10
_NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1}
_ICMPV6 = 58


def frame(packet: Packet, tag: bytes, flags: int = SYN) -> bytes:
    """The frame of a packet that carries a tag; `flags` are TCP's."""
    own, other = (GUEST_MAC, PEER_MAC) if packet.direction == "out" else (PEER_MAC, GUEST_MAC)
    source_mac = _mac(packet.mac or own)
    if packet.protocol == "arp":
        return b"\xff" * 6 + source_mac + struct.pack(">H", 0x0806) + _arp(packet, source_mac) + tag.ljust(18, b"\0")
    source, destination = ip_address(packet.source).packed, ip_address(packet.destination).packed
    is_ipv6 = len(source) == 16
    number = _ICMPV6 if is_ipv6 and packet.protocol == "icmp" else _NUMBERS[packet.protocol]
    segment = _segment(packet, number, tag, flags)
    place = {6: 16, 17: 6}.get(number, 2)
    # ICMP of IPv4 alone does not count the addresses.
    pseudo = b"" if number == 1 else source + destination + struct.pack(">IHBB", len(segment), 0, 0, number)
    total = checksum(pseudo + segment)
    segment = segment[:place] + struct.pack(">H", total) + segment[place + 2 :]
    header = (_ipv6 if is_ipv6 else _ipv4)(number, len(segment), source + destination)
    return _mac(other) + source_mac + struct.pack(">H", 0x86DD if is_ipv6 else 0x0800) + header + segment


def mark(tag: bytes) -> bytes:
    """A frame that is no packet, to everybody."""
    return b"\xff" * 6 + _mac(FALSE_MAC) + struct.pack(">H", MARK_TYPE) + tag.ljust(46, b"\0")


def checksum(octets: bytes) -> int:
    """As of RFC 1071."""
    padded = octets + b"\0" * (len(octets) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _segment(packet: Packet, number: int, tag: bytes, flags: int) -> bytes:
    ports = packet.source_port or 0, packet.destination_port or 0
    if number == 6:
        return struct.pack(">HHIIBBHHH", *ports, 1000, 0 if flags == SYN else 1001, 5 << 4, flags, 65535, 0, 0) + tag
    if number == 17:
        return struct.pack(">HHHH", *ports, 8 + len(tag), 0) + tag
    request, reply = (8, 0) if number == 1 else (128, 129)
    return struct.pack(">BBHHH", reply if packet.answer else request, 0, 0, 77, 1) + tag


def _ipv4(number: int, length: int, addresses: bytes) -> bytes:
    fields = (0x45, 0, 20 + length, 0, 0x4000, 64, number)
    total = checksum(struct.pack(">BBHHHBBH", *fields, 0) + addresses)
    return struct.pack(">BBHHHBBH", *fields, total) + addresses


def _ipv6(number: int, length: int, addresses: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, length, number, 64) + addresses


def _arp(packet: Packet, source_mac: bytes) -> bytes:
    source, destination = ip_address(packet.source).packed, ip_address(packet.destination).packed
    return struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + source_mac + source + b"\0" * 6 + destination


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
