"""The gateway to a model's API: the key is put in on its way out, and all else passes as it is, as soon as it comes."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskyard.runner.adapters.base import Upstream
from taskyard.runner.sandbox import gateway
from taskyard.runner.sandbox.gateway import Gateway
from taskyard.runner.sandbox.network import Verdict
from tests.fleet import until
from tests.jail_servers import Line, serving
from tests.recording_api import Api, ApiServer, Handler
from tests.stand_in import StandIn, silent, slow
from tests.test_sandbox_network import mangle

KEY = "sk-the-real-one"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def api() -> Iterator[Api]:
    server = ApiServer()
    yield server.api
    server.close()


@pytest.fixture
def vendor() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


def ask(
    port: int, method: str = "POST", path: str = "/v1/messages", body: Any = b"{}", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """The answer, and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_the_key_replaces_whatever_the_child_logs_in_with(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with serving(Gateway(Upstream(api.url, {"X-Api-Key": KEY}))) as port:
        theirs = dict.fromkeys(
            ("authorization", "x_api_key", "x_goog_api_key", "cookie", "proxy_authorization"), "placeholder"
        )
        answer, body = ask(port, path="/v1/messages?beta=true&key=placeholder&x=%26", anthropic_version="1", **theirs)
    assert (answer.status, body) == (200, b"ok")
    [asked] = api.asked
    assert asked.line == "POST /v1/messages?beta=true&x=%26 HTTP/1.1"
    assert asked.values("x-api-key") == [KEY] and asked.values("anthropic-version") == ["1"]
    assert asked.values("host") == [api.url.removeprefix("http://")]
    assert "placeholder" not in str(asked)
    assert KEY not in caplog.text and "/v1/messages" not in caplog.text


def test_without_a_key_the_childs_own_login_passes(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with serving(Gateway(Upstream(api.url))) as port:
        ask(port, path="/v1?key=its-key", authorization="Bearer its-own", cookie="a=b")
    [asked] = api.asked
    assert (asked.line, asked.values("authorization"), asked.values("cookie")) == (
        "POST /v1?key=its-key HTTP/1.1",
        ["Bearer its-own"],
        ["a=b"],
    )
    assert "its-own" not in caplog.text and "its-key" not in caplog.text


def test_only_what_concerns_the_connection_is_left_out_of_a_request(api: Api) -> None:
    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        ask(port, connection="x-mine, keep-alive", x_mine="1", te="trailers", upgrade="h2c", accept_encoding="zstd")
    [asked] = api.asked
    names = [name.lower() for name, _ in asked.headers]
    assert sorted(names) == ["accept-encoding", "authorization", "content-length", "host"]
    assert asked.values("accept-encoding") == ["zstd"]


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("", "/v1/responses"),
        ("/", "/v1/responses"),
        ("/team/v1/", "/responses?a=b?c&d"),
        ("", "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse"),
        ("", "//other.example.com/v1"),
        ("", "/a%2Fb;c=1,2/%7E~!$'()*+@/%C3%A9"),
        ("", "/..."),
        ("", "/"),
    ],
)
def test_a_request_goes_to_its_own_path_below_the_servers(prefix: str, path: str, api: Api) -> None:
    with serving(Gateway(Upstream(api.url + prefix, BEARER))) as port:
        assert ask(port, "GET", path)[0].status == 200
    assert api.asked[0].line == f"GET {prefix.rstrip('/')}{path} HTTP/1.1"


