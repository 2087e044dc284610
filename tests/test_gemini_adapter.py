"""The adapter for Gemini CLI: what it starts, whom it logs in as, and how it reads recorded runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskyard.runner.adapters import BadSettings, CannotRun, Exit, Said, Session
from taskyard.runner.adapters.gemini import Gemini
from taskyard.runner.adapters.tools import fingerprint

from .recorded import Recording, a_run, a_tool, assert_as_expected, read_all, recordings, replay

GEMINI = Gemini()
RECORDED = recordings("gemini")
KEY = {"GEMINI_API_KEY": "a-key"}
OVERFED = (
    "429 RESOURCE_EXHAUSTED: I generate and iterate; rate limit! You have exhausted your daily quota on this model."
)


def case(name: str) -> Recording:
    return next(r for r in RECORDED if r.case == name)


def configured(home: Path, environ: dict[str, str] | None = None, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """The launch, and the settings.json that goes with it."""
    run = a_run(home, {**a_tool(home / "bin", "gemini"), **(KEY if environ is None else environ)}, **changes)
    launch = GEMINI.prepare(run)
    return launch, json.loads((run.home / ".gemini" / "settings.json").read_text())


@pytest.mark.parametrize("recording", RECORDED, ids=lambda r: r.case)
def test_recorded_run_ends_as_it_really_ended(recording: Recording, tmp_path: Path) -> None:
    _, ending = read_all(GEMINI, recording, tmp_path)
    assert_as_expected(ending, recording.expect)
    assert ending.exit_code == recording.code
    assert (ending.error is None) == (ending.outcome == "completed")


def test_first_line_tells_the_session(tmp_path: Path) -> None:
    reading = GEMINI.read(a_run(tmp_path))
    assert reading.line(case("success-stream-json").lines[0]) == [Session("6f1da01f-f986-4f7c-acc0-a3dd88470be4")]


def test_transcript_has_calls_and_results_but_not_the_prompt_again(tmp_path: Path) -> None:
    seen, _ = read_all(GEMINI, case("tool-write-default"), tmp_path)
    rows = [s for s in seen if isinstance(s, Said)]
    assert [row.kind for row in rows] == ["tool_call", "tool_result", "text"]
    assert rows[0].body == "write_file: /home/user/work/out.txt"
    assert rows[1].data is not None and rows[1].data["is_error"] is True
    assert rows[2].body == "done"


def test_result_is_what_was_said_after_the_last_tool(tmp_path: Path) -> None:
    recording = case("tool-write-auto_edit")
    before = json.dumps({"type": "message", "role": "assistant", "content": "I will write a file.", "delta": True})
    lines = [*recording.lines[:2], before, *recording.lines[2:]]
    seen, ending = replay(GEMINI.read(a_run(tmp_path)), lines, recording.exit)
    assert ending.result == "done"
    assert [s.body for s in seen if isinstance(s, Said) and s.kind == "text"] == ["I will write a file.", "done"]


@pytest.mark.parametrize(
    "name", ["success-stream-json", "stream-cut", "notfound404", "sigkill-during-tool", "e503-attempts1"]
)
def test_words_of_the_agent_never_make_a_limit(name: str, tmp_path: Path) -> None:
    recording = case(name)
    words = [
        json.dumps({"type": "message", "role": "assistant", "content": OVERFED, "delta": True}),
        json.dumps({"type": "tool_result", "tool_id": "1", "status": "error", "output": f"[API Error: {OVERFED}]"}),
        json.dumps({"type": "message", "role": "assistant", "content": OVERFED, "delta": True}),
    ]
    lines = [*recording.lines[:2], *words, *recording.lines[2:]]
    ended = replace(recording.exit, stderr=f"{recording.stderr}\nError executing tool run_shell_command: {OVERFED}\n")
    _, ending = replay(GEMINI.read(a_run(tmp_path)), lines, ended)
    assert ending.outcome == recording.expect["outcome"]
    assert ending.window is None


def test_warning_alone_does_not_fail_a_run(tmp_path: Path) -> None:
    recording = case("success-stream-json")
    warning = json.dumps({"type": "error", "severity": "warning", "message": "Something odd"})
    _, ending = replay(
        GEMINI.read(a_run(tmp_path)), [*recording.lines[:2], warning, *recording.lines[2:]], recording.exit
    )
    assert ending.outcome == "completed"


def test_severe_error_fails_a_run_that_calls_itself_successful(tmp_path: Path) -> None:
    recording = case("success-stream-json")
    severe = json.dumps({"type": "error", "severity": "error", "message": "Blocked for safety"})
    _, ending = replay(
        GEMINI.read(a_run(tmp_path)), [*recording.lines[:2], severe, *recording.lines[2:]], recording.exit
    )
    assert (ending.outcome, ending.error) == ("failed", "Gemini CLI stopped: Blocked for safety")


def test_reset_of_a_google_accounts_quota_is_read_from_its_sentence(tmp_path: Path) -> None:
    recording = case("daily-quota")
    lines = recording.lines
    result = json.loads(lines[-1])
    sentence = "You have exhausted your capacity on this model. Your quota will reset after 2h3m4s."
    result["error"]["message"] = f"[API Error: {sentence}]"
    _, ending = replay(GEMINI.read(a_run(tmp_path)), [*lines[:-1], json.dumps(result)], recording.exit)
    assert ending.outcome == "quota_exhausted"
    assert ending.window is not None and ending.window.resets_at is not None
    assert ending.window.resets_at.isoformat() == "2026-11-22T18:48:29.541000+00:00"


@pytest.mark.parametrize("text", ['{"left": 2}', '```json\n{"left": 2}\n```'])
def test_json_answer_is_the_result(text: str, tmp_path: Path) -> None:
    assert answered(text, tmp_path).result == {"left": 2}


def test_answer_that_is_no_json_fails_where_a_schema_was_given(tmp_path: Path) -> None:
    ending = answered("Here it is: 2", tmp_path)
    assert ending.outcome == "failed"
    assert str(ending.error).startswith("The answer is not the JSON value asked for")


def answered(text: str, home: Path) -> Any:
    recording = case("success-stream-json")
    answer = json.dumps({"type": "message", "role": "assistant", "content": text, "delta": True})
    reading = GEMINI.read(a_run(home, output_schema={"type": "object"}))
    return replay(reading, [*recording.lines[:2], answer, recording.lines[3]], recording.exit)[1]


def test_new_session_has_an_id_of_its_attempt(tmp_path: Path) -> None:
    launch, settings = configured(tmp_path, model="gemini-2.5-flash")
    assert launch.argv[0] == str(tmp_path / "bin" / "gemini")
    assert launch.argv[1:5] == ["-o", "stream-json", "-m", "gemini-2.5-flash"]
    first = launch.argv[launch.argv.index("--session-id") + 1]
    again, _ = configured(tmp_path, attempt_id=7)
    other, _ = configured(tmp_path, attempt_id=8)
    assert str(UUID(first)) == first
    assert first in again.argv and first not in other.argv
    assert launch.stdin == b"Sweep the yard."
    assert launch.env["GEMINI_CLI_HOME"] == str(tmp_path / "home")
    assert launch.env["GEMINI_CLI_NO_RELAUNCH"] == "true"
    assert Path(launch.env["TMPDIR"]).is_dir()
    assert settings["general"] == {"enableAutoUpdate": False, "maxAttempts": 1}


def test_resumed_session_gets_the_note_alone(tmp_path: Path) -> None:
    launch, _ = configured(tmp_path, session_id="6f1da01f", note="You were cut off.", system_prompt="You sweep.")
    assert launch.argv[launch.argv.index("--resume") + 1] == "6f1da01f"
    assert "--session-id" not in launch.argv
    assert launch.stdin.startswith(b"You were cut off.")
    assert b"You sweep." not in launch.stdin


@pytest.mark.parametrize(
    ("permissions", "mode", "excluded"),
    [
        (["read", "write", "execute", "network"], "yolo", []),
        (["read", "write", "execute"], "yolo", ["web_fetch", "google_web_search"]),
        (["read", "execute", "network"], "yolo", ["write_file", "replace"]),
        (["read", "write", "network"], "auto_edit", ["run_shell_command"]),
        (
            ["read"],
            "default",
            ["write_file", "replace", "run_shell_command", "web_fetch", "google_web_search"],
        ),
    ],
)
def test_tool_gets_no_more_than_the_scope_allows(
    permissions: list[str], mode: str, excluded: list[str], tmp_path: Path
) -> None:
    launch, settings = configured(tmp_path, permissions=permissions)
    assert launch.argv[launch.argv.index("--approval-mode") + 1] == mode
    assert settings["tools"]["exclude"] == excluded


def test_agents_tools_turns_and_retries_go_into_the_settings(tmp_path: Path) -> None:
    _, settings = configured(tmp_path, tools=["read_file"], max_turns=4, settings={"retries": 2})
    assert settings["tools"]["core"] == ["read_file"]
    assert settings["model"] == {"maxSessionTurns": 4}
    assert settings["general"]["maxAttempts"] == 3


def test_system_prompt_and_schema_surround_the_prompt(tmp_path: Path) -> None:
    launch, _ = configured(tmp_path, system_prompt="You sweep.", output_schema={"type": "object"})
    text = launch.stdin.decode()
    assert text.index("You sweep.") < text.index("Sweep the yard.") < text.index('{"type": "object"}')


def test_prompt_that_the_tool_would_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match="8 MiB"):
        configured(tmp_path, prompt="x" * (8 << 20) + "x")


def test_key_reaches_the_child_and_the_account_is_its_fingerprint(tmp_path: Path) -> None:
    environ = {**a_tool(tmp_path / "bin", "gemini"), "MINE": "my-key", **KEY}
    offer = GEMINI.probe({"api_key_env": "MINE"}, environ)
    assert (offer.state, offer.account) == ("ready", f"key:{fingerprint('my-key')}")
    launch, settings = configured(tmp_path, environ, settings={"api_key_env": "MINE"})
    assert launch.env["GEMINI_API_KEY"] == "my-key"
    assert settings["security"] == {"auth": {"selectedType": "gemini-api-key"}}


def test_vendors_key_is_not_sent_to_another_server(tmp_path: Path) -> None:
    launch, _ = configured(tmp_path, settings={"base_url": "http://models.example:81"})
    assert launch.env["GOOGLE_GEMINI_BASE_URL"] == "http://models.example:81"
    assert "a-key" not in launch.env.values()
    offer = GEMINI.probe({"base_url": "http://models.example:81"}, a_tool(tmp_path / "bin", "gemini"))
    assert (offer.state, offer.account) == ("ready", "models.example:81")


def test_google_accounts_files_are_linked_and_the_account_is_its_address(tmp_path: Path) -> None:
    folder = tmp_path / "login"
    folder.mkdir()
    (folder / "oauth_creds.json").write_text("{}")
    (folder / "google_accounts.json").write_text('{"active": "ann@example.org", "old": []}')
    offer = GEMINI.probe({"home": str(folder)}, a_tool(tmp_path / "bin", "gemini"))
    assert (offer.state, offer.account) == ("ready", "ann@example.org")
    launch, settings = configured(tmp_path, {}, settings={"home": str(folder)})
    link = tmp_path / "home" / ".gemini" / "oauth_creds.json"
    assert link.is_symlink() and link.resolve() == folder / "oauth_creds.json"
    assert settings["security"]["auth"]["selectedType"] == "oauth-personal"
    assert "GEMINI_API_KEY" not in launch.env
    configured(tmp_path, KEY)
    assert not link.is_symlink()


@pytest.mark.parametrize("variable", ["HOME", "GEMINI_CLI_HOME"])
def test_login_is_looked_for_where_the_tool_itself_looks(variable: str, tmp_path: Path) -> None:
    (tmp_path / ".gemini").mkdir()
    (tmp_path / ".gemini" / "oauth_creds.json").write_text("{}")
    offer = GEMINI.probe({}, {**a_tool(tmp_path / "bin", "gemini"), variable: str(tmp_path)})
    assert (offer.state, offer.account) == ("ready", "login")


def test_vertex_ai_gets_its_variables(tmp_path: Path) -> None:
    environ = {
        "GOOGLE_GENAI_USE_VERTEXAI": "true",
        "GOOGLE_CLOUD_PROJECT": "yard-1",
        "GOOGLE_CLOUD_LOCATION": "x",
        **KEY,
    }
    assert GEMINI.probe({}, {**a_tool(tmp_path / "bin", "gemini"), **environ}).account == "yard-1"
    launch, settings = configured(tmp_path, environ)
    assert launch.env["GOOGLE_CLOUD_LOCATION"] == "x" and "GEMINI_API_KEY" not in launch.env
    assert settings["security"]["auth"]["selectedType"] == "vertex-ai"


def test_host_without_the_tool_or_without_a_login_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert GEMINI.probe({}, {"PATH": str(tmp_path / "empty"), **KEY}).state == "missing"
    environ = a_tool(tmp_path / "bin", "gemini", "0.61.0")
    offer = GEMINI.probe({}, {**environ, "HOME": str(tmp_path)})
    assert (offer.state, offer.version) == ("unauthenticated", "0.61.0")
    assert GEMINI.probe({"api_key_env": "MINE"}, {**environ, **KEY}).state == "unauthenticated"
    with pytest.raises(CannotRun, match="no login"):
        configured(tmp_path, {})
    with pytest.raises(BadSettings, match="speed"):
        GEMINI.probe({"speed": 3}, environ)


def test_signal_is_a_crash_even_with_an_answer_begun(tmp_path: Path) -> None:
    recording = case("success-stream-json")
    _, ending = replay(GEMINI.read(a_run(tmp_path)), recording.lines[:3], Exit(-9, "", ""))
    assert (ending.outcome, ending.session_id) == ("crashed", "6f1da01f-f986-4f7c-acc0-a3dd88470be4")


def test_workspace_whose_settings_can_run_commands_needs_a_scope_that_may_execute(tmp_path: Path) -> None:
    (tmp_path / "workspace" / ".gemini").mkdir(parents=True)
    (tmp_path / "workspace" / ".gemini" / "settings.json").write_text('{"hooksConfig": {"enabled": true}}')
    with pytest.raises(CannotRun, match="scope"):
        configured(tmp_path, permissions=["read", "write", "network"])
    configured(tmp_path)
