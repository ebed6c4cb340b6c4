"""The README says what is: every variable, every link, and the examples' real differences."""

import difflib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def changed(lines: list[str]) -> list[str]:
    """The added and removed lines of a unified diff."""
    return [line.rstrip() for line in lines if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))]


def test_every_variable_that_mirror_reads_is_in_the_table() -> None:
    source = (ROOT / "mirror_saas" / "env.py").read_text(encoding="utf-8")
    read = set(re.findall(r"reader\.(?:text|url|items|choice|integer|number|limit|keys?)\(\s*\"([A-Z_]+)\"", source))
    # Or named once, for what is said of them too.
    read |= set(re.findall(r"\bname = \"([A-Z_]+)\"", source))
    assert len(read) > 20
    table = README.partition("## Configuration")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([A-Z][A-Z_]+)`", table))
    internal = {"MIRROR_DATABASE_ROLE"}  # set by `serve --only migrate` for itself
    assert read - internal - documented == set()
    assert documented - read - {"DEBUG", "INFO", "WARNING", "ERROR", "NAME_FILE", "MIRROR_HOME"} == set()


def test_every_local_link_leads_somewhere() -> None:
    for document in (
        "README.md",
        "docs/operator.md",
        "docs/library.md",
        "docs/figures.md",
        "docs/reliability.md",
        "CHANGELOG.md",
    ):
        path = ROOT / document
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{document}: {target}"


@pytest.mark.parametrize("example", ["plivo_stream_sdk", "pipecat", "plain_websocket"])
def test_the_differences_are_the_examples_own_and_at_most_ten_lines(example: str) -> None:
    folder = ROOT / "examples" / example
    before, after = (
        (folder / name).read_text(encoding="utf-8").splitlines() for name in ("agent.py", "agent_supervised.py")
    )
    # The docstrings say which of the two it is; that is no part of supervising.
    code = [
        line
        for line in changed(list(difflib.unified_diff(before, after, n=0, lineterm="")))
        if line[1:].strip() and not line[1:].startswith(('"""', "    python -m"))
    ]
    shown = re.search(rf"\(examples/{example}/?\)\):\n\n```diff\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    in_readme = changed(shown[1].splitlines())
    assert in_readme == [line for line in code if line in in_readme]
    assert len([line for line in in_readme if line.startswith("+")]) <= 10
    left_out = [line for line in code if line not in in_readme]
    assert not [line for line in left_out if re.search(r"mirror\.|Mirror\w*\(|import", line)], left_out
