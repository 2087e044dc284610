"""What a jail reaches of the network: the hosts that its scope admits, at public addresses, by a proxy that holds."""

import asyncio
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskyard.runner.sandbox import proxy
from taskyard.runner.sandbox.network import Verdict, covers, host_name, permitted, public
from taskyard.runner.sandbox.proxy import Proxy
from tests.conftest import Yard, rows
from tests.fleet import until
from tests.jail_servers import Line, serving

PUBLIC = "93.184.215.14"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
PATTERNS = ["example.com", "*.example.com", "*.a.example.com", "*.com", "ample.com", "*.ample.com"]
HOSTS = ["example.com", "a.example.com", "b.a.example.com", "badexample.com", "example.com.evil.org", "com", "a.com"]


@pytest.mark.parametrize(
    ("pattern", "host", "admitted"),
    [
        ("example.com", "example.com", True),
        ("Example.COM", "eXample.com", True),
        ("example.com", "a.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "b.a.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "badexample.com", False),
        ("example.com", "example.com.evil.org", False),
        ("*", "example.com", False),
    ],
)
def test_a_pattern_is_a_host_or_all_below_one(pattern: str, host: str, admitted: bool) -> None:
    assert covers(pattern, host) is admitted


def test_a_pattern_admits_what_it_admits_in_the_database(yard18: Yard) -> None:
    query = "select p, h, taskyard._covers_host(p, h) c from unnest(%s::text[]) p, unnest(%s::text[]) h"
    found = {(row["p"], row["h"]): row["c"] for row in rows(yard18.connect(), query, PATTERNS, HOSTS)}
    assert found == {(pattern, host): covers(pattern, host) for pattern in PATTERNS for host in HOSTS}


def test_no_list_admits_any_host_and_an_empty_one_none() -> None:
    assert permitted(None, "example.com")
    assert not permitted((), "example.com")
    assert permitted(("a.org", "*.com"), "example.com")


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "2130706433", "0x7f.1", "0x7f000001", "127.1", "0177.0.0.1", "1.2.3.0x4", "a.1", "a.0x"),
        *("[::1]", "::1", "[::ffff:127.0.0.1]", "fe80::1%eth0"),
        *("", "localhost", "com", ".", "example.com.", ".example.com", "a..b", "-a.com", "a-.com", "*.example.com"),
        *(
            "bücher.de",
            "example\uff0ecom",
            "exam\u212ale.com",
            "a b.com",
            "a/b.com",
            "user@example.com",
            "example.com\n",
        ),
        *("a" * 64 + ".com", ".".join(["a" * 50] * 6)),
    ],
)
def test_what_is_no_full_name_is_no_host(text: str) -> None:
    assert host_name(text) is None


@pytest.mark.parametrize(
    "text", ["Example.COM", "a-b.example.com", "_x.example.com", "xn--bcher-kva.de", "1.example.com", "3com.com"]
)
def test_names_are_taken_in_lower_case(text: str) -> None:
    assert host_name(text) == text.lower()


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.127.255.254", "192.0.0.1", "198.18.0.1", "224.0.0.1", "239.1.1.1"),
        *("240.0.0.1", "255.255.255.255", "192.0.2.1", "192.88.99.1"),
        *("::", "::1", "fe80::1", "fe80::1%lo", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2001:db8::1"),
        *(
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
        ),
        *("2002:7f00:1::", "2002:808:808::", "2001:0:7f00:1::", "2001:2::1", "100::1", "5f00::1", "3fff::1"),
        *("", "example.com", "127.1", "0x7f000001"),
    ],
)
def test_an_address_that_is_not_public_is_none(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700::6810:85e5",
        "2a00:1450:4001::200e",
        "64:ff9b::808:808",
        "::ffff:8.8.8.8",
    ],
)
def test_a_public_address_is_one(address: str) -> None:
    assert public(address)


@given(st.ip_addresses())
def test_a_public_address_is_global_to_python_too(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if public(str(address)):
        assert (address.is_global or getattr(address, "ipv4_mapped", None)) and not address.is_multicast


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_as_public_as_it_is_alone(address: ipaddress.IPv4Address) -> None:
    for prefix in ("::ffff:", "64:ff9b::"):
        assert public(f"{prefix}{address}") == public(str(address))


class Outside:
    """A server on the internet, and its names: connections to it are in `lines`, addresses asked for in `dialled`."""

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.dialled: list[tuple[str, int]] = []
        self.notes: list[Verdict] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.server.settimeout(10)

    async def resolve(self, host: str) -> list[str]:
        answers = self.names.get(host, [])
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def dial(self, address: str, port: int) -> proxy.Streams:
        self.dialled.append((address, port))
        if address == "8.8.8.8":
            raise ConnectionRefusedError
        reader, writer = await asyncio.open_connection(*self.server.getsockname())
        # What is written stays in this process until it is read.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return reader, writer

    @contextmanager
    def proxy(self, allow: tuple[str, ...] | None = None, always: tuple[str, ...] = ()) -> Generator[int]:
        server = Proxy(allow, always, self.notes.append, resolve=self.resolve, dial=self.dial)
        with serving(server) as port:
            yield port

    def accept(self) -> socket.socket:
        connection = self.server.accept()[0]
        connection.settimeout(10)
        return connection


@pytest.fixture
def outside() -> Iterator[Outside]:
    made = Outside()
    made.names["example.com"] = [[PUBLIC]]
    yield made
    made.server.close()


def connect(line: Line, target: str = "example.com:443") -> Line:
    return line.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())


