"""Asks the lab's bridge for an address, as a guest does: a DHCP discovery (RFC 2131) over a separate cable.

A bridge without a DHCP server would be noticed only after a guest has booted for minutes.
"""

from __future__ import annotations

import socket
import struct
import time

from build.core import run
from build.core.errors import StepFailed
from tests.lab.network import BRIDGE, SECONDS

CABLE, FAR_END = "lease0", "lease1"
MAC = bytes.fromhex("525400abcdef")
TRANSACTION = 0x601D
COOKIE, DISCOVER, END = b"\x63\x82\x53\x63", b"\x35\x01\x01", b"\xff"
CLIENT, SERVER, UDP, IPV4 = 68, 67, 17, 0x0800
ETHERNET_BYTES, IP_BYTES, UDP_BYTES = 14, 20, 8
OFFERED_AT = ETHERNET_BYTES + IP_BYTES + UDP_BYTES + 16
ANSWER_SECONDS = 10.0


def ask() -> str:
    """Return the address that the bridge's DHCP server offers. Raises StepFailed when there is no answer."""
    _ip("link", "add", CABLE, "type", "veth", "peer", "name", FAR_END)
    try:
        _ip("link", "set", FAR_END, "master", BRIDGE, "up")
        _ip("link", "set", CABLE, "up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IPV4)) as card:
            card.bind((CABLE, 0))
            return _discover(card)
    finally:
        _ip("link", "delete", CABLE)


def _ip(*words: str) -> None:
    run.run(["ip", *words], timeout=SECONDS)


def _discover(card: socket.socket) -> str:
    deadline = time.monotonic() + ANSWER_SECONDS
    card.settimeout(1.0)
    while time.monotonic() < deadline:
        card.send(discovery())
        try:
            while True:
                if offered := _offer(card.recv(2048)):
                    return offered
        except TimeoutError:
            continue
    raise StepFailed("no DHCP server answers on the lab's bridge", hint="QEMU must be built with its user network (slirp)")


def _offer(frame: bytes) -> str:
    """Return the address in an offer to us, or an empty string for any other frame."""
    ports = frame[ETHERNET_BYTES + IP_BYTES :][:4]
    if len(frame) < OFFERED_AT + 4 or ports != struct.pack(">HH", SERVER, CLIENT):
        return ""
    return socket.inet_ntoa(frame[OFFERED_AT : OFFERED_AT + 4])


def discovery() -> bytes:
    """Return the whole frame of a discovery, broadcast from nowhere."""
    fields = struct.pack(">BBBBIHH16x16s192x", 1, 1, 6, 0, TRANSACTION, 0, 0x8000, MAC.ljust(16, b"\0"))
    message = fields + COOKIE + DISCOVER + END
    datagram = struct.pack(">HHHH", CLIENT, SERVER, UDP_BYTES + len(message), 0) + message
    nowhere, everybody = bytes(4), b"\xff" * 4
    head = struct.pack(">BBHHHBBH", 0x45, 0, IP_BYTES + len(datagram), 1, 0, 64, UDP, 0) + nowhere + everybody
    head = head[:10] + struct.pack(">H", _checksum(head)) + head[12:]
    return b"\xff" * 6 + MAC + struct.pack(">H", IPV4) + head + datagram


def _checksum(head: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(head) // 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
