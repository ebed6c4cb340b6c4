"""There is one door out: who else could open a connection is listed here, with the reason why it may."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.test_imports import ROOT, files_of, imports_of

# Packages that connect to wherever they are told.
CLIENTS = {
    "aiohttp",
    "asyncssh",
    "ftplib",
    "http.client",
    "httpcore",
    "httpx",
    "httpx2",
    "openai",
    "paramiko",
    "picows",
    "plivo",
    "poplib",
    "requests",
    "smtplib",
    "telnetlib",
    "urllib.request",
    "urllib3",
    "websocket",
    "websockets",
    "xmlrpc.client",
}
CALLS = {"open_connection", "create_connection", "urlopen", "ws_connect", "sock_connect", "connect_ex"}

ALLOWED = {
    "mirror_saas/egress.py": "the door itself",
    "mirror_saas/egress_http.py": "its HTTP clients",
    "mirror_saas/stack.py": "asks Mirror's own processes whether they are ready",
    "mirror_saas/direct_frames.py": "masks frames with a function of a library; opens nothing",
    "mirror_saas/uvicorn_serving.py": "a server",
    "mirror_saas/demo/judge.py": "a server",
    "mirror_saas/demo/agent.py": "a server",
    "supervision/stream/dial.py": "dials over egress_socket, follows no redirect",
    "tenants/services/invitations.py": "names the errors of a mail server, which is the operator's",
    "tenants/tasks.py": "names the errors of a mail server, which is the operator's",
}
# The stand-in for Plivo and the client run in tests and at users'; the engine is a library, whose clients the service
# hands the door's to (see below).
OUTSIDE = ("supervision/plivo/simulator/", "supervision/engine/", "supervision/client.py")
# The engine's clients, with the argument that makes them use the door; None: they go where the operator said.
ENGINE_CLIENTS = {
    "OpenAIClient": "http_client",
    "OpenAIPool": "http_client",
    "OpenAITTS": None,  # where the operator said, or a tenant: then with the door's (stream/voices.py)
    "PlivoRESTTTSSink": "request",
}


def service_files() -> Iterator[Path]:
    for package in ("mirror_saas", "tenants", "supervision", "webui"):
        for file in files_of(package):
            if not file.relative_to(ROOT).as_posix().startswith(OUTSIDE):
                yield file


def connects(file: Path) -> set[str]:
    """What a file could open connections with."""
    found = {name for name in imports_of(file) for client in CLIENTS if name == client or name.startswith(f"{client}.")}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
            )
            if name in CALLS:
                found.add(name)
    return found


def test_nothing_but_the_door_connects_to_what_a_tenant_names() -> None:
    found = {file.relative_to(ROOT).as_posix(): connects(file) for file in service_files()}
    others = {file: names for file, names in found.items() if names and file not in ALLOWED}
    assert others == {}, "open it through mirror_saas.egress, or say here why it may be opened otherwise"
    # An entry that is not needed any more would let something else in.
    assert {file for file in ALLOWED if not found.get(file)} == set()


def test_the_engines_clients_get_the_doors_in_the_service() -> None:
    made = []
    for file in service_files():
        if file.is_relative_to(ROOT / "mirror_saas/demo"):
            continue  # goes where the operator said
        imported = {name.rsplit(".", 1)[-1] for name in imports_of(file) if name.startswith("supervision.engine.")}
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            name = node.func.id
            if name not in imported or not re.search(r"(Client|Pool|TTS|Sink|Speak\w*)$", name):
                continue
            if name in ("HibariTTS", "ScoringPool"):  # speaks on this machine; counts what others ask
                continue
            assert name in ENGINE_CLIENTS, f"{file}: say in ENGINE_CLIENTS where {name} connects to"
            wanted = ENGINE_CLIENTS[name]
            assert wanted is None or wanted in {keyword.arg for keyword in node.keywords}, f"{file}: {name}"
            made.append(name)
    assert "OpenAIPool" in made


def test_the_door_is_handed_over_and_agents_are_dialled_over_it() -> None:
    runtime = (ROOT / "supervision/stream/runtime.py").read_text(encoding="utf-8")
    assert "OpenAIPool(http_client=egress_http_client)" in runtime
    assert "Voices(egress_http_client)" in runtime
    voices = (ROOT / "supervision/stream/voices.py").read_text(encoding="utf-8")
    assert voices.count("OpenAITTS(") == voices.count("http_client=self._client") == 1
    dial = ast.parse((ROOT / "supervision/stream/dial.py").read_text(encoding="utf-8"))
    [call] = [
        node
        for node in ast.walk(dial)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ws_connect"
    ]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert (given["socket_factory"], given["max_redirects"]) == ("_socket", "0")
    assert "proxy" not in given
