"""The adapter of OpenAI-compatible servers: what it asks, what it makes of the answers, and what it finds out by itself.

Its child process against a server that swaps models is in test_llama_swap.py.
"""

import contextlib
import json
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskyard.runner.adapters import BadSettings, CannotRun, Exit, Said, chat
from taskyard.runner.adapters.models import account
from taskyard.runner.adapters.openai import ChatSettings, OpenAI
from taskyard.runner.adapters.tools import fingerprint
from taskyard.runner.verbs import Claim, Ending, Usage, Window

from .llama_swap.chats import claim, run_of

AT = 1_800_000_000.0
CHAT = Path(chat.__file__)


def requested(claim: Claim) -> dict[str, Any]:
    return json.loads(OpenAI().prepare(run_of(claim)).stdin)["request"]


def ended(lines: list[dict[str, Any]], asked: Claim | None = None, code: int = 1, stderr: str = "") -> Ending:
    reading = OpenAI().read(run_of(asked or claim()))
    for line in lines:
        reading.line(json.dumps(line))
    return reading.ending(Exit(code, "", stderr))


def refused(status: int | None, body: str, retry_after: float | None = None) -> dict[str, Any]:
    return {"type": "error", "status": status, "body": body, "retry_after": retry_after, "at": AT}


def llama_swap(message: str, code: str = "") -> str:
    """An error in its newer shape."""
    return json.dumps({"src": "llama-swap", "error": {"message": message, "type": "x", "param": None, "code": code}})


# ---- what is asked


def test_the_prompt_and_the_note_are_one_message_after_the_system_prompt() -> None:
    asked = requested(claim(system_prompt="Be brief.", note="The attempt before ran out of time."))
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is the sky blue?\n\n---\nThe attempt before ran out of time."},
    ]
    assert asked["stream_options"] == {"include_usage": True}


def test_an_output_schema_is_asked_for_strictly() -> None:
    schema = {"type": "object", "properties": {"agent": {"enum": ["coder", "shell"]}}}
    asked = requested(claim(output_schema=schema, result_format="json"))
    assert asked["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "result", "strict": True, "schema": schema},
    }


def test_json_without_a_schema_is_an_object_and_text_is_free() -> None:
    assert requested(claim(result_format="json"))["response_format"] == {"type": "json_object"}
    assert "response_format" not in requested(claim())


def test_the_routes_model_goes_before_the_settings_model() -> None:
    settings = {"model": "small", "max_tokens": 100, "temperature": 0}
    assert requested(claim(settings=settings))["model"] == "coder"
    asked = requested(claim(settings=settings, model=None))
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("small", 100, 0)
    assert "model" not in requested(claim(model=None))


def test_the_key_is_in_the_childs_environment_and_nowhere_else() -> None:
    asked = claim(settings={"api_key_env": "MY_KEY"})
    launch = OpenAI().prepare(run_of(asked, {"MY_KEY": " secret-123\n", "OTHER": "x"}))
    assert launch.env == {"MY_KEY": "secret-123"}
    assert b"secret-123" not in launch.stdin
    assert not any("secret-123" in part for part in launch.argv)


@pytest.mark.parametrize("environ", [{}, {"MY_KEY": " "}, {"MY_KEY": "two\nlines"}])
def test_without_its_key_nothing_is_started(environ: dict[str, str]) -> None:
    with pytest.raises(CannotRun, match="MY_KEY"):
        OpenAI().prepare(run_of(claim(settings={"api_key_env": "MY_KEY"}), environ))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"base_uri": "http://x"}, "no setting base_uri"),
        ({"base_url": "localhost:8080"}, "base_url"),
        ({"base_url": 5}, "base_url"),
        ({"base_url": "http://host:port/v1"}, "base_url"),
        ({"base_url": None}, "base_url"),
        ({"base_url": "http://me:secret@host/v1"}, "base_url"),
        ({"api_key_env": 1}, "api_key_env"),
        ({"model": ["a"]}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"retries": 11}, "retries"),
        ({"retries": None}, "retries"),
        ({"retries": 1.5}, "retries"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSettings, match=says):
        ChatSettings.from_json(settings)


def test_the_child_starts_without_loading_taskyard_or_its_http_library() -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-I", "-c", code, str(CHAT)], capture_output=True, text=True, check=True)
    assert not {"taskyard.runner", "httpx", "psycopg"} & set(told.stdout.split())
    assert OpenAI().prepare(run_of(claim())).argv == [sys.executable, "-I", str(CHAT)]
    assert "main" in runpy.run_path(str(CHAT))


