"""The stand-in for the vendors' APIs is true enough for the vendors' own tools: they take it for the real thing.

What the tools print is what they print against the real servers, as far as that is known. Every tool runs in a clean
environment with made-up keys.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import until
from tests.stand_in import (
    Account,
    StandIn,
    Tokens,
    cut,
    overloaded,
    rate_limited,
    run_command,
    silent,
    slow,
    stalled,
    structured,
    text,
    usage_limit,
    write_file,
)
from tests.vendor_tools import TOOLS, tool

DEADLINE = 90.0  # seconds; on an idle machine the slowest run takes 12
KEYS = {"claude": "sk-ant-oat01-made-up", "codex": "sk-made-up", "gemini": "made-up", "opencode": "sk-made-up"}
MAY_WRITE = {
    "claude": ("--permission-mode", "acceptEdits", "--allowedTools", "Bash"),
    "codex": ("--sandbox", "danger-full-access"),
    "gemini": ("--yolo",),
    "opencode": (),
}


@dataclass(frozen=True, slots=True)
class Ran:
    """The events that a tool printed, and how it ended."""

    code: int
    events: list[dict[str, Any]]

    def last(self, kind: str) -> dict[str, Any]:
        return [event for event in self.events if event["type"] == kind][-1]


class Desk:
    """A home, a workspace and a temporary folder for tools, and nothing of this machine's logins."""

    def __init__(self, root: Path) -> None:
        self.home, self.workspace, self.tmp = root / "home", root / "workspace", root / "tmp"
        self.running: list[Running] = []
        for folder in (self.home, self.home / ".gemini", self.home / ".codex", self.workspace, self.tmp):
            folder.mkdir()
        settings = {
            "security": {"auth": {"selectedType": "gemini-api-key"}},
            "privacy": {"usageStatisticsEnabled": False},
            "general": {"enableAutoUpdate": False, "maxAttempts": 1},
        }
        (self.home / ".gemini" / "settings.json").write_text(json.dumps(settings))

    def start(self, name: str, account: Account, prompt: str, *flags: str, model: str | None = None) -> "Running":
        """Start the tool at an account's address."""
        argv, variables = getattr(self, f"_{name}")(account.url, flags, model)
        executable = tool(name)
        path = os.pathsep.join([str(Path(shutil.which("node") or "node").parent), "/usr/bin", "/bin"])
        environ = {"PATH": path, "HOME": str(self.home), "TMPDIR": str(self.tmp), "TZ": "UTC", **variables}
        self.running.append(Running([str(executable), *argv], prompt, self.workspace, environ))
        return self.running[-1]

    def run(self, name: str, account: Account, prompt: str, *flags: str, model: str | None = None) -> Ran:
        """Run the tool until its end."""
        return self.start(name, account, prompt, *flags, model=model).end()

    def _claude(self, url: str, flags: tuple[str, ...], model: str | None) -> tuple[list[str], dict[str, str]]:
        argv = ["-p", "--output-format", "stream-json", "--verbose", "--model", model or "claude-sonnet-4-5", *flags]
        return argv, {
            "ANTHROPIC_BASE_URL": url,
            "CLAUDE_CODE_OAUTH_TOKEN": KEYS["claude"],
            "CLAUDE_CONFIG_DIR": str(self.home / ".claude"),
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }

    def _codex(self, url: str, flags: tuple[str, ...], model: str | None) -> tuple[list[str], dict[str, str]]:
        config = {
            "model_provider": '"vendor"',
            "model_providers.vendor.name": '"vendor"',
            "model_providers.vendor.base_url": f'"{url}/v1"',
            "model_providers.vendor.env_key": '"VENDOR_KEY"',
            "model_providers.vendor.wire_api": '"responses"',
            "model_providers.vendor.request_max_retries": "0",
            "model_providers.vendor.stream_max_retries": "0",
            "analytics.enabled": "false",
            "check_for_update_on_startup": "false",
        }
        options = [part for name, value in config.items() for part in ("-c", f"{name}={value}")]
        argv = ["exec", *flags, "--json", "--skip-git-repo-check", "-m", model or "gpt-5.5", *options, "-"]
        return argv, {"VENDOR_KEY": KEYS["codex"], "CODEX_HOME": str(self.home / ".codex")}

    def _gemini(self, url: str, flags: tuple[str, ...], model: str | None) -> tuple[list[str], dict[str, str]]:
        return ["-m", model or "gemini-2.5-flash", "-o", "stream-json", "--skip-trust", *flags], {
            "GOOGLE_GEMINI_BASE_URL": url,
            "GEMINI_API_KEY": KEYS["gemini"],
            "GEMINI_CLI_HOME": str(self.home),
        }

    def _opencode(self, url: str, flags: tuple[str, ...], model: str | None) -> tuple[list[str], dict[str, str]]:
        name = model or "some-model"
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "name": "vendor",
            "options": {"baseURL": f"{url}/v1", "apiKey": KEYS["opencode"]},
            "models": {name: {"name": name}},
        }
        config = {"autoupdate": False, "share": "disabled", "provider": {"vendor": provider}}
        return ["run", "--format", "json", "-m", f"vendor/{name}", *flags], {
            "OPENCODE_CONFIG_CONTENT": json.dumps(config),
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        }


