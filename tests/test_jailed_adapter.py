"""What adapters ask for where the child is in a jail: addresses, logins that are shared, and programs."""

import json
import os
import stat
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.adapters import CannotRun, Run, Upstream
from taskyard.runner.adapters.claude import Claude
from taskyard.runner.adapters.codex import Codex
from taskyard.runner.adapters.codex_rollout import last_turn
from taskyard.runner.adapters.command import Command
from taskyard.runner.adapters.gemini import Gemini
from taskyard.runner.adapters.openai import OpenAI
from taskyard.runner.adapters.opencode import Opencode
from taskyard.runner.adapters.programs import command, installation, needed

from .qwen_example import QWEN
from .recorded import a_run, a_tool

GATEWAY = "http://127.0.0.1:3101"
REFRESHED = {"accessToken": "new", "refreshToken": "new"}


def a_jailed_run(tmp_path: Path, tool: str, environ: dict[str, str], **claim: Any) -> Run:
    host = {**a_tool(tmp_path / "bin", tool), "HOME": str(tmp_path / "user"), "TASKYARD_HOME": str(tmp_path / "yard")}
    return replace(a_run(tmp_path, {**host, **environ}, **claim), gateway=GATEWAY)


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def provider(argv: list[str]) -> dict[str, Any]:
    pairs = [argv[n + 1] for n, word in enumerate(argv) if word == "-c"]
    return tomllib.loads("\n".join(pairs)).get("model_providers", {}).get("taskyard", {})


@pytest.mark.parametrize(
    ("environ", "header", "told"),
    [
        ({"ANTHROPIC_API_KEY": "k"}, {"x-api-key": "k"}, ("ANTHROPIC_API_KEY", "sk-ant-api03-")),
        ({"ANTHROPIC_AUTH_TOKEN": "t"}, {"Authorization": "Bearer t"}, ("ANTHROPIC_AUTH_TOKEN", "sk-")),
        ({"CLAUDE_CODE_OAUTH_TOKEN": "t"}, {"Authorization": "Bearer t"}, ("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-")),
    ],
)
def test_claude_has_a_placeholder_of_the_same_kind(
    tmp_path: Path, environ: dict[str, str], header: dict[str, str], told: tuple[str, str]
) -> None:
    launch = Claude().prepare(a_jailed_run(tmp_path, "claude", environ))
    assert launch.upstream == Upstream("https://api.anthropic.com", header)
    name, beginning = told
    assert launch.env[name].startswith(beginning) and launch.env["ANTHROPIC_BASE_URL"] == GATEWAY
    assert launch.env["_CLAUDE_CODE_ASSUME_FIRST_PARTY_BASE_URL"] == "1"


def test_an_address_among_the_variables_is_where_the_gateway_leads(tmp_path: Path) -> None:
    settings = {"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9/a", "OTHER": "kept"}}
    launch = Claude().prepare(a_jailed_run(tmp_path, "claude", {"ANTHROPIC_API_KEY": "k"}, settings=settings))
    assert launch.upstream == Upstream("http://127.0.0.1:9/a", {"x-api-key": "k"})
    assert (launch.env["ANTHROPIC_BASE_URL"], launch.env["OTHER"]) == (GATEWAY, "kept")
    assert "_CLAUDE_CODE_ASSUME_FIRST_PARTY_BASE_URL" not in launch.env
    settings = {"env": {"GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9/g"}}
    launch = Gemini().prepare(a_jailed_run(tmp_path, "gemini", {"GEMINI_API_KEY": "k"}, settings=settings))
    assert launch.upstream == Upstream("http://127.0.0.1:9/g", {"x-goog-api-key": "k"})
    assert launch.env["GOOGLE_GEMINI_BASE_URL"] == GATEWAY


def test_the_path_of_an_address_is_the_gateways_and_not_the_childs(tmp_path: Path) -> None:
    settings = {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "K", "model": "m"}
    upstream = Upstream("http://127.0.0.1:9/v1", {"Authorization": "Bearer k"})
    launch = Codex().prepare(a_jailed_run(tmp_path, "codex", {"K": "k"}, settings=settings))
    assert (launch.upstream, provider(launch.argv)["base_url"]) == (upstream, GATEWAY)
    launch = Opencode().prepare(a_jailed_run(tmp_path, "opencode", {"K": "k"}, settings=settings))
    configured = json.loads(launch.env["OPENCODE_CONFIG_CONTENT"])["provider"]["local"]["options"]
    assert (launch.upstream, configured["baseURL"], configured["apiKey"]) == (upstream, GATEWAY, "{env:K}")
    launch = OpenAI().prepare(a_jailed_run(tmp_path, "none", {"K": "k"}, settings=settings))
    document = json.loads(launch.stdin)
    assert (launch.upstream, document["url"], document["key_env"]) == (upstream, f"{GATEWAY}/chat/completions", None)
    launch = QWEN.prepare(a_jailed_run(tmp_path, "qwen", {"K": "k"}, settings=settings))
    assert (launch.upstream, launch.env["OPENAI_BASE_URL"]) == (upstream, GATEWAY)


