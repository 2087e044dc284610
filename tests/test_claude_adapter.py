"""Claude Code: every recorded run is read rightly, and every claim becomes the right command."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.adapters.base import BadSettings, CannotRun, Exit, Said, Session
from taskyard.runner.adapters.claude import Claude, session_of
from taskyard.runner.adapters.claude_stream import ClaudeReading
from taskyard.runner.adapters.registry import probe
from taskyard.runner.adapters.tools import fingerprint
from taskyard.runner.verbs import Ending, Usage, Window

from .recorded import FOLDER, Recording, a_claim, a_run, a_tool, assert_as_expected, recordings, replay

NOW = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
FIVE_HOUR = datetime(2026, 11, 23, 2, 13, 20, tzinfo=UTC)
WEEK = datetime(2026, 11, 27, 17, 20, tzinfo=UTC)
RECORDINGS = recordings("claude")
TRAPS = ["generate", "iterate", "HTTP 429", "rate limit", "You've hit your usage limit", "You've hit your 5-hour limit"]


def reading(**claim: Any) -> ClaudeReading:
    wanted = a_claim(**claim)
    return ClaudeReading(wanted, session_of(wanted), lambda: NOW)


def named(case: str) -> Recording:
    return next(recording for recording in RECORDINGS if recording.case == case)


def read(case: str, **claim: Any) -> tuple[list[Any], Ending]:
    recording = named(case)
    return replay(reading(**claim), recording.lines, recording.exit)


def told(*events: dict[str, Any], code: int = 1, stderr: str = "", **claim: Any) -> Ending:
    return replay(reading(**claim), [json.dumps(event) for event in events], Exit(code, "", stderr))[1]


@pytest.mark.parametrize("recording", RECORDINGS, ids=[recording.case for recording in RECORDINGS])
def test_every_recorded_run_ends_as_it_did(recording: Recording) -> None:
    _, ending = replay(reading(**recording.expect.get("claim", {})), recording.lines, recording.exit)
    assert_as_expected(ending, recording.expect)
    assert ending.exit_code == recording.code
    assert (ending.error is None) == (ending.outcome == "completed")


def test_no_recording_is_left_out() -> None:
    assert {recording.case for recording in RECORDINGS} == {path.name for path in (FOLDER / "claude").iterdir()}
    outcomes = {recording.expect["outcome"] for recording in RECORDINGS}
    assert outcomes >= {"completed", "failed", "rate_limited", "quota_exhausted", "overloaded", "unauthenticated"}
    assert outcomes >= {"network", "context_overflow", "turn_limit", "session_lost", "crashed"}


INIT = {"type": "system", "subtype": "init", "session_id": "s", "model": "claude-opus-4-1"}


def answer(text: str) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"type": "assistant", "message": {"id": text, "model": "claude-opus-4-1", "content": content}}


def refusal(category: str, text: str) -> dict[str, Any]:
    message = {"id": "x", "model": "<synthetic>", "content": [{"type": "text", "text": text}]}
    return {"type": "assistant", "message": message, "error": category, "is_api_error_message": True}


def result(**fields: Any) -> dict[str, Any]:
    return {"type": "result", "subtype": "success", "is_error": True, "api_error_status": None, "result": "", **fields}


def rejected(window: str | None, **fields: Any) -> dict[str, Any]:
    info = {"status": "rejected", **({"rateLimitType": window, "resetsAt": 1795400000} if window else {}), **fields}
    return {"type": "rate_limit_event", "rate_limit_info": info}


@pytest.mark.parametrize("trap", TRAPS)
def test_an_agents_own_words_are_never_a_limit(trap: str) -> None:
    tool = {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t", "content": trap}]}}
    good = told(INIT, answer(trap), tool, result(is_error=False, result=trap), code=0)
    assert (good.outcome, good.result) == ("completed", trap)
    assert told(INIT, answer(trap), tool, code=1).outcome == "failed"
    assert told(INIT, answer(trap), tool, result(subtype="error_during_execution", errors=["x"])).outcome == "failed"
    assert told(INIT, answer(trap), tool, result(api_error_status=400, result="API Error: 400 x")).outcome == "failed"
    assert told(INIT, answer(trap), tool, code=143).outcome == "crashed"


@pytest.mark.parametrize("case", ["oauth-limit-warning", "oauth-allowed"])
def test_windows_of_a_healthy_run_are_reported_and_no_failure(case: str) -> None:
    seen, ending = read(case)
    assert ending.outcome == "completed"
    used = (92.0, 40.0) if case == "oauth-limit-warning" else (10.0, 20.0)
    assert [event for event in seen if isinstance(event, Window)] == [
        Window("five_hour", FIVE_HOUR, used[0]),
        Window("seven_day", WEEK, used[1]),
    ]


def test_a_rejected_window_is_full_and_the_others_are_as_they_are() -> None:
    seen, ending = read("oauth-weekly-rejected")
    assert [event for event in seen if isinstance(event, Window)] == [
        Window("five_hour", FIVE_HOUR, 30.0),
        Window("seven_day", WEEK, 100.0),
    ]
    assert ending.window == Window("seven_day", WEEK, 100)


def test_a_window_of_one_family_of_models_names_the_model() -> None:
    _, ending = read("oauth-opus-rejected", model="claude-opus-4-1")
    assert ending.window == Window("seven_day_opus", WEEK, 100, "claude-opus-4-1")


def test_a_rejection_without_any_error_text_is_a_limit() -> None:
    window = Window("five_hour", FIVE_HOUR, 100)
    for ending in (told(INIT, rejected("five_hour"), result()), told(INIT, rejected("five_hour"))):
        assert (ending.outcome, ending.window) == ("quota_exhausted", window)
        assert ending.error and "rejected" in (ending.evidence or "")
    assert told(INIT, rejected(None)).outcome == "rate_limited"


def test_a_rejection_that_the_run_outlived_is_no_limit() -> None:
    overage = rejected("overage", isUsingOverage=True)
    assert told(INIT, overage, result(is_error=False, result="done"), code=0).outcome == "completed"
    allowed = {"type": "rate_limit_event", "rate_limit_info": {"status": "allowed"}}
    assert told(INIT, rejected("five_hour"), allowed, result()).outcome == "failed"
    assert told(INIT, rejected("five_hour"), result(api_error_status=500)).outcome == "overloaded"
    seen, _ = replay(
        reading(), [json.dumps(overage), json.dumps(rejected("five_hour", isUsingOverage=True))], Exit(0, "", "")
    )
    assert not [event for event in seen if isinstance(event, Window)]


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (result(api_error_status=408), "overloaded"),
        (result(api_error_status=529), "overloaded"),
        (result(api_error="connection_failed"), "network"),
        (result(api_error_status=402), "unauthenticated"),
        (result(api_error_status=413), "failed"),
        (result(api_error_status=400, result="Prompt is too long"), "context_overflow"),
        (result(subtype="error_max_turns"), "turn_limit"),
        (result(subtype="error_max_budget_usd"), "failed"),
        (result(result="You've hit your Opus limit · resets 2:13am (UTC)", api_error_status=429), "quota_exhausted"),
        ({"type": "result", "subtype": "success", "result": "done"}, "failed"),
    ],
)
def test_each_field_of_a_failed_result_has_its_outcome(event: dict[str, Any], outcome: str) -> None:
    assert told(INIT, event).outcome == outcome


def test_the_category_counts_of_the_last_message_only() -> None:
    assert told(INIT, refusal("rate_limit", "no"), result()).outcome == "rate_limited"
    assert told(INIT, refusal("rate_limit", "no"), answer("on I go"), result()).outcome == "failed"
    assert told(INIT, refusal("billing_error", "Credit balance is too low"), result()).outcome == "unauthenticated"


def test_nothing_but_a_result_is_a_success() -> None:
    assert told(code=0).outcome == "unknown"
    assert told(INIT, answer("done"), code=0).outcome == "unknown"


def test_the_transcript_holds_what_was_thought_said_and_done() -> None:
    seen, _ = read("thinking-tools")
    rows = [event for event in seen if isinstance(event, Said)]
    assert [row.kind for row in rows] == ["thinking", "text", "tool_call", "tool_result", "text"]
    assert [row.body for row in rows] == ["let me think", "I will list", "Bash: echo hi", "hi", "done"]
    call, back = rows[2].data or {}, rows[3].data or {}
    assert call["id"] == back["id"] and call["input"]["command"] == "echo hi" and back["is_error"] is False


@pytest.mark.parametrize("recording", RECORDINGS, ids=[recording.case for recording in RECORDINGS])
def test_what_the_tool_makes_up_is_no_proof_that_the_provider_answers(recording: Recording) -> None:
    seen, ending = replay(reading(), recording.lines, recording.exit)
    proof = [row for row in seen if isinstance(row, Said) and row.kind in ("text", "thinking", "tool_call")]
    answered = any('"id":"msg_' in line for line in recording.lines)
    assert bool(proof) == answered
    if ending.outcome in ("rate_limited", "quota_exhausted", "unauthenticated", "overloaded", "network"):
        assert not proof


def test_a_denied_tool_is_noted_once_and_the_run_succeeds() -> None:
    seen, ending = read("tool-write-default")
    assert ending.outcome == "completed"
    assert [row.body[:18] for row in seen if isinstance(row, Said) and row.kind == "note"] == ["Write was refused."]
    denial = {"tool_name": "Bash", "tool_use_id": "t", "tool_input": {"command": "rm -r x"}}
    events = [INIT, result(is_error=False, result="done", permission_denials=[denial])]
    seen, ending = replay(reading(), [json.dumps(event) for event in events], Exit(0, "", ""))
    assert Said("note", "Bash: rm -r x was refused.") in seen and ending.outcome == "completed"


def test_the_session_is_known_with_the_first_line_and_corrected_by_the_tool() -> None:
    new = reading()
    assert new.line("anything at all")[0] == Session(session_of(a_claim()))
    assert new.line(json.dumps(INIT)) == [Session("s")]
    assert reading(session_id="old").line("")[0] == Session("old")


def test_usage_grows_with_the_messages_and_counts_each_once() -> None:
    seen, _ = read("thinking-tools")
    growing = [event for event in seen if isinstance(event, Usage)]
    assert [(usage.input_tokens, usage.turns) for usage in growing] == [(1500, 1), (3000, 2), (3000, 2)]
    assert growing[-1].output_tokens == 100 and growing[-1].cost_usd is not None


def test_the_cost_of_a_session_is_not_counted_twice() -> None:
    model = {"claude-opus-4-1": {"costUSD": 0.5, "costBasis": "list"}}
    last = result(is_error=False, total_cost_usd=0.5, modelUsage=model)
    assert (told(INIT, last, code=0).usage or Usage()).cost_usd == 0.5
    resumed = told(INIT, last, code=0, session_id="s", session_usage={"cost_usd": 0.3}).usage
    assert resumed is not None and resumed.cost_usd == pytest.approx(0.2)  # pyright: ignore[reportUnknownMemberType]
    assert (told(INIT, last, code=0, session_id="s").usage or Usage()).cost_usd is None


def host(tmp_path: Path, **environ: str) -> dict[str, str]:
    """An environment with the tool and an empty home."""
    (tmp_path / "user").mkdir()
    return {**a_tool(tmp_path / "bin", "claude", "2.1.330 (Claude Code)"), "HOME": str(tmp_path / "user"), **environ}


def log_in(folder: Path, profile: Path, email: str | None) -> None:
    folder.mkdir(parents=True)
    (folder / ".credentials.json").write_text("{}")
    account = {"oauthAccount": {"emailAddress": email}} if email else {}
    profile.write_text(json.dumps({**account, "hasCompletedOnboarding": True, "projects": {"secret": 1}}))


def flag(argv: list[str], name: str) -> list[str]:
    """The values of a flag."""
    rest = argv[argv.index(name) + 1 :]
    return rest[: next((n for n, word in enumerate(rest) if word.startswith("--")), len(rest))]


def test_a_host_without_the_tool_says_so(tmp_path: Path) -> None:
    offer = Claude().probe({}, {"PATH": str(tmp_path), "HOME": str(tmp_path)})
    assert offer.state == "missing" and "claude" in (offer.detail or "")
    with pytest.raises(CannotRun, match="no claude"):
        Claude().prepare(a_run(tmp_path, {"PATH": str(tmp_path)}))


def test_a_host_without_a_login_says_what_to_do(tmp_path: Path) -> None:
    environ = host(tmp_path)
    offer = Claude().probe({}, environ)
    assert (offer.state, offer.version) == ("unauthenticated", "2.1.330") and "/login" in (offer.detail or "")
    offer = Claude().probe({"api_key_env": "MINE"}, {**environ, "ANTHROPIC_API_KEY": "k"})
    assert offer.state == "unauthenticated" and "MINE" in (offer.detail or "")
    with pytest.raises(CannotRun, match="/login"):
        Claude().prepare(a_run(tmp_path, environ))


@pytest.mark.parametrize(
    ("settings", "environ", "account", "passed"),
    [
        ({}, {"ANTHROPIC_API_KEY": "k", "CLAUDE_CODE_OAUTH_TOKEN": "t"}, "key:k", {"ANTHROPIC_API_KEY": "k"}),
        ({}, {"ANTHROPIC_AUTH_TOKEN": "t"}, "token:t", {"ANTHROPIC_AUTH_TOKEN": "t"}),
        ({}, {"CLAUDE_CODE_OAUTH_TOKEN": "t"}, "token:t", {"CLAUDE_CODE_OAUTH_TOKEN": "t"}),
        ({"api_key_env": "MINE"}, {"MINE": "k", "ANTHROPIC_API_KEY": "x"}, "key:k", {"ANTHROPIC_API_KEY": "k"}),
        (
            {"api_key_env": "A"},
            {"A": "sk-ant-oat01-t"},
            "token:sk-ant-oat01-t",
            {"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-t"},
        ),
    ],
)
def test_a_key_is_the_account_and_all_that_the_child_gets(
    tmp_path: Path, settings: dict[str, Any], environ: dict[str, str], account: str, passed: dict[str, str]
) -> None:
    kind, secret = account.split(":")
    run = a_run(tmp_path, host(tmp_path, **environ, UNRELATED="1"), settings=settings)
    offer = Claude().probe(settings, run.environ)
    assert (offer.state, offer.account) == ("ready", f"{kind}:{fingerprint(secret)}")
    env = Claude().prepare(run).env
    assert {name: value for name, value in env.items() if "KEY" in name or "TOKEN" in name} == passed
    assert "CLAUDE_SECURESTORAGE_CONFIG_DIR" not in env and "UNRELATED" not in env
    assert not list(run.home.iterdir())


@pytest.mark.parametrize("place", ["default", "variable", "setting"])
def test_a_login_stays_where_it_is_and_the_run_has_a_folder_of_its_own(tmp_path: Path, place: str) -> None:
    environ, settings = host(tmp_path), {}
    home = tmp_path / "user" / ".claude" if place == "default" else tmp_path / "login"
    if place == "variable":
        environ["CLAUDE_CONFIG_DIR"] = str(home)
    if place == "setting":
        settings = {"home": str(home)}
        environ |= {"ANTHROPIC_API_KEY": "another account's", "CLAUDE_CONFIG_DIR": "/nowhere"}
    log_in(home, tmp_path / "user" / ".claude.json" if place == "default" else home / ".claude.json", "me@example.org")
    assert Claude().probe(settings, environ).account == "me@example.org"
    run = a_run(tmp_path, environ, settings=settings)
    env = Claude().prepare(run).env
    assert env["CLAUDE_CONFIG_DIR"] == str(run.home) and env["CLAUDE_SECURESTORAGE_CONFIG_DIR"] == str(home)
    assert "ANTHROPIC_API_KEY" not in env
    known = json.loads((run.home / ".claude.json").read_text())
    assert known == {"oauthAccount": {"emailAddress": "me@example.org"}, "hasCompletedOnboarding": True}


def test_what_the_tool_wrote_into_the_runs_folder_stays(tmp_path: Path) -> None:
    environ = host(tmp_path)
    log_in(tmp_path / "user" / ".claude", tmp_path / "user" / ".claude.json", None)
    assert Claude().probe({}, environ).account == "login"
    run = a_run(tmp_path, environ)
    (run.home / ".claude.json").write_text('{"userID": "7"}')
    Claude().prepare(run)
    assert json.loads((run.home / ".claude.json").read_text()) == {"userID": "7", "hasCompletedOnboarding": True}


def test_logins_that_share_their_limits_can_share_a_name(tmp_path: Path) -> None:
    assert probe(Claude(), {"account": "the-team"}, host(tmp_path, ANTHROPIC_API_KEY="k")).account == "the-team"


def test_another_server_needs_no_login(tmp_path: Path) -> None:
    settings = {"base_url": "http://127.0.0.1:8080", "model": "qwen"}
    run = a_run(tmp_path, host(tmp_path, ANTHROPIC_API_KEY="not for strangers"), settings=settings)
    offer = Claude().probe(settings, run.environ)
    assert offer.state == "ready" and offer.account.endswith(":8080") and "127.0.0.1" not in offer.account
    env = Claude().prepare(run).env
    assert "ANTHROPIC_API_KEY" not in env and env["ANTHROPIC_AUTH_TOKEN"] == "local"
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8080"
    assert env["ANTHROPIC_MODEL"] == env["ANTHROPIC_DEFAULT_HAIKU_MODEL"] == "qwen"
    keyed = a_run(
        tmp_path, {**run.environ, "K": "s"}, settings={"base_url": "https://llm.example.org", "api_key_env": "K"}
    )
    assert Claude().prepare(keyed).env["ANTHROPIC_AUTH_TOKEN"] == "s"
    assert Claude().probe(keyed.claim.settings, keyed.environ).account.startswith("llm.example.org:443")


def prepared(tmp_path: Path, **claim: Any) -> list[str]:
    if not (tmp_path / "user").exists():
        host(tmp_path)
    environ = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "user"), "ANTHROPIC_API_KEY": "k"}
    return Claude().prepare(a_run(tmp_path, environ, **claim)).argv


def test_a_new_session_has_the_prompt_and_an_id_of_its_own(tmp_path: Path) -> None:
    run = a_run(
        tmp_path,
        host(tmp_path, ANTHROPIC_API_KEY="k"),
        settings={"retries": 2, "env": {"A": "b"}, "args": ["--effort", "low"]},
    )
    launch = Claude().prepare(run)
    assert launch.argv[:5] == [str(tmp_path / "bin" / "claude"), "-p", "--output-format", "stream-json", "--verbose"]
    assert launch.argv[-2:] == ["--effort", "low"] and "--strict-mcp-config" in launch.argv
    assert launch.stdin == b"Sweep the yard." and not any("Sweep" in word for word in launch.argv)
    assert flag(launch.argv, "--session-id") == [session_of(run.claim)] and "--resume" not in launch.argv
    assert session_of(run.claim) != session_of(a_claim(attempt_id=8))
    assert launch.env["CLAUDE_CODE_MAX_RETRIES"] == "2" and launch.env["A"] == "b"
    assert launch.env["DISABLE_AUTOUPDATER"] == "1" and "--model" not in launch.argv


def test_a_resumed_session_gets_the_note_instead_of_the_prompt(tmp_path: Path) -> None:
    run = a_run(tmp_path, host(tmp_path, ANTHROPIC_API_KEY="k"), session_id="abc", note="The host went down.")
    launch = Claude().prepare(run)
    assert flag(launch.argv, "--resume") == ["abc"] and "--session-id" not in launch.argv
    assert launch.stdin.startswith(b"The host went down.") and b"Sweep" not in launch.stdin


@pytest.mark.parametrize(
    ("permissions", "allowed", "denied"),
    [
        (["read", "write", "execute", "network"], {"Bash", "Monitor", "WebFetch", "WebSearch"}, set[str]()),
        (["read", "write"], set[str](), {"Bash", "Monitor", "WebFetch", "WebSearch"}),
        (["read", "execute"], {"Bash", "Monitor"}, {"Edit", "Write", "NotebookEdit", "WebFetch", "WebSearch"}),
        (["read", "network"], {"WebFetch", "WebSearch"}, {"Edit", "Write", "NotebookEdit", "Bash", "Monitor"}),
    ],
)
def test_what_is_not_permitted_is_taken_away(
    tmp_path: Path, permissions: list[str], allowed: set[str], denied: set[str]
) -> None:
    argv = prepared(tmp_path, permissions=permissions)
    assert ("acceptEdits" in argv) == ("write" in permissions)
    assert set(flag(argv, "--allowedTools") if "--allowedTools" in argv else []) == allowed
    assert set(flag(argv, "--disallowedTools") if "--disallowedTools" in argv else []) == denied


def test_an_agents_tools_are_all_that_it_has(tmp_path: Path) -> None:
    argv = prepared(tmp_path, tools=["Read", "Bash(git log, *)", "Write", "mcp__x__y"], permissions=["read", "execute"])
    assert flag(argv, "--tools") == ["Read,Bash"]
    assert flag(argv, "--allowedTools") == ["Read", "Bash(git log, *)", "mcp__x__y"]
    assert flag(prepared(tmp_path, tools=[]), "--tools") == [""]


def test_a_claims_wishes_become_flags(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    argv = prepared(
        tmp_path,
        model="opus",
        system_prompt="Be brief.",
        max_turns=3,
        output_schema=schema,
        settings={"model": "haiku"},
    )
    assert flag(argv, "--model") == ["opus"] and flag(argv, "--append-system-prompt") == ["Be brief."]
    assert flag(argv, "--max-turns") == ["3"] and json.loads(flag(argv, "--json-schema")[0]) == schema
    assert flag(prepared(tmp_path, settings={"model": "haiku"}), "--model") == ["haiku"]


def test_what_cannot_be_started_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="prompt"):
        prepared(tmp_path, prompt="x" * 10_000_001)
    with pytest.raises(CannotRun, match="argument"):
        prepared(tmp_path, system_prompt="x" * 131_072)
    with pytest.raises(CannotRun, match="retries"):
        prepared(tmp_path, settings={"retries": -1})
    with pytest.raises(BadSettings, match="colour"):
        Claude().probe({"colour": "red"}, {})
