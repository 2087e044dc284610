"""Codex: every recorded run is read rightly, and every claim becomes the right command."""

import json
import shutil
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskyard.runner.adapters.base import BadSettings, CannotRun, Exit, Said, Session
from taskyard.runner.adapters.codex import Codex, native
from taskyard.runner.adapters.codex_rollout import Turn, turn_in
from taskyard.runner.adapters.codex_stream import NETWORK_PATIENCE, CodexReading
from taskyard.runner.adapters.registry import probe
from taskyard.runner.adapters.tools import fingerprint
from taskyard.runner.verbs import Ending, Window

from .recorded import FOLDER, Recording, a_claim, a_run, a_tool, assert_as_expected, recordings, replay

NOW = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
RECORDINGS = recordings("codex")
TRAPS = ["generate", "iterate", "HTTP 429", "rate limit", "You’ve hit your usage limit", "Quota exceeded."]  # noqa: RUF001
BEGIN = [{"type": "thread.started", "thread_id": "t"}, {"type": "turn.started"}]


def rollout(recording: Recording, home: Path) -> None:
    """Put the file of the recorded session where the tool has it."""
    recorded = FOLDER / "codex" / recording.case / "rollout.jsonl"
    if recorded.exists():
        thread = json.loads(recording.lines[0])["thread_id"]
        place = home / "sessions" / "2026" / "11" / "22" / f"rollout-2026-11-22T20-00-00-{thread}.jsonl"
        place.parent.mkdir(parents=True)
        shutil.copy(recorded, place)


def reading(home: Path, clock: list[float] | None = None, **claim: Any) -> CodexReading:
    """With a clock that shows clock[0] seconds."""
    times = clock or [0.0]
    return CodexReading(a_claim(**claim), home, lambda: NOW, lambda: times[0])


def read(case: str, home: Path, **claim: Any) -> tuple[list[Any], Ending]:
    recording = next(recording for recording in RECORDINGS if recording.case == case)
    rollout(recording, home)
    return replay(reading(home, **claim), recording.lines, recording.exit)


def told(home: Path, *events: dict[str, Any], code: int = 1, stderr: str = "", **claim: Any) -> Ending:
    return replay(reading(home, **claim), [json.dumps(event) for event in events], Exit(code, "", stderr))[1]


def item(kind: str, event: str = "item.completed", **fields: Any) -> dict[str, Any]:
    return {"type": event, "item": {"id": "item_1", "type": kind, **fields}}


def failure(message: str) -> dict[str, Any]:
    return {"type": "turn.failed", "error": {"message": message}}


@pytest.mark.parametrize("recording", RECORDINGS, ids=[recording.case for recording in RECORDINGS])
def test_every_recorded_run_ends_as_it_did(recording: Recording, tmp_path: Path) -> None:
    rollout(recording, tmp_path)
    claimed = reading(tmp_path, **recording.expect.get("claim", {}))
    _, ending = replay(claimed, recording.lines, recording.exit)
    assert_as_expected(ending, recording.expect)
    assert ending.exit_code == recording.code
    assert (ending.error is None) == (ending.outcome == "completed")


def test_no_recording_is_left_out() -> None:
    assert {recording.case for recording in RECORDINGS} == {path.name for path in (FOLDER / "codex").iterdir()}
    outcomes = {recording.expect["outcome"] for recording in RECORDINGS}
    assert outcomes >= {"completed", "failed", "rate_limited", "quota_exhausted", "overloaded", "unauthenticated"}
    assert outcomes >= {"network", "context_overflow", "session_lost", "crashed"}


@pytest.mark.parametrize("trap", TRAPS)
def test_an_agents_own_words_are_never_a_limit(trap: str, tmp_path: Path) -> None:
    ran = item("command_execution", command=trap, aggregated_output=trap, exit_code=1, status="failed")
    done = {"type": "turn.completed", "usage": {"input_tokens": 1}}
    said = item("agent_message", text=trap)
    good = told(tmp_path, *BEGIN, ran, said, done, code=0)
    assert (good.outcome, good.result) == ("completed", trap)
    assert told(tmp_path, *BEGIN, ran, said, failure("Something broke")).outcome == "failed"
    assert told(tmp_path, *BEGIN, ran, said, failure(f"It said: {trap}")).outcome == "failed"
    assert told(tmp_path, *BEGIN, ran, said).outcome == "crashed"
    assert told(tmp_path, *BEGIN[:1], said, stderr=f"Error: {trap}").outcome == "failed"


