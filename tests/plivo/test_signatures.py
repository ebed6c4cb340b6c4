"""Plivo's signatures: its own vectors, its own validators, and everything that must not pass for one."""

from __future__ import annotations

import hmac
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest
from plivo.utils import validate_signature, validate_v3_signature

from supervision.plivo import signatures
from supervision.plivo.signatures import (
    HEADERS,
    Match,
    handshake_urls,
    is_signed,
    sign,
    signature_v2,
    signature_v3,
    verify,
)

# The vectors of plivo-go.
TOKEN = "Y2Q2ZDgxZmY5YWRiOTI5YmQ1Njg0MTAxZWIyOTc4"
NONCE = "31627761595286130198"
URL = "https://plivobin.non-prod.plivops.com/api/v1/validate_signature03.xml"
_UUID = "3e82ae9d-2c78-4d85-b1a4-6eae7dbafb36"
FIELDS = [
    ("Direction", "outbound"),
    ("From", "19792014278"),
    ("CallStatus", "in-progress"),
    ("BillRate", "0.002"),
    ("Event", "StartApp"),
    ("ParentAuthID", "MANWVLYTK4ZWU1YTY4QA"),
    ("SessionStart", "2020-04-08 11:34:33.238707"),
    ("ALegUUID", _UUID),
    ("ALegRequestUUID", _UUID),
    ("CallUUID", _UUID),
    ("RequestUUID", _UUID),
    ("To", "sip:PlivoSignature382029104058171078704104@phone-qa.voice.plivodev.com"),
    ("SIP-H-To", "<sip:PlivoSignature382029104058171078704104@52.9.11.55;transport=udp>;tag=1"),
]
VECTORS = [
    ("POST", URL + "/?a=b&c=d", "k7Pusd4OxCIjR5IfA9iedDNu/h/gbdYqdzG/MiYtd1c="),
    ("GET", URL + "/?a=b&c=d", "UBq8jAtd32wR8EK9VgxbBn4n5rpI/l1H9iN4WfSEHFQ="),
    ("POST", URL, "iAjE5QqI37mbkYe4w3jTMudqEzbDufdqi7sYwTu64e0="),
    ("GET", URL, "i/MQsaQSAd6fiKhOh2qeeeLHZ9faldADSb3/7+Akfbc="),
]


def signed(
    *, token: str = "secret", method: str = "POST", url: str = "https://h.example/a", params: Any = (), **changes: str
) -> dict[str, str]:
    """The V3 headers of one request."""
    made = sign(tokens=[token], method=method, urls=[url], nonce="n1", params=params)
    return {**{name: made[name] for name in ("X-Plivo-Signature-V3", "X-Plivo-Signature-V3-Nonce")}, **changes}


def check(headers: Mapping[str, str], **changes: Any) -> Match | None:
    asked: dict[str, Any] = {"tokens": ["secret"], "method": "POST", "urls": ["https://h.example/a"], **changes}
    return verify(headers, **asked)


# -- Plivo's own word


@pytest.mark.parametrize(("method", "url", "expected"), VECTORS)
def test_the_vectors_of_plivo_go(method: str, url: str, expected: str) -> None:
    assert signature_v3(TOKEN, method=method, url=url, nonce=NONCE, params=FIELDS) == expected
    headers = {"X-Plivo-Signature-V3": expected, "X-Plivo-Signature-V3-Nonce": NONCE}
    assert verify(headers, tokens=[TOKEN], method=method, urls=[url], params=FIELDS) == Match("V3", 0)
    assert validate_v3_signature(method, url, NONCE, TOKEN, expected, dict(FIELDS))


def test_a_get_request_that_carries_its_fields_in_the_query() -> None:
    expected = VECTORS[3][2]
    assert signature_v3(TOKEN, method="GET", url=f"{URL}?{urlencode(FIELDS)}", nonce=NONCE) == expected


def test_the_vector_of_v2() -> None:
    expected = "ehV3IKhLysWBxC1sy8INm0qGoQYdYsHwuoKjsX7FsXc="
    assert signature_v2("my_auth_token", url="https://answer.url", nonce="12345") == expected
    assert validate_signature("https://answer.url", "12345", expected, "my_auth_token")
    # The query is not part of it.
    assert signature_v2("my_auth_token", url="https://answer.url?a=b#c", nonce="12345") == expected


