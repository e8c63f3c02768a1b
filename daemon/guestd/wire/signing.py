"""Signed host lines (docs/wire.md), both sides: how guestd signs a line, and how an agent verifies it. Pure.

Agents from 2026-06 on accept only wrapped lines from the host. The key is the machine's own secret, which
guestd derives from its master secret, so that a leaked secret compromises that machine alone.
"""

from __future__ import annotations

import heapq
import hmac
from typing import Literal
from uuid import UUID

import msgspec
from msgspec import Struct

from guestd.wire.line import SYNTAX_ERRORS

VERSION: Literal[1] = 1
# A line is accepted this long before and after its time.
WINDOW_MS = 300_000
# Nonces that an agent remembers; guestd sends fewer lines within the window.
MOST_NONCES = 100_000


class SignedLine(Struct, frozen=True, tag_field="type", tag="signed"):
    """The wrapping: `ts` in unix milliseconds, `sig` in hexadecimal digits."""

    v: Literal[1]
    ts: int
    nonce: str
    payload: str
    sig: str


_decoder = msgspec.json.Decoder(SignedLine)


def machine_secret(master: bytes, machine_id: UUID) -> bytes:
    """The secret of one machine, as the hexadecimal text that its agent is given."""
    return hmac.digest(master, str(machine_id).encode(), "sha256").hex().encode()


def signature(secret: bytes, *, ts_ms: int, nonce: str, payload: str) -> str:
    """HMAC-SHA256 of the four parts, in hexadecimal digits."""
    return hmac.digest(secret, f"{VERSION}\n{ts_ms}\n{nonce}\n{payload}".encode(), "sha256").hex()


def signed(secret: bytes, payload: bytes, *, ts_ms: int, nonce: str) -> bytes:
    """A host line (without newline) in its wrapping."""
    text = payload.decode()
    sig = signature(secret, ts_ms=ts_ms, nonce=nonce, payload=text)
    return msgspec.json.encode(SignedLine(VERSION, ts_ms, nonce, text, sig))


class SignedLineVerifier:
    """Accepts each line that is signed with one secret once, while it is fresh.

    Remembers at most `most_nonces`; beyond that the earliest are forgotten, and no line as early is accepted any more.
    """

    def __init__(self, secret: bytes, most_nonces: int = MOST_NONCES) -> None:
        self._secret = secret
        self._most_nonces = most_nonces
        self._seen: set[tuple[int, str]] = set()
        self._by_time: list[tuple[int, str]] = []
        self._forgotten_ms = 0

    def verify(self, line: bytes, now_ms: int) -> bytes:
        """The payload of a line; raises ValueError with the reason when the line is refused."""
        try:
            found = _decoder.decode(line)
        except SYNTAX_ERRORS:
            raise ValueError("it is not signed") from None
        expected = signature(self._secret, ts_ms=found.ts, nonce=found.nonce, payload=found.payload)
        if not hmac.compare_digest(expected.encode(), found.sig.encode()):
            raise ValueError("its signature does not match: another secret was used")
        self._forget(now_ms)
        if abs(found.ts - now_ms) > WINDOW_MS or found.ts <= self._forgotten_ms:
            raise ValueError("its time differs too much from this machine's clock")
        if (found.ts, found.nonce) in self._seen:
            raise ValueError("its nonce was used before")
        self._seen.add((found.ts, found.nonce))
        heapq.heappush(self._by_time, (found.ts, found.nonce))
        return found.payload.encode()

    def _forget(self, now_ms: int) -> None:
        while self._by_time and (self._by_time[0][0] < now_ms - WINDOW_MS or len(self._by_time) >= self._most_nonces):
            earliest = heapq.heappop(self._by_time)
            self._seen.remove(earliest)
            # Independent of this machine's clock, which may be set back: a forgotten nonce is never accepted again.
            self._forgotten_ms = earliest[0]
