"""Importing the engine does nothing and costs little: no client libraries, no framework, no threads, no files."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import supervision.engine

FORBIDDEN = (
    *("openai", "aiohttp", "httpx2", "django", "channels", "celery", "plivo", "plivo_stream", "fastapi", "starlette"),
    *("websockets", "redis", "psycopg", "hibari_tts", "webrtcvad"),
)
ROOT = Path(__file__).resolve().parents[2]

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(supervision.engine.__path__, "supervision.engine.")
    if not module.ispkg
)
# What handles audio needs numpy; it is imported by who speaks, never by who judges.
SPEAKING = ("supervision.engine.tts.", "supervision.engine.adapters.", "supervision.engine.attached")
JUDGING = [name for name in MODULES if not name.startswith(SPEAKING)]


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def loaded_after(code: str) -> set[str]:
    report = "print(' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    return set(run_python(f"import sys\n{code}\n{report}").split())


def test_importing_the_engine_loads_no_client_library_and_no_framework() -> None:
    assert not loaded_after("import supervision.engine") & {*FORBIDDEN, "numpy"}


def test_importing_every_module_of_the_engine_loads_none_either() -> None:
    assert "supervision.engine.llm.openai" in MODULES
    assert "supervision.engine.adapters.relay" in MODULES
    code = "\n".join(f"import {name}" for name in MODULES)
    assert not loaded_after(code) & set(FORBIDDEN)


def test_judging_needs_no_numpy() -> None:
    assert "supervision.engine.supervisor" in JUDGING
    assert "numpy" not in loaded_after("\n".join(f"import {name}" for name in JUDGING))


def test_importing_the_engine_starts_nothing_and_says_nothing() -> None:
    code = (
        "import threading, sys, logging, gc, asyncio\n"
        "import supervision.engine, supervision.engine.llm.openai\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not logging.getLogger('supervision').handlers\n"
        "assert not [o for o in gc.get_objects() if isinstance(o, asyncio.AbstractEventLoop)]\n"
    )
    assert run_python(code) == ""


def test_openai_is_loaded_when_the_first_client_is_made() -> None:
    assert "openai" in loaded_after(
        "from supervision.engine.llm.openai import OpenAIClient\n"
        "OpenAIClient(api_key='k', model='m', base_url='http://127.0.0.1:9/v1')"
    )


def test_after_warming_up_the_first_client_loads_nothing_more() -> None:
    code = (
        "from supervision.engine.llm.openai import OpenAIClient, tls_context, warm_up\n"
        "warm_up()\n"
        "import sys; before, context = set(sys.modules), tls_context()\n"
        "client = OpenAIClient(api_key='k', model='m')\n"
        "assert tls_context() is context\n"
        "assert client._endpoint.sdk._client._transport.ssl_context is context\n"
        "assert set(sys.modules) == before\n"
    )
    assert run_python(code) == ""
    without = "import sys; sys.modules['openai'] = None\n"
    code = without + "from supervision.engine.llm.openai import warm_up\nwarm_up()"
    with pytest.raises(AssertionError, match=r"install mirror\[openai\]"):
        run_python(code)
