"""Keys that Mirror makes for itself stay the same and belong to us alone."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from mirror_saas.keys import KEYS_FILE, keys_load_or_create


def test_keys_are_made_once_and_readable_by_us_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    keys = keys_load_or_create(home)
    assert keys_load_or_create(home) == keys
    assert len(keys.encryption_key) == 32
    assert stat.S_IMODE((home / KEYS_FILE).stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == [KEYS_FILE]


def test_processes_that_start_at_once_agree_on_the_keys(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = set(pool.map(lambda _: keys_load_or_create(tmp_path), range(64)))
    assert len(made) == 1


def test_two_homes_have_different_keys(tmp_path: Path) -> None:
    assert keys_load_or_create(tmp_path / "a") != keys_load_or_create(tmp_path / "b")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"secret_key": "short", "encryption_key": ""}'])
def test_a_damaged_file_is_named_and_never_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / KEYS_FILE).write_text(content)
    with pytest.raises(ImproperlyConfigured, match=KEYS_FILE):
        keys_load_or_create(tmp_path)
    assert (tmp_path / KEYS_FILE).read_text() == content


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ImproperlyConfigured, match="MIRROR_HOME"):
        keys_load_or_create(tmp_path / "file" / "home")


def test_keys_stay_out_of_repr(tmp_path: Path) -> None:
    keys = keys_load_or_create(tmp_path)
    assert keys.secret_key not in repr(keys)
