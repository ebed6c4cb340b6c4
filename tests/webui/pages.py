"""What tests of pages do with Django's client: read a page's words, and send a form as it stands on its page."""

from __future__ import annotations

import html
from html.parser import HTMLParser
from typing import Any

from django.test import Client


def words_of(answer: Any) -> str:
    """What an answer says, its entities resolved."""
    return html.unescape(answer.content.decode())


def page_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.status_code)
    return words_of(answer)


class _Fields(HTMLParser):
    """The values that a browser would send for the fields of a page, whichever form they are in."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[str]] = {}
        self._select = self._area = ""
        self._in_template = 0

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in given}
        name = attributes.get("name", "")
        match tag:
            case "template":
                self._in_template += 1
            case _ if self._in_template:
                return
            case "input" if name and attributes.get("type") in ("checkbox", "radio"):
                if "checked" in attributes:
                    self.values.setdefault(name, []).append(attributes.get("value", "on"))
            case "input" if name:
                self.values.setdefault(name, []).append(attributes.get("value", ""))
            case "select":
                self._select = name
            case "option" if self._select and "selected" in attributes:
                self.values.setdefault(self._select, []).append(attributes.get("value", ""))
            case "textarea":
                self._area = name
                self.values.setdefault(name, [])

    def handle_endtag(self, tag: str) -> None:
        match tag:
            case "template":
                self._in_template -= 1
            case "select":
                self._select = ""
            case "textarea":
                self._area = ""

    def handle_data(self, data: str) -> None:
        if self._area:
            self.values[self._area] = ["".join(self.values[self._area]) + data]


def form_of(client: Client, path: str, **changed: Any) -> dict[str, Any]:
    """What the form at `path` sends when nothing but `changed` is typed into it."""
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.status_code)
    parser = _Fields()
    parser.feed(answer.content.decode())
    return {**parser.values, **changed}
