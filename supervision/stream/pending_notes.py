"""The notes that an agent has not answered yet: a socket that takes the call over tells them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from supervision.stream.carried import MAX_NOTES

Note = dict[str, Any]  # the fields of `mirror.note`


class PendingNotes:
    """In the order in which they were sent; the oldest beyond 16 are forgotten."""

    def __init__(self, notes: Iterable[Note] = ()) -> None:
        self._notes: dict[str, Note] = {}
        for note in notes:
            self.sent(note)

    def sent(self, note: Note) -> None:
        """A note went out, or went out again with a higher `rev`."""
        self._notes.pop(note["id"], None)
        self._notes[note["id"]] = note
        while len(self._notes) > MAX_NOTES:
            del self._notes[next(iter(self._notes))]

    def answered(self, seen: str | None) -> None:
        """The agent reported a turn whose model had seen the note ``seen``; None: it does not say what it saw. A note
        is for one turn, so what was sent up to there is used up."""
        if seen is None:
            self._notes.clear()
        elif seen in self._notes:
            for note_id in list(self._notes):
                del self._notes[note_id]
                if note_id == seen:
                    break

    def pending(self) -> list[Note]:
        """The notes that are not used up, oldest first."""
        return list(self._notes.values())