# ---- what the answers mean

DONE = {"type": "done", "finish_reason": "stop"}
CUT_OFF = {"type": "done", "finish_reason": "length"}
CONTEXT = json.dumps(
    {
        "error": {
            "code": 400,
            "message": "too long",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 9,
            "n_ctx": 4,
        }
    }
)


def used(tokens: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 50, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 30}}
    return {"type": "usage", "usage": usage, "model": "coder"}


@pytest.mark.parametrize(
    ("line", "outcome", "says"),
    [
        (refused(400, CONTEXT), "context_overflow", "too long"),
        (refused(400, '{"error":{"code":"context_length_exceeded","message":"no"}}'), "context_overflow", "no"),
        (refused(400, '{"error":{"code":400,"message":"bad grammar"}}'), "failed", "bad grammar"),
        (refused(401, llama_swap("unauthorized")), "unauthenticated", "unauthorized"),
        (refused(403, "<html>Forbidden</html>"), "unauthenticated", "Forbidden"),
        (refused(404, llama_swap("no router for requested model")), "failed", "does not know the model coder"),
        (refused(429, llama_swap("busy")), "rate_limited", "busy"),
        (refused(429, '{"error":{"code":"insufficient_quota","message":"pay"}}'), "quota_exhausted", "pay"),
        (refused(402, '{"error":{"message":"credits"}}'), "quota_exhausted", "credits"),
        (refused(500, llama_swap("unspecific error: failed to start command: x")), "overloaded", "failed to start"),
        (refused(500, llama_swap("upstream command exited prematurely")), "overloaded", "prematurely"),
        (refused(500, llama_swap("health check timed out after 1m0s")), "overloaded", "health check"),
        (refused(500, '{"error":{"code":500,"message":"model name=coder failed to load"}}'), "overloaded", "coder"),
        (refused(500, '{"error":{"code":500,"message":"does not match the expected format"}}'), "failed", "format"),
        (refused(501, '{"error":{"message":"not supported"}}'), "failed", "not supported"),
        (refused(502, ""), "overloaded", "no reason was given"),
        (refused(503, '{"error":{"code":503,"message":"Loading model"}}'), "overloaded", "Loading model"),
        (refused(None, '{"src":"llama-swap","error":"health check timed out after 1m0s"}'), "overloaded", "health"),
        (refused(None, '{"error":{"message":"out of tokens"}}'), "failed", "out of tokens"),
        ({"type": "unreachable", "message": "ConnectError: refused"}, "network", "127.0.0.1:8080"),
        ({"type": "cut", "message": "The stream ended without [DONE]."}, "network", "broke off"),
        ({"type": "done", "finish_reason": "content_filter"}, "failed", "content_filter"),
        ({"type": "done", "finish_reason": "tool_calls"}, "failed", "tool_calls"),
    ],
)
def test_every_refusal_has_its_outcome(line: dict[str, Any], outcome: str, says: str) -> None:
    ending = ended([line])
    assert (ending.outcome, ending.result) == (outcome, None)
    assert says in (ending.error or "")
    assert ending.evidence


@pytest.mark.parametrize("body", ['{"src":"llama-swap","error":"no router for it"}', llama_swap("no router for it")])
def test_both_shapes_of_an_error_say_the_same(body: str) -> None:
    assert ended([refused(404, body)]).error == "127.0.0.1:8080 does not know the model coder: no router for it"


def test_a_limit_ends_when_the_server_says_so() -> None:
    ending = ended([refused(429, llama_swap("busy"), retry_after=20)])
    assert ending.window == Window("requests", datetime.fromtimestamp(AT, UTC) + timedelta(seconds=20))
    assert ended([refused(429, llama_swap("busy"))]).window == Window("requests")


def test_a_models_own_limit_is_that_models_alone() -> None:
    window = ended([refused(429, llama_swap("busy", "concurrency_limit"), retry_after=1)]).window
    assert window is not None
    assert (window.name, window.model) == ("concurrency", "coder")


def test_what_the_model_says_is_no_evidence() -> None:
    words = "HTTP 429: rate limit, unauthorized, exceed_context_size_error, health check timed out"
    ending = ended([{"type": "text", "delta": words}, DONE], code=0)
    assert (ending.outcome, ending.result) == ("completed", words)


