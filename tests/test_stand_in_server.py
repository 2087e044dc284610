"""What tests may rely on in the stand-in itself: scripts, limits that lift, the log, and an end in any case."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.fleet import until
from tests.stand_in import (
    Account,
    Request,
    StandIn,
    Step,
    cut,
    http_error,
    overloaded,
    rate_limited,
    silent,
    stalled,
    text,
    unauthorized,
    usage_limit,
)
from tests.stand_in.request import Asked

HOUR = timedelta(hours=1)


@pytest.fixture
def api() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


def post(url: str, body: Any) -> tuple[int, bytes]:
    """Status and body of the answer."""
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    try:
        connection.request("POST", f"{place.path}?{place.query}", json.dumps(body), {"authorization": "Bearer key"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ask(account: Account, words: str = "hello", stream: bool = False) -> tuple[int, str]:
    """Status of the answer, and what was said: the model's words, or the kind of error."""
    body = {"model": "m", "messages": [{"role": "user", "content": words}], "stream": stream}
    status, answer = post(f"{account.url}/v1/chat/completions", body)
    if stream:
        return status, answer.decode()
    told = json.loads(answer)
    return status, told["choices"][0]["message"]["content"] if status == 200 else told["error"]["type"]


def test_steps_are_answered_in_order_and_then_it_is_done(api: StandIn) -> None:
    account = api.account("a").script(
        text("one"), rate_limited(), text("two"), http_error(418, {"error": {"type": "t"}})
    )
    answers = [ask(account) for _ in range(6)]
    assert answers == [(200, "one"), (429, "tokens"), (200, "two"), (418, "t"), (200, "Done."), (200, "Done.")]
    assert [request.status for request in account.requests] == [200, 429, 200, 418, 200, 200]
    assert [request.status for request in account.refused] == [429, 418]


def test_accounts_have_their_own_scripts_and_logs(api: StandIn) -> None:
    one, two = api.account("one").script(text("1")), api.account("two").script(text("2"))
    assert (ask(two), ask(one)) == ((200, "2"), (200, "1"))
    assert (len(one.requests), one.requests[0].account, one.requests[0].key) == (1, "one", "key")


def test_a_function_answers_every_request_by_its_time_and_words(api: StandIn) -> None:
    opens = datetime.now(UTC) + HOUR

    def model(now: datetime, request: Request) -> Step:
        return text(request.text.upper()) if now >= opens else usage_limit(opens)

    account = api.account("a").script(model)
    assert ask(account, "early") == (429, "insufficient_quota")
    opens = datetime.now(UTC)
    assert (ask(account, "late"), ask(account, "later")) == ((200, "LATE"), (200, "LATER"))


def test_a_limit_holds_until_its_reset_and_takes_no_step(api: StandIn) -> None:
    account = api.account("a").script(text("the first step"))
    account.limit(usage_limit(datetime.now(UTC) + HOUR))
    assert [ask(account)[0] for _ in range(2)] == [429, 429]
    account.limit(usage_limit(datetime.now(UTC)))
    assert ask(account) == (200, "the first step")
    account.limit(usage_limit(datetime.now(UTC) + HOUR), until=datetime.now(UTC))
    assert ask(account) == (200, "Done.")


def test_a_limit_without_a_moment_holds_until_it_is_lifted(api: StandIn) -> None:
    account = api.account("a").limit(unauthorized())
    assert [ask(account)[0] for _ in range(3)] == [401, 401, 401]
    account.lift()
    assert ask(account) == (200, "Done.")


def test_silence_lasts_until_it_is_released(api: StandIn) -> None:
    account = api.account("a").script(silent(), stalled("some words"))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ask, account)
        account.wait_for(1)
        stalling = pool.submit(ask, account, stream=True)
        account.wait_for(2)
        assert not waiting.done() and not stalling.done()
        account.release()
        assert waiting.result(20) == (200, "Late.")
        assert stalling.result(20)[1].endswith("data: [DONE]\n\n")