@pytest.mark.parametrize(
    "line",
    [
        *(
            "GET http://169.254.169.254/latest HTTP/1.1",
            "GET https://api.example.com/ HTTP/1.1",
            "CONNECT other:443 HTTP/1.1",
        ),
        *(
            "GET * HTTP/1.1",
            "GET v1 HTTP/1.1",
            "GET /v1/../admin HTTP/1.1",
            "GET /.. HTTP/1.1",
            "GET /%2e%2E/x HTTP/1.1",
        ),
        *(
            "GET /x/..%2fy HTTP/1.1",
            "GET /..;/x HTTP/1.1",
            "GET /..\\x HTTP/1.1",
            "GET /..%5cx HTTP/1.1",
            "GET /./x HTTP/1.1",
        ),
        *(
            "GET /x#y HTTP/1.1",
            "GET /%0d%0aX:y HTTP/1.1",
            "GET /\x01 HTTP/1.1",
            "GET /\xff HTTP/1.1",
            "GET /a b HTTP/1.1",
        ),
        *("TRACE / HTTP/1.1", "PROPFIND / HTTP/1.1", "nonsense", "GET / HTTP/3"),
    ],
)
def test_a_request_for_anything_but_a_path_goes_nowhere(line: str, api: Api) -> None:
    with serving(Gateway(Upstream(f"{api.url}/team", BEARER))) as port, Line(port) as child:
        said = child.send(f"{line}\r\nHost: x\r\n\r\n".encode("latin-1")).rest()
    assert re.match(rb"HTTP/1\.1 4\d\d ", said)
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert api.asked == []


def test_a_websocket_is_refused_at_once(api: Api) -> None:
    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        answer, _ = ask(
            port, "GET", "/v1/responses", b"", connection="Upgrade", upgrade="websocket", sec_websocket_version="13"
        )
    assert (answer.status, api.asked) == (426, [])


