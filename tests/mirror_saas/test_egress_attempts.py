"""Attempts to reach this machine, its network or its cloud through a URL that a tenant gives: none arrives.

Every attempt goes through each door that Mirror has: an agent's WebSocket, a judge's HTTP client, and the HTTP client
for everything else. A listener on all addresses of this machine counts what arrives; a note is kept of every address
that a connection was begun to. The names are those of published lists (PayloadsAllTheThings, "SSRF"; OWASP's SSRF
prevention cheat sheet; Orange Tsai, "A New Era of SSRF") and answer as they do in the wild.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from django.conf import settings

from mirror_saas import egress, egress_http
from mirror_saas.egress import EgressRefused, egress_socket
from mirror_saas.egress_http import EgressClient, EgressFailed, llm_http_client, url_check
from supervision.stream.dial import AgentLeg, AgentUnreachable

PUBLIC = "93.184.215.14"
PUBLIC_6 = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"

# The resolver's answers, one list for each time it is asked; the last is given from then on.
NAMES: dict[str, list[list[str]]] = {
    "public.example": [[PUBLIC]],
    "localhost": [["::1", "127.0.0.1"]],
    "localhost.localdomain": [["127.0.0.1"]],
    "ip6-localhost": [["::1"]],
    "ip6-loopback": [["::1"]],
    "anything.localhost": [["127.0.0.1"]],
    "broadcasthost": [["255.255.255.255"]],
    "localtest.me": [["127.0.0.1"]],
    "lvh.me": [["127.0.0.1"]],
    "vcap.me": [["127.0.0.1"]],
    "spoofed.burpcollaborator.net": [["127.0.0.1"]],
    "bugbounty.dod.network": [["127.0.0.2"]],
    "127.0.0.1.nip.io": [["127.0.0.1"]],
    "7f000001.nip.io": [["127.0.0.1"]],
    "127-0-0-1.sslip.io": [["127.0.0.1"]],
    "--1.sslip.io": [["::1"]],
    "customer.my-company.127.0.0.1.nip.io": [["127.0.0.1"]],
    "10.0.0.1.nip.io": [["10.0.0.1"]],
    "metadata": [["169.254.169.254"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "metadata.goog": [["169.254.169.254"]],
    "instance-data": [["169.254.169.254"]],
    "instance-data.ec2.internal": [["169.254.169.254"]],
    "rancher-metadata": [["169.254.169.250"]],
    "metadata.tencentyun.com": [["169.254.0.23"]],
    "metadata.platformequinix.com": [["192.80.8.124"]],
    "metadata.azure.internal": [["168.63.129.16"]],
    "169.254.169.254.xip.io": [["169.254.169.254"]],
    "1ynrnhl.xip.io": [["169.254.169.254"]],
    "nicob.net": [["169.254.169.254"]],
    "kubernetes.default.svc": [["10.96.0.1"]],
    "kubernetes.default.svc.cluster.local": [["10.96.0.1"]],
    "host.docker.internal": [["192.168.65.2"]],
    "gateway.docker.internal": [["192.168.65.1"]],
    "postgres": [["172.18.0.2"]],
    "valkey": [["172.18.0.3"]],
    "v6.example": [["::1"]],
    "mapped.example": [["::ffff:127.0.0.1"]],
    "compatible.example": [["::127.0.0.1"]],
    "nat64.example": [["64:ff9b::7f00:1"]],
    "local-nat64.example": [["64:ff9b:1::7f00:1"]],
    "sixtofour.example": [["2002:7f00:1::1"]],
    "linklocal.example": [["fe80::1%lo"]],
    "ula.example": [["fd00:ec2::254"]],
    "zero.example": [["0.0.0.0"]],
    "zero6.example": [["::"]],
    "multicast.example": [["224.0.0.1", "ff02::1"]],
    "many.example": [[f"10.0.0.{n}" for n in range(1, 41)]],
    "cgnat.example": [["100.100.100.200"]],
    # Some of what a name has is public: only that may be tried.
    "mixed.example": [[PUBLIC, "127.0.0.1"]],
    "mixed-first.example": [["127.0.0.1", PUBLIC]],
    "mixed6.example": [[PUBLIC_6, "::1", "127.0.0.1"]],
    "mixed-many.example": [["10.0.0.1", "169.254.169.254", PUBLIC, "::1", "fe80::1%lo", "127.0.0.1"]],
    # A name that changes between two look-ups, back and forth.
    "rebind.example": [[PUBLIC], ["127.0.0.1"]],
    "rebind6.example": [[PUBLIC_6], ["::1"]],
    "rebind-back.example": [["127.0.0.1"], [PUBLIC], ["127.0.0.1"]],
    "rebind-mixed.example": [[PUBLIC], [PUBLIC, "127.0.0.1"], ["127.0.0.1"]],
    "rebind-metadata.example": [[PUBLIC], ["169.254.169.254"]],
    "rebind-zero.example": [[PUBLIC], ["0.0.0.0"]],
    "rebind-mapped.example": [[PUBLIC], ["::ffff:127.0.0.1"]],
}


def words(text: str) -> list[str]:
    return text.split()


LOOPBACK_4 = words("""
127.0.0.1 127.1 127.0.1 127.0.0.0 127.0.0.2 127.127.127.127 127.255.255.254 2130706433 017700000001 0x7f000001
0x7F000001 0X7F000001
0x7f.0x0.0x0.0x1 0x7f.0.0.0x1 0177.0.0.1 0177.0000.0000.0001 00177.0.0.01 0177.1 0x7f.1 0x7f.0.1 0177.0x1
127.0x1 127.0.0x1 127.0.0.01 127.00.00.01 127.65535 127.16777214 0x7f.65535 000177.0x0.0.1 127.0.0.0x01
""")
ZERO = words("0 0.0.0.0 0.0 0.0.0 0x0 00 000000 0x00000000 0.0x0 0.0.0.1 0.1.2.3")
PRIVATE_4 = words("""
10.0.0.1 10.255.255.255 167772161 0xa000001 012.0.0.1 10.1 10.65535 172.16.0.1 172.31.255.255 2886729729 0xac100001
192.168.0.1 192.168.1.1 192.168.255.255 3232235521 0xc0a80001 0300.0250.0.1 192.168.257
100.64.0.1 100.127.255.255 100.100.100.200 1684300800
169.254.169.254 2852039166 0xa9fea9fe 0251.0376.0251.0376 0xa9.0xfe.0xa9.0xfe 169.254.43518 169.16689662 169.254.0.1
169.254.170.2 169.254.170.23 025177524776
192.0.0.1 192.0.0.8 192.0.0.9 192.0.0.170 192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.1
203.0.113.1 224.0.0.1 224.0.0.251 239.255.255.250 240.0.0.1 255.255.255.255 4294967295 0xffffffff 168.63.129.16
2822734096
""")
# inet_aton takes none of these.
NO_NUMBERS = words("256.0.0.1 6425673729 0x17f000001 127.0.0.1.1 0o177.0.0.1 127..1 0x 09.0.0.1 1e3 -1 127.0.0.-1")
LOOPBACK_6 = words("::1 0:0:0:0:0:0:0:1 0000:0000:0000:0000:0000:0000:0000:0001 0::1 ::0001 ::1%25lo ::ffff:127.0.0.1")
LOOPBACK_6 += words("::ffff:7f00:1 0:0:0:0:0:ffff:127.0.0.1 ::FFFF:7F00:0001 ::ffff:127.1.2.3")
PRIVATE_6 = words("""
:: ::0 ::ffff:0.0.0.0 ::ffff:10.0.0.1 ::ffff:a9fe:a9fe ::ffff:192.168.0.1 ::ffff:100.64.0.1 ::ffff:168.63.129.16
::ffff:0:127.0.0.1 ::127.0.0.1 ::7f00:1 ::10.0.0.1 ::169.254.169.254 ::2
64:ff9b::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::10.0.0.1 64:ff9b::0.0.0.0 64:ff9b::8.8.8.8
64:ff9b:1::127.0.0.1 64:ff9b:1:7f00:0:100:: 64:ff9b:1:a9fe:a9:fe00:: 64:ff9b:1:ffff::7f00:1 64:ff9b:1::8.8.8.8
2002:7f00:1:: 2002:7f00:1::1 2002:a9fe:a9fe:: 2002:a00:1::1 2002:c0a8:1::1 2002:808:808::1
2001:0:0:0:0:0:80ff:fffe 2001:0:4136:e378:8000:63bf:5601:5601 2001::1 2001:2::1 2001:10::1 2001:20::1 2001:db8::1
3fff::1 5f00::1 100::1 4000::1 ::ffff:ffff:7f00:1 2606:4700::5efe:7f00:1 2606:4700::200:5efe:a00:1
fe80::1 fe80::1%25lo
fe80::1%25eth0 fe80::a9fe:a9fe%251 febf::1 fec0::1 feff::1 fc00::1 fd00::1 fdff::1 fd00:ec2::254
fd20:ce::254 fd00:42::42 ff01::1 ff02::1 ff02::fb ff05::2 ff0e::1 ff3e::1
""")
NO_IPV6 = ["127.0.0.1", "::1::", "::ffff:2130706433", "::ffff:0x7f000001", "1", "::1%00", "v1.127.0.0.1", ""]
UNICODE = [
    "１２７.０.０.１",
    "１２７．０．０．１",
    "127。0。0。1",
    "127｡0｡0｡1",
    "①②⑦.⓪.⓪.①",
    "1②7.0.0.①",
    "𝟏𝟐𝟕.𝟎.𝟎.𝟏",
    "𝟙𝟚𝟟.𝟘.𝟘.𝟙",
    "¹²⁷.⁰.⁰.¹",
    "₁₂₇.₀.₀.₁",
    "２１３０７０６４３３",
    "０x7f000001",
    "0ｘ7f000001",
    "ｌｏｃａｌｈｏｓｔ",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    "𝓁𝓸𝓬𝓪𝓵𝓱𝓸𝓼𝓽",
    "local\u00adhost",
    "local\u200bhost",
    "loc\u2060alhost",
    "localhost\u3002",
    "loc𝐚lhost",
    "localhoſt",
    "127.0.0.1\u3002",
    "１６９.254.169.254",
    "①⑥⑨.②⑤④.①⑥⑨.②⑤④",
    "localhost\ufeff",
    "xn--localhost-",
    "xn--0",
]
SPELT = [
    "LOCALHOST",
    "LocalHost",
    "localhost.",
    "localhost..",
    "127.0.0.1.",
    "127.0.0.1..",
    "127.1.",
    "metadata.google.internal.",
]

TRICKS = [
    "http://public.example@127.0.0.1:{port}/",
    "http://public.example:80@127.0.0.1:{port}/",
    "http://user:password@127.0.0.1:{port}/",
    "http://user:@127.0.0.1:{port}/",
    "http://@127.0.0.1:{port}/",
    "http://:@127.0.0.1:{port}/",
    "http://a@b@127.0.0.1:{port}/",
    "http://public.example%40127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@public.example/",
    "http://127.0.0.1:{port}%40public.example/",
    "http://127.0.0.1:{port}#@public.example/",
    "http://public.example#@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}?@public.example/",
    "http://public.example?@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@public.example/",
    "http://public.example\\@127.0.0.1:{port}/",
    "http://public.example\\.127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}\\",
    "http:/\\127.0.0.1:{port}/",
    "http:\\/127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "http:////127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    " http://127.0.0.1:{port}/",
    "http:// 127.0.0.1:{port}/",
    "http://127.0.0.1 :{port}/",
    "http://127.0.0.1 .public.example:{port}/",
    "http://public.example 127.0.0.1:{port}/",
    "http://public.example\t@127.0.0.1:{port}/",
    "http://127.0.\t0.1:{port}/",
    "http://127.0.\n0.1:{port}/",
    "http://127.0.\r0.1:{port}/",
    "ht\ntp://127.0.0.1:{port}/",
    "http:\n//127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: public.example\r\nX: y",
    "http://127.0.0.1\x00.public.example:{port}/",
    "http://public.example\x00@127.0.0.1:{port}/",
    "http://\x01127.0.0.1:{port}/",
    "http://127.0.0.1%00.public.example:{port}/",
    "http://127.0.0.1%0a:{port}/",
    "http://127.0.0.1%20:{port}/",
    "http://127.0.0.1%2f.public.example:{port}/",
    "http://127.0.0.1%23.public.example:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://127%2e0%2e0%2e1:{port}/",
    "http://%6c%6f%63alhost:{port}/",
    "http://%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1:{port}/",
    "http://127.0.0.1;public.example:{port}/",
    "http://127.0.0.1,public.example:{port}/",
    "http://127.0.0.1&@public.example:{port}/",
    "http://[::1]@127.0.0.1:{port}/",
    "http://public.example@[::1]:{port}/",
    "http://[::1%25lo%25lo]:{port}/",
    "http://[[::1]]:{port}/",
    "http://[::1:{port}/",
    "http://::1:{port}/",
    "http://127.0.0.1:0{port}/",
    "http://127.0.0.1:000000{port}/",
    "http://127.0.0.1:+{port}/",
    "http://127.0.0.1: {port}/",
    "http://127.0.0.1:{port}0000/",
    "http://127.0.0.1:{port_over}/",
    "http://127.0.0.1:-1/",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:/",
    "http://127.0.0.1:{port_wide}/",
    "http://127.0.0.1:{port}:80/",
    "http://127.0.0.1:80:{port}/",
    "HTTP://127.0.0.1:{port}/",
    "hTtP://localhost:{port}/",
    "https://127.0.0.1:{port}/",
    "https://localhost:{port}/",
    "http://public.example:22/",
    "http://public.example:25/",
    "http://public.example:445/",
    "http://public.example:0/",
]
SCHEMES = [
    "file:" + "///etc/passwd",
    "file://127.0.0.1:{port}/etc/passwd",
    "gopher://127.0.0.1:{port}/_GET",
    "dict://127.0.0.1:{port}/info",
    "ftp://127.0.0.1:{port}/",
    "sftp://127.0.0.1:{port}/",
    "tftp://127.0.0.1:{port}/",
    "ldap://127.0.0.1:{port}/",
    "imap://127.0.0.1:{port}/",
    "ssh://127.0.0.1:{port}/",
    "telnet://127.0.0.1:{port}/",
    "redis://127.0.0.1:{port}/",
    "postgresql://127.0.0.1:{port}/",
    "jar:http://127.0.0.1:{port}!/",
    "netdoc:///etc/passwd",
    "view-source:http://127.0.0.1:{port}/",
    "unix:///run/docker.sock",
    "http+unix://%2Frun%2Fdocker.sock/info",
    "data:text/plain,x",
    "javascript:alert(1)",
    "blob:http://127.0.0.1:{port}/",
    "ws+unix:///run/docker.sock",
    "url:http://127.0.0.1:{port}/",
    "",
    "http",
    "http:",
    "http://",
    "http://:{port}/",
]

ATTEMPTS = [
    *(f"http://{host}:{{port}}/" for host in (*LOOPBACK_4, *ZERO, *PRIVATE_4, *NO_NUMBERS, *UNICODE, *SPELT)),
    *(f"http://[{host}]:{{port}}/" for host in (*LOOPBACK_6, *PRIVATE_6, *NO_IPV6)),
    *(f"http://{host}:{{port}}/latest/meta-data/" for host in NAMES if host != "public.example"),
    *TRICKS,
    *SCHEMES,
]

Door = Callable[[str], Awaitable[object]]


class Machine:
    """This machine as a target, and the resolver's answers."""

    def __init__(self) -> None:
        self.port = 0
        self.arrived: list[str] = []
        self.begun: list[str] = []
        self.asked: list[str] = []
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        """Names from the table, numbers by the real resolver, and nothing else: no test asks a name server."""
        name = host.encode("idna").decode() if isinstance(host, str) and not host.isascii() else str(host)
        name = name.lower().removesuffix(".")
        if name not in NAMES:
            return self._real(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        answers = NAMES[name][min(self.asked.count(name), len(NAMES[name]) - 1)]
        self.asked.append(name)
        found = []
        for address in answers:
            found += self._real(address, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        return found

    def foreign(self) -> set[str]:
        """Addresses that a connection was begun to, other than the public ones of the table."""
        return {address for address in self.begun if address not in (PUBLIC, PUBLIC_6)}


@pytest.fixture
async def machine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    made = Machine()

    async def answer(request: web.Request) -> web.Response:
        made.arrived.append(str(request.url))
        return web.Response(text="secret of this machine")

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.arrived.append("a connection")
        writer.close()

    # On every address of this machine, by both protocols: 127.2.3.4 and the address of its network card too.
    listener = socket.create_server(("", 0))
    made.port = listener.getsockname()[1]
    servers = [await asyncio.start_server(accepted, sock=listener)]
    with contextlib.suppress(OSError):
        servers.append(await asyncio.start_server(accepted, "::", made.port))
    loop_type = type(asyncio.get_running_loop())
    real_connect = loop_type.sock_connect

    async def connect(loop: Any, opened: socket.socket, address: Any) -> None:
        made.begun.append(str(address[0]))
        if not ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback:
            raise ConnectionRefusedError("no test leaves this machine")
        await real_connect(loop, opened, address)

    monkeypatch.setattr(loop_type, "sock_connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    # aiohttp's memory of a name is always over, or names would not get to change.
    monkeypatch.setattr("aiohttp.connector._DNSCacheTable.expired", lambda table, key: True)
    yield made
    for server in servers:
        server.close()


@contextlib.contextmanager
def operator(**changes: Any) -> Iterator[None]:
    """Mirror as an operator set it up; without changes: in production, with nothing allowed."""
    before = settings.MIRROR
    settings.MIRROR = replace(before, **{"mode": "production", "egress_allow": (), **changes})
    egress.rules.cache_clear()
    try:
        yield
    finally:
        settings.MIRROR = before
        egress.rules.cache_clear()


async def dialled(url: str) -> object:
    """An agent's door."""

    def nothing(*_: object) -> None: ...

    leg = AgentLeg(on_text=nothing, on_binary=nothing, on_closed=nothing, on_dropped=nothing, on_garbled=nothing)
    for scheme, other in (("https", "wss"), ("http", "ws")):
        if url.lower().startswith(scheme):
            url = other + url[len(scheme) :]
            break
    try:
        await leg.dial(url, headers={}, subprotocols=[])
    except AgentUnreachable as problem:
        return problem
    leg.close()
    raise AssertionError(f"{url!r} was dialled")


@contextlib.asynccontextmanager
async def doors() -> AsyncIterator[dict[str, Door]]:
    """All ways out. Each gives back the refusal, and raises AssertionError when there is none."""
    judge, client = llm_http_client(), EgressClient()

    async def judged(url: str) -> object:
        try:
            await judge.post(url, json={"canary": True}, timeout=5.0)
        except Exception as problem:
            return problem
        raise AssertionError(f"{url!r} was asked as a judge")

    async def requested(url: str) -> object:
        try:
            await client.request("GET", url, timeout_s=5.0)
        except (EgressRefused, EgressFailed, OSError) as problem:
            return problem
        raise AssertionError(f"{url!r} was asked")

    try:
        yield {"agent": dialled, "judge": judged, "request": requested}
    finally:
        await judge.aclose()
        await client.aclose()


def written(attempt: str, port: int) -> str:
    wide = "".join(chr(ord(digit) - ord("0") + ord("０")) for digit in str(port))
    return attempt.replace("{port}", str(port)).replace("{port_over}", str(port + 65536)).replace("{port_wide}", wide)


def test_there_are_more_than_two_hundred_different_attempts() -> None:
    assert len(set(ATTEMPTS)) == len(ATTEMPTS) >= 300


@pytest.mark.parametrize("door", ["agent", "judge", "request"])
async def test_no_attempt_reaches_anything(machine: Machine, door: str) -> None:
    with operator():
        async with doors() as ways:
            for attempt in ATTEMPTS:
                # Names that change are asked until they have changed.
                for _ in range(3 if "rebind" in attempt else 1):
                    await ways[door](written(attempt, machine.port))
                    assert (machine.foreign(), machine.arrived) == (set(), []), attempt
    assert machine.asked.count("rebind.example") >= 2
    assert PUBLIC in machine.begun  # so what is public was tried, and only that


async def test_the_same_attempts_arrive_where_an_operator_allows_it(machine: Machine) -> None:
    """Otherwise the ones that were refused would prove nothing: they are well-formed and reach this machine."""
    arrived: dict[str, int] = {}
    with operator(mode="development"):
        async with doors() as ways:
            for name, way in ways.items():
                before = len(machine.arrived)
                for attempt in ATTEMPTS:
                    with contextlib.suppress(AssertionError):
                        await way(written(attempt, machine.port))
                arrived[name] = len(machine.arrived) - before
    assert min(arrived.values()) >= 50, arrived


async def test_one_look_up_decides_and_is_connected_to(machine: Machine) -> None:
    with operator():
        for name in ("rebind.example", "rebind6.example", "rebind-metadata.example"):
            with pytest.raises(ConnectionRefusedError):
                await egress_socket(name, 443)
            assert machine.asked.count(name) == 1  # asked once: what was checked is what was connected to
            with pytest.raises(EgressRefused):
                await egress_socket(name, 443)
    assert set(machine.begun) == {PUBLIC, PUBLIC_6}


async def test_a_warm_connection_is_not_another_tenants_way_in(machine: Machine) -> None:
    """A name that an operator allowed opens its address under that name only, and its port only."""
    NAMES["agents.internal"] = [["127.0.0.1"]]
    try:
        with operator(egress_allow=(f"agents.internal:{machine.port}",)):
            (await egress_socket("agents.internal", machine.port)).close()
            (await egress_socket("AGENTS.internal.", machine.port)).close()
            begun = len(machine.begun)
            for host, port in (
                ("agents.internal", machine.port + 1),
                ("127.0.0.1", machine.port),
                ("localhost", machine.port),
                ("xagents.internal", machine.port),
                ("agents.internal.evil.example", machine.port),
            ):
                with pytest.raises((EgressRefused, socket.gaierror)):
                    await egress_socket(host, port)
            assert len(machine.begun) == begun
    finally:
        del NAMES["agents.internal"]


@pytest.mark.parametrize(
    "allow",
    [
        ("127.0.0.0/8", "::1/128"),
        ("127.0.0.1", "::1"),
        ("localhost",),
        ("localhost:{port}",),
        ("127.0.0.1:{port}", "[::1]:{port}"),
    ],
)
async def test_an_operator_can_allow_what_is_his_own(machine: Machine, allow: tuple[str, ...]) -> None:
    with operator(egress_allow=tuple(written(entry, machine.port) for entry in allow)):
        (await egress_socket("localhost", machine.port)).close()
        async with doors() as ways:
            for name, way in ways.items():
                before = len(machine.begun)
                await way(f"http://localhost:{machine.port}/")
                assert len(machine.begun) > before, name
                before = len(machine.begun)
                await way("http://10.0.0.1/")
                await way("http://metadata.google.internal/")
                assert len(machine.begun) == before, name


async def test_proxies_of_the_environment_are_not_asked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY"):
        for spelt in (name, name.lower()):
            monkeypatch.setenv(spelt, f"http://127.0.0.1:{machine.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with operator():
        async with doors() as ways:
            for way in ways.values():
                for url in ("http://169.254.169.254/", "http://public.example/", "https://public.example/"):
                    await way(url)
    assert (machine.foreign(), machine.arrived) == (set(), [])


# -- redirects


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def site(answer: Answer) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A web server on a port of its own, which the operator allowed; and what it was asked."""
    asked: list[web.Request] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        with operator(egress_allow=(f"127.0.0.1:{port}",)):
            yield f"http://127.0.0.1:{port}", asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_every_redirect_is_checked_anew(machine: Machine, status: int) -> None:
    targets = [attempt for attempt in ATTEMPTS if "\r" not in attempt and "\n" not in attempt and attempt.isprintable()]
    where = ""

    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": where})

    async with site(redirect) as (url, asked), doors() as ways:
        for target in targets[:: 1 if status == 302 else 7]:
            where = written(target, machine.port)
            for door, way in ways.items():
                machine.begun.clear()
                with contextlib.suppress(AssertionError):  # the redirect itself was the answer
                    await way(url + "/")
                # Nothing but the site that redirects, and what is public.
                assert machine.foreign() <= {"127.0.0.1"}, (door, target)
                assert machine.arrived == [], (door, target)
    assert len(asked) >= len(targets[:: 1 if status == 302 else 7]) * 2


async def test_a_judge_and_an_agent_are_not_followed_at_all(machine: Machine) -> None:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/again"})

    async with site(redirect) as (url, asked), doors() as ways:
        with contextlib.suppress(AssertionError):
            await ways["judge"](url)
        assert isinstance(await ways["agent"](url), AgentUnreachable)
    assert [request.path for request in asked] == ["/", "/"]


async def test_redirects_are_counted_and_take_no_login_along() -> None:
    async def redirect(request: web.Request) -> web.Response:
        if request.path == "/loop":
            return web.Response(status=302, headers={"Location": "/loop"})
        if request.path == "/same":
            return web.Response(status=302, headers={"Location": "/end"})
        if request.path == "/other":
            return web.Response(status=302, headers={"Location": f"http://localhost:{request.url.port}/end"})
        return web.json_response(sorted(name.lower() for name in request.headers))

    async with site(redirect) as (url, asked), EgressClient() as client:
        port = url.rsplit(":", 1)[1]
        logins = {"Authorization": "Bearer canary", "Cookie": "a=b", "X-Team": "a", "PRIVATE-TOKEN": "c"}
        with operator(egress_allow=(f"127.0.0.1:{port}", f"localhost:{port}")):
            same = await client.request("GET", f"{url}/same", headers=logins)
            other = await client.request("GET", f"{url}/other", headers=logins)
            assert {"authorization", "cookie", "x-team", "private-token"} <= set(eval(same.body))
            assert not {"authorization", "cookie", "private-token"} & set(eval(other.body))
            assert "x-team" in eval(other.body)
            asked.clear()
            with pytest.raises(EgressFailed, match="redirected more than 3 times"):
                await client.request("GET", f"{url}/loop")
            assert len(asked) == 4
            asked.clear()
            # What was posted is not posted again elsewhere.
            posted = await client.request("POST", f"{url}/same", body=b"x")
            assert (posted.status, len(asked)) == (302, 1)


async def test_a_redirect_out_of_tls_is_not_followed() -> None:
    for url, following in (("https://a.example/", "http://a.example/"), ("https://a.example/", "http://b.example/")):
        with pytest.raises(EgressRefused, match="from https to http"):
            egress_http._onward({}, url, following)


# -- bounds


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        answer = web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            while sent < 200 * 1024 * 1024:
                await answer.write(b"x" * 65536)
                sent += 65536
        return answer

    async with site(endless) as (url, _), doors() as ways, EgressClient() as client:
        with pytest.raises(EgressFailed, match="more than 1000 bytes"):
            await client.request("GET", url, max_bytes=1000)
        sent = 0
        assert "more than" in str(await ways["judge"](url))
    assert sent < 40 * 1024 * 1024


async def test_an_answer_that_says_how_long_it_is_may_be_as_long_as_allowed() -> None:
    async def exact(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1000)

    async with site(exact) as (url, _), EgressClient() as client:
        assert len((await client.request("GET", url, max_bytes=1000)).body) == 1000
        with pytest.raises(EgressFailed):
            await client.request("GET", url, max_bytes=999)


async def test_a_compressed_answer_is_refused_unread() -> None:
    bomb = gzip.compress(b"0" * 50_000_000)

    async def compressed(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    async with site(compressed) as (url, _), doors() as ways, EgressClient() as client:
        with pytest.raises(EgressFailed, match="compressed"):
            await client.request("GET", url)
        assert "compressed" in str(await ways["judge"](url))


@pytest.mark.parametrize("how", ["silent", "dripping", "slow headers"])
async def test_a_slow_answer_is_given_up_in_time(how: str) -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            if how == "dripping":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            elif how == "slow headers":
                writer.write(b"HTTP/1.1 200 OK\r\n")
            while not over.is_set():
                if how != "silent":
                    writer.write(b"1\r\nx\r\n" if how == "dripping" else b"X-A: b\r\n")
                    await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), 0.02)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    with operator(egress_allow=(f"127.0.0.1:{port}",)):
        async with EgressClient() as client:
            began = loop.time()
            with pytest.raises(EgressFailed, match=r"127\.0\.0\.1 did not answer within 0\.3 s"):
                await client.request("GET", f"http://127.0.0.1:{port}/secret?canary", timeout_s=0.3)
            assert loop.time() - began < 5.0
    over.set()
    server.close()


async def test_a_resolver_or_a_host_that_never_answers_is_given_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    over = threading.Event()

    def stuck(*_: Any, **__: Any) -> Any:
        over.wait(20)
        return []

    with operator():
        with monkeypatch.context() as patched:
            patched.setattr(egress, "RESOLVE_TIMEOUT_S", 0.05)
            patched.setattr(socket, "getaddrinfo", stuck)
            with pytest.raises(OSError, match="could not be resolved"):
                await egress_socket("stuck.example", 443)
        over.set()

        async def never(loop: Any, opened: socket.socket, address: Any) -> None:
            await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_connect", never)
        monkeypatch.setattr(egress, "CONNECT_TIMEOUT_S", 0.2)
        with pytest.raises(TimeoutError):
            await egress_socket("public.example", 443)


async def test_an_address_that_never_answers_leaves_time_for_the_next(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    NAMES["half-dead.example"] = [[PUBLIC_6, PUBLIC]]
    monkeypatch.setattr(egress, "ATTEMPT_TIMEOUT_S", 0.05)

    async def connect(loop: Any, opened: socket.socket, address: Any) -> None:
        machine.begun.append(str(address[0]))
        if address[0] == PUBLIC_6:
            await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(type(asyncio.get_running_loop()), "sock_connect", connect)
    try:
        with operator():
            (await egress_socket("half-dead.example", 443)).close()
    finally:
        del NAMES["half-dead.example"]
    assert machine.begun == [PUBLIC_6, PUBLIC]


async def test_a_name_with_many_addresses_is_tried_a_few_times(machine: Machine) -> None:
    NAMES["crowd.example"] = [[f"93.184.215.{n}" for n in range(20, 60)]]
    try:
        with operator():

            async def refuse(loop: Any, opened: socket.socket, address: Any) -> None:
                machine.begun.append(str(address[0]))
                raise ConnectionRefusedError

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(type(asyncio.get_running_loop()), "sock_connect", refuse)
                with pytest.raises(ConnectionRefusedError):
                    await egress_socket("crowd.example", 443)
    finally:
        del NAMES["crowd.example"]
    assert len(machine.begun) == egress.MAX_ADDRESSES


async def test_what_is_no_http_is_an_error_of_ours_and_says_nothing_of_the_url() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with operator(egress_allow=(f"127.0.0.1:{port}",)):
        async with EgressClient() as client:
            with pytest.raises(EgressFailed) as failed:
                await client.request("GET", f"http://127.0.0.1:{port}/secret?canary")
    server.close()
    assert "canary" not in str(failed.value)
    assert "secret" not in str(failed.value)


def test_urls_that_can_be_asked_for() -> None:
    for url in (
        "http://a.example",
        "https://a.example:8443/b?c=d#e",
        "https://[2606:2800::1]/",
        "https://xn--e1afmkfd/",
    ):
        assert url_check(url) == url
    for url in ("http://a.example/" + "a" * 9000, "http://user:canary@a.example/", "http://a b/", "http://a\\b/"):
        with pytest.raises(EgressRefused) as caught:
            url_check(url)
        assert "canary" not in str(caught.value)