def test_the_stand_in_closes_while_clients_wait() -> None:
    with ThreadPoolExecutor() as pool:
        with StandIn() as api:
            account = api.account("a").script(silent())
            waiting = pool.submit(ask, account)
            account.wait_for(1)
        with pytest.raises(http.client.RemoteDisconnected):
            waiting.result(20)
    until(lambda: account.requests[0].hung_up)


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_answer_has_no_end(stream: bool, api: StandIn) -> None:
    with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected)):
        ask(api.account("a").script(cut("half of")), stream=stream)


def test_a_refusal_in_a_stream_comes_with_status_200(api: StandIn) -> None:
    status, said = ask(api.account("a").script(overloaded(in_stream=True)), stream=True)
    assert status == 200 and "server_is_overloaded" in said and "[DONE]" not in said


def test_requests_that_are_open_together_are_counted(api: StandIn) -> None:
    account = api.account("a").script(silent(), silent(), silent())
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(ask, account) for _ in range(3)]
        account.wait_for(3)
        account.release()
        assert all(one.result(20)[0] == 200 for one in waiting)
    ask(account)
    assert account.most_at_once == 3


def test_requests_within_a_window_are_counted() -> None:
    account, began = Account("a", ""), datetime(2026, 1, 1, tzinfo=UTC)
    assert account.most_within(HOUR) == 0
    for minutes in (0, 30, 59, 60, 200):
        account.begin(Request("a", "", {}, b"", Asked("m", False), began + timedelta(minutes=minutes)))
    assert (account.most_within(HOUR), account.most_within(timedelta(minutes=2))) == (3, 2)


def test_waiting_in_vain_shows_what_was_asked(api: StandIn) -> None:
    account = api.account("a")
    ask(account)
    assert len(account.wait_for(1)) == 1
    with pytest.raises(AssertionError, match=r"for 2 requests; there were:\n.*/v1/chat/completions m: 200 'Done.'"):
        account.wait_for(2, seconds=0.1)


def test_a_script_that_raises_fails_its_test() -> None:
    def broken(now: datetime, request: Request) -> Step:
        raise KeyError("nobody thought of this")

    with (
        pytest.raises(AssertionError, match="nobody thought of this"),
        StandIn() as api,
        pytest.raises(http.client.RemoteDisconnected),
    ):
        ask(api.account("a").script(broken))


def test_clients_killed_while_they_ask_are_no_fault(api: StandIn) -> None:
    account = api.account("a")
    place = urlsplit(account.url)
    for began in (b"", b"POST /a/v1/messages HTTP/1.1\r\ncontent-length: 100\r\n\r\n{"):
        with socket.create_connection((place.hostname, place.port)) as client:
            client.sendall(began)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""  # the server closed its side: it is done with this client
    assert (ask(account)[0], len(account.requests), api.faults) == (200, 1, [])


def test_other_addresses_are_strays(api: StandIn) -> None:
    api.account("a")
    assert post(f"{api.url}/a/v1/embeddings", {})[0] == 404
    assert post(f"{api.url}/b/v1/messages", {"model": "m", "messages": []})[0] == 404
    assert api.strays == ["POST /a/v1/embeddings?", "POST /b/v1/messages?"]


def test_programs_that_do_not_stream_get_one_document(api: StandIn) -> None:
    account = api.account("a").script(lambda now, request: text(f"{request.model} heard {request.text}"))
    said = [{"role": "user", "content": "hi"}]
    claude = json.loads(post(f"{account.url}/v1/messages", {"model": "c", "messages": said})[1])
    codex = json.loads(post(f"{account.url}/v1/responses", {"model": "o", "input": "hi"})[1])
    contents = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    gemini = json.loads(post(f"{account.url}/v1beta/models/g:generateContent", contents)[1])
    assert claude["content"][0]["text"] == "c heard hi"
    assert codex["output"][0]["content"][0]["text"] == "o heard hi"
    assert gemini["candidates"][0]["content"]["parts"][0]["text"] == "g heard hi"


def test_it_serves_many_clients_at_once(api: StandIn) -> None:
    account, together = api.account("a").script(lambda now, request: text(request.text)), threading.Barrier(16)

    def one(n: int) -> bool:
        together.wait(20)
        return all(ask(account, f"{n}-{k}") == (200, f"{n}-{k}") for k in range(10))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(16)))
    assert len(account.requests) == 160
