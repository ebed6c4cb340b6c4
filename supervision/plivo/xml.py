"""Plivo's answer XML.

Source: Plivo's "Stream" element: the URL is the element's text, `contentType` must always be set (its documented
default differs between pages), and `keepCallAlive` needs `bidirectional`.
"""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr


def stream_response(url: str, *, content_type: str, status_callback_url: str | None = None) -> str:
    """The `<Response>` that starts a bidirectional stream to ``url`` (`ws://` or `wss://`).

    ``content_type`` is with its rate, such as ``audio/x-mulaw;rate=8000``.
    """
    attributes = {
        "bidirectional": "true",
        "keepCallAlive": "true",
        "audioTrack": "inbound",
        "contentType": content_type,
    }
    if status_callback_url is not None:
        attributes["statusCallbackUrl"] = status_callback_url
        attributes["statusCallbackMethod"] = "POST"
    written = " ".join(f"{name}={quoteattr(value)}" for name, value in attributes.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Stream {written}>{escape(url)}</Stream></Response>\n'
