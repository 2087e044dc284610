"""OpenAI's Codex, headless: `codex exec --json -`, the prompt on standard input.

Login, first match: the key in settings.api_key_env; the login in settings.home; CODEX_API_KEY of the runner's
environment; the login in the tool's own folder. With base_url the server (which must speak the Responses API) needs no
key. auth.json is linked into the run's own CODEX_HOME: the tool writes through the link when it refreshes a token. In a
jail it is a copy that all jails of this host share, and a key is the gateway's (see confined.py).

Permissions: write is the sandbox workspace-write, else read-only; network opens it for the commands of workspace-write.
Codex has no switch that takes commands away: without execute they still run, in the same sandbox, where the read-only
one is the closest. claim.tools cannot be enforced either. In a jail, which enforces all of that, the tool's own sandbox
cannot work and is switched off. Sources of flags, settings and files: `codex exec --help` and runs of 0.169.0;
request_max_retries and stream_max_retries work for providers of our own only, so that a key is used with one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..channel import CALL_TIMEOUT, CONNECT_TIMEOUT, NAME, TOKEN, Address
from ..sandbox.logins import LoginFile
from ..verbs import Claim
from . import confined, homes, programs
from .base import Adapter, CannotRun, Launch, Offer, Run, Upstream
from .codex_stream import CodexReading
from .fields import obj, string
from .models import account as server_account
from .prompts import message
from .tools import ToolSettings, check_arguments, find, fingerprint, folder, located, version

PROMPT_LIMIT = 1_048_576  # characters; the tool refuses more
SCHEMA = "output-schema.json"
OPENAI = "https://api.openai.com/v1"
KEY = "CODEX_API_KEY"
SERVICES = (
    "chatgpt.com",
    "auth.openai.com",
)  # of a ChatGPT login: its API, which is not api.openai.com, and refreshing
LOGIN_FILES = (LoginFile("auth.json", fixed=(("tokens", "account_id"), ("OPENAI_API_KEY",))),)


@dataclass(frozen=True, slots=True)
class Login:
    """Whose limits a run uses, and how.

    `provider`: settings of a model provider of our own; empty for the one that is built in. `key`: what it wants, if
    anything. `auth`: the login's auth.json, where the tool reads that.
    """

    account: str
    key: str | None = None
    auth: Path | None = None
    provider: dict[str, str | bool] = field(default_factory=dict[str, str | bool])


class Codex(Adapter):
    """Runs Codex; settings are ToolSettings. There is no flag for claim.max_turns: the reading stops the run."""

    name = "codex"
    tested = ("0.169.0",)
    first_output = timedelta(minutes=5)
    idle = timedelta(hours=1)  # a command says nothing until it ends

    def probe(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
        """Looks at files and variables only: whether a login still works shows with the first task."""
        tool = ToolSettings.from_json(settings)
        executable = find(tool, "codex", environ)
        if executable is None:
            return Offer("missing", detail=f"There is no {tool.executable or 'codex'} on this host.")
        number = version(native(executable))
        try:
            who = login(tool, environ)
        except CannotRun as error:
            return Offer("unauthenticated", version=number, detail=str(error))
        return Offer("ready", who.account, version=number)

    def prepare(self, run: Run) -> Launch:
        tool, executable = located(run, "codex")
        who = login(tool, run.environ)
        prompt = message(run.claim)
        if len(prompt) > PROMPT_LIMIT:
            raise CannotRun(f"The prompt has {len(prompt)} characters, and Codex takes {PROMPT_LIMIT}.")
        upstream = None
        if run.gateway is not None and who.provider:
            who, upstream = behind(run.gateway, who)
        shared: tuple[Path, ...] = ()
        auth = who.auth
        if run.gateway is not None and auth is not None:
            shared = (confined.shared_login(run, auth.parent, LOGIN_FILES),)
            auth = shared[0] / auth.name
        homes.link(run.home, "auth.json", auth)  # or nothing: an attempt before may have used another login
        homes.directory(run.home, "tmp")
        if run.claim.output_schema is not None:
            homes.write(run.home, SCHEMA, json.dumps(run.claim.output_schema))
        # Commands fail in the tool's sandbox where CODEX_HOME lies below the temporary directory: that is put below it.
        # In UTC, because the reset times that it prints name no zone.
        env = {"CODEX_HOME": str(run.home), "TMPDIR": str(run.home / "tmp"), "TZ": "UTC"}
        if "env_key" in who.provider and who.key:
            env[KEY] = who.key
        words, needed = _start(run, executable)
        argv = [
            *words,
            "exec",
            *arguments(run.claim, tool, who, run.home, run.gateway is not None),
            *_channel(run.channel),
            *tool.args,
        ]
        if run.claim.session_id:
            argv.append(run.claim.session_id)
        check_arguments(argv)
        hosts = SERVICES if shared else ()
        return Launch([*argv, "-"], prompt.encode(), env | dict(tool.env), upstream, hosts, needed, shared)

    def settle(self, run: Run) -> None:
        def bring() -> None:
            who = login(ToolSettings.from_json(run.claim.settings), run.environ)
            if who.auth is not None and not who.provider:
                confined.shared_login(run, who.auth.parent, LOGIN_FILES)

        confined.settled(run, bring)

    def read(self, run: Run) -> CodexReading:
        return CodexReading(run.claim, run.home)


def arguments(claim: Claim, tool: ToolSettings, who: Login, home: Path, jailed: bool = False) -> list[str]:
    """Flags and settings for this claim; a schema is in the file SCHEMA below `home`."""
    writes = "write" in claim.permissions
    flags = ["--sandbox", "workspace-write" if writes else "read-only"]
    if jailed:
        flags = ["--dangerously-bypass-approvals-and-sandbox"]
    if claim.session_id:
        flags.append("resume")  # takes the flags above only before its name, and those below only after
    flags += ["--json", "--skip-git-repo-check"]
    if model := claim.model or tool.model:
        flags += ["--model", model]
    config: dict[str, str | int | bool] = {"check_for_update_on_startup": False, "analytics.enabled": False}
    if writes and not jailed:
        config["sandbox_workspace_write.network_access"] = "network" in claim.permissions
    if claim.system_prompt:
        config["developer_instructions"] = claim.system_prompt
    if tool.base_url or "network" not in claim.permissions:
        config["web_search"] = "disabled"
    if who.provider:
        retries = {"request_max_retries": tool.retries, "stream_max_retries": tool.retries}
        own: dict[str, str | int | bool] = {"name": "Taskyard", "wire_api": "responses", **who.provider, **retries}
        config |= {f"model_providers.taskyard.{key}": value for key, value in own.items()}
        config["model_provider"] = "taskyard"
    for key, value in config.items():
        flags += ["-c", f"{key}={_toml(value)}"]
    if claim.output_schema is not None:
        flags += ["--output-schema", str(home / SCHEMA)]
    return flags


def _channel(channel: Address | None) -> list[str]:
    """Settings for the channel, whose tools nobody is asked about. Its token is in a variable of the child's."""
    if channel is None:
        return []
    settings: dict[str, str | int | bool] = {
        "url": channel.url,
        "bearer_token_env_var": TOKEN,
        "default_tools_approval_mode": "approve",
        "startup_timeout_sec": CONNECT_TIMEOUT,
        "tool_timeout_sec": CALL_TIMEOUT,
        "required": True,
    }
    return [word for key, value in settings.items() for word in ("-c", f"mcp_servers.{NAME}.{key}={_toml(value)}")]


