"""What a console socket sends of a call that goes on: what changed, and not the whole call again."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.factories import Tenancy
from tests.webui import story
from webui.live import CallTopic, TopicRefused, Update

pytestmark = pytest.mark.django_db(transaction=True)


def read(topic: CallTopic, tenancy: Tenancy) -> Update:
    with tenancy.context():
        update = topic._read()
    assert update is not None
    return update


def sent(update: Update) -> dict[str, str]:
    return {part.id: part.html or "" for part in update.parts}


def news(update: Update) -> dict[str, Any]:
    (data,) = re.findall(r'<data id="timeline-news" hidden>(.*?)</data>', sent(update)["timeline-news"])
    found: dict[str, Any] = json.loads(unescape(data))
    return found


def test_a_turns_row_says_what_mirror_said_as_soon_as_it_has(tenant: Tenancy, recorded: story.Recording) -> None:
    told = story.Story(tenant, story.now())
    told.start()
    told.turn(2_000, "Is it coming?", "It comes tomorrow, I promise.", name="promise")
    told.judged("promise", 2_400, 0.9, rule=story.DATE_RULE)
    recorded(told.events)
    topic = CallTopic(told.call_id, told.events[-1].seq)
    row = f"turn-{told.ids['promise'].hex}"
    # The last events name the intervention and not the turn; the row shows them all the same.
    for events in told.intervention("promise", 2_404, story.DATE_RULE):
        recorded(events)
        update = read(topic, tenant)
        assert row in sent(update)
    assert "One second, let me check that." in sent(update)[row]
    (spoken,) = [item for item in news(update)["items"] if item["id"] == told.ids["intervention on promise"].hex]
    assert [mark[1] for mark in spoken["marks"]] == ["buffer", "correction"]


def test_an_update_is_about_what_changed_however_long_the_call(tenant: Tenancy, recorded: story.Recording) -> None:
    told = story.Story(tenant, story.now())
    told.start()
    for n in range(40):
        told.turn(1_000 * n, "And?", f"Answer {n}.", name=f"t{n}")
        told.judged(f"t{n}", 1_000 * n + 300, 0.02)
    told.turn(50_000, "Last?", "The last one.", name="last")
    recorded(told.events)
    topic = CallTopic(told.call_id, told.events[-1].seq)
    recorded(told.judged("last", 50_300, 0.02))
    with CaptureQueriesContext(connection) as made:
        update = read(topic, tenant)
    assert [part for part in sent(update) if part.startswith("turn-")] == [f"turn-{told.ids['last'].hex}"]
    assert [item["n"] for item in news(update)["items"] if "n" in item] == [41]
    rows = [query["sql"] for query in made if 'FROM "supervision_turn"' in query["sql"]]
    assert rows
    assert all(" IN (" in sql for sql in rows), rows


def test_the_end_of_a_call_shows_on_what_had_been_open(tenant: Tenancy, recorded: story.Recording) -> None:
    told = story.Story(tenant, story.now())
    told.start()
    told.turn(1_000, "Hi", "Hello.", name="judged")
    told.judged("judged", 1_300, 0.02)
    told.turn(4_000, "And?", "Well.", name="open")
    recorded(told.events)
    topic = CallTopic(told.call_id, told.events[-1].seq)
    recorded(told.end(5_000))
    update = read(topic, tenant)
    assert [part for part in sent(update) if part.startswith("turn-")] == [f"turn-{told.ids['open'].hex}"]
    assert "No verdict recorded" in sent(update)[f"turn-{told.ids['open'].hex}"]
    assert (news(update)["live"], news(update)["ms"]) == (False, 5_000)


def test_a_topic_says_nothing_of_a_strangers_call(
    tenant: Tenancy, stranger: Tenancy, recorded: story.Recording
) -> None:
    told = story.clean_call(tenant, story.now())
    recorded(told.events)
    with stranger.context(), pytest.raises(TopicRefused):
        CallTopic(told.call_id, 0)._read()
