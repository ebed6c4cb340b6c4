"""Counters of mails that start anew for a test: the real ones outlive it, in this process or in Valkey."""

from __future__ import annotations

import pytest
from limits.storage import MemoryStorage

from tenants import mail_limits


def mails_count_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has sent a mail yet; Valkey is not asked."""
    storage = MemoryStorage()
    monkeypatch.setattr(mail_limits, "_shared", lambda url: storage)
