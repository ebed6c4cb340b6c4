from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from supervision.recorder.recorder import Recorder
from tests.factories import Tenancy, call_create, tenancy_create
from tests.recorder.calls import everything
from tests.support.servers import DatabaseUrls


@dataclass
class Tenants:
    """Alice, whose calls are recorded, and charlie, the stranger, who has a call of his own."""

    alice: Tenancy
    charlie: Tenancy
    app_url: str
    charlies: dict[str, list[dict[str, Any]]] = field(repr=False)

    def stranger_is_untouched(self) -> bool:
        return everything(self.app_url, self.charlie) == self.charlies


@pytest.fixture
def tenants(database_urls: DatabaseUrls, transactional_db: None) -> Tenants:
    """Committed rows of two tenants."""
    alice, charlie = tenancy_create(owner="alice"), tenancy_create(owner="charlie")
    call_create(charlie)
    made = Tenants(alice, charlie, database_urls.app, everything(database_urls.app, charlie))
    return made


@pytest.fixture
async def make_recorder(database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Callable[..., Recorder]]:
    """Recorders on this test's journal directory, closed at its end."""
    made: list[Recorder] = []

    def make(**changes: Any) -> Recorder:
        settings = {"journal_dir": tmp_path / "journal", "dsn": database_urls.app, "announce": None, **changes}
        made.append(Recorder(**settings))
        return made[-1]

    yield make
    for recorder in made:
        await recorder.aclose(1.0)


@pytest.fixture
def recorder(make_recorder: Callable[..., Recorder]) -> Recorder:
    return make_recorder()