def words(rng: random.Random) -> str:
    return "".join(rng.choice("abzAZ019 &=?.+/%:;,<>#'\"|~-_") for _ in range(rng.randrange(9)))


def test_plivos_validator_and_ours_agree_on_a_thousand_requests() -> None:
    rng = random.Random(7)
    for _ in range(1_000):
        names = [words(rng) or "k" for _ in range(rng.randrange(4))]
        query = [(name, words(rng)) for name in names for _ in range(rng.randrange(1, 3))]
        params: dict[str, Any] = {
            words(rng) or "p": rng.choice([words(rng), "", [words(rng), words(rng)]]) for _ in range(rng.randrange(5))
        }
        method = rng.choice(["GET", "POST"])
        if method == "GET":
            # The package lets the query win over a field of the same name; Plivo sends no such request.
            params = {name: value for name, value in params.items() if name not in names}
        encode = rng.choice([quote, quote_plus])
        asked = "&".join(f"{encode(name, safe='')}={encode(value, safe='')}" for name, value in query)
        path = rng.choice(["", "/", "/a", "/a/", "/a%20b/c.xml"])
        port = rng.choice(["", ":8443"])
        url = f"https://h.example{port}{path}{'?' + asked if asked else ''}"
        pairs = [
            (name, one) for name, value in params.items() for one in (value if isinstance(value, list) else [value])
        ]
        rng.shuffle(pairs)
        nonce = str(rng.randrange(10**20))
        ours = signature_v3("secret", method=method, url=url, nonce=nonce, params=pairs)
        given = {name: list(value) if isinstance(value, list) else value for name, value in params.items()}
        assert validate_v3_signature(method, url, nonce, "secret", ours, given), (method, url, params)
        headers = {"X-Plivo-Signature-V3": ours, "X-Plivo-Signature-V3-Nonce": nonce}
        assert verify(headers, tokens=["secret"], method=method, urls=[url], params=pairs) == Match("V3", 0)
        second = signature_v2("secret", url=url, nonce=nonce)
        assert validate_signature(url, nonce, second, "secret")


def test_the_simulators_signature_is_ours_too() -> None:
    from supervision.plivo.simulator.answer import sign_v3

    rng = random.Random(3)
    for _ in range(200):
        pairs = [(words(rng) or "k", words(rng)) for _ in range(rng.randrange(5))]
        url = "https://h.example/a" + rng.choice(["", "?b=c&a=%20", "?x="])
        ours = signature_v3("secret", method="POST", url=url, nonce="n", params=pairs)
        assert sign_v3("secret", "POST", url, "n", pairs) == ours


def test_unicode_in_fields_and_query_is_signed_as_utf_8() -> None:
    # The package fails on such a query (UnicodeEncodeError); for fields it agrees.
    pairs = [("CallerName", "José 李 🙂"), ("é", "")]
    ours = signature_v3("secret", method="POST", url="https://h.example/a", nonce="n", params=pairs)
    assert validate_v3_signature("POST", "https://h.example/a", "n", "secret", ours, dict(pairs))
    encoded = signature_v3("secret", method="GET", url="https://h.example/a?n=Jos%C3%A9", nonce="n")
    as_field = signature_v3("secret", method="GET", url="https://h.example/a", nonce="n", params=[("n", "José")])
    assert encoded == as_field


# -- What a request may look like


def test_order_repetitions_and_blanks_of_fields() -> None:
    pairs = [("b", "2"), ("a", ""), ("a", "1"), ("b", "1")]
    headers = signed(params=pairs)
    assert check(headers, params=[("a", "1"), ("b", "1"), ("b", "2"), ("a", "")]) == Match("V3", 0)
    assert check(headers, params=[("a", "1"), ("b", "1"), ("b", "2")]) is None
    assert check(headers, params=[*pairs, ("b", "2")]) is None


def test_several_signatures_in_any_header_and_any_case() -> None:
    right = signed()["X-Plivo-Signature-V3"]
    wrong = signature_v3("other", method="POST", url="https://h.example/a", nonce="n1")
    for value in (f"{wrong},{right}", f" {right} , {wrong} ", f"{wrong},,{right},"):
        for name in ("X-Plivo-Signature-V3", "x-plivo-signature-v3", "X-PLIVO-SIGNATURE-MA-V3"):
            assert check({name: value, "x-plivo-signature-v3-nonce": "n1"}) == Match("V3", 0), (name, value)
    assert check({"X-Plivo-Signature-V3": f"{wrong},{wrong}", "X-Plivo-Signature-V3-Nonce": "n1"}) is None


