"""Qwen Code as a Taskyard adapter. Read it from top to bottom to learn how to write one of your own.

An adapter is a class with three methods. The runner calls probe() when it starts and now and then: can this host use
the provider, and with which login? For each attempt it calls prepare(): what is to be started?, and read(): who reads
what it prints? The runner does the rest: it starts the process with a clean environment, times it, stops it, keeps the
transcript and reports the end. An adapter starts nothing and waits for nothing.

Install it where the runner is: `pip install ./examples/qwen_adapter`. The entry point in pyproject.toml makes it known.
Then add a provider: `insert into taskyard.providers (name, adapter, settings) values ('qwen', 'qwen',
'{"base_url": "http://127.0.0.1:8080/v1", "model": "qwen3-coder"}')`.

Left out to stay short: sessions (emit a Session, and resume claim.session_id in prepare()) and answers in JSON.
"""

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from taskyard.runner.adapters import Adapter, BadSettings, CannotRun, Exit, Launch, Offer, Reading, Run, Seen, Upstream
from taskyard.runner.adapters.confined import PLACEHOLDER, bearer
from taskyard.runner.adapters.homes import write
from taskyard.runner.adapters.models import account
from taskyard.runner.adapters.programs import start
from taskyard.runner.adapters.prompts import message
from taskyard.runner.adapters.tools import ToolSettings, count, find, gist, json_line, said, version
from taskyard.runner.channel import CONNECT_TIMEOUT, NAME
from taskyard.runner.verbs import Ending, Usage, Window

OPENAI = "https://api.openai.com/v1"
# The tool does not pass on the HTTP status: it is only in its own words, at the beginning of them.
API_ERROR = re.compile(r"\A\[API Error: (?:(\d{3}) )?(.*)\]\Z", re.DOTALL)