def test_the_last_verdict_counts_and_an_exit_status_against_it_is_a_failure(tmp_path: Path) -> None:
    done = {"type": "turn.completed", "usage": {"input_tokens": 5}}
    assert told(tmp_path, *BEGIN, failure("once"), *BEGIN[1:], done, code=0).outcome == "completed"
    assert told(tmp_path, *BEGIN, done, *BEGIN[1:], failure("then")).outcome == "failed"
    ending = told(tmp_path, *BEGIN, done, code=1, stderr="Error: could not write")
    assert (ending.outcome, ending.error) == ("failed", "Error: could not write")
    assert ending.usage and ending.usage.input_tokens == 5


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        ("You’ve hit your usage limit. Try again later.", "quota_exhausted"),  # noqa: RUF001
        ("exceeded retry limit, last status: 429 Too Many Requests", "rate_limited"),
        ("exceeded retry limit, last status: 503 Service Unavailable", "overloaded"),
        ("unexpected status 401 Unauthorized: no, url: http://x", "unauthenticated"),
        ("unexpected status 500 Internal Server Error: no", "overloaded"),
        ("unexpected status 404 Not Found: no", "failed"),
        ("We’re currently experiencing high demand, which may cause errors.", "overloaded"),  # noqa: RUF001
        ("stream disconnected before completion: idle timeout", "network"),
        ("anything else", "failed"),
    ],
)
def test_without_the_sessions_file_the_beginning_of_the_message_decides(
    message: str, outcome: str, tmp_path: Path
) -> None:
    assert told(tmp_path, *BEGIN, failure(message)).outcome == outcome


@pytest.mark.parametrize(
    ("info", "outcome"),
    [
        ("usage_limit_exceeded", "quota_exhausted"),
        ("rate_limit_exceeded", "rate_limited"),
        ("server_overloaded", "overloaded"),
        ("context_window_exceeded", "context_overflow"),
        ({"response_too_many_failed_attempts": {"http_status_code": 429}}, "rate_limited"),
        ({"http_connection_failed": {"http_status_code": 403}}, "unauthenticated"),
        ({"http_connection_failed": {"http_status_code": 502}}, "overloaded"),
        ({"response_stream_disconnected": {"http_status_code": None}}, "network"),
        ({"http_connection_failed": {"http_status_code": 404}}, "failed"),
        ("other", "failed"),
    ],
)
def test_the_sessions_file_says_why_a_turn_failed(info: Any, outcome: str, tmp_path: Path) -> None:
    place = tmp_path / "sessions" / "2026" / "11" / "22"
    place.mkdir(parents=True)
    last = {"type": "event_msg", "payload": {"type": "task_complete", "error": {"codex_error_info": info}}}
    (place / "rollout-2026-11-22T20-00-00-t.jsonl").write_text(json.dumps(last) + "\n")
    assert told(tmp_path, *BEGIN, failure("Words that may change")).outcome == outcome


def record(kind: str, **fields: Any) -> str:
    return json.dumps({"type": "event_msg", "payload": {"type": kind, **fields}})


def test_an_earlier_turn_of_the_session_says_nothing_about_the_last() -> None:
    full = {"primary": {"used_percent": 100.0, "window_minutes": 300, "resets_at": 1795400000}}
    earlier = [
        record("task_started"),
        record("token_count", rate_limits=full, info={"total_token_usage": {"input_tokens": 9}}),
        record("task_complete", error={"codex_error_info": "usage_limit_exceeded"}),
    ]
    assert turn_in(earlier).windows == [Window("five_hour", datetime(2026, 11, 23, 2, 13, 20, tzinfo=UTC), 100.0)]
    assert turn_in([*earlier, record("task_started"), record("task_complete")]) == Turn()