class Running:
    """A tool's process, in a group of its own."""

    def __init__(self, argv: list[str], prompt: str, workspace: Path, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            argv,
            cwd=workspace,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(prompt)
        self._process.stdin = None

    def kill(self) -> None:
        """Unless it ended already."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()

    def end(self) -> Ran:
        """Wait for the end; takes longer than DEADLINE: kill it and fail."""
        try:
            stdout, _ = self._process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        lines = [line for line in stdout.splitlines() if line.startswith("{")]
        return Ran(self._process.returncode, [json.loads(line) for line in lines])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    for running in made.running:
        running.kill()


@pytest.fixture
def api() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


def final_text(name: str, ran: Ran) -> str:
    """The agent's answer, wherever the tool prints it."""
    match name:
        case "claude":
            return ran.last("result")["result"]
        case "codex":
            return [e["item"]["text"] for e in ran.events if e.get("item", {}).get("type") == "agent_message"][-1]
        case "gemini":
            return "".join(e["content"] for e in ran.events if e.get("role") == "assistant")
        case _:
            return ran.last("text")["part"]["text"]


def tokens(name: str, ran: Ran) -> tuple[int, int, int]:
    """Tokens read in all, of them cached, and written, as the tool counts them."""
    match name:
        case "claude":
            usage = ran.last("result")["usage"]
            cached = usage["cache_read_input_tokens"]
            return usage["input_tokens"] + cached, cached, usage["output_tokens"]
        case "codex":
            usage = ran.last("turn.completed")["usage"]
            return usage["input_tokens"], usage["cached_input_tokens"], usage["output_tokens"]
        case "gemini":
            stats = ran.last("result")["stats"]
            return stats["input_tokens"], stats["cached"], stats["output_tokens"]
        case _:
            usage = ran.last("step_finish")["part"]["tokens"]
            return usage["input"] + usage["cache"]["read"], usage["cache"]["read"], usage["output"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_prints_the_answer_and_its_tokens(name: str, desk: Desk, api: StandIn) -> None:
    account = api.account("a").script(text("hello from the other side", tokens=Tokens(2000, 500, 70)))
    ran = desk.run(name, account, "say hello")
    assert (ran.code, final_text(name, ran), tokens(name, ran)) == (0, "hello from the other side", (2000, 500, 70))
    [request] = account.requests
    assert request.key == KEYS[name]
    assert "say hello" in request.text and not request.hung_up
    assert not api.strays
    assert account.asides == (1 if name == "opencode" else 0)  # opencode wants a title for the session


@pytest.mark.slow
@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_writes_a_file_runs_a_command_and_sends_both_results_back(name: str, desk: Desk, api: StandIn) -> None:
    account = api.account("a").script(
        write_file("made.txt", "one\ntwo\n"), run_command("wc -l < made.txt; echo counted"), text("There it is.")
    )
    ran = desk.run(name, account, "make it", *MAY_WRITE[name])
    assert (ran.code, final_text(name, ran)) == (0, "There it is.")
    assert (desk.workspace / "made.txt").read_text() == "one\ntwo\n"
    first, second, third = account.requests
    assert (first.results, len(second.results)) == ((), 1)
    assert re.search(r"2\s*(\\n)?counted", third.results[0])


@pytest.mark.slow
def test_codex_without_a_patch_tool_patches_in_its_shell(desk: Desk, api: StandIn) -> None:
    account = api.account("a").script(write_file("made.txt", "one\n"))
    assert desk.run("codex", account, "make it", *MAY_WRITE["codex"], model="not-known-to-codex").code == 0
    assert "apply_patch" not in account.requests[0].tools
    assert (desk.workspace / "made.txt").read_text() == "one\n"


@pytest.mark.slow
def test_gemini_without_a_model_gets_its_question_answered_which_to_take(desk: Desk, api: StandIn) -> None:
    account = api.account("a").script(text("hello"))
    ran = desk.run("gemini", account, "say hello", model="auto")
    assert (ran.code, final_text("gemini", ran), len(account.requests)) == (0, "hello", 1)
    assert account.asides == 1


@pytest.mark.slow
def test_claude_tells_when_the_limit_of_its_plan_resets(desk: Desk, api: StandIn) -> None:
    resets_at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    ran = desk.run("claude", api.account("a").limit(usage_limit(resets_at)), "hello")
    told = ran.last("rate_limit_event")["rate_limit_info"]
    assert (told["status"], told["rateLimitType"]) == ("rejected", "five_hour")
    assert told["resetsAt"] == resets_at.timestamp()
    assert (ran.code, ran.last("result")["api_error"]) == (1, "usage_limit_reached")
    assert ran.last("result")["result"].startswith("You've hit your 5-hour limit")


@pytest.mark.slow
@pytest.mark.parametrize(("window", "place"), [("five_hour", "primary"), ("weekly", "secondary")])
def test_codex_tells_when_the_limit_of_its_plan_resets(window: Any, place: str, desk: Desk, api: StandIn) -> None:
    resets_at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=30)
    ran = desk.run("codex", api.account("a").limit(usage_limit(resets_at, window)), "hello")
    said = ran.last("turn.failed")["error"]["message"]
    assert ran.code == 1
    assert "hit your usage limit." in said and f"{resets_at:%I:%M %p.}".lstrip("0") in said
    [rollout] = (desk.home / ".codex" / "sessions").rglob("rollout-*.jsonl")
    payloads = [json.loads(line)["payload"] for line in rollout.read_text().splitlines()]
    limits = next(p["rate_limits"] for p in reversed(payloads) if p.get("type") == "token_count")
    assert (limits[place]["used_percent"], limits[place]["resets_at"]) == (100, resets_at.timestamp())
    assert payloads[-1]["error"]["codex_error_info"] == "usage_limit_exceeded"


@pytest.mark.slow
def test_gemini_tells_a_daily_quota_from_a_pause(desk: Desk, api: StandIn) -> None:
    quota, pause = api.account("quota"), api.account("pause")
    quota.limit(usage_limit(datetime.now(UTC) + timedelta(hours=2)))
    pause.limit(rate_limited(retry_after=7))
    for account, words in ((quota, "You have exhausted your daily quota"), (pause, "Suggested retry after 7s.")):
        ran = desk.run("gemini", account, "hello")
        assert (ran.code, len(account.requests)) == (429 % 256, 1)
        assert words in ran.last("result")["error"]["message"]


@pytest.mark.slow
def test_opencode_shows_the_refusal_and_its_headers(desk: Desk, api: StandIn) -> None:
    account = api.account("a").limit(rate_limited(retry_after=1))
    ran = desk.run("opencode", account, "hello")
    data = ran.last("error")["error"]["data"]
    assert (ran.code, data["statusCode"], data["responseHeaders"]["retry-after"]) == (1, 429, "1")
    assert json.loads(data["responseBody"])["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.slow
@pytest.mark.parametrize("in_stream", [False, True])
def test_an_overload_looks_the_same_before_and_within_a_stream(in_stream: bool, desk: Desk, api: StandIn) -> None:
    claude, codex = api.account("claude"), api.account("codex")
    for account in (claude, codex):
        account.limit(overloaded(in_stream=in_stream))
    assert desk.run("claude", claude, "hello").last("result")["api_error_status"] == 529
    said = desk.run("codex", codex, "hello").last("turn.failed")["error"]["message"]
    assert said.startswith("Selected model is at capacity.")


@pytest.mark.slow
def test_a_slow_stream_comes_word_by_word(desk: Desk, api: StandIn) -> None:
    ran = desk.run("gemini", api.account("a").script(slow("far and few", pause=0.6)), "hello")
    words = [event for event in ran.events if event.get("role") == "assistant"]
    times = [datetime.fromisoformat(event["timestamp"]) for event in words]
    assert [event["content"].strip() for event in words] == ["far", "and", "few"]
    assert all(later - earlier > timedelta(seconds=0.3) for earlier, later in pairwise(times))


@pytest.mark.slow
def test_a_cut_stream_is_a_broken_connection_to_the_tools(desk: Desk, api: StandIn) -> None:
    account = api.account("a").script(lambda now, request: cut("half of"))
    claude = desk.run("claude", account, "hello")
    assert (claude.code, claude.last("result")["api_error"]) == (1, "connection_failed")
    codex = desk.run("codex", account, "hello").last("turn.failed")
    assert codex["error"]["message"].startswith("stream disconnected before completion")
    gemini = desk.run("gemini", account, "hello").last("result")
    assert gemini["error"]["message"] == "[API Error: terminated]"


@pytest.mark.slow
def test_a_stalled_stream_goes_on_when_it_is_released(desk: Desk, api: StandIn) -> None:
    account = api.account("a").script(stalled("wait for it"))
    running = desk.start("codex", account, "hello")
    account.wait_for(1, DEADLINE)
    account.release()
    ran = running.end()
    assert (ran.code, final_text("codex", ran)) == (0, "wait for it")


@pytest.mark.slow
def test_a_tool_that_is_killed_while_it_waits_has_hung_up(desk: Desk, api: StandIn) -> None:
    account = api.account("a").script(silent())
    running = desk.start("codex", account, "hello")
    [request] = account.wait_for(1, DEADLINE)
    assert not request.hung_up
    running.kill()
    until(lambda: request.hung_up, what="for the server to notice")


@pytest.mark.slow
def test_claude_takes_a_structured_answer(desk: Desk, api: StandIn) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    account = api.account("a").script(structured({"n": 3}))
    ran = desk.run("claude", account, "hello", "--json-schema", json.dumps(schema))
    assert (ran.code, ran.last("result")["structured_output"]) == (0, {"n": 3})


@pytest.mark.slow
def test_codex_takes_a_structured_answer(desk: Desk, api: StandIn, tmp_path: Path) -> None:
    properties = {"n": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["n"], "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    account = api.account("a").script(structured({"n": 3}))
    ran = desk.run("codex", account, "hello", "--output-schema", str(tmp_path / "schema.json"))
    assert json.loads(final_text("codex", ran)) == {"n": 3}
    assert json.loads(account.requests[0].body)["text"]["format"]["schema"] == schema


@pytest.mark.slow
def test_claude_resumes_a_session(desk: Desk, api: StandIn) -> None:
    session, account = str(uuid.uuid4()), api.account("a").script(text("noted: PLUM"), text("it was PLUM"))
    desk.run("claude", account, "remember", "--session-id", session)
    ran = desk.run("claude", account, "which word?", "--resume", session)
    assert (ran.last("result")["session_id"], ran.last("result")["result"]) == (session, "it was PLUM")
    assert b"noted: PLUM" in account.requests[1].body
    assert "which word?" in account.requests[1].text and "remember" not in account.requests[1].text


@pytest.mark.slow
def test_codex_resumes_a_session(desk: Desk, api: StandIn) -> None:
    account = api.account("a").script(text("noted: PLUM"), text("it was PLUM"))
    thread = desk.run("codex", account, "remember").last("thread.started")["thread_id"]
    ran = desk.run("codex", account, "which word?", "resume", thread)
    assert (ran.last("thread.started")["thread_id"], final_text("codex", ran)) == (thread, "it was PLUM")
    assert b"noted: PLUM" in account.requests[1].body
    assert "which word?" in account.requests[1].text and "remember" not in account.requests[1].text