def test_the_main_accounts_signature_counts_beside_a_wrong_one() -> None:
    headers = {
        "X-Plivo-Signature-V3": signed(token="sub-account")["X-Plivo-Signature-V3"],
        "X-Plivo-Signature-Ma-V3": signed(token="main")["X-Plivo-Signature-V3"],
        "X-Plivo-Signature-V3-Nonce": "n1",
    }
    assert check(headers, tokens=["main"]) == Match("V3", 0)
    assert check(headers, tokens=["sub-account"]) == Match("V3", 0)
    assert check(headers, tokens=["stranger", "main"]) == Match("V3", 0)
    assert check(headers, tokens=["stranger"]) is None


def test_v2_counts_alone_and_never_beside_v3() -> None:
    right = signature_v2("secret", url="https://h.example/a", nonce="n1")
    for name in ("X-Plivo-Signature-V2", "X-Plivo-Signature-Ma-V2"):
        old = {name: right, "X-Plivo-Signature-V2-Nonce": "n1"}
        assert check(old) == Match("V2", 0)
        for newer in ("X-Plivo-Signature-V3", "X-Plivo-Signature-Ma-V3", "X-Plivo-Signature-V3-Nonce"):
            for value in ("", "x", right):
                assert check({**old, newer: value}) is None, (name, newer, value)


def test_which_of_the_urls_was_signed() -> None:
    urls = ["https://a.example/", "https://b.example/", "https://h.example/a"]
    assert check(signed(), urls=urls) == Match("V3", 2)
    assert check(signed(), urls=urls[:2]) is None


# -- What must not pass


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"tokens": []},
        {"tokens": [""]},
        {"tokens": ["Secret"]},
        {"tokens": ["secret "]},
        {"urls": []},
        {"urls": ["http://h.example/a"]},
        {"urls": ["https://h.example:443/a"]},
        {"urls": ["https://H.example/a"]},
        {"urls": ["https://h.example/a/"]},
        {"urls": ["https://h.example/A"]},
        {"urls": ["https://h.example/%61"]},
        {"urls": ["https://h.example/a?q=2"]},
        {"urls": ["https://h.example/a?q="]},
        {"urls": ["https://evil.example/a?q=1"]},
        {"params": [("CallUUID", "x"), ("From", "2")]},
        {"params": [("CallUUID", "x")]},
        {"params": [("CallUUID", "x"), ("From", "1"), ("To", "3")]},
        {"params": [("calluuid", "x"), ("From", "1")]},
        {"params": ()},
    ],
)
def test_anything_else_than_what_was_signed_is_refused(changes: dict[str, Any]) -> None:
    fields = [("CallUUID", "x"), ("From", "1")]
    url = "https://h.example/a?q=1"
    headers = signed(url=url, params=fields)
    assert check(headers, urls=[url], params=fields) == Match("V3", 0)
    assert check(headers, **{"urls": [url], "params": fields, **changes}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"X-Plivo-Signature-V3-Nonce": "n2"},
        {"X-Plivo-Signature-V3-Nonce": ""},
        {"X-Plivo-Signature-V3-Nonce": "n1 "},
        {"X-Plivo-Signature-V3-Nonce": "n" * 257},
        {"X-Plivo-Signature-V3": ""},
        {"X-Plivo-Signature-V3": ","},
        {"X-Plivo-Signature-V3": "é\udcff\x00"},
        {"X-Plivo-Signature-V3": "=" * 44},
        {"X-Plivo-Signature-V3": "A" * 100_000},
        {"X-Plivo-Signature-V3": "null"},
    ],
)
def test_a_header_that_is_not_plivos_is_refused(changes: dict[str, str]) -> None:
    assert check(signed(**changes)) is None