def test_windows_are_named_by_their_length() -> None:
    limits = {
        "primary": {"used_percent": 1.5, "window_minutes": 60},
        "secondary": {"used_percent": 2, "window_minutes": 10080},
    }
    windows = turn_in([record("token_count", rate_limits=limits)]).windows
    assert windows == [Window("60_minutes", None, 1.5), Window("weekly", None, 2)]


@given(st.lists(st.text() | st.builds(json.dumps, st.dictionaries(st.text(), st.integers() | st.none() | st.text()))))
def test_no_content_of_the_sessions_file_breaks_the_reading(lines: list[str]) -> None:
    assert turn_in(lines).windows == []


def test_of_two_windows_that_are_used_up_the_later_end_counts(tmp_path: Path) -> None:
    limits = {
        "primary": {"used_percent": 100, "window_minutes": 300, "resets_at": 1795400000},
        "secondary": {"used_percent": 100, "window_minutes": 10080, "resets_at": 1795800000},
    }
    place = tmp_path / "sessions" / "2026" / "11" / "22"
    place.mkdir(parents=True)
    (place / "rollout-1-t.jsonl").write_text(record("token_count", rate_limits=limits) + "\n")
    ending = told(tmp_path, *BEGIN, failure("You’ve hit your usage limit."))  # noqa: RUF001
    assert ending.window == Window("weekly", datetime(2026, 11, 27, 17, 20, tzinfo=UTC), 100)


def test_waiting_for_a_network_becomes_hopeless_and_is_a_network_failure(tmp_path: Path) -> None:
    recording = next(recording for recording in RECORDINGS if recording.case == "conn-refused-long")
    clock = [0.0]
    waiting = reading(tmp_path, clock)
    waits = [line for line in recording.lines if "waiting for network" in line]
    for line in recording.lines[: recording.lines.index(waits[0]) + 1]:
        waiting.line(line)
        assert not waiting.hopeless
    clock[0] = NETWORK_PATIENCE - 1
    waiting.line(waits[1])
    assert not waiting.hopeless
    clock[0] = NETWORK_PATIENCE
    assert waiting.hopeless
    ending = waiting.ending(Exit(-15, "", ""))
    assert ending.outcome == "network" and ending.error


def test_a_network_that_comes_back_is_no_failure(tmp_path: Path) -> None:
    clock = [0.0]
    waiting = reading(tmp_path, clock)
    wait = json.dumps({"type": "error", "message": "Reconnecting... waiting for network (Connection failed)"})
    waiting.line(wait)
    clock[0] = NETWORK_PATIENCE + 5
    waiting.line(json.dumps(item("agent_message", text="here again")))
    assert not waiting.hopeless
    waiting.line(wait)
    assert not waiting.hopeless  # the waiting began anew
    waiting.line(json.dumps({"type": "turn.completed", "usage": {}}))
    clock[0] *= 10
    assert not waiting.hopeless and waiting.ending(Exit(0, "", "")).outcome == "completed"


def test_more_turns_than_allowed_are_hopeless_and_a_turn_limit(tmp_path: Path) -> None:
    counting = reading(tmp_path, max_turns=2)
    for turn in range(3):
        assert not counting.hopeless
        call = {"id": f"item_{turn}", "type": "command_execution", "command": "ls"}
        counting.line(json.dumps({"type": "item.started", "item": {**call, "status": "in_progress"}}))
        counting.line(json.dumps({"type": "item.completed", "item": {**call, "status": "completed"}}))
    assert counting.hopeless
    assert counting.ending(Exit(-15, "", "")).outcome == "turn_limit"


def test_a_run_that_ends_with_its_last_turn_is_a_success(tmp_path: Path) -> None:
    recording = next(recording for recording in RECORDINGS if recording.case == "tools")
    _, ending = replay(reading(tmp_path, max_turns=2), recording.lines, recording.exit)
    assert ending.outcome == "completed" and ending.usage and ending.usage.turns == 2