def test_a_key_in_codexs_login_becomes_the_gateways(tmp_path: Path) -> None:
    written(tmp_path / "user" / ".codex" / "auth.json", {"OPENAI_API_KEY": "k"})
    run = a_jailed_run(tmp_path, "codex", {})
    launch = Codex().prepare(run)
    assert launch.upstream == Upstream("https://api.openai.com/v1", {"Authorization": "Bearer k"})
    assert provider(launch.argv)["env_key"] == "CODEX_API_KEY" and "requires_openai_auth" not in provider(launch.argv)
    assert not (run.home / "auth.json").is_symlink() and not (tmp_path / "yard").exists()


def test_in_a_jail_codex_has_no_sandbox_of_its_own(tmp_path: Path) -> None:
    for claim in ({}, {"session_id": "s"}):
        argv = Codex().prepare(a_jailed_run(tmp_path, "codex", {"CODEX_API_KEY": "k"}, **claim)).argv
        rest = argv[argv.index("exec") + 1 :]
        assert rest[0] == "--dangerously-bypass-approvals-and-sandbox" and "--sandbox" not in rest
        assert ("resume" in rest) == bool(claim)
        assert not any("sandbox_workspace_write" in word for word in argv)


@pytest.mark.parametrize(("permissions", "search"), [(["read"], False), (["read", "execute"], True)])
def test_tools_that_start_a_program_go_with_the_permission_to(
    tmp_path: Path, permissions: list[str], search: bool
) -> None:
    run = a_jailed_run(tmp_path, "claude", {"ANTHROPIC_API_KEY": "k"}, permissions=permissions)
    assert ("Grep" not in Claude().prepare(run).argv) == search
    run = a_jailed_run(tmp_path, "opencode", {}, permissions=permissions, settings={"model": "m"})
    rules = json.loads(Opencode().prepare(run).env["OPENCODE_CONFIG_CONTENT"])["permission"]
    assert (rules.get("grep") != "deny") == search and rules.get("read") != "deny"


def test_claudes_login_is_a_copy_that_comes_back_when_it_was_refreshed(tmp_path: Path) -> None:
    own = written(tmp_path / "user" / ".claude" / ".credentials.json", {"claudeAiOauth": {"accessToken": "old"}})
    run = a_jailed_run(tmp_path, "claude", {})
    launch = Claude().prepare(run)
    (stage,) = launch.shared
    assert stage.parent == tmp_path / "yard" / "logins" and stage.stat().st_mode & 0o777 == 0o700
    assert launch.env["CLAUDE_SECURESTORAGE_CONFIG_DIR"] == str(stage)
    assert launch.upstream == Upstream("https://api.anthropic.com") and launch.env["ANTHROPIC_BASE_URL"] == GATEWAY
    assert set(launch.hosts) >= {"platform.claude.com", "console.anthropic.com"}
    assert str(tmp_path / "user") not in json.dumps([launch.argv, launch.env, [str(p) for p in launch.programs]])
    # As the tool does it: by a file that takes the place of the other.
    os.replace(written(stage / ".new", {"claudeAiOauth": REFRESHED}), stage / ".credentials.json")
    Claude().settle(run)
    assert json.loads(own.read_text()) == {"claudeAiOauth": REFRESHED}
    another = replace(run, home=tmp_path / "another")
    assert Claude().prepare(another).shared == (stage,)


def test_the_note_of_who_is_logged_in_follows_no_link(tmp_path: Path) -> None:
    written(tmp_path / "user" / ".claude" / ".credentials.json", {})
    written(tmp_path / "user" / ".claude.json", {"oauthAccount": {"emailAddress": "me@example.org"}})
    victim = written(tmp_path / "victim", '{"precious": 1}')
    run = a_jailed_run(tmp_path, "claude", {})
    (run.home / ".claude.json").symlink_to(victim)
    Claude().prepare(run)
    assert victim.read_text() == '{"precious": 1}'
    assert "precious" not in (run.home / ".claude.json").read_text()
    assert "me@example.org" in (run.home / ".claude.json").read_text()
    assert stat.S_IMODE((run.home / ".claude.json").lstat().st_mode) == 0o600


