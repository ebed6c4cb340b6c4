"""The one door out: what may be connected to is decided by the address, when the socket is opened."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator
from dataclasses import replace

import pytest
from aiohttp import web
from django.conf import settings

from mirror_saas import egress
from mirror_saas.egress import EgressRefused, address_allowed, egress_http_client, egress_socket


def allowed(
    address: str, *, host: str = "", port: int = 443, allow: tuple[str, ...] = (), loopback: bool = False
) -> bool:
    return address_allowed(ipaddress.ip_address(address), host or address, port, allow=allow, loopback=loopback)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "::1",
        "0.0.0.0",
        "::",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b::5db8:d70e",
        "2002:7f00:1::1",
        "198.18.0.1",
        "192.0.2.1",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert not allowed(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "::ffff:93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses_are_allowed_on_the_webs_ports_and_the_free_ones(address: str) -> None:
    for port in (80, 443, 1024, 8443, 65535):
        assert allowed(address, port=port)
    for port in (1, 22, 25, 53, 79, 81, 442, 445, 465, 1023):
        assert not allowed(address, port=port)
        assert allowed(address, host="mail.example", port=port, allow=(f"mail.example:{port}",))


def test_loopback_is_allowed_in_development_and_nothing_else_with_it() -> None:
    assert allowed("127.0.0.1", loopback=True)
    assert allowed("::ffff:127.0.0.1", loopback=True)
    assert not allowed("10.0.0.1", loopback=True)
    assert not allowed("169.254.169.254", loopback=True)


def test_an_operator_allows_hosts_ports_and_networks() -> None:
    assert allowed("10.1.2.3", allow=("10.0.0.0/8",))
    assert allowed("10.1.2.3", host="agent.internal", port=9000, allow=("agent.internal:9000",))
    assert allowed("10.1.2.3", host="agent.internal", allow=("agent.internal",))
    assert not allowed("10.1.2.3", host="agent.internal", port=22, allow=("agent.internal:9000",))
    assert not allowed("192.168.0.1", allow=("10.0.0.0/8",))
    assert allowed("::ffff:10.1.2.3", allow=("10.0.0.0/8",))
    assert allowed("10.1.2.3", host="Agent.Internal.", allow=("agent.internal",))
    assert allowed("fd00::1", port=9000, allow=("[fd00::1]:9000",))
    assert not allowed("fd00::1", port=9001, allow=("[fd00::1]:9000",))
    assert not allowed("10.1.2.3", host="evil.example", allow=("agent.internal", "evil", "example"))
    assert not allowed("10.1.2.3", host="10.1.2.3.evil.example", allow=("10.1.2.4",))


def test_behind_an_allowed_nat64_the_same_holds_for_the_address_inside() -> None:
    allow = ("64:ff9b::/96",)
    assert allowed("64:ff9b::5db8:d70e", allow=allow)
    for hidden in ("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1"):
        assert not allowed(hidden, allow=allow)
        assert not allowed(hidden, allow=allow, loopback=True)
    assert allowed("64:ff9b::a00:1", allow=(*allow, "10.0.0.0/8"))


@pytest.fixture
def production() -> Iterator[None]:
    """Without the development switch that allows loopback."""
    before = settings.MIRROR
    settings.MIRROR = replace(before, mode="production", egress_allow=())
    egress.rules.cache_clear()
    yield
    settings.MIRROR = before
    egress.rules.cache_clear()


async def server() -> tuple[web.AppRunner, int, list[str]]:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, runner.addresses[0][1], asked


async def test_a_websocket_to_this_machine_is_refused_in_production(production: None) -> None:
    runner, port, asked = await server()
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1"):
        with pytest.raises((EgressRefused, OSError)) as caught:
            await egress_socket(host, port)
        assert isinstance(caught.value, EgressRefused), host
        assert "MIRROR_EGRESS_ALLOW" in str(caught.value)
    assert asked == []
    await runner.cleanup()


async def test_a_judge_on_this_machine_is_refused_in_production(production: None) -> None:
    runner, port, asked = await server()
    client = egress_http_client()
    for host in ("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"):
        with pytest.raises(Exception) as caught:
            await client.get(f"http://{host}:{port}/v1")
        assert "httpx2" in type(caught.value).__module__, caught.value
    assert asked == []
    await client.aclose()
    await runner.cleanup()


async def test_a_judge_on_this_machine_is_asked_in_development() -> None:
    runner, port, asked = await server()
    client = egress_http_client()
    async with asyncio.timeout(10):
        answer = await client.get(f"http://localhost:{port}/v1")
    assert answer.json() == {"ok": True}
    assert asked == ["/v1"]
    await client.aclose()
    await runner.cleanup()


async def test_a_host_that_the_operator_named_is_reached_by_its_name(production: None) -> None:
    runner, port, _asked = await server()
    settings.MIRROR = replace(settings.MIRROR, egress_allow=(f"localhost:{port}",))
    egress.rules.cache_clear()
    client = egress_http_client()
    assert (await client.get(f"http://localhost:{port}/v1")).status_code == 200
    (await egress_socket("localhost", port)).close()
    with pytest.raises(EgressRefused):
        await egress_socket("127.0.0.1", port + 1)
    await client.aclose()
    await runner.cleanup()