def test_the_transcript_holds_what_was_thought_said_and_done(tmp_path: Path) -> None:
    seen, ending = read("tools", tmp_path)
    rows = [event for event in seen if isinstance(event, Said)]
    assert [row.kind for row in rows] == ["thinking", "text", "tool_call", "tool_result", "text"]
    assert [row.body for row in rows[:3]] == ["let me think", "I will list", "shell: /bin/bash -lc 'ls -la'"]
    call, back = rows[2].data or {}, rows[3].data or {}
    assert call["id"] == back["id"] and back["is_error"] is False and "total" in rows[3].body
    assert isinstance(seen[0], Session) and seen[0].id == ending.session_id
    patched, _ = read("sbx-patch-ws", tmp_path)
    assert "file_change: add /home/user/project/codex-sbx-patch-ws/patched.txt" in [
        row.body for row in patched if isinstance(row, Said)
    ]


def test_a_tool_call_that_is_told_only_once_has_its_row(tmp_path: Path) -> None:
    seen = reading(tmp_path).line(json.dumps(item("web_search", query="taskyard")))
    assert [(row.kind, row.body) for row in seen if isinstance(row, Said)] == [
        ("tool_call", "web_search: taskyard"),
        ("tool_result", "completed"),
    ]


@pytest.mark.parametrize("recording", RECORDINGS, ids=[recording.case for recording in RECORDINGS])
def test_what_the_tool_makes_up_is_no_proof_that_the_provider_answers(recording: Recording, tmp_path: Path) -> None:
    seen, ending = replay(reading(tmp_path), recording.lines, recording.exit)
    proof = [row for row in seen if isinstance(row, Said) and row.kind in ("text", "thinking", "tool_call")]
    if ending.outcome in ("rate_limited", "quota_exhausted", "unauthenticated", "overloaded", "session_lost"):
        assert not proof
    if ending.outcome == "completed":
        assert proof


def host(tmp_path: Path, **environ: str) -> dict[str, str]:
    """An environment with the tool and an empty home."""
    (tmp_path / "user").mkdir(exist_ok=True)
    return {**a_tool(tmp_path / "bin", "codex", "codex-cli 0.169.0"), "HOME": str(tmp_path / "user"), **environ}


def log_in(folder: Path, **auth: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "auth.json").write_text(json.dumps(auth))
    return folder / "auth.json"


def config(argv: list[str]) -> dict[str, Any]:
    """All -c settings, read as the tool does."""
    pairs = [argv[n + 1] for n, word in enumerate(argv) if word == "-c"]
    return tomllib.loads("\n".join(pairs))


def prepared(tmp_path: Path, **claim: Any) -> list[str]:
    return Codex().prepare(a_run(tmp_path, host(tmp_path, CODEX_API_KEY="k"), **claim)).argv


def test_a_host_without_the_tool_or_a_login_says_so(tmp_path: Path) -> None:
    offer = Codex().probe({}, {"PATH": str(tmp_path), "HOME": str(tmp_path)})
    assert offer.state == "missing" and "codex" in (offer.detail or "")
    environ = host(tmp_path)
    offer = Codex().probe({}, environ)
    assert (offer.state, offer.version) == ("unauthenticated", "0.169.0") and "codex login" in (offer.detail or "")
    offer = Codex().probe({"api_key_env": "MINE"}, {**environ, "CODEX_API_KEY": "k"})
    assert offer.state == "unauthenticated" and "MINE" in (offer.detail or "")
    with pytest.raises(CannotRun, match="codex login"):
        Codex().prepare(a_run(tmp_path, environ))


@pytest.mark.parametrize("place", ["default", "variable", "setting"])
def test_a_login_is_linked_and_named_by_its_account(tmp_path: Path, place: str) -> None:
    environ, settings = host(tmp_path), {}
    home = tmp_path / "user" / ".codex" if place == "default" else tmp_path / "login"
    if place == "variable":
        environ["CODEX_HOME"] = str(home)
    if place == "setting":
        settings = {"home": str(home)}
        environ |= {"CODEX_API_KEY": "another account's"}
    auth = log_in(home, tokens={"account_id": "acct-1", "access_token": "secret"})
    assert Codex().probe(settings, environ).account == "acct-1"
    run = a_run(tmp_path, environ, settings=settings)
    launch = Codex().prepare(run)
    assert (run.home / "auth.json").readlink() == auth
    assert launch.env["CODEX_HOME"] == str(run.home) and launch.env["TZ"] == "UTC"
    assert "CODEX_API_KEY" not in launch.env and "model_provider" not in config(launch.argv)
    Codex().prepare(run)
    assert (run.home / "auth.json").readlink() == auth