class Qwen(Adapter):
    """Qwen Code 0.24.4 with any OpenAI-compatible server. It repeats a refused request for minutes without a word."""

    name = "qwen"  # as in providers.adapter
    first_output = timedelta(minutes=10)  # longer than this without a line: the run is stopped as stalled
    idle = timedelta(minutes=30)
    tested = ("0.24.4",)

    def probe(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
        tool = ToolSettings.from_json(settings)  # raises BadSettings for what it does not know
        executable = find(tool, "qwen", environ)
        if executable is None:
            return Offer("missing", detail="Qwen Code is not installed: npm install -g @qwen-code/qwen-code")
        key = environ.get(tool.api_key_env or "OPENAI_API_KEY")
        if key is None and tool.base_url is None:
            return Offer("unauthenticated", detail="Set OPENAI_API_KEY, or name a server in the setting base_url.")
        # The account is what limits belong to: server and key. Never a secret: a key appears as its fingerprint.
        login = account(tool.base_url or OPENAI, key)
        return Offer("ready", login, version=version(executable))

    def prepare(self, run: Run) -> Launch:
        claim = run.claim
        try:
            tool = ToolSettings.from_json(claim.settings)
        except BadSettings as error:
            raise CannotRun(str(error)) from None
        executable = find(tool, "qwen", run.environ)
        if executable is None:
            raise CannotRun("Qwen Code is not installed on this host.")
        # What the scope allows, in the tool's own terms.
        allowed = "yolo" if "execute" in claim.permissions else "auto-edit" if "write" in claim.permissions else "plan"
        words, needed = start(run, executable)
        if run.gateway is not None and words[-1].endswith("cli-entry.js"):
            words[-1] = words[-1].removesuffix("-entry.js") + ".js"  # which the other starts as a second process
        argv = [*words, "-o", "stream-json", "--auth-type", "openai", "--approval-mode", allowed]
        if model := claim.model or tool.model:
            argv += ["-m", model]
        if claim.system_prompt:
            argv += ["--append-system-prompt", claim.system_prompt]
        if claim.max_turns is not None:
            argv += ["--max-session-turns", str(claim.max_turns)]
        if run.channel is not None:
            # The agent's way to the yard: an MCP server of this attempt's own, used without asking, and no other one.
            # Its token goes into a file, since arguments are seen by everybody on the host.
            server = {
                "httpUrl": run.channel.url,
                "headers": {"Authorization": f"Bearer {run.channel.token}"},
                "trust": True,
                "discoveryTimeoutMs": CONNECT_TIMEOUT * 1000,  # its own 5 seconds are too few for a busy host
            }
            write(run.home, "mcp.json", json.dumps({"mcpServers": {NAME: server}}))
            argv += ["--mcp-config", str(run.home / "mcp.json"), "--allowed-mcp-server-names", NAME]
        # Nothing of the runner's environment reaches the child by itself: pass on what the tool needs, and no more.
        key = run.environ.get(tool.api_key_env or "OPENAI_API_KEY")
        env = {"HOME": str(run.home), "OPENAI_API_KEY": key or "local"}
        env["QWEN_CODE_NO_RELAUNCH"] = "true"  # not every scope allows it to start itself again
        if tool.base_url:
            env["OPENAI_BASE_URL"] = tool.base_url
        env |= tool.env
        upstream = None
        if run.gateway is not None:
            # In the sandbox there is no way to the server but the runner's gateway, and the key stays outside.
            upstream = Upstream(env.get("OPENAI_BASE_URL", OPENAI), bearer(env["OPENAI_API_KEY"]))
            env |= {"OPENAI_API_KEY": PLACEHOLDER, "OPENAI_BASE_URL": run.gateway}
        # The prompt goes to standard input: as an argument it would be seen in `ps`, and 128 KiB is the limit.
        return Launch([*argv, *tool.args], message(claim).encode(), env, upstream, programs=needed)

    def read(self, run: Run) -> Reading:
        return QwenReading()


class QwenReading(Reading):
    """Turns lines into rows of the transcript, and remembers what the ending will be read from."""

    def __init__(self) -> None:
        self._result: dict[str, Any] | None = None
        self._usage: Usage | None = None

    def line(self, text: str) -> list[Seen]:
        event = json_line(text)
        match event:
            case {"type": "assistant" | "user", "message": {"content": [*blocks]}}:  # pyright: ignore[reportUnknownVariableType]
                return [row for block in blocks for row in _row(block)]  # pyright: ignore[reportUnknownVariableType]
            case {"type": "result"}:
                self._result = event
                self._usage = _used(event)
                return [self._usage] if self._usage else []
            case None:
                return [said("note", text)] if text.strip() else []  # a banner, a warning
            case _:
                return []

    def ending(self, ended: Exit) -> Ending:
        """The tool's own record first; only where there is none, the exit status. Never what the agent said."""
        match self._result:
            case {"is_error": False, "subtype": "success", "result": str(answer)}:
                found = Ending("completed", answer)
            case {"is_error": True, "error": {"message": str(words)}}:
                found = _refused(words)
            case _ if ended.code == 53:
                found = Ending("turn_limit", error="The agent used up its turns.")
            case _ if ended.code <= 0 or ended.code in (129, 130, 137, 143):
                found = Ending("crashed", error=f"Qwen Code ended without a result (exit status {ended.code}).")
            case _:
                found = Ending("failed", error=f"Qwen Code ended with exit status {ended.code}.")
        evidence = found.evidence or ended.stderr[-2000:] or None
        return Ending(found.outcome, found.result, found.error, ended.code, evidence, self._usage, window=found.window)


def _used(result: dict[str, Any]) -> Usage | None:
    match result.get("usage"):
        case {"input_tokens": read, "output_tokens": written} as usage:  # pyright: ignore[reportUnknownVariableType]
            cached = usage.get("cache_read_input_tokens")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            return Usage(count(read), count(cached), count(written), count(result.get("num_turns")))
        case _:
            return None


def _row(block: Any) -> list[Seen]:
    match block:
        case {"type": "text", "text": str(text)} if API_ERROR.match(text):
            return [said("error", text)]  # the tool puts its own errors into the agent's mouth
        case {"type": "text", "text": str(text)}:
            return [said("text", text)]
        case {"type": "tool_use", "name": str(name)}:
            data = {"id": block.get("id"), "name": name, "input": block.get("input")}
            return [said("tool_call", gist(name, block.get("input")), data)]
        case {"type": "tool_result", "content": content}:
            data = {"id": block.get("tool_use_id"), "is_error": bool(block.get("is_error"))}
            return [said("tool_result", content if isinstance(content, str) else str(content), data)]
        case _:
            return []


def _refused(words: str) -> Ending:
    """What became of a refused request. The outcome decides whether, where and when the task is tried again."""
    match = API_ERROR.match(words)
    status, told = (match[1], match[2]) if match else (None, words)
    outcome, window = "failed", None
    if status == "429":
        outcome, window = "rate_limited", Window("requests")  # until when, it does not say
    elif status in ("401", "403"):
        outcome = "unauthenticated"
    elif status and (status >= "500" or status == "408"):
        outcome = "overloaded"
    elif told.startswith("Connection error."):
        outcome = "network"
    return Ending(outcome, error=f"The request was refused: {told[:500]}", evidence=words[:2000], window=window)