def test_an_answer_at_the_limit_of_tokens_is_not_completed() -> None:
    asked = claim(settings={"max_tokens": 20})
    ending = ended([{"type": "text", "delta": "And then"}, used(20), CUT_OFF], asked, code=0)
    assert (ending.outcome, ending.result) == ("failed", None)
    assert "max_tokens" in (ending.error or "")


def test_an_answer_at_the_end_of_the_context_is_a_context_overflow() -> None:
    answer = [{"type": "text", "delta": "And then"}, used(19), CUT_OFF]
    assert ended(answer, claim(settings={"max_tokens": 20}), code=0).outcome == "context_overflow"
    assert ended(answer, claim(), code=0).outcome == "context_overflow"


def test_a_json_result_is_the_value_and_anything_else_fails() -> None:
    asked = claim(output_schema={"type": "object"})
    parts = [
        {"type": "text", "delta": '{"agent": '},
        {"type": "thinking", "delta": "{"},
        {"type": "text", "delta": '"a"}'},
    ]
    assert ended([*parts, DONE], asked, code=0).result == {"agent": "a"}
    ending = ended([{"type": "text", "delta": "Sure! {}"}, DONE], asked, code=0)
    assert (ending.outcome, ending.evidence) == ("failed", "Sure! {}")
    assert "not a JSON value" in (ending.error or "")


def test_the_tokens_are_counted() -> None:
    assert ended([used(7), DONE], code=0).usage == Usage(50, 30, 7, turns=1, model="coder")
    assert ended([DONE], code=0).usage is None


def test_the_transcript_tells_answer_thought_and_refusal_apart() -> None:
    reading = OpenAI().read(run_of(claim()))
    lines = [
        {"type": "note", "delta": "loading model"},
        {"type": "refused", "message": "429: busy", "wait": 1.0},
        {"type": "thinking", "delta": "Hm."},
        {"type": "text", "delta": "Yes."},
        refused(500, llama_swap("broken")),
    ]
    said = [event for line in lines for event in reading.line(json.dumps(line)) if isinstance(event, Said)]
    assert [(event.kind, event.body) for event in said] == [
        ("note", "loading model"),
        ("error", "429: busy (asked again after 1 s)"),
        ("thinking", "Hm."),
        ("text", "Yes."),
        ("error", "500: broken"),
    ]


@pytest.mark.parametrize(("code", "says"), [(-15, "signal 15"), (1, "exit status 1"), (0, "exit status 0")])
def test_a_child_that_says_nothing_to_the_end_crashed(code: int, says: str) -> None:
    ending = ended([{"type": "text", "delta": "Ye"}], code=code, stderr="Traceback: boom")
    assert (ending.outcome, ending.exit_code, ending.evidence) == ("crashed", code, "Traceback: boom")
    assert says in (ending.error or "")


# ---- the stream