def test_the_temporary_folder_does_not_contain_the_tools_home(tmp_path: Path) -> None:
    run = a_run(tmp_path, host(tmp_path, CODEX_API_KEY="k"))
    temporary = Path(Codex().prepare(run).env["TMPDIR"])
    assert temporary.is_dir() and not run.home.is_relative_to(temporary)


def test_a_key_in_the_login_is_used_with_a_provider_that_knows_our_retries(tmp_path: Path) -> None:
    environ = host(tmp_path)
    log_in(tmp_path / "user" / ".codex", OPENAI_API_KEY="k")
    assert Codex().probe({}, environ).account == f"key:{fingerprint('k')}"
    provider = config(Codex().prepare(a_run(tmp_path, environ, settings={"retries": 3})).argv)["model_providers"]
    assert provider["taskyard"]["requires_openai_auth"] is True and "env_key" not in provider["taskyard"]
    assert provider["taskyard"]["request_max_retries"] == provider["taskyard"]["stream_max_retries"] == 3


@pytest.mark.parametrize("settings", [{}, {"api_key_env": "MINE"}])
def test_a_key_in_the_environment_is_the_account_and_needs_no_login(tmp_path: Path, settings: dict[str, Any]) -> None:
    environ = host(tmp_path, **{settings.get("api_key_env", "CODEX_API_KEY"): "k"}, UNRELATED="1")
    log_in(tmp_path / "user" / ".codex", tokens={"account_id": "acct-1"})
    assert Codex().probe(settings, environ).account == f"key:{fingerprint('k')}"
    run = a_run(tmp_path, environ, settings=settings)
    (run.home / "auth.json").symlink_to(tmp_path / "user" / ".codex" / "auth.json")  # of an attempt before
    launch = Codex().prepare(run)
    assert launch.env["CODEX_API_KEY"] == "k" and "UNRELATED" not in launch.env and "MINE" not in launch.env
    assert not (run.home / "auth.json").is_symlink()
    found = config(launch.argv)
    assert found["model_provider"] == "taskyard"
    assert found["model_providers"]["taskyard"] == {
        "name": "Taskyard",
        "base_url": "https://api.openai.com/v1",
        "env_key": "CODEX_API_KEY",
        "wire_api": "responses",
        "request_max_retries": 0,
        "stream_max_retries": 0,
    }


def test_logins_that_share_their_limits_can_share_a_name(tmp_path: Path) -> None:
    assert probe(Codex(), {"account": "the-team"}, host(tmp_path, CODEX_API_KEY="k")).account == "the-team"


def test_another_server_needs_no_login(tmp_path: Path) -> None:
    settings = {"base_url": "http://localhost:8080/v1", "model": "qwen"}
    run = a_run(tmp_path, host(tmp_path, CODEX_API_KEY="not for strangers"), settings=settings)
    offer = Codex().probe(settings, run.environ)
    assert offer.state == "ready" and offer.account.endswith(":8080") and "localhost:" not in offer.account
    launch = Codex().prepare(run)
    assert "CODEX_API_KEY" not in launch.env
    found = config(launch.argv)
    assert found["model_providers"]["taskyard"]["base_url"] == "http://localhost:8080/v1"
    assert "env_key" not in found["model_providers"]["taskyard"] and found["web_search"] == "disabled"
    keyed = a_run(tmp_path, {**run.environ, "K": "s"}, settings={**settings, "api_key_env": "K"})
    launch = Codex().prepare(keyed)
    assert launch.env["CODEX_API_KEY"] == "s"
    assert config(launch.argv)["model_providers"]["taskyard"]["env_key"] == "CODEX_API_KEY"