def behind(gateway: str, who: Login) -> tuple[Login, Upstream]:
    """The login as the child has it, and what the gateway sends on."""
    upstream = Upstream(str(who.provider["base_url"]), confined.bearer(who.key))
    provider: dict[str, str | bool] = {"base_url": gateway}
    if who.key:
        provider["env_key"] = KEY
    return Login(who.account, confined.PLACEHOLDER if who.key else None, None, provider), upstream


def login(tool: ToolSettings, environ: Mapping[str, str]) -> Login:
    """Raises CannotRun where this host has none; the message says what to do."""
    key = environ.get(tool.api_key_env) if tool.api_key_env else None
    if tool.api_key_env and not key:
        raise CannotRun(f"The runner's environment has no {tool.api_key_env}: set it and restart the runner.")
    if tool.base_url:
        provider: dict[str, str | bool] = {"base_url": tool.base_url}
        if key:
            provider["env_key"] = KEY
        return Login(server_account(tool.base_url, key), key, None, provider)
    if key is None and tool.home is None:
        key = environ.get(KEY)
    if key:
        return Login(f"key:{fingerprint(key)}", key, None, {"base_url": OPENAI, "env_key": KEY})
    path = folder(tool, environ, "CODEX_HOME", ".codex") / "auth.json"
    try:
        auth = obj(json.loads(path.read_text()))
    except (OSError, ValueError):
        auth = {}
    if account := string(obj(auth.get("tokens")).get("account_id")):
        return Login(account, auth=path)
    if key := string(auth.get("OPENAI_API_KEY")):
        return Login(f"key:{fingerprint(key)}", key, path, {"base_url": OPENAI, "requires_openai_auth": True})
    raise CannotRun(f"There is no login in {path.parent}: run `codex login`, or give the runner's environment a {KEY}.")


def native(executable: str) -> str:
    """The program itself, where `executable` is npm's launcher of it: killing that one leaves the program running.

    The program lies in a package of its platform beside or within the launcher's (node_modules/@openai/codex-*).
    """
    launcher = Path(os.path.realpath(executable))
    if launcher.suffix != ".js":
        return executable
    package = launcher.parent.parent
    places = (package.parent, package / "node_modules" / "@openai")
    programs = [
        program
        for place in places
        for program in sorted(place.glob("codex-*/vendor/*/bin/codex"))
        if os.access(program, os.X_OK)
    ]
    return str(programs[0]) if len(programs) == 1 else executable  # several platforms: the launcher knows which


def _start(run: Run, executable: str) -> tuple[list[str], tuple[Path, ...]]:
    """A package that is not npm's has its programs side by side, below a folder with a codex-package.json."""
    program = native(executable)
    words, needed = programs.start(run, program)
    package = Path(os.path.realpath(program)).parent.parent
    if run.gateway is not None and needed and (package / "codex-package.json").is_file():
        return words, (package,)
    return words, needed


def _toml(value: str | int | bool) -> str:
    """As in JSON, but that TOML has no surrogate pairs and escapes DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
