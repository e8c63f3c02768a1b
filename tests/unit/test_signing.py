"""Signed host lines: what guestd wraps, and what an agent takes of it."""

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestd.wire.signing import WINDOW_MS, SignedLineVerifier, machine_secret, signature, signed

SECRET = b"cross-lang-test-key"
NOW_MS = 1_700_000_000_000
COLLECT = b'{"type":"Metrics"}'
SIGNATURE = "417f2b895d7dd56461af56b07525ca476532ac795f8b92aab6c78a560686bdf5"


def line(payload: bytes = COLLECT, *, ts_ms: int = NOW_MS, nonce: str = "n") -> bytes:
    return signed(SECRET, payload, ts_ms=ts_ms, nonce=nonce)


def refusal(verifier: SignedLineVerifier, content: bytes, now_ms: int = NOW_MS) -> str:
    with pytest.raises(ValueError, match=r"^(it|its) ") as caught:
        verifier.verify(content, now_ms)
    return str(caught.value)


def test_the_signature_is_that_of_other_implementations() -> None:
    assert signature(SECRET, ts_ms=NOW_MS, nonce="fixed-nonce-123", payload=COLLECT.decode()) == SIGNATURE


def test_the_wrapping_has_the_fields_that_agents_expect() -> None:
    assert json.loads(line(nonce="fixed-nonce-123")) == {
        "type": "signed", "v": 1, "ts": NOW_MS, "nonce": "fixed-nonce-123", "payload": COLLECT.decode(),
        "sig": SIGNATURE,
    }  # fmt: skip


def test_the_secret_of_a_machine_is_the_hmac_of_its_id_in_hexadecimal_digits() -> None:
    # printf %s 00000000-0000-0000-0000-000000000001 | openssl dgst -sha256 -hmac master
    expected = b"986fcef13f2a2be8451c37a60f53d9e875065b3413914bf301a6de4b8ec0147d"
    assert machine_secret(b"master", UUID(int=1)) == expected


@given(st.text().filter(lambda text: "\n" not in text), st.integers(1, 2**60), st.text(max_size=20))
def test_what_was_wrapped_is_what_is_opened(payload: str, ts_ms: int, nonce: str) -> None:
    wrapped = line(payload.encode(), ts_ms=ts_ms, nonce=nonce)
    assert b"\n" not in wrapped
    assert SignedLineVerifier(SECRET).verify(wrapped, ts_ms) == payload.encode()


def test_a_line_of_another_secret_is_not_taken() -> None:
    assert refusal(SignedLineVerifier(b"another"), line()) == "its signature does not match: another secret was used"


@pytest.mark.parametrize("field", ["ts", "nonce", "payload", "sig"])
def test_a_line_that_was_changed_on_its_way_is_not_taken(field: str) -> None:
    changed = json.loads(line())
    changed[field] = changed[field] + 1 if field == "ts" else "0" + changed[field][1:] + "0"
    assert (
        refusal(SignedLineVerifier(SECRET), json.dumps(changed).encode())
        == "its signature does not match: another secret was used"
    )


@pytest.mark.parametrize(
    "content",
    [
        COLLECT,
        b"",
        b"[]",
        b"\xff",
        b"[" * 5000,
        line()[:-1],
        line().replace(b'"v":1', b'"v":2'),
        line().replace(b'"ts":', b'"tt":'),
        line().replace(b'"signed"', b'"Signed"'),
    ],
)
def test_what_is_not_signed_is_not_taken(content: bytes) -> None:
    assert refusal(SignedLineVerifier(SECRET), content) == "it is not signed"


@pytest.mark.parametrize("off_ms", [WINDOW_MS, -WINDOW_MS])
def test_a_clock_may_be_off_by_the_window_and_not_by_more(off_ms: int) -> None:
    verifier = SignedLineVerifier(SECRET)
    assert verifier.verify(line(), NOW_MS + off_ms) == COLLECT
    beyond = NOW_MS + off_ms + (1 if off_ms > 0 else -1)
    assert refusal(verifier, line(nonce="other"), beyond) == "its time differs too much from this machine's clock"


def test_a_line_is_taken_once() -> None:
    verifier = SignedLineVerifier(SECRET)
    verifier.verify(line(), NOW_MS)
    assert refusal(verifier, line(), NOW_MS + 1000) == "its nonce was used before"
    assert verifier.verify(line(nonce="another"), NOW_MS) == COLLECT


def test_a_line_that_was_forgotten_is_not_taken_again_after_the_clock_was_put_back() -> None:
    verifier = SignedLineVerifier(SECRET)
    verifier.verify(line(), NOW_MS)
    later_ms = NOW_MS + 2 * WINDOW_MS
    verifier.verify(line(ts_ms=later_ms), later_ms)
    assert refusal(verifier, line(), NOW_MS) == "its time differs too much from this machine's clock"


def test_what_is_remembered_is_bounded_and_what_is_forgotten_is_not_taken_again() -> None:
    verifier = SignedLineVerifier(SECRET, most_nonces=10)
    lines = [line(ts_ms=NOW_MS + number, nonce=str(number)) for number in range(30)]
    for content in lines:
        assert verifier.verify(content, NOW_MS) == COLLECT
        assert len(verifier._seen) == len(verifier._by_time) <= 10
    assert {refusal(verifier, content) for content in lines[:20]} == {
        "its time differs too much from this machine's clock"
    }
    assert {refusal(verifier, content) for content in lines[20:]} <= {
        "its nonce was used before", "its time differs too much from this machine's clock",
    }  # fmt: skip