def test_a_new_session_has_the_prompt_on_standard_input(tmp_path: Path) -> None:
    run = a_run(tmp_path, host(tmp_path, CODEX_API_KEY="k"), settings={"env": {"A": "b"}, "args": ["--color", "never"]})
    launch = Codex().prepare(run)
    assert launch.argv[:2] == [str(tmp_path / "bin" / "codex"), "exec"]
    assert launch.argv[-3:] == ["--color", "never", "-"] and "resume" not in launch.argv
    assert "--json" in launch.argv and "--skip-git-repo-check" in launch.argv and "--model" not in launch.argv
    assert launch.stdin == b"Sweep the yard." and not any("Sweep" in word for word in launch.argv)
    assert launch.env["A"] == "b"


def test_a_resumed_session_gets_the_note_instead_of_the_prompt(tmp_path: Path) -> None:
    run = a_run(tmp_path, host(tmp_path, CODEX_API_KEY="k"), session_id="abc", note="The host went down.")
    launch = Codex().prepare(run)
    assert launch.argv[2:6] == ["--sandbox", "workspace-write", "resume", "--json"]
    assert launch.argv[-2:] == ["abc", "-"]
    assert launch.stdin.startswith(b"The host went down.") and b"Sweep" not in launch.stdin


@pytest.mark.parametrize(
    ("permissions", "sandbox", "network"),
    [
        (["read", "write", "execute", "network"], "workspace-write", True),
        (["read", "write", "execute"], "workspace-write", False),
        (["read", "execute", "network"], "read-only", None),
        (["read"], "read-only", None),
    ],
)
def test_permissions_choose_the_sandbox(
    tmp_path: Path, permissions: list[str], sandbox: str, network: bool | None
) -> None:
    argv = prepared(tmp_path, permissions=permissions)
    assert argv[argv.index("--sandbox") + 1] == sandbox
    found = config(argv)
    assert found.get("sandbox_workspace_write", {}).get("network_access") is network
    assert (found.get("web_search") == "disabled") == ("network" not in permissions)


def test_a_claims_wishes_become_flags(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    argv = prepared(tmp_path, model="gpt-5", output_schema=schema, settings={"model": "gpt-4"})
    assert argv[argv.index("--model") + 1] == "gpt-5"
    assert json.loads(Path(argv[argv.index("--output-schema") + 1]).read_text()) == schema


@pytest.mark.parametrize("words", ['Say "no"\nand\\or', "🧹 \x7f \x01 ’", "a = 'b'"])  # noqa: RUF001
def test_a_system_prompt_arrives_word_for_word(tmp_path: Path, words: str) -> None:
    assert config(prepared(tmp_path, system_prompt=words))["developer_instructions"] == words


def test_what_cannot_be_started_is_refused_with_a_sentence(tmp_path: Path) -> None:
    assert prepared(tmp_path, prompt="é" * 1_048_576)
    with pytest.raises(CannotRun, match="1048576"):
        prepared(tmp_path, prompt="x" * 1_048_577)
    with pytest.raises(CannotRun, match="argument"):
        prepared(tmp_path, system_prompt="x" * 131_072)
    with pytest.raises(CannotRun, match="retries"):
        prepared(tmp_path, settings={"retries": "many"})
    with pytest.raises(BadSettings, match="colour"):
        Codex().probe({"colour": "red"}, {})


@pytest.mark.parametrize("nested", [False, True])
def test_the_program_behind_npms_launcher_is_started_itself(tmp_path: Path, nested: bool) -> None:
    scope = tmp_path / "lib" / "node_modules" / "@openai"
    launcher = scope / "codex" / "bin" / "codex.js"
    inner = scope / "codex" / "node_modules" / "@openai" if nested else scope
    program = inner / "codex-linux-x64" / "vendor" / "x86_64-unknown-linux-musl" / "bin" / "codex"
    for path in (launcher, program):
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    command = tmp_path / "bin" / "codex"
    command.parent.mkdir()
    command.symlink_to(launcher)
    assert native(str(command)) == str(program)
    program.chmod(0o644)
    assert native(str(command)) == str(command)


def test_a_tool_that_is_no_launcher_is_started_as_it_is(tmp_path: Path) -> None:
    a_tool(tmp_path, "codex")
    assert native(str(tmp_path / "codex")) == str(tmp_path / "codex")