def answer(port: int, request: bytes) -> tuple[int, str]:
    """Status and body of a refusal."""
    with Line(port) as line:
        head, _, body = line.send(request).rest().partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def test_an_admitted_host_is_reached_at_its_address_and_bytes_are_counted(outside: Outside) -> None:
    with outside.proxy(("*.org", "example.com")) as port, Line(port) as line:
        # Some clients do not wait for the answer before they speak.
        line.send(b"CONNECT EXAMPLE.com:443 HTTP/1.1\r\nHost: EXAMPLE.com:443\r\n\r\nearly ")
        assert line.until(b"\r\n\r\n") == ESTABLISHED
        with outside.accept() as far:
            line.send(b"and late")
            until(lambda: far.recv(100, socket.MSG_PEEK) == b"early and late")
            far.sendall(b"hello")
            assert line.until(b"hello") == b"hello"
        assert line.rest() == b""
        line.socket.close()
        until(lambda: outside.notes)
    assert outside.dialled == [(PUBLIC, 443)]
    assert outside.notes == [Verdict("example.com", 443, True, "the scope admits it", 14, 5)]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("other.org:443", "network_allow of the task's scope does not admit it"),
        ("a.example.com:443", "network_allow of the task's scope does not admit it"),
        ("example.com:22", "port 443 only"),
        ("example.com:80", "port 443 only"),
        (f"{PUBLIC}:443", "not by addresses"),
        ("2130706433:443", "not by addresses"),
        ("0x7f.1:443", "not by addresses"),
        ("[::1]:443", "not by addresses"),
        ("localhost:443", "not by addresses"),
        ("inside.example.net:443", "not public"),
        ("mixed.example.net:443", "not public"),
    ],
)
def test_all_else_is_refused_in_one_sentence_and_noted(target: str, reason: str, outside: Outside) -> None:
    outside.names["inside.example.net"] = [["10.0.0.5"]]
    outside.names["mixed.example.net"] = [[PUBLIC, "169.254.169.254"]]
    host, _, number = target.rpartition(":")
    with outside.proxy(("example.com", "*.example.net")) as port:
        status, said = answer(port, f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (status, outside.dialled) == (403, [])
    assert said.startswith(f"Refused to reach {host}: ") and reason in said and said.endswith(".\n")
    [verdict] = outside.notes
    assert (verdict.host, verdict.port, verdict.allowed) == (host, int(number), False)


def test_plain_http_is_refused(outside: Outside) -> None:
    with outside.proxy() as port:
        status, said = answer(port, b"GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert (status, said) == (403, "Refused to reach example.com: only HTTPS can be used, by CONNECT.\n")
        assert answer(port, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")[0] == 403
        assert answer(port, b"GET http://[ HTTP/1.1\r\nHost: example.com\r\n\r\n")[0] == 403
    assert outside.notes == [Verdict("example.com", 80, False, "only HTTPS can be used, by CONNECT")]


def test_some_hosts_are_reached_whatever_the_scope_says(outside: Outside) -> None:
    with outside.proxy((), ("example.com",)) as port, connect(Line(port)) as line:
        assert line.until(b"\r\n\r\n") == ESTABLISHED
    assert outside.notes == [Verdict("example.com", 443, True, "the tool's login needs it")]


def test_without_a_list_any_public_host_is_reached(outside: Outside) -> None:
    outside.names["inside.example.net"] = [["192.168.0.1"]]
    with outside.proxy(None) as port:
        with connect(Line(port)) as line:
            assert line.until(b"\r\n\r\n") == ESTABLISHED
        assert answer(port, b"CONNECT inside.example.net:443 HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 403


def test_a_name_is_resolved_once_and_what_was_checked_is_reached(outside: Outside) -> None:
    outside.names["example.com"] = [[PUBLIC], ["127.0.0.1"]]
    with outside.proxy() as port:
        with connect(Line(port)) as line:
            assert line.until(b"\r\n\r\n") == ESTABLISHED
        assert answer(port, b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 403
    assert outside.dialled == [(PUBLIC, 443)]


def test_the_next_address_is_tried_where_one_does_not_answer(outside: Outside) -> None:
    outside.names["example.com"] = [["8.8.8.8", PUBLIC]]
    with outside.proxy() as port, connect(Line(port)) as line:
        assert line.until(b"\r\n\r\n") == ESTABLISHED
    assert outside.dialled == [("8.8.8.8", 443), (PUBLIC, 443)]


def test_what_the_system_resolves_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        address = {"inside.example.com": "127.0.0.1"}.get(host)
        if address is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    notes: list[Verdict] = []
    with serving(Proxy(None, (), notes.append)) as port:
        for host, status in (("inside.example.com", 403), ("nowhere.example.com", 502)):
            assert answer(port, f"CONNECT {host}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())[0] == status
    assert [(note.host, note.allowed) for note in notes] == [
        ("inside.example.com", False),
        ("nowhere.example.com", True),
    ]


def test_a_name_that_is_never_resolved_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "CONNECT_TIMEOUT", 0.1)
    released = threading.Event()

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        released.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        with serving(Proxy(None, (), lambda _: None)) as port:
            status, said = answer(port, b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, said) == (502, "Refused to reach example.com: its name could not be resolved.\n")
    finally:
        released.set()


def test_each_side_may_end_before_the_other(outside: Outside) -> None:
    with outside.proxy() as port:
        with connect(Line(port)) as line:
            line.until(b"\r\n\r\n")
            with outside.accept() as far:
                line.send(b"question").socket.shutdown(socket.SHUT_WR)
                assert b"".join(iter(lambda: far.recv(100), b"")) == b"question"
                far.sendall(b"answer" * 100_000)
            assert line.rest() == b"answer" * 100_000
        with connect(Line(port)) as line:
            line.until(b"\r\n\r\n")
            with outside.accept() as far:
                far.shutdown(socket.SHUT_WR)
                assert line.rest() == b""
                line.send(b"more" * 12_000).socket.close()
                # Most of it still waits in the proxy when both sides have ended.
                assert b"".join(iter(lambda: far.recv(65536), b"")) == b"more" * 12_000
        until(lambda: len(outside.notes) == 2)
    assert [(note.sent, note.received) for note in outside.notes] == [(8, 600_000), (48_000, 0)]


def test_a_silent_tunnel_is_closed(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "IDLE_TIMEOUT", 0.8)
    with outside.proxy() as port, connect(Line(port)) as line:
        line.until(b"\r\n\r\n")
        with outside.accept() as far:
            for _ in range(6):  # for longer than that, in one direction
                far.sendall(b".")
                assert line.until(b".") == b"."
                time.sleep(0.25)
            assert (line.rest(), far.recv(1)) == (b"", b"")
    assert outside.notes[0].received == 6


def test_a_request_that_does_not_end_is_refused(outside: Outside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "HEADER_TIMEOUT", 0.2)
    with outside.proxy() as port:
        assert answer(port, b"CONNECT example.com:443 HTTP/1.1\r\n")[0] == 408
        assert answer(port, b"CONNECT example.com:443 HTTP/1.1\r\nx: " + b"y" * 40_000)[0] == 431
        assert answer(port, b"CONNECT example.com HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 400
    assert outside.notes == []


def test_only_so_many_tunnels_are_open_and_the_next_one_waits(
    outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "CONNECTIONS", 2)
    with outside.proxy() as port, connect(Line(port)) as first, connect(Line(port)) as second:
        assert first.until(b"\r\n\r\n") == second.until(b"\r\n\r\n") == ESTABLISHED
        with connect(Line(port)) as third:
            third.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                third.until(b"\r\n\r\n")
            third.socket.settimeout(10)
            first.socket.close()
            outside.accept().close()
            assert third.until(b"\r\n\r\n") == ESTABLISHED


def test_cancelled_it_closes_all_at_once(outside: Outside) -> None:
    with outside.proxy() as port:
        lines = [connect(Line(port)) for _ in range(5)]
        assert all(line.until(b"\r\n\r\n") == ESTABLISHED for line in lines)
        far = [outside.accept() for _ in lines]
        half = Line(port).send(b"CONNECT exam")
    for line in (*lines, half):
        line.socket.settimeout(1)
        assert line.rest() == b""
        line.socket.close()
    for one in far:
        one.settimeout(1)
        assert one.recv(1) == b""
        one.close()
    assert len(outside.notes) == 5


mangled = st.tuples(
    st.sampled_from(
        [b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\r\n\r\n"]
    ),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5), st.binary(max_size=6)), min_size=1, max_size=4),
)


def mangle(whole: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, instead in cuts:
        whole = whole[:at] + instead + whole[at + length :]
    return whole


def test_no_bytes_make_it_fail(outside: Outside, caplog: pytest.LogCaptureFixture) -> None:
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(st.binary(max_size=200), mangled.map(lambda made: mangle(*made))))
    def sends(data: bytes) -> None:
        with Line(port) as line:
            line.send(data).socket.shutdown(socket.SHUT_WR)
            said = line.rest()
        assert said == b"" or re.match(rb"HTTP/1\.1 [45]\d\d ", said)

    with outside.proxy(("admitted.example.com",)) as port:
        sends()
        outside.names["admitted.example.com"] = [[PUBLIC]]
        with connect(Line(port), "admitted.example.com:443") as line:
            assert line.until(b"\r\n\r\n") == ESTABLISHED
    assert not caplog.records
