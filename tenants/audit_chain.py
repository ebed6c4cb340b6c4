"""The audit log's hash chain, and how an export of it is checked; pure, without database or settings.

An event is one JSON object with sorted keys, no blanks and ASCII only. Its hash is the SHA-256 of that text, which
contains the hash of the event before (`prev_hash`, 64 zeros for the first): whoever changes, removes or inserts an
event has to change every hash after it, also those that were exported or written down elsewhere.

An export is JSON lines. The first line says what it is; each other one is `{"event":<the text>,"hash":"<64 hex>"}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

GENESIS: Final = bytes(32)
EXPORT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class ChainPoint:
    """An event that is known from elsewhere: its number and hash."""

    seq: int
    hash: bytes

    @classmethod
    def parse(cls, text: str) -> ChainPoint:
        """From `SEQ:HASH`, as verifying prints it. Raises ValueError."""
        seq, _, digest = text.strip().partition(":")
        point = cls(int(seq), bytes.fromhex(digest))
        if point.seq < 1 or len(point.hash) != 32:
            raise ValueError("not SEQ:HASH")
        return point

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash.hex()}"


@dataclass(frozen=True, slots=True)
class ChainProblem:
    """The first event that is wrong."""

    seq: int
    what: str


@dataclass(frozen=True, slots=True)
class AuditVerification:
    """What verifying found. `head` is the last event that was right, None without any: keep it, and a later verifying
    that expects it notices when the log's end was cut off or everything was written anew.

    `complete` is False when there are events behind the head that were not looked at; verifying can go on there.
    """

    count: int
    head: ChainPoint | None
    problem: ChainProblem | None
    complete: bool = True

    @property
    def valid(self) -> bool:
        return self.problem is None


class ChainVerifier:
    """Takes a chain's events in order and stops at the first that is wrong."""

    def __init__(self, expected: ChainPoint | None = None) -> None:
        self._expected = expected
        self._expected_met = False
        self._count = 0
        self._seq: int | None = 0
        self._hash: bytes | None = GENESIS
        self._problem: ChainProblem | None = None

    def begin_after(self, seq: int) -> None:
        """For a part of a log: it begins behind `seq`, whose hash is then the first event's word."""
        self._seq, self._hash = seq, GENESIS if seq == 0 else None

    def go_on_after(self, point: ChainPoint, stored: bytes | None) -> bool:
        """For a whole log that was verified up to `point` before: its next event has to follow from that one.

        `stored` is the hash that the log has there now, None without such an event. False when it is another.
        """
        if stored is None:
            return self._wrong(point.seq, "it is expected and missing: the log's end was cut off.")
        of_expected = self._expected.hash if self._expected and self._expected.seq == point.seq else point.hash
        if stored != point.hash or stored != of_expected:
            return self._wrong(point.seq, "its hash is not the expected one: the log was written anew.")
        # What comes before the point was looked at with the part before.
        self._expected_met = self._expected is not None and self._expected.seq <= point.seq
        self._seq, self._hash = point.seq, point.hash
        return True

    def take(self, event: Mapping[str, Any], digest: bytes) -> bool:
        """The next event and the hash that stands beside it; False when it is wrong."""
        expected_seq = (self._seq or 0) + 1
        if event["seq"] != expected_seq:
            return self._wrong(expected_seq, f"event {expected_seq} is missing; {event['seq']} comes instead.")
        if self._hash is not None and event["prev_hash"] != self._hash.hex():
            return self._wrong(expected_seq, "it does not follow from the event before: that one or this was changed.")
        if hashlib.sha256(canonical(event).encode()).digest() != digest:
            return self._wrong(expected_seq, "it was changed: its hash is not that of its fields.")
        if self._expected is not None and self._expected.seq == expected_seq:
            if self._expected.hash != digest:
                return self._wrong(expected_seq, "its hash is not the expected one: the log was written anew.")
            self._expected_met = True
        self._seq, self._hash = expected_seq, digest
        self._count += 1
        return True

    def done(self, *, complete: bool = True) -> AuditVerification:
        """After the last event, or the first wrong one; `complete` says whether it was the log's last."""
        if complete and self._problem is None and self._expected is not None and not self._expected_met:
            self._wrong(self._expected.seq, "it is expected and missing: the log's end was cut off.")
        head = ChainPoint(self._seq, self._hash) if self._seq and self._hash is not None else None
        return AuditVerification(count=self._count, head=head, problem=self._problem, complete=complete)

    def _wrong(self, seq: int, what: str) -> bool:
        self._problem = ChainProblem(seq, what)
        return False


def canonical(value: Any) -> str:
    """JSON with sorted keys, no blanks and ASCII only. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def export_line(event: Mapping[str, Any], digest: bytes) -> str:
    """An event's line of an export."""
    return canonical({"event": event, "hash": digest.hex()})


def export_header(*, tenant_id: str, after_seq: int, last: ChainPoint | None, exported_at: str) -> str:
    """The first line of an export of the events behind `after_seq` up to `last`."""
    return canonical(
        {
            "mirror_audit_export": EXPORT_VERSION,
            "tenant_id": tenant_id,
            "after_seq": after_seq,
            "last_seq": last.seq if last else after_seq,
            "last_hash": last.hash.hex() if last else None,
            "exported_at": exported_at,
            "verify": "hash = SHA-256 of the text of `event` as it stands; event.prev_hash = hash of the line before",
        }
    )


class ExportUnreadable(ValueError):
    """A file that is no export of an audit log."""

    def __init__(self, line: int) -> None:
        super().__init__(f"Line {line} is not one of an export of Mirror's audit log.")


def export_verify(lines: Iterable[str], *, expected: ChainPoint | None = None) -> AuditVerification:
    """Check an export. Raises ExportUnreadable naming the line."""
    numbered = enumerate((line for line in lines if line.strip()), start=1)
    verifier = ChainVerifier(expected)
    try:
        _, first = next(numbered)
        header = json.loads(first)
        tenant_id, after, last_seq = header["tenant_id"], int(header["after_seq"]), int(header["last_seq"])
        last_hash = header["last_hash"]
        if header["mirror_audit_export"] != EXPORT_VERSION:
            raise ExportUnreadable(1)
    except (StopIteration, ValueError, KeyError, TypeError) as error:
        raise ExportUnreadable(1) from error
    verifier.begin_after(after)
    wrong = False
    for number, line in numbered:
        try:
            parsed = json.loads(line)
            event, digest = parsed["event"], bytes.fromhex(parsed["hash"])
            seq, owner = event["seq"], event["tenant_id"]
            event["prev_hash"]
        except (ValueError, KeyError, TypeError) as error:
            raise ExportUnreadable(number) from error
        if owner != tenant_id:
            return AuditVerification(0, None, ChainProblem(seq, "it is another tenant's."))
        if not verifier.take(event, digest):
            wrong = True
            break
    found = verifier.done()
    if wrong or found.problem is not None:
        return found
    reached = found.head.seq if found.head is not None and found.count else after
    digest_reached = found.head.hash.hex() if found.head is not None and found.count else last_hash
    if reached != last_seq or digest_reached != last_hash:
        return AuditVerification(
            found.count, found.head, ChainProblem(reached + 1, f"the export ends here and not at {last_seq}.")
        )
    return found