@settings(deadline=None)
@given(st.data())
def test_events_are_the_same_however_the_bytes_arrive(data: st.DataObject) -> None:
    stream = 'data: {"a": "x\u2028y\x85z"}\n\n: ping\r\ndata:{"b": "ü"}\r\n\r\n{"error": "bare"}\ndata: [DONE]'.encode()
    chunks: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        chunks.append(stream[:size])
        stream = stream[size:]
    assert list(chat.events(chunks)) == ['{"a": "x\u2028y\x85z"}', '{"b": "ü"}', '{"error": "bare"}', "[DONE]"]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("1", 1.0),
        ("2.5", 2.5),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("-1", None),
        ("nan", None),
        ("1e308", None),
        ("soon", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert chat.retry_after(header, AT) == seconds


def test_text_that_a_database_cannot_hold_is_mended(capsys: pytest.CaptureFixture[str]) -> None:
    delta = {"content": "a\x00b\ud83d"}
    last = chat.relay([json.dumps({"id": "1", "choices": [{"delta": delta, "finish_reason": "stop"}]}), "[DONE]"])
    assert last["type"] == "done"
    assert json.loads(capsys.readouterr().out)["delta"] == "a\ufffdb?"


@pytest.mark.parametrize("stream", [["[DONE]"], ["{}", "[DONE]"], ["[1]"], ["nonsense"], ['"text"'], []])
def test_a_stream_of_something_else_is_no_answer(stream: list[str]) -> None:
    assert chat.relay(stream)["type"] == "cut"


# ---- what the host can offer


@contextlib.contextmanager
def answering(pages: Mapping[str, tuple[int, Any]], key: str | None = None) -> Generator[str]:
    """A server with these pages (path: status and JSON); its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = pages.get(self.path, (404, {}))
            if key and self.headers["Authorization"] != f"Bearer {key}":
                status = 401
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_answers_is_ready_with_all_names_of_its_models() -> None:
    listing = {
        "data": [
            {"id": "coder", "meta": {"llamaswap": {"aliases": ["big"]}}},
            {"id": "small", "aliases": ["small", "tiny"], "meta": {"n_ctx": 2048}},
            {"id": 5},
            "nonsense",
        ]
    }
    with answering({"/v1/models": (200, listing)}) as base_url:
        offer = OpenAI().probe({"base_url": base_url}, {})
    assert (offer.state, offer.models) == ("ready", ["big", "coder", "small", "tiny"])
    assert offer.account == account(base_url, None)


def test_a_server_without_a_list_of_models_is_ready_for_any() -> None:
    with answering({}) as base_url:
        offer = OpenAI().probe({"base_url": base_url}, {})
    assert (offer.state, offer.models) == ("ready", None)


def test_a_server_that_is_not_there_is_missing_with_a_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    offer = OpenAI().probe({"base_url": f"http://127.0.0.1:{port}/v1"}, {})
    assert offer.state == "missing"
    assert f"127.0.0.1:{port}" in (offer.detail or "")


def test_a_server_that_never_answers_is_missing_after_three_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        offer = OpenAI().probe({"base_url": f"http://127.0.0.1:{silent.getsockname()[1]}/v1"}, {})
    assert (offer.state, "timed out" in (offer.detail or "")) == ("missing", True)


@pytest.mark.parametrize(("environ", "state"), [({"K": "right"}, "ready"), ({"K": "wrong"}, "unauthenticated")])
def test_the_key_decides_where_one_is_wanted(environ: dict[str, str], state: str) -> None:
    with answering({"/v1/models": (200, {"data": []})}, key="right") as base_url:
        offer = OpenAI().probe({"base_url": base_url, "api_key_env": "K"}, environ)
    assert offer.state == state
    assert offer.account.endswith(f" key:{fingerprint(environ['K'])}")
    assert environ["K"] not in offer.account


def test_a_key_that_is_not_set_is_asked_for() -> None:
    offer = OpenAI().probe({"api_key_env": "MY_KEY"}, {})
    assert (offer.state, "MY_KEY" in (offer.detail or "")) == ("unauthenticated", True)


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("http://127.0.0.1:8080/v1", f"{socket.gethostname()}:8080"),
        ("http://localhost/v1", f"{socket.gethostname()}:80"),
        ("http://[::1]:9/v1", f"{socket.gethostname()}:9"),
        ("https://api.example.com/v1", "api.example.com:443"),
        ("http://10.0.0.5:8080/v1", "10.0.0.5:8080"),
    ],
)
def test_the_account_is_the_same_for_all_hosts_that_mean_the_same_server(base_url: str, expected: str) -> None:
    assert account(base_url, None) == expected


LISTED: Any = {
    "data": [
        {"id": "orchestrator", "status": {"value": "loaded"}, "meta": {"llamaswap": {"aliases": ["router"]}}},
        {"id": "coder", "status": {"value": "unloaded"}},
    ]
}
RUNNING: Any = {
    "running": [
        {"model": "a", "state": "ready"},
        {"model": "b", "state": "starting"},
        {"model": "c", "state": "stopping"},
    ]
}


PAGES: list[tuple[Any, list[str] | None]] = [
    ({"/v1/models": (200, LISTED)}, ["orchestrator", "router"]),
    ({"/v1/models": (200, {"data": [{"id": "a"}]}), "/running": (200, RUNNING)}, ["a", "b"]),
    ({"/v1/models": (200, {"data": []}), "/running": (200, {"running": []})}, []),
    ({"/v1/models": (200, {"data": [{"id": "a"}]})}, None),
    ({"/v1/models": (200, b"<html>")}, None),
    ({"/v1/models": (200, []), "/running": (200, [])}, None),
    ({}, None),
]


@pytest.mark.parametrize(("pages", "expected"), PAGES)
def test_the_models_in_memory_are_known_where_the_server_tells(pages: Any, expected: list[str] | None) -> None:
    with answering(pages) as base_url:
        assert OpenAI().loaded({"base_url": base_url}, {}) == expected