def test_codexs_login_is_a_link_to_a_copy_and_stays_its_accounts(tmp_path: Path) -> None:
    def auth(account: str, token: str) -> dict[str, Any]:
        return {"OPENAI_API_KEY": None, "tokens": {"account_id": account, "refresh_token": token}}

    own = written(tmp_path / "user" / ".codex" / "auth.json", auth("a", "old"))
    run = a_jailed_run(tmp_path, "codex", {})
    launch = Codex().prepare(run)
    (stage,) = launch.shared
    assert (run.home / "auth.json").readlink() == stage / "auth.json"
    assert launch.upstream is None and set(launch.hosts) == {"chatgpt.com", "auth.openai.com"}
    written(run.home / "auth.json", auth("a", "new"))
    Codex().settle(run)
    assert json.loads(own.read_text()) == auth("a", "new")
    for theirs in (auth("b", "new"), {**auth("a", "new"), "OPENAI_API_KEY": "theirs"}):
        written(run.home / "auth.json", theirs)
        Codex().settle(run)
        assert json.loads(own.read_text()) == auth("a", "new")


def test_a_google_accounts_files_are_links_to_copies(tmp_path: Path) -> None:
    folder = tmp_path / "user" / ".gemini"
    own = written(folder / "oauth_creds.json", {"access_token": "old"})
    written(folder / "google_accounts.json", {"active": "me@example.org"})
    run = a_jailed_run(tmp_path, "gemini", {})
    launch = Gemini().prepare(run)
    (stage,) = launch.shared
    for name in ("oauth_creds.json", "google_accounts.json"):
        assert (run.home / ".gemini" / name).readlink() == stage / name
    assert launch.upstream == Upstream("https://cloudcode-pa.googleapis.com")
    assert launch.env["CODE_ASSIST_ENDPOINT"] == GATEWAY and "oauth2.googleapis.com" in launch.hosts
    written(run.home / ".gemini" / "oauth_creds.json", {"access_token": "new"})
    written(run.home / ".gemini" / "google_accounts.json", {"active": "you@example.org"})
    Gemini().settle(run)
    assert json.loads(own.read_text()) == {"access_token": "new"}
    assert Gemini().probe({}, run.environ).account == "me@example.org"


@pytest.mark.parametrize("named", [True, False])
def test_vertex_ai_has_a_copy_of_its_credentials_and_googles_hosts(tmp_path: Path, named: bool) -> None:
    default = tmp_path / "user" / ".config" / "gcloud" / "application_default_credentials.json"
    signed = written(tmp_path / "keys" / "robot.json" if named else default, {"private_key": "k"})
    written(signed.parent / "another.json", {"private_key": "not for this run"})
    variables = {"GOOGLE_GENAI_USE_VERTEXAI": "true", "GOOGLE_CLOUD_PROJECT": "p", "GOOGLE_CLOUD_LOCATION": "l"}
    run = a_jailed_run(
        tmp_path, "gemini", {**variables, **({"GOOGLE_APPLICATION_CREDENTIALS": str(signed)} if named else {})}
    )
    launch = Gemini().prepare(run)
    (stage,) = launch.shared
    assert launch.env["GOOGLE_APPLICATION_CREDENTIALS"] == str(stage / signed.name)
    assert [path.name for path in stage.iterdir()] == [signed.name]
    assert (launch.upstream, launch.hosts) == (None, ("*.googleapis.com",))
    assert variables.items() <= launch.env.items()


def test_a_login_that_cannot_be_copied_is_told(tmp_path: Path) -> None:
    written(tmp_path / "user" / ".claude" / ".credentials.json", "x" * 100_000)
    with pytest.raises(CannotRun, match="cannot be shared"):
        Claude().prepare(a_jailed_run(tmp_path, "claude", {}))


def test_a_session_file_is_read_only_where_it_is_one(tmp_path: Path) -> None:
    def turn(model: str) -> str:
        return json.dumps({"type": "turn_context", "payload": {"model": model}})

    secret = written(tmp_path / "secret", turn("secret"))
    home = tmp_path / "home"
    written(home / "sessions" / "2026" / "11" / "22" / "rollout-1-t.jsonl", turn("real"))
    (home / "sessions" / "2026" / "11" / "22" / "rollout-9-t.jsonl").symlink_to(secret)
    (home / "sessions" / "2026" / "11" / "23").mkdir()
    os.mkfifo(home / "sessions" / "2026" / "11" / "23" / "rollout-1-t.jsonl")
    os.link(secret, home / "sessions" / "2026" / "11" / "23" / "rollout-2-t.jsonl")
    (home / "sessions" / "2026" / "12").symlink_to(tmp_path / "elsewhere")
    written(tmp_path / "elsewhere" / "01" / "rollout-1-t.jsonl", turn("secret"))
    before = len(os.listdir("/proc/self/fd"))
    assert last_turn(home, "t").model == "real"
    assert last_turn(home, "unknown").model is None
    assert len(os.listdir("/proc/self/fd")) == before


def script(path: Path, line: str) -> Path:
    written(path, f"{line}\n").chmod(0o755)
    return path


