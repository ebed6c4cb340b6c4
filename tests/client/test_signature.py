"""`verify` against the formula of the protocol, computed here by itself."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervision.client import verify
from tests.client.fake_mirror import SECRET, signature_headers

NOW = 1_763_830_000


def test_a_known_signature() -> None:
    # printf '1700000000.c-1./agent?x=1' | openssl dgst -sha256 -hmac topsecret
    headers = {"X-Mirror-Signature": "t=1700000000,v1=a9a80ab213175c7abe3f113192d1fc30599b09c3fda6b8bb1d88af3daf79d9e2"}
    assert verify(headers, "topsecret", "/agent?x=1", "c-1", now=1_700_000_000)


@given(secret=st.text(min_size=1), path=st.text(), call_id=st.text())
def test_what_mirror_signed_is_accepted(secret: str, path: str, call_id: str) -> None:
    headers = signature_headers(path, call_id=call_id, secret=secret, at=NOW)
    assert verify(headers, secret, path, call_id, now=NOW)
    assert verify(headers, secret, path, now=NOW)


@pytest.mark.parametrize(
    ("change", "value"), [("secret", "other"), ("path", "/other"), ("call_id", "other"), ("now", NOW + 301)]
)
def test_anything_else_is_not(change: str, value: object) -> None:
    given = {"secret": SECRET, "path": "/agent", "call_id": "c-1", "now": NOW}
    headers = signature_headers("/agent", call_id="c-1", at=NOW)
    assert verify(headers, SECRET, "/agent", "c-1", now=NOW)
    given[change] = value  # type: ignore[assignment]
    secret, path, call_id, now = given.values()
    assert not verify(headers, str(secret), str(path), str(call_id), now=float(str(now)))


@pytest.mark.parametrize("at", [NOW - 300, NOW + 300])
def test_the_clocks_may_differ_by_five_minutes(at: int) -> None:
    assert verify(signature_headers("/", call_id="c", at=at), SECRET, "/", now=NOW)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "t=,v1=",
        "v1=abc",
        f"t={NOW}",
        f"t={NOW},v1=",
        f"t={NOW},t={NOW},v1=x",
        "t=1e9,v1=x",
        f"t={NOW};v1=x",
        "=,=",
        f"t={NOW},v1=é",
    ],
)
def test_a_malformed_header_is_refused(header: str) -> None:
    assert not verify({"X-Mirror-Signature": header, "X-Mirror-Call": "c"}, SECRET, "/", now=NOW)


def test_no_header_and_no_call_are_refused() -> None:
    headers = signature_headers("/", call_id="c", at=NOW)
    assert not verify({"X-Mirror-Call": "c"}, SECRET, "/", now=NOW)
    assert not verify({"X-Mirror-Signature": headers["X-Mirror-Signature"]}, SECRET, "/", now=NOW)


def test_names_in_any_case_and_two_secrets_during_a_rotation() -> None:
    old = hmac.new(b"old", f"{NOW}.c./".encode(), hashlib.sha256).hexdigest()
    new = hmac.new(b"new", f"{NOW}.c./".encode(), hashlib.sha256).hexdigest()
    headers = {"x-mirror-signature": f"t={NOW}, v1={old}, v1={new}", "X-MIRROR-CALL": "c"}
    assert verify(headers, "old", "/", now=NOW)
    assert verify(headers, "new", "/", now=NOW)
    assert not verify(headers, "other", "/", now=NOW)
