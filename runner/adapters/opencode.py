"""opencode: `opencode run --format json`, the prompt on standard input, with models of an OpenAI-compatible server.

Formats as in version 1.18.33. It starts without a network: the client library for such servers is part of it. What it
cannot do: it repeats a refused request five times whatever one sets, waits as long as the server's Retry-After says in
between, and prints nothing meanwhile, so a long wait ends as a stall; it has no flag for a schema, so one is asked for
in the prompt (see json_answers.py). In a jail the server is behind the gateway, which has the key (see confined.py).
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ..channel import CALL_TIMEOUT, NAME, Address
from ..verbs import Claim
from . import confined, homes, json_answers, models, programs, prompts
from .base import Adapter, BadSettings, CannotRun, Launch, Offer, Run, Upstream
from .opencode_stream import OpencodeReading
from .tools import ToolSettings, find, version

DEFAULT_BASE_URL = "http://127.0.0.1:8080/v1"  # llama-swap
SYSTEM_PROMPT = "instructions.md"
PROVIDER = "local"  # our server's name in the tool's configuration
SILENCE = (
    3_600_000  # milliseconds between two pieces of an answer; the tool's own 5 minutes are too few for a slow machine
)

TOOLS = {
    "read": ("read", "list", "glob", "grep"),
    "write": ("edit",),  # all tools that write ask for this one
    "execute": ("bash",),
    "network": ("webfetch", "websearch"),
}
SPAWNING = ("glob", "grep")  # they start ripgrep, which a jail without execute refuses


class Opencode(Adapter):
    """opencode with a local model."""

    name = "opencode"
    first_output = timedelta(minutes=10)  # a cold model is loaded before the first answer
    idle = timedelta(minutes=30)
    tested = ("1.18.33",)

    def probe(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
        tool = _checked(settings)
        executable = find(tool, "opencode", environ)
        if executable is None:
            return Offer("missing", detail="opencode is not installed: npm install -g opencode-ai")
        key = environ.get(tool.api_key_env) if tool.api_key_env else None
        base_url = tool.base_url or DEFAULT_BASE_URL
        number = version(executable)
        if tool.api_key_env and not key:
            detail = f"The runner's environment has no {tool.api_key_env}."
            return Offer("unauthenticated", version=number, detail=detail)
        found = models.offer(base_url, key)
        return Offer(found.state, found.account, found.models, number, found.detail)

    def loaded(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> list[str] | None:
        tool = _checked(settings)
        key = environ.get(tool.api_key_env) if tool.api_key_env else None
        return models.in_memory(tool.base_url or DEFAULT_BASE_URL, key)

    def prepare(self, run: Run) -> Launch:
        claim = run.claim
        tool = _settings(claim)
        executable = find(tool, "opencode", run.environ)
        if executable is None:
            raise CannotRun("opencode is not installed on this host.")
        model = claim.model or tool.model
        if model is None:
            raise CannotRun("opencode needs a model: name one in the task, its route or the provider's settings.")
        env = {
            "OPENCODE_CONFIG_CONTENT": json.dumps(configuration(run, tool, model)),
            # The workspace's own configuration would overrule ours, permissions included, and start its servers.
            "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
            "OPENCODE_DISABLE_CLAUDE_CODE": "1",
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        }
        for place in ("DATA", "CONFIG", "STATE", "CACHE"):
            env[f"XDG_{place}_HOME"] = str(run.home / place.lower())
        key = None
        if tool.api_key_env:
            key = run.environ.get(tool.api_key_env)
            if not key:
                raise CannotRun(f"The runner's environment has no {tool.api_key_env}.")
            env[tool.api_key_env] = key if run.gateway is None else confined.PLACEHOLDER
        if claim.system_prompt:
            homes.write(run.home, SYSTEM_PROMPT, claim.system_prompt)
        text = prompts.message(claim)
        if claim.output_schema is not None:
            text += "\n\n" + json_answers.instruction(claim.output_schema)
        words, needed = programs.start(run, executable)
        upstream = None if run.gateway is None else Upstream(tool.base_url or DEFAULT_BASE_URL, confined.bearer(key))
        return Launch(
            [
                *(*words, "run", "--format", "json", "--thinking", "-m", f"{PROVIDER}/{model}"),
                # Without a title the model is asked for one.
                *(("-s", claim.session_id) if claim.session_id else ("--title", f"task {claim.task_id}")),
                *tool.args,
            ],
            text.encode(),
            {**env, **tool.env},
            upstream,
            programs=needed,
        )

    def read(self, run: Run) -> OpencodeReading:
        claim = run.claim
        model = claim.model or _settings(claim).model
        return OpencodeReading(model, claim.max_turns, wants_json=claim.output_schema is not None)


def configuration(run: Run, tool: ToolSettings, model: str) -> dict[str, Any]:
    """The tool's configuration, see https://opencode.ai/config.json."""
    options: dict[str, Any] = {
        "baseURL": run.gateway or tool.base_url or DEFAULT_BASE_URL,
        "timeout": False,
        "headerTimeout": False,  # llama-swap sends none before a cold model is loaded
        "chunkTimeout": SILENCE,
    }
    if tool.api_key_env:
        options["apiKey"] = f"{{env:{tool.api_key_env}}}"
    instructions = [str(run.workspace / "AGENTS.md")]  # goes with the workspace's configuration otherwise
    if run.claim.system_prompt:
        instructions.insert(0, str(run.home / SYSTEM_PROMPT))
    return {
        "autoupdate": False,
        "share": "disabled",
        "instructions": instructions,
        "permission": permission(run.claim, jailed=run.gateway is not None),
        "mcp": {} if run.channel is None else {NAME: _server(run.channel)},
        "provider": {
            PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": PROVIDER,
                "options": options,
                "models": {model: {"name": model}},
            }
        },
    }


def _server(channel: Address) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {channel.token}"}
    return {"type": "remote", "url": channel.url, "headers": headers, "oauth": False, "timeout": CALL_TIMEOUT * 1000}


def permission(claim: Claim, jailed: bool = False) -> dict[str, str]:
    """allow or deny for each tool, never ask: a question is answered with no, and ends the run as if it had succeeded.

    The last rule that fits a tool holds.
    """
    rules = {"*": "allow" if claim.tools is None else "deny"}
    rules |= dict.fromkeys(claim.tools or (), "allow") | {f"{NAME}_*": "allow"}
    # A shell reaches every place anyway; without one the tools that write stay within the workspace.
    rules["external_directory"] = "allow" if "execute" in claim.permissions else "deny"
    rules["doom_loop"] = "deny"  # the same call three times in a row
    for needed, names in TOOLS.items():
        if needed not in claim.permissions:
            rules |= dict.fromkeys(names, "deny")
    if jailed and "execute" not in claim.permissions:
        rules |= dict.fromkeys(SPAWNING, "deny")
    return rules


def _checked(settings: Mapping[str, Any]) -> ToolSettings:
    """Raises BadSettings."""
    tool = ToolSettings.from_json(settings)
    if tool.retries:
        raise BadSettings("The setting retries does nothing here: opencode always repeats a refused request 5 times.")
    if tool.home:
        raise BadSettings("The setting home does nothing here: opencode is used with a server's address, not a login.")
    return tool


def _settings(claim: Claim) -> ToolSettings:
    try:
        return _checked(claim.settings)
    except BadSettings as error:
        raise CannotRun(str(error)) from None