def test_a_tool_of_npm_is_its_packages_and_is_started_by_its_interpreter(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "node_modules"
    program = script(packages / "tool" / "node_modules" / "inner" / "cli.js", "#!/usr/bin/env node")
    launcher = tmp_path / "bin" / "tool"
    launcher.parent.mkdir()
    launcher.symlink_to(program)
    node = script(tmp_path / "versions" / "v22" / "bin" / "node", "")
    (tmp_path / "versions" / "v22" / "include" / "node").mkdir(parents=True)
    words = command(str(launcher), {"PATH": str(node.parent)})
    assert words == [str(node), str(program)]
    assert needed(words) == (tmp_path / "versions" / "v22", packages)
    assert command(
        str(script(packages / "flags.js", "#!/usr/bin/env -S node --no-warnings")), {"PATH": str(node.parent)}
    ) == [
        str(node),
        "--no-warnings",
        str(packages / "flags.js"),
    ]


def test_a_lone_program_is_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    real = written(tmp_path / ".local" / "share" / "tool" / "2.1", "\x7fELF")
    shortcut = tmp_path / ".local" / "bin" / "tool"
    shortcut.parent.mkdir()
    shortcut.symlink_to(real)
    assert command(str(shortcut), {}) == [str(real)] and installation(str(shortcut)) == (real,)
    for prefix in (tmp_path, tmp_path / ".local"):
        node = written(prefix / "bin" / "node", "\x7fELF")
        (prefix / "include" / "node").mkdir(parents=True)
        assert installation(str(node)) == (node,)
        written(prefix / "pyvenv.cfg", "")
    assert installation(str(tmp_path / "bin" / "node")) == (tmp_path / "bin" / "node",)


def test_what_came_with_the_system_needs_nothing_and_keeps_its_name() -> None:
    assert command("/bin/sh", {}) == ["/bin/sh"] and needed(["/bin/sh", "-c", "ls"]) == ()


def test_a_python_environment_keeps_its_path_and_brings_its_interpreter(tmp_path: Path) -> None:
    base = tmp_path / "pythons" / "3.11"
    python = written(base / "bin" / "python3.11", "\x7fELF")
    (base / "lib" / "python3.11").mkdir(parents=True)
    environment = tmp_path / "project" / ".venv"
    written(environment / "pyvenv.cfg", "")
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to(python)
    words = command(str(environment / "bin" / "python"), {})
    assert words == [str(environment / "bin" / "python")]
    assert needed(words) == (environment, base)
    (tmp_path / "shortcut").symlink_to(tmp_path / "project")
    assert command(str(tmp_path / "shortcut" / ".venv" / "bin" / "python"), {}) == words


def test_codex_installed_without_npm_is_seen_with_its_helpers(tmp_path: Path) -> None:
    program = written(tmp_path / "opt" / "codex" / "bin" / "codex", "\x7fELF")
    program.chmod(0o755)
    written(tmp_path / "opt" / "codex" / "codex-package.json", {})
    settings = {"executable": str(program)}
    launch = Codex().prepare(a_jailed_run(tmp_path, "codex", {"CODEX_API_KEY": "k"}, settings=settings))
    assert (launch.argv[0], launch.programs) == (str(program), (tmp_path / "opt" / "codex",))


def test_a_command_is_seen_wherever_this_host_has_it(tmp_path: Path) -> None:
    sweep = script(tmp_path / "tools" / "sweep", "#!/bin/sh")
    run = a_jailed_run(tmp_path, "sweeper", {}, command=[str(sweep), "{task_id}"])
    launch = Command().prepare(run)
    assert (launch.argv, launch.programs) == (["/bin/sh", str(sweep), "3"], (sweep,))
    by_name = replace(run, claim=replace(run.claim, command=["sweeper"]))
    assert Command().prepare(by_name).programs == (tmp_path / "bin" / "sweeper",)
    script(run.workspace / "own.sh", "#!/bin/sh")
    for name in (str(run.workspace / "own.sh"), "./own.sh", "no-such-command"):
        launch = Command().prepare(replace(run, claim=replace(run.claim, command=[name])))
        assert (launch.argv, launch.programs) == ([name], ())


def test_the_chat_program_needs_no_more_than_its_file_and_its_python(tmp_path: Path) -> None:
    launch = OpenAI().prepare(a_jailed_run(tmp_path, "none", {}))
    python, isolated, source = launch.argv
    assert (os.path.realpath(python), isolated) == (os.path.realpath(sys.executable), "-I") and source.endswith(
        "chat.py"
    )
    places = [Path("/usr"), *launch.programs]
    for wanted in (Path(source), Path(python), Path(os.path.realpath(python))):
        assert any(wanted.is_relative_to(place) for place in places)
    assert Path.home() not in launch.programs and Path(__file__).parent.parent not in launch.programs
