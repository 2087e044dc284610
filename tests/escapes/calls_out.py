"""The two ways out of a jail, and that there is no third. Cases 20, 21, 22.

The attacker here speaks HTTP, as far as it is needed.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any
from unittest import mock

from taskyard.runner.adapters import Launch, Upstream
from taskyard.runner.sandbox.host import find_python
from taskyard.runner.sandbox.policy import GATEWAY_PORT, PROXY_PORT
from taskyard.runner.sandbox.proxy import Proxy
from taskyard.runner.worker import confined

from .arena import ALL, Arena, World
from .findings import Findings, case

NETWORK = (*ALL, "network")
KEY, PLACEHOLDER = "sk-the-real-one", "sk-taskyard-placeholder"
PUBLIC, PRIVATE = "93.184.215.14", "127.0.0.1"
# What names lead to, for the proxy; `turns` has another answer the second time.
NAMES = {
    "allowed.example.com": [PUBLIC],
    "other.example.net": [PUBLIC],
    "inside.example.com": [PRIVATE],
    "cloud.example.com": ["169.254.169.254"],
    "both.example.com": [PUBLIC, PRIVATE],
    "mapped.example.com": ["::ffff:127.0.0.1"],
}

SPEAK = r"""
import errno, json, socket, sys
def exchange(port, said):
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(said.encode())
            heard = b""
            while b"\r\n\r\n" not in heard and (more := client.recv(65536)):
                heard += more
            if heard.split(b" ")[1:2] == [b"200"] and said.startswith("CONNECT"):
                client.sendall(b"hello through the tunnel")
            while more := client.recv(65536):
                heard += more
                if b"the far end" in heard:
                    break
            return heard.decode(errors="replace")
    except OSError as failed:
        return errno.errorcode.get(failed.errno or 0, type(failed).__name__)
print(json.dumps([exchange(port, said) for port, said in json.loads(sys.argv[1])]))
"""

SEARCH = r"""
import json, os, sys
wanted = sys.argv[1][::-1].encode()
found = []
def look(path):
    try:
        with open(path, "rb") as file:
            if wanted in file.read(1 << 20):
                found.append(path)
    except OSError:
        pass
for pid in filter(str.isdecimal, os.listdir("/proc")):
    for name in ("environ", "cmdline"):
        look(f"/proc/{pid}/{name}")
for top in sys.argv[2:]:
    for folder, _, names in os.walk(top):
        for name in names:
            look(os.path.join(folder, name))
print(json.dumps(found))
"""


def _python(script: str, *arguments: str) -> list[str]:
    return [str(find_python().executable), "-I", "-c", script, *arguments]


async def _said(
    arena: Arena, world: World, requests: list[tuple[int, str]], *, inside: bool = True, **options: Any
) -> list[str]:
    """What came back for each (port, request)."""
    argv = _python(SPEAK, json.dumps(requests))
    ended = await (arena.inside(world, argv, **options) if inside else arena.outside(argv, world.space))
    assert ended.code == 0, ended.stderr[-600:]
    return json.loads(ended.stdout)


def _status(answer: str) -> str:
    """The HTTP status, or the name of an error."""
    return answer.split(" ")[1] if answer.startswith("HTTP/") else answer


def _connect(target: str) -> tuple[int, str]:
    return PROXY_PORT, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"


@contextlib.asynccontextmanager
async def _far_end() -> AsyncGenerator[list[tuple[str, int]]]:
    """A server that every dialled address leads to; yields what was dialled."""
    dialled: list[tuple[str, int]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(100):
            writer.write(b"the far end")
            await writer.drain()
        writer.close()

    async def resolve(host: str) -> list[str]:
        return NAMES.get(host, [])

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def dial(address: str, wanted: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            dialled.append((address, wanted))
            return await asyncio.open_connection("127.0.0.1", port)

        with mock.patch.object(confined, "Proxy", partial(Proxy, resolve=resolve, dial=dial)):
            yield dialled


REFUSED_TARGETS = {
    "another host": "other.example.net:443",
    "a subdomain of an exact name": "x.allowed.example.com:443",
    "an address": f"{PUBLIC}:443",
    "the loopback address": "127.0.0.1:443",
    "an address as one number": "2130706433:443",
    "an IPv6 address": "[::1]:443",
    "localhost": "localhost:443",
    "a name that leads to this host": "inside.example.com:443",
    "a name that leads to the cloud's metadata": "cloud.example.com:443",
    "a name that leads here too": "both.example.com:443",
    "a name with a mapped address": "mapped.example.com:443",
    "SSH": "allowed.example.com:22",
    "plain HTTP's port": "allowed.example.com:80",
}


@case(20, "the proxy leads to what the scope allows, and nowhere else")
async def proxied(arena: Arena, findings: Findings) -> None:
    allow = ["allowed.example.com", "*.example.com"]
    exact = ["allowed.example.com"]
    async with _far_end() as dialled:
        network, world = confined.Network(), arena.world()
        plain = (PROXY_PORT, "GET http://allowed.example.com/ HTTP/1.1\r\nHost: allowed.example.com\r\n\r\n")
        requests = [_connect("allowed.example.com:443"), plain]
        allowed, by_get = await _said(arena, world, requests, permissions=NETWORK, network=network, network_allow=exact)
        findings.must(_status(allowed) == "200" and "the far end" in allowed, f"an allowed host: {allowed!r}")
        findings.must(_status(by_get) == "403", f"without CONNECT: {_status(by_get)}")
        findings.must(dialled == [(PUBLIC, 443)], f"dialled: {dialled}")
        dialled.clear()
        wider = "a name that", "SSH", "plain"
        for patterns, names in (
            (exact, [name for name in REFUSED_TARGETS if not name.startswith(wider)]),
            (allow, [name for name in REFUSED_TARGETS if name.startswith(wider)]),
        ):
            answers = await _said(
                arena,
                arena.world(),
                [_connect(REFUSED_TARGETS[name]) for name in names],
                permissions=NETWORK,
                network=network,
                network_allow=patterns,
            )
            for name, answer in zip(names, answers, strict=True):
                findings.must(_status(answer) == "403", f"{name}: {_status(answer)}")
        findings.must(dialled == [], f"dialled although refused: {dialled}")
        refusals = "\n".join(network.refusals())
        for target in REFUSED_TARGETS.values():
            host = target.rpartition(":")[0]
            findings.must(host in refusals, f"no note says that {host} was refused")
        # The policy it is that refuses: the same in a jail whose scope says nothing about hosts.
        (other,) = await _said(arena, arena.world(), [_connect("other.example.net:443")], permissions=NETWORK)
        findings.control("another host, with any public host allowed", "the far end" in other)
    victim = arena.victim()["tcp"]
    answer = await _said(arena, world, [(victim, "CONNECT x HTTP/1.1\r\n\r\n")], inside=False)
    findings.control("this host, without a jail", arena.secret in answer[0])


@case(21, "without the permission there is no network but the model's API")
async def no_network(arena: Arena, findings: Findings) -> None:
    request = (GATEWAY_PORT, "GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with _upstream() as (url, _), _far_end() as dialled:
        launch = Launch([], b"", upstream=Upstream(url, {"x-api-key": KEY}))
        requests = [_connect("allowed.example.com:443"), request]
        refused, served = await _said(arena, arena.world(), requests, launch=launch)
        findings.must(refused == "ECONNREFUSED", f"the proxy's port: {refused[:40]}")
        findings.must(_status(served) == "200" and "the far end" in served, f"the gateway: {served!r}")
        findings.must(not dialled, f"dialled: {dialled}")
        allowed, _ = await _said(arena, arena.world(), requests, launch=launch, permissions=NETWORK)
        findings.control("with the permission", "the far end" in allowed)


@contextlib.asynccontextmanager
async def _upstream() -> AsyncGenerator[tuple[str, list[str]]]:
    """A model's API; yields its address, and what it was asked."""
    heard: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            heard.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nSet-Cookie: session=1\r\n\r\nthe far end")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heard