def test_a_changed_letter_or_a_missing_header_is_refused() -> None:
    headers = signed()
    right = headers["X-Plivo-Signature-V3"]
    for index in range(len(right)):
        other = "A" if right[index] != "A" else "B"
        assert check({**headers, "X-Plivo-Signature-V3": right[:index] + other + right[index + 1 :]}) is None
    for name in headers:
        assert check({key: value for key, value in headers.items() if key != name}) is None
    assert check({}) is None
    assert check({"X-Plivo-Signature-V3": right.lower(), "X-Plivo-Signature-V3-Nonce": "n1"}) is None


def test_hostile_text_is_refused_and_breaks_nothing() -> None:
    for text in ("\udcff", "\x00", "é" * 50, "a\r\nX-Other: 1", "%", "%zz"):
        headers = {"X-Plivo-Signature-V3": text, "X-Plivo-Signature-V3-Nonce": text}
        assert (
            check(headers, urls=[f"https://h.example/{quote(text, errors='replace')}"], params=[(text, text)]) is None
        )


def test_every_candidate_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(signatures.hmac, "compare_digest", counting)
    right = signed()["X-Plivo-Signature-V3"]
    headers = {"X-Plivo-Signature-V3": f"{right},x,y", "X-Plivo-Signature-V3-Nonce": "n1"}
    assert check(headers, tokens=["secret", "b"], urls=["https://h.example/a", "https://i.example/"]) is not None
    assert len(compared) == 3 * 2 * 2


# -- The WebSocket handshake, and the headers we make


def test_the_forms_of_a_sockets_url() -> None:
    assert handshake_urls("wss://h.example:8443/s/k%20x?b=2&a=1") == (
        "https://h.example:8443/s/k%20x?b=2&a=1",
        "wss://h.example:8443/s/k%20x?b=2&a=1",
        "http://h.example:8443/s/k%20x?b=2&a=1",
        "ws://h.example:8443/s/k%20x?b=2&a=1",
        "https://h.example:8443/s/k%20x?b=2&a=1/websocket",
        "wss://h.example:8443/s/k%20x?b=2&a=1/websocket",
        "http://h.example:8443/s/k%20x?b=2&a=1/websocket",
        "ws://h.example:8443/s/k%20x?b=2&a=1/websocket",
        "https://h.example:8443/s/k x?b=2&a=1",
        "wss://h.example:8443/s/k x?b=2&a=1",
        "http://h.example:8443/s/k x?b=2&a=1",
        "ws://h.example:8443/s/k x?b=2&a=1",
        "https://h.example:8443/s/k x?b=2&a=1/websocket",
        "wss://h.example:8443/s/k x?b=2&a=1/websocket",
        "http://h.example:8443/s/k x?b=2&a=1/websocket",
        "ws://h.example:8443/s/k x?b=2&a=1/websocket",
    )
    assert handshake_urls("ws://h.example")[0] == "http://h.example/"
    assert len(handshake_urls("ws://h.example/a")) == 8


def test_what_we_sign_passes_plivos_validators_for_each_form_of_the_url() -> None:
    urls = handshake_urls("wss://agent.example/call?lang=en")
    made = sign(tokens=["secret", "second"], method="GET", urls=urls, nonce="12345")
    assert set(map(str.lower, made)) == HEADERS
    assert " " not in made["X-Plivo-Signature-V3"]
    for token in ("secret", "second"):
        for url in urls:
            if not url.startswith("http"):
                continue  # the package takes no other
            for name in ("X-Plivo-Signature-V3", "X-Plivo-Signature-Ma-V3"):
                assert validate_v3_signature("GET", url, "12345", token, made[name])
        assert not validate_v3_signature("GET", urls[0], "12345", "stranger", made["X-Plivo-Signature-V3"])
    assert validate_signature("https://agent.example/call", "12345", made["X-Plivo-Signature-V2"], "secret")
    assert len(made["X-Plivo-Signature-V3"]) < signatures.MAX_HEADER_CHARS


def test_without_a_token_nothing_is_signed() -> None:
    assert sign(tokens=[], method="GET", urls=["https://h.example/"], nonce="n") == {}
    assert sign(tokens=[""], method="GET", urls=["https://h.example/"], nonce="n") == {}


def test_whether_a_request_is_signed_at_all() -> None:
    assert not is_signed({"Host": "h.example", "X-Plivo-Other": "x"})
    for name in HEADERS:
        assert is_signed({name.upper(): ""})
