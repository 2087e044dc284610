"""The adapter for opencode: what it starts, how it finds its server, and how it reads recorded runs."""

import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.adapters import BadSettings, CannotRun, Launch, Said, Session
from taskyard.runner.adapters.opencode import Opencode

from .recorded import Recording, a_run, a_tool, assert_as_expected, read_all, recordings, replay

OPENCODE = Opencode()
RECORDED = recordings("opencode")
OVERFED = '429 {"code":"insufficient_quota"} rate limit: I generate and iterate'


def case(name: str) -> Recording:
    return next(r for r in RECORDED if r.case == name)


def configured(home: Path, environ: dict[str, str] | None = None, **changes: Any) -> tuple[Launch, dict[str, Any]]:
    """The launch, and the configuration that it hands to the tool."""
    run = a_run(home, {**a_tool(home / "bin", "opencode"), **(environ or {})}, **{"model": "qwen", **changes})
    launch = OPENCODE.prepare(run)
    return launch, json.loads(launch.env["OPENCODE_CONFIG_CONTENT"])


@contextmanager
def server(status: int, body: Any) -> Generator[str]:
    """An OpenAI-compatible server that knows GET /v1/models; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = json.dumps(body).encode()
            self.send_response(status if self.path == "/v1/models" else 404)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/v1"
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("recording", RECORDED, ids=lambda r: r.case)
def test_recorded_run_ends_as_it_really_ended(recording: Recording, tmp_path: Path) -> None:
    _, ending = read_all(OPENCODE, recording, tmp_path)
    assert_as_expected(ending, recording.expect)
    assert ending.exit_code == recording.code
    assert (ending.error is None) == (ending.outcome == "completed")


def test_first_event_tells_the_session(tmp_path: Path) -> None:
    reading = OPENCODE.read(a_run(tmp_path))
    first, second = case("success-json").lines[:2]
    assert reading.line(first) == [Session("ses_dfbc54583ffehk6iOJFPUsydIo")]
    assert not any(isinstance(event, Session) for event in reading.line(second))


def test_transcript_has_thoughts_calls_and_results(tmp_path: Path) -> None:
    seen, _ = read_all(OPENCODE, case("thinking"), tmp_path)
    assert [(s.kind, s.body) for s in seen if isinstance(s, Said)] == [("thinking", "let me think"), ("text", "ok")]
    seen, _ = read_all(OPENCODE, case("tool-write-default"), tmp_path)
    rows = [s for s in seen if isinstance(s, Said)]
    assert [row.kind for row in rows] == ["tool_call", "tool_result", "text"]
    assert rows[1].body == "Wrote file successfully."
    assert rows[1].data is not None and rows[1].data["is_error"] is False


@pytest.mark.parametrize("name", ["success-json", "output-limit", "invalid400", "conn-refused", "sigterm-waiting"])
def test_words_of_the_agent_never_make_a_limit(name: str, tmp_path: Path) -> None:
    recording = case(name)
    said = json.dumps({"type": "text", "sessionID": "ses_1", "part": {"type": "text", "text": OVERFED}})
    state = {"status": "error", "input": {"command": OVERFED}, "error": OVERFED}
    used = json.dumps(
        {"type": "tool_use", "sessionID": "ses_1", "part": {"tool": "bash", "callID": "1", "state": state}}
    )
    ended = replace(recording.exit, stderr=f"{recording.stderr}\n{OVERFED}\n")
    _, ending = replay(OPENCODE.read(a_run(tmp_path)), [said, used, *recording.lines], ended)
    assert ending.outcome == recording.expect["outcome"]
    assert ending.window is None


def test_error_that_the_tool_got_over_is_no_failure(tmp_path: Path) -> None:
    recording = case("success-json")
    error = case("context-overflow").lines[0]
    _, ending = replay(OPENCODE.read(a_run(tmp_path)), [error, *recording.lines], recording.exit)
    assert ending.outcome == "completed"


def test_run_that_ends_with_a_tool_call_has_no_answer(tmp_path: Path) -> None:
    recording = case("tool-write-default")
    _, ending = replay(OPENCODE.read(a_run(tmp_path)), recording.lines[:3], recording.exit)
    assert ending.outcome == "failed"


def test_run_is_stopped_when_it_wants_another_turn_than_allowed(tmp_path: Path) -> None:
    lines = case("tool-write-default").lines
    reading = OPENCODE.read(a_run(tmp_path, max_turns=1))
    _, ending = replay(reading, lines[:3], replace(case("tool-write-default").exit, code=-15))
    assert reading.hopeless
    assert ending.outcome == "turn_limit"
    patient = OPENCODE.read(a_run(tmp_path, max_turns=2))
    replay(patient, lines, case("tool-write-default").exit)
    assert not patient.hopeless


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"statusCode": 402}, "quota_exhausted"),
        ({"responseBody": '{"error": {"code": "insufficient_quota"}}'}, "quota_exhausted"),
        ({"statusCode": 403}, "unauthenticated"),
        ({"statusCode": 503}, "overloaded"),
    ],
)
def test_status_and_code_of_a_refusal_decide(change: dict[str, Any], outcome: str, tmp_path: Path) -> None:
    recording = case("rate429-default")
    event = json.loads(recording.lines[0])
    event["error"]["data"] |= change
    _, ending = replay(OPENCODE.read(a_run(tmp_path)), [json.dumps(event)], recording.exit)
    assert ending.outcome == outcome


def test_answer_that_is_no_json_fails_where_a_schema_was_given(tmp_path: Path) -> None:
    recording = case("success-json")
    reading = OPENCODE.read(a_run(tmp_path, output_schema={"type": "object"}))
    assert replay(reading, recording.lines, recording.exit)[1].outcome == "failed"


def test_new_session_gets_the_prompt_and_a_place_of_its_own(tmp_path: Path) -> None:
    launch, config = configured(tmp_path)
    assert launch.argv[0] == str(tmp_path / "bin" / "opencode")
    assert launch.argv[launch.argv.index("-m") + 1] == "local/qwen"
    assert launch.argv[launch.argv.index("--title") + 1] == "task 3"
    assert "-s" not in launch.argv
    assert launch.stdin == b"Sweep the yard."
    for place in ("DATA", "CONFIG", "STATE", "CACHE"):
        assert Path(launch.env[f"XDG_{place}_HOME"]).is_relative_to(tmp_path / "home")
    assert config["provider"]["local"]["options"]["baseURL"] == "http://127.0.0.1:8080/v1"
    assert config["provider"]["local"]["models"] == {"qwen": {"name": "qwen"}}
    assert (config["autoupdate"], config["share"]) == (False, "disabled")


def test_resumed_session_gets_the_note_alone(tmp_path: Path) -> None:
    launch, _ = configured(tmp_path, session_id="ses_1", note="You were cut off.")
    assert launch.argv[launch.argv.index("-s") + 1] == "ses_1"
    assert "--title" not in launch.argv
    assert launch.stdin.startswith(b"You were cut off.")


@pytest.mark.parametrize(
    ("permissions", "denied"),
    [
        (["read", "write", "execute", "network"], {"doom_loop"}),
        (["read", "write", "network"], {"doom_loop", "external_directory", "bash"}),
        (["read", "write", "execute"], {"doom_loop", "webfetch", "websearch"}),
        (["read"], {"doom_loop", "external_directory", "bash", "edit", "webfetch", "websearch"}),
    ],
)
def test_tool_gets_no_more_than_the_scope_allows(permissions: list[str], denied: set[str], tmp_path: Path) -> None:
    launch, config = configured(tmp_path, permissions=permissions)
    rules = config["permission"]
    assert {name for name, rule in rules.items() if rule == "deny"} == denied
    assert set(rules.values()) <= {"allow", "deny"}
    assert launch.env["OPENCODE_DISABLE_PROJECT_CONFIG"] == "1"


def test_agent_with_a_list_of_tools_has_no_others(tmp_path: Path) -> None:
    _, config = configured(tmp_path, tools=["read", "bash"], permissions=["read"])
    rules = list(config["permission"].items())
    assert rules[0] == ("*", "deny")  # the last rule that fits a tool holds
    assert dict(rules)["read"] == "allow"
    assert dict(rules)["bash"] == "deny"


def test_system_prompt_and_the_workspaces_instructions_are_given_as_files(tmp_path: Path) -> None:
    _, config = configured(tmp_path, system_prompt="You sweep.")
    own, workspace = config["instructions"]
    assert Path(own).read_text() == "You sweep."
    assert workspace == str(tmp_path / "workspace" / "AGENTS.md")


def test_schema_goes_below_the_prompt(tmp_path: Path) -> None:
    launch, _ = configured(tmp_path, output_schema={"type": "object"})
    text = launch.stdin.decode()
    assert text.index("Sweep the yard.") < text.index('{"type": "object"}')


def test_key_reaches_the_child_but_not_its_configuration(tmp_path: Path) -> None:
    settings = {"base_url": "http://models.example/v1", "api_key_env": "MINE"}
    launch, config = configured(tmp_path, {"MINE": "my-key"}, settings=settings)
    assert launch.env["MINE"] == "my-key"
    options = config["provider"]["local"]["options"]
    assert (options["baseURL"], options["apiKey"]) == ("http://models.example/v1", "{env:MINE}")
    with pytest.raises(CannotRun, match="MINE"):
        configured(tmp_path, settings=settings)


def test_attempt_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="needs a model"):
        configured(tmp_path, model=None)


@pytest.mark.parametrize("settings", [{"retries": 1}, {"home": "/home/user"}, {"speed": 3}])
def test_setting_that_would_do_nothing_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=next(iter(settings))):
        OPENCODE.probe(settings, a_tool(tmp_path, "opencode"))


def test_server_that_answers_makes_the_host_ready_with_its_models(tmp_path: Path) -> None:
    with server(200, {"data": [{"id": "b"}, {"id": "a"}]}) as base_url:
        offer = OPENCODE.probe({"base_url": base_url}, a_tool(tmp_path, "opencode", "1.18.33"))
    port = base_url.split(":")[2].removesuffix("/v1")
    assert (offer.state, offer.models, offer.version) == ("ready", ["a", "b"], "1.18.33")
    assert offer.account == f"{socket.gethostname()}:{port}"


def test_server_that_does_not_answer_or_refuses_makes_the_host_useless(tmp_path: Path) -> None:
    environ = a_tool(tmp_path, "opencode")
    with server(200, {}) as base_url:
        pass
    silent = OPENCODE.probe({"base_url": base_url}, environ)
    assert silent.state == "missing" and base_url in str(silent.detail)
    with server(401, {}) as base_url:
        assert OPENCODE.probe({"base_url": base_url}, environ).state == "unauthenticated"
        assert OPENCODE.probe({"base_url": base_url, "api_key_env": "MINE"}, environ).state == "unauthenticated"
    (tmp_path / "empty").mkdir()
    assert OPENCODE.probe({}, {"PATH": str(tmp_path / "empty")}).state == "missing"