@case(22, "the API key is put in outside, and nowhere in the jail")
async def key_outside(arena: Arena, findings: Findings) -> None:
    def request(method: str, target: str, *headers: str) -> tuple[int, str]:
        lines = [f"{method} {target} HTTP/1.1", "Host: x", f"x-api-key: {PLACEHOLDER}", *headers, "Connection: close"]
        return GATEWAY_PORT, "\r\n".join([*lines, "", ""])

    victim = arena.victim()["tcp"]
    requests = [
        request("GET", "/v1/models"),
        request("GET", "/v1/models", "Authorization: Bearer mine", "X-API-KEY: mine"),
        request("TRACE", "/v1/models"),
        request("GET", f"http://127.0.0.1:{victim}/"),
        request("GET", f"@127.0.0.1:{victim}/"),
        request("GET", f"//127.0.0.1:{victim}/"),
        request("GET", "/v1/%2e%2e/%2e%2e/admin"),
        request("CONNECT", f"127.0.0.1:{victim}"),
    ]
    world = arena.world()
    with mock.patch.dict("os.environ", {"MODEL_KEY": KEY}):
        async with _upstream() as (url, heard):
            launch = Launch([], b"", {"MODEL_KEY": PLACEHOLDER}, Upstream(url, {"x-api-key": KEY}))
            answers = await _said(arena, world, requests, launch=launch)
            findings.must([_status(answer) for answer in answers[:2]] == ["200", "200"], f"the gateway: {answers[:2]}")
            findings.must(all(KEY in asked for asked in heard), "the API did not get the key")
            findings.must(all(PLACEHOLDER not in asked for asked in heard), "the API got the placeholder")
            findings.must(all("mine" not in asked for asked in heard), "the child's own login was passed on")
            findings.must(all(KEY not in answer for answer in answers), "an answer holds the key")
            findings.must(all(arena.secret not in answer for answer in answers), "another server was reached")
            findings.must("Set-Cookie" not in answers[0], "a cookie of the account came in")
            for sent, answer in zip(requests[2:], answers[2:], strict=True):
                target = " ".join(sent[1].split(" ")[:2])
                reached = _status(answer) == "200"
                findings.must(not reached or target.startswith("GET //"), f"{target}: {_status(answer)}")
            search = _python(SEARCH, KEY[::-1])
            own = ("/home", "/tmp", "/run", "/etc", "/dev/shm", str(world.space), str(world.folder / "work"))
            inside = await arena.inside(world, [*search, *own], launch=launch)
            findings.must(json.loads(inside.stdout) == [], f"the key is in {inside.stdout}")
        outside = await arena.outside(search, world.space)
        findings.control("looked for without a jail", "environ" in outside.stdout)