def test_statuses_and_headers_pass_unchanged(api: Api) -> None:
    told = {
        "Retry-After": "61",
        "x-ratelimit-remaining-requests": "0",
        "anthropic-ratelimit-unified-status": "rejected",
        "request-id": "r",
        "Content-Type": "application/json",
        "Content-Length": "7",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    api.say = lambda handler: handler.tell(
        f"HTTP/1.1 529 Over Loaded\r\n{lines}Keep-Alive: timeout=5\r\nSet-Cookie: a=b\r\n\r\nnothing".encode()
    )
    for headers, cookies in ((BEARER, {}), ({}, {"Set-Cookie": "a=b"})):
        with serving(Gateway(Upstream(api.url, headers))) as port:
            answer, body = ask(port)
        assert (answer.status, answer.reason, body) == (529, "Over Loaded", b"nothing")
        assert dict(answer.getheaders()) == told | cookies


def test_a_redirect_is_the_childs_to_follow(api: Api) -> None:
    api.say = lambda handler: handler.tell(
        b"HTTP/1.1 307 Moved\r\nLocation: http://other.example.com/\r\nContent-Length: 0\r\n\r\n"
    )
    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        assert ask(port)[0].status == 307
    assert len(api.asked) == 1


def test_a_compressed_answer_stays_compressed(api: Api) -> None:
    packed = zlib.compress(b"word " * 1000)
    api.say = lambda handler: handler.tell(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    )
    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        answer, body = ask(port)
    assert (answer.getheader("content-encoding"), body) == ("deflate", packed)


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PUT"])
def test_methods_with_and_without_a_body_pass(method: str, api: Api) -> None:
    api.say = lambda handler: handler.tell(b"HTTP/1.1 204 No Content\r\n\r\n")
    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        answer, body = ask(port, method, "/v1/files", b"x" if method == "PUT" else None)
    assert (answer.status, body, api.asked[0].line) == (204, b"", f"{method} /v1/files HTTP/1.1")
    assert api.asked[0].body == (b"x" if method == "PUT" else b"")


@pytest.mark.timed
def test_each_piece_of_an_answer_passes_before_the_next_is_there(api: Api) -> None:
    taken, sent = threading.Semaphore(0), [0.0]

    def say(handler: Handler) -> None:
        handler.tell(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(50):
            sent[0] = time.perf_counter()
            handler.tell(b"8\r\ndata: x\n\r\n")
            assert taken.acquire(timeout=10)
        handler.tell(b"0\r\n\r\n")

    api.say = say
    took: list[float] = []
    with serving(Gateway(Upstream(api.url, BEARER))) as port, Line(port) as line:
        line.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").until(b"\r\n\r\n")
        for _ in range(50):
            assert line.until(b"data: x\n\r\n")
            took.append(time.perf_counter() - sent[0])
            taken.release()
        assert line.until(b"0\r\n\r\n") == b"0\r\n\r\n"
    assert sorted(took)[25] < 0.02


def test_a_request_may_come_in_pieces_and_wait_to_be_told(api: Api) -> None:
    with serving(Gateway(Upstream(api.url, BEARER))) as port, Line(port) as line:
        line.send(b"POST /v1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        assert line.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        line.send(b"3\r\nabc\r\n").send(b"2\r\nde\r\n0\r\n\r\n")
        assert line.until(b"ok").startswith(b"HTTP/1.1 200 ")
    [asked] = api.asked
    assert (asked.body, asked.values("expect"), asked.values("content-length")) == (b"abcde", [], [])


def test_no_second_request_can_be_hidden_in_the_first(api: Api) -> None:
    smuggled = b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(Gateway(Upstream(api.url, BEARER))) as port, Line(port) as line:
        line.send(
            b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(smuggled)
        )
        line.send(smuggled).until(b"ok")
        line.until(b"ok")
    # By the rules the second is one of its own, sent early, and has its own credential put in.
    assert [(asked.line.split()[1], asked.values("authorization")) for asked in api.asked] == [
        ("/v1", [BEARER["Authorization"]]),
        ("/admin", [BEARER["Authorization"]]),
    ]
    assert api.asked[0].values("content-length") == []


@pytest.mark.timed
def test_connections_are_kept_on_both_sides_and_noted_when_they_end(api: Api) -> None:
    notes: list[Verdict] = []
    took: list[float] = []
    with serving(Gateway(Upstream(api.url, BEARER), notes.append)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for _ in range(31):
            began = time.perf_counter()
            connection.request("POST", "/v1", b"x" * 1000)
            assert connection.getresponse().read() == b"ok"
            took.append(time.perf_counter() - began)
        assert notes == []
        connection.close()
        until(lambda: notes)
    assert api.connections == 1
    port = int(api.url.rsplit(":", 1)[1])
    assert notes == [Verdict("127.0.0.1", port, True, "the model's API, 31 requests", 31_000, 62)]
    assert sorted(took)[15] < 0.03  # where packets wait for each other (Nagle's algorithm) it is 0.045


def test_large_bodies_pass_in_both_directions_whole(api: Api) -> None:
    api.say = lambda handler: handler.tell(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n" + b"y" * 5_000_000)
    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        assert ask(port, body=b"x" * 5_000_000)[1] == b"y" * 5_000_000
    assert api.asked[0].body == b"x" * 5_000_000


def test_a_child_that_goes_away_takes_its_request_with_it(vendor: StandIn) -> None:
    account = vendor.account("a").script(silent(), slow("one two three four five six seven", pause=0.2))
    body = json.dumps({"model": "m", "messages": [], "stream": True}).encode()
    request = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with serving(Gateway(Upstream(account.url, BEARER))) as port:
        with Line(port) as line:
            line.send(request)
            account.wait_for(1)
        until(lambda: account.requests[0].hung_up, 5)
        with Line(port) as line:
            line.send(request).until(b"one")
        until(lambda: account.requests[1].hung_up, 5)


def test_a_child_that_does_not_wait_for_its_answer_is_cut_off(vendor: StandIn) -> None:
    account = vendor.account("a").script(silent())
    body = json.dumps({"model": "m", "messages": []}).encode()
    request = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with serving(Gateway(Upstream(account.url, BEARER))) as port, Line(port) as line:
        line.send(request)
        account.wait_for(1)
        with contextlib.suppress(ConnectionError):
            line.send(request * 10_000)
        assert line.rest() == b""
        until(lambda: account.requests[0].hung_up, 5)
        assert len(account.requests) == 1


def test_a_server_that_cannot_be_reached_is_named_and_the_key_is_not(caplog: pytest.LogCaptureFixture) -> None:
    """The child gets no answer at all: a status would be read as the vendor's own word."""
    failed: list[Verdict] = []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with serving(Gateway(Upstream(url, {"x-api-key": KEY}), failed.append)) as port, Line(port) as line:
        assert line.send(b"GET /v1?key=abc HTTP/1.1\r\nHost: x\r\n\r\n").rest() == b""
    assert [(verdict.host, verdict.allowed, verdict.reason) for verdict in failed[:1]] == [
        ("127.0.0.1", False, "it could not be reached")
    ]
    assert "127.0.0.1 could not be reached" in caplog.text and KEY not in caplog.text and "abc" not in caplog.text


def test_an_answer_that_breaks_off_has_no_end(api: Api) -> None:
    def say(handler: Handler) -> None:
        handler.tell(head)
        handler.connection.shutdown(socket.SHUT_RDWR)

    api.say = say
    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
        with Line(port) as line:
            said = line.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").rest()
        assert said.endswith(b"half\r\n")
        head = b""
        with Line(port) as line:
            assert line.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").rest() == b""


def test_an_early_refusal_reaches_a_child_that_still_sends(api: Api) -> None:
    with serving(Gateway(Upstream(api.url, BEARER))) as port, Line(port) as line:
        line.send(b"POST /../x HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n").send(b"x" * 20_000_000)
        assert line.until(b"}}").startswith(b"HTTP/1.1 400 ")


def test_an_answer_that_comes_before_the_requests_end_passes() -> None:
    said = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!"

    def refuse(server: socket.socket) -> None:
        connection = server.accept()[0]
        with connection:
            connection.recv(4096)
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        refusing = threading.Thread(target=refuse, args=(server,))
        refusing.start()
        with serving(Gateway(Upstream(f"http://127.0.0.1:{server.getsockname()[1]}", BEARER))) as port:
            answer, body = ask(port, body=iter([b"x" * 65536] * 200))
        refusing.join()
    assert (answer.status, body) == (413, b"no!")


def test_a_header_that_is_too_long_is_refused(api: Api) -> None:
    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        with Line(port) as line:
            assert line.send(b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000).rest().startswith(b"HTTP/1.1 431 ")
        assert ask(port, "GET", "/" + "x" * 60_000)[0].status == 200


def test_only_so_many_connections_are_open_and_the_next_one_waits(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "CONNECTIONS", 2)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(Gateway(Upstream(api.url, BEARER))) as port, Line(port) as first, Line(port) as second:
        for line in (first, second):
            assert line.send(request).until(b"ok").endswith(b"ok")
        with Line(port) as third:
            third.send(request).socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                third.until(b"ok")
            first.socket.close()
            third.socket.settimeout(10)
            assert third.until(b"ok").endswith(b"ok")


def test_cancelled_it_closes_all_at_once(vendor: StandIn) -> None:
    account = vendor.account("a").script(silent(), silent())
    body = json.dumps({"model": "m", "messages": []}).encode()
    with serving(Gateway(Upstream(account.url, BEARER))) as port:
        lines = [Line(port), Line(port), Line(port)]
        for line in lines[:2]:
            line.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        account.wait_for(2)
    for line in lines:
        line.socket.settimeout(1)
        assert line.rest() == b""
        line.socket.close()
    until(lambda: all(request.hung_up for request in account.requests), 5)


mangled = st.tuples(
    st.sampled_from(
        [
            b"GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
            b"POST /v1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ]
    ),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 5), st.binary(max_size=6)), min_size=1, max_size=4),
)


def test_no_bytes_make_it_fail(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """A request that survives what was done to it is passed on (299), with the key and to nowhere else."""
    api.say = lambda handler: handler.tell(b"HTTP/1.1 299 Passed\r\nContent-Length: 0\r\n\r\n")

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(st.binary(max_size=200), mangled.map(lambda made: mangle(*made))))
    def sends(data: bytes) -> None:
        with Line(port) as line:
            line.send(data).socket.shutdown(socket.SHUT_WR)
            said = line.rest()
        assert said == b"" or re.match(rb"HTTP/1\.1 (299|[45]\d\d) ", said)

    with serving(Gateway(Upstream(api.url, BEARER))) as port:
        sends()
        assert ask(port)[0].status == 299
    assert all(asked.values("authorization") == [f"Bearer {KEY}"] for asked in api.asked)
    assert not caplog.records
