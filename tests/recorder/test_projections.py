from __future__ import annotations

import psycopg

from supervision.recorder import projections
from supervision.recorder.events import KINDS
from supervision.recorder.projections import COLUMNS, Patch
from tests.support.servers import DatabaseUrls

# Filled by PostgreSQL or by the statement itself.
NOT_PATCHED = {"tenant_id", "search"}
MADE_WITH = {
    projections.CALL: {"agent_id", "started_at"},
    projections.CALL_EVENT: set(COLUMNS[projections.CALL_EVENT]) - {"id"},
    projections.TURN: {"index", "at_ms"},
    projections.VERDICT: {"turn_id", "state", "at_ms"},
    projections.TOOL_DECISION: {"name", "allow", "code", "at_ms"},
    projections.INTERVENTION: {"at_ms"},
    projections.NOTE: {"at_ms"},
}


def real_columns(urls: DatabaseUrls, table: str) -> dict[str, tuple[str, bool]]:
    """Type, and whether an insert must name the column, as PostgreSQL has them."""
    with psycopg.connect(urls.admin) as connection:
        found = connection.execute(
            "SELECT column_name, udt_name, character_maximum_length, is_nullable = 'NO' AND column_default IS NULL"
            " FROM information_schema.columns WHERE table_schema = 'public' AND table_name = %s",
            [table],
        ).fetchall()
    names = {"int4": "integer", "int8": "bigint", "float8": "double precision", "bool": "boolean"}
    return {
        name: (f"varchar({length})" if udt == "varchar" else names.get(udt, udt), required)
        for name, udt, length, required in found
    }


def test_the_recorder_writes_every_column_of_its_tables_with_its_type(database_urls):
    for table, columns in COLUMNS.items():
        real = real_columns(database_urls, table)
        assert {name: kind for name, (kind, _) in real.items() if name not in NOT_PATCHED} == columns, table


def test_a_row_can_be_made_with_what_the_first_event_about_it_knows(database_urls):
    for table, known in MADE_WITH.items():
        real = real_columns(database_urls, table)
        required = {name for name, (_, needed) in real.items() if needed}
        assert required <= known | {"id", "call_id", "tenant_id"}, table


def test_every_kind_is_projected():
    assert set(projections._PROJECTIONS) == set(KINDS)


def test_patches_of_a_row_are_merged_in_order():
    patch = Patch("t", "1", "c", set={"a": 1}, stub={"s": 1}, add={"n": 2}, append={"l": [1]})
    patch.merge(Patch("t", "1", "c", set={"a": 2, "n": 10}, stub={"s": 9}, append={"l": [2]}))
    patch.merge(Patch("t", "1", "c", add={"n": 5, "m": 1}))
    assert patch.set == {"a": 2, "n": 15}
    assert patch.add == {"m": 1}
    assert patch.stub == {"s": 1}
    assert patch.append == {"l": [1, 2]}
