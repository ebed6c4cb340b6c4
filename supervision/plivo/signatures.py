"""Plivo's request signatures: checked where Plivo asks us, made where an agent expects Plivo's.

Source: Plivo, "Request validation", and the `plivo` packages for Python and Go, whose vectors are in the tests. What is
signed is the URL as it was configured at Plivo, whatever a proxy made of host and scheme; `method` is GET or POST, and
`params` are the decoded fields of a POST's form (none for another kind of body).

    V3  base64(HMAC-SHA256(auth token, base + "." + nonce))
        GET   base = scheme://netloc/path [ "?" decoded query, sorted, as k=v joined by "&" ]
        POST  base = scheme://netloc/path [ "?" decoded query likewise [ "." ] fields sorted, as kv without separators ]
              with "?" when there is a query or a field, and "." when there are both
    V2  base64(HMAC-SHA256(auth token, scheme://netloc/path + nonce))

`X-Plivo-Signature-V3` is made with the token of the account or sub-account that the number belongs to, `-Ma-V3` with
the main account's; each may hold several signatures with commas between them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Params = Iterable[tuple[str, str]]
Version = Literal["V3", "V2"]

V3: Final = "x-plivo-signature-v3"
MA_V3: Final = "x-plivo-signature-ma-v3"
V3_NONCE: Final = "x-plivo-signature-v3-nonce"
V2: Final = "x-plivo-signature-v2"
MA_V2: Final = "x-plivo-signature-ma-v2"
V2_NONCE: Final = "x-plivo-signature-v2-nonce"
HEADERS: Final = frozenset({V3, MA_V3, V3_NONCE, V2, MA_V2, V2_NONCE})

# A signature has 44 characters and Plivo's nonces 20; what is longer than these is no header of Plivo's.
MAX_HEADER_CHARS: Final = 4096
MAX_NONCE_CHARS: Final = 256

# plivo-stream-sdk's own check signs its socket's URL with this behind it, also behind the query.
SOCKET_SUFFIX: Final = "/websocket"
_SCHEMES: Final = {"ws": ("http", "ws", "https", "wss"), "wss": ("https", "wss", "http", "ws")}


@dataclass(frozen=True, slots=True)
class Match:
    """Which signature fits: its version, and the place of the URL among those that were tried."""

    version: Version
    url_index: int


def signature_v3(token: str, *, method: str, url: str, nonce: str, params: Params = ()) -> str:
    """The V3 signature of one request, in base64 (44 characters)."""
    return _hmac(token, f"{_v3_base(method, url, params)}.{nonce}")


def signature_v2(token: str, *, url: str, nonce: str) -> str:
    """The V2 signature of one request, in base64 (44 characters); it covers neither query nor fields."""
    return _hmac(token, _address(url) + nonce)


def is_signed(headers: Mapping[str, str]) -> bool:
    """Whether a request carries any of Plivo's signature headers."""
    return any(name.lower() in HEADERS for name in headers)


def verify(
    headers: Mapping[str, str], *, tokens: Sequence[str], method: str, urls: Sequence[str], params: Params = ()
) -> Match | None:
    """Which of ``urls`` the request was signed for with one of ``tokens``; None when with none, or not at all.

    Names of headers are taken in any case. V2 counts only in a request without any header of V3, because it does not
    cover the fields: nobody can strip a better signature down to it. Every pair of signatures is compared, in constant
    time. Fields that a signature does not cover must not be trusted: see :attr:`Match.version`.
    """
    given = {name.lower(): value for name, value in headers.items()}
    fields = tuple(params)
    newer = any(name in given for name in (V3, MA_V3, V3_NONCE))
    version: Version = "V3" if newer else "V2"
    nonce = given.get(V3_NONCE if newer else V2_NONCE, "")
    offered = _offered(given, (V3, MA_V3) if newer else (V2, MA_V2))
    if not nonce or len(nonce) > MAX_NONCE_CHARS or not offered:
        return None
    found: Match | None = None
    for index, url in enumerate(urls):
        for token in tokens:
            if not token:
                continue  # an HMAC under no key is one that anybody can make
            if newer:
                right = signature_v3(token, method=method, url=url, nonce=nonce, params=fields)
            else:
                right = signature_v2(token, url=url, nonce=nonce)
            if _any_equal(offered, right) and found is None:
                found = Match(version, index)
    return found


def sign(*, tokens: Sequence[str], method: str, urls: Sequence[str], nonce: str, params: Params = ()) -> dict[str, str]:
    """The headers that Plivo would send, for a receiver that may see its own URL as any of ``urls``.

    V3 holds a signature for each URL and token, with commas and no blanks between them; V2 knows no lists, so it is
    for the first of both. Empty without a token.
    """
    usable = [token for token in tokens if token]
    if not usable or not urls:
        return {}
    fields = tuple(params)
    third = ",".join(
        dict.fromkeys(
            signature_v3(token, method=method, url=url, nonce=nonce, params=fields) for token in usable for url in urls
        )
    )
    second = signature_v2(usable[0], url=urls[0], nonce=nonce)
    return {
        "X-Plivo-Signature-V3": third,
        "X-Plivo-Signature-Ma-V3": third,
        "X-Plivo-Signature-V3-Nonce": nonce,
        "X-Plivo-Signature-V2": second,
        "X-Plivo-Signature-Ma-V2": second,
        "X-Plivo-Signature-V2-Nonce": nonce,
    }


def handshake_urls(url: str) -> tuple[str, ...]:
    """The forms of a `ws://` or `wss://` URL that a handshake may be signed for (method GET), likeliest first.

    Plivo documents none. Its SDKs check the URL with `http` or `https` in place of `ws`, by their own idea of TLS;
    the one for Python decodes the path and puts :data:`SOCKET_SUFFIX` behind the whole URL.
    """
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    path = parts.path or "/"
    paths = dict.fromkeys((path, unquote(path)))
    schemes = _SCHEMES.get(parts.scheme, (parts.scheme,))
    return tuple(
        f"{scheme}://{parts.netloc}{one}{query}{suffix}"
        for one in paths
        for suffix in ("", SOCKET_SUFFIX)
        for scheme in schemes
    )


def _v3_base(method: str, url: str, params: Params) -> str:
    query = sorted(_pairs(url))
    fields = sorted(params)
    base = _address(url)
    if method.upper() == "GET":
        asked = sorted([*query, *fields])
        return base + ("?" + "&".join(f"{key}={value}" for key, value in asked) if asked else "")
    if query or fields:
        base += "?" + "&".join(f"{key}={value}" for key, value in query)
    if query and fields:
        base += "."
    return base + "".join(key + value for key, value in fields)


def _pairs(url: str) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(url).query, keep_blank_values=True)


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _hmac(token: str, text: str) -> str:
    # Half a surrogate pair cannot come from Plivo; it must not break the check either.
    digest = hmac.new(token.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
    return base64.b64encode(digest).decode("ascii")


def _offered(given: Mapping[str, str], names: Iterable[str]) -> list[bytes]:
    values = [given[name] for name in names if name in given]
    if any(len(value) > MAX_HEADER_CHARS for value in values):
        return []
    return [one.strip().encode("utf-8", "surrogatepass") for value in values for one in value.split(",") if one.strip()]


def _any_equal(offered: Iterable[bytes], right: str) -> bool:
    equal = False
    for one in offered:
        equal |= hmac.compare_digest(one, right.encode("ascii"))
    return equal
