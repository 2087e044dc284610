"""Claude Code, headless: `claude -p --output-format stream-json --verbose`, the prompt on standard input.

Login, first match: the key in settings.api_key_env; the login in settings.home; ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN
or CLAUDE_CODE_OAUTH_TOKEN of the runner's environment; the login in the tool's own folder. With base_url the server
decides what it wants: the key in api_key_env, else the word "local". In a jail a key is the gateway's (confined.py); a
login's files are copies that all jails of this host share, and the child's own token goes through the gateway.

Permissions: without write, execute or network the tools that do it are taken away; with them nobody is asked. Bash does
what its user can, so that execute without write is only as tight as the runner's sandbox. Sources of flags, variables
and files: `claude --help` and runs of 2.1.197 and 2.1.330 (--max-turns is in no help, and works).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from ..channel import CALL_TIMEOUT, CONNECT_TIMEOUT, NAME
from ..sandbox.logins import LoginFile
from ..verbs import Claim
from . import confined, homes, programs
from .base import Adapter, CannotRun, Launch, Offer, Run, Upstream
from .claude_stream import ClaudeReading
from .fields import obj, string
from .models import account as server_account
from .prompts import message
from .tools import ToolSettings, check_arguments, find, fingerprint, folder, located, version

SESSIONS = UUID("6f0c63f8-4d8e-5d0c-9d2a-0f6c6a1c7b55")  # namespace of the ids that attempts give to their sessions
SERVERS = "mcp-servers.json"
STDIN_LIMIT = 10_000_000  # bytes; the tool refuses more
PROFILE_LIMIT = 4 << 20  # bytes of .claude.json

API, ADDRESS = "https://api.anthropic.com", "ANTHROPIC_BASE_URL"
# Where a login is refreshed (TOKEN_URL of 2.1.330, and of older versions), and what it is worth asked for after that.
HOSTS = ("platform.claude.com", "console.anthropic.com", "api.anthropic.com")
LOGIN_FILES = (LoginFile(".credentials.json"),)

KEY, TOKEN, OAUTH = "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"
QUIET = (
    "DISABLE_AUTOUPDATER",
    "DISABLE_TELEMETRY",
    "DISABLE_ERROR_REPORTING",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
)
# By the beginning of a token the tool knows what it is.
PLACEHOLDERS = {
    KEY: "sk-ant-api03-taskyard-placeholder",
    TOKEN: confined.PLACEHOLDER,
    OAUTH: "sk-ant-oat01-taskyard-placeholder",
}

TOOLS_OF = {
    "read": ["Read", "Glob", "Grep"],
    "write": ["Edit", "Write", "NotebookEdit"],
    "execute": ["Bash", "Monitor"],
    "network": ["WebFetch", "WebSearch"],
}
SPAWNING = ["Glob", "Grep"]  # they start ripgrep, which a jail without execute refuses


@dataclass(frozen=True, slots=True)
class Login:
    """Whose limits a run uses: the account, the variables that log in, or the folder with the login's files."""

    account: str
    env: dict[str, str] = field(default_factory=dict[str, str])
    home: Path | None = None


class Claude(Adapter):
    """Runs Claude Code; settings are ToolSettings."""

    name = "claude"
    tested = ("2.1.197", "2.1.330")
    first_output = timedelta(minutes=5)
    idle = timedelta(minutes=30)

    def probe(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
        """Looks at files and variables only: whether a login still works shows with the first task."""
        tool = ToolSettings.from_json(settings)
        executable = find(tool, "claude", environ)
        if executable is None:
            return Offer("missing", detail=f"There is no {tool.executable or 'claude'} on this host.")
        try:
            who = login(tool, environ)
        except CannotRun as error:
            return Offer("unauthenticated", version=version(executable), detail=str(error))
        return Offer("ready", who.account, version=version(executable))

    def prepare(self, run: Run) -> Launch:
        """The session's id is chosen here, so that a run that dies at once can be resumed too."""
        tool, executable = located(run, "claude")
        who = login(tool, run.environ)
        stdin = message(run.claim).encode()
        if len(stdin) > STDIN_LIMIT:
            raise CannotRun(f"The prompt has {len(stdin)} bytes, and Claude Code takes {STDIN_LIMIT}.")
        env = {"CLAUDE_CONFIG_DIR": str(run.home), "CLAUDE_CODE_MAX_RETRIES": str(tool.retries)}
        env |= dict.fromkeys(QUIET, "1") | who.env
        env["MCP_TIMEOUT"] = str(CONNECT_TIMEOUT * 1000)
        env["MCP_TOOL_TIMEOUT"] = str(CALL_TIMEOUT * 1000)  # milliseconds
        env["ENABLE_TOOL_SEARCH"] = "false"  # else the channel's tools are hidden until the model searches for them
        model = run.claim.model or tool.model
        if tool.base_url:
            env[ADDRESS] = tool.base_url
            if model:
                env |= {"ANTHROPIC_MODEL": model, "ANTHROPIC_DEFAULT_HAIKU_MODEL": model}
        shared: tuple[Path, ...] = ()
        if who.home is not None:
            # Not a link to .credentials.json: the tool replaces that file when it refreshes a token, so that a link
            # would end as a private copy, and the login itself would keep a refresh token that is spent.
            if run.gateway is not None:
                shared = (confined.shared_login(run, who.home, LOGIN_FILES),)
            env["CLAUDE_SECURESTORAGE_CONFIG_DIR"] = str(shared[0] if shared else who.home)
            _introduce(who.home, run.environ, run.home)
        words, needed = programs.start(run, executable)
        argv = [
            *words,
            "-p",
            "--output-format",
            "stream-json",
            "--verbose",
            *arguments(run.claim, model, jailed=run.gateway is not None),
            *_channel(run),
            *tool.args,
        ]
        check_arguments(argv)
        env |= tool.env
        if run.gateway is None:
            return Launch(argv, stdin, env)
        env, upstream = behind(run.gateway, env)
        return Launch(argv, stdin, env, upstream, HOSTS if shared else (), needed, shared)

    def settle(self, run: Run) -> None:
        def bring() -> None:
            who = login(ToolSettings.from_json(run.claim.settings), run.environ)
            if who.home is not None:
                confined.shared_login(run, who.home, LOGIN_FILES)

        confined.settled(run, bring)

    def read(self, run: Run) -> ClaudeReading:
        return ClaudeReading(run.claim, session_of(run.claim))


def _channel(run: Run) -> list[str]:
    """Flags for the channel, whose tools nobody is asked about. The list of allowed may be given more than once."""
    if run.channel is None:
        return []
    server = {"type": "http", "url": run.channel.url, "headers": {"Authorization": f"Bearer {run.channel.token}"}}
    homes.write(run.home, SERVERS, json.dumps({"mcpServers": {NAME: server}}))
    return ["--mcp-config", str(run.home / SERVERS), "--allowedTools", f"mcp__{NAME}"]


def behind(gateway: str, env: Mapping[str, str]) -> tuple[dict[str, str], Upstream]:
    """The child's variables and what the gateway sends on, for variables that would reach the API by themselves."""
    url = env.get(ADDRESS) or API
    headers = confined.bearer(env.get(TOKEN) or env.get(OAUTH))
    if key := env.get(KEY):
        headers["x-api-key"] = key
    changed = {**env, **{name: text for name, text in PLACEHOLDERS.items() if env.get(name)}, ADDRESS: gateway}
    if url == API:
        changed["_CLAUDE_CODE_ASSUME_FIRST_PARTY_BASE_URL"] = "1"  # else it does without some features, as with a proxy
    return changed, Upstream(url, headers)


def session_of(claim: Claim) -> str:
    """The session to resume, else the id that this attempt's new session gets."""
    return claim.session_id or str(uuid5(SESSIONS, str(claim.attempt_id)))


def arguments(claim: Claim, model: str | None, jailed: bool = False) -> list[str]:
    """Flags for this claim. Lists are given as one argument each: a rule such as Bash(git log, *) may hold commas."""
    flags = ["--resume" if claim.session_id else "--session-id", session_of(claim), "--strict-mcp-config"]
    if model:
        flags += ["--model", model]
    if claim.system_prompt:
        flags += ["--append-system-prompt", claim.system_prompt]
    if claim.max_turns is not None:
        flags += ["--max-turns", str(claim.max_turns)]
    if claim.output_schema is not None:
        flags += ["--json-schema", json.dumps(claim.output_schema)]
    if "write" in claim.permissions:
        flags += ["--permission-mode", "acceptEdits"]
    denied = [name for permission, names in TOOLS_OF.items() if permission not in claim.permissions for name in names]
    if jailed and "execute" not in claim.permissions:
        denied += [name for name in SPAWNING if name not in denied]
    if claim.tools is None:
        allowed = [name for name in (*TOOLS_OF["execute"], *TOOLS_OF["network"]) if name not in denied]
    else:
        allowed = [rule for rule in claim.tools if _tool(rule) not in denied]
        flags += ["--tools", ",".join(dict.fromkeys(_tool(rule) for rule in allowed if not rule.startswith("mcp__")))]
    if allowed:
        flags += ["--allowedTools", *allowed]
    if denied:
        flags += ["--disallowedTools", *denied]
    return flags


def login(tool: ToolSettings, environ: Mapping[str, str]) -> Login:
    """Raises CannotRun where this host has none; the message says what to do."""
    named = environ.get(tool.api_key_env) if tool.api_key_env else None
    if tool.api_key_env and not named:
        raise CannotRun(f"The runner's environment has no {tool.api_key_env}: set it and restart the runner.")
    if tool.base_url:
        return Login(server_account(tool.base_url, named), {TOKEN: named or "local"})
    if named:
        oauth = tool.api_key_env in (TOKEN, OAUTH) or named.startswith("sk-ant-oat")
        variable = tool.api_key_env if tool.api_key_env in (TOKEN, OAUTH) else OAUTH if oauth else KEY
        return Login(f"{'token' if oauth else 'key'}:{fingerprint(named)}", {variable: named})
    if tool.home is None:
        for variable, kind in ((KEY, "key"), (TOKEN, "token"), (OAUTH, "token")):
            if secret := environ.get(variable):
                return Login(f"{kind}:{fingerprint(secret)}", {variable: secret})
    home = folder(tool, environ, "CLAUDE_CONFIG_DIR", ".claude")
    if not (home / ".credentials.json").exists():
        raise CannotRun(
            f"There is no login in {home}: run `claude` there and /login, or give the runner's environment a key."
        )
    account = string(obj(_profile(home, environ).get("oauthAccount")).get("emailAddress"))
    return Login(account or "login", home=home)


def _tool(rule: str) -> str:
    """The tool that a permission rule is about: Bash for Bash(git *)."""
    return rule.split("(", 1)[0].strip()


def _profile(home: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The login's .claude.json. The default folder, ~/.claude, has it next to it, any other one inside."""
    inside = home / ".claude.json"
    user = Path(environ.get("HOME") or Path.home())
    return _json_file(inside if inside.exists() or home != user / ".claude" else user / ".claude.json")


def _introduce(home: Path, environ: Mapping[str, str], config: Path) -> None:
    """Tell the run's own configuration who is logged in; what the tool itself wrote there stays."""
    profile, known = _profile(home, environ), _parsed(homes.read(config, ".claude.json", PROFILE_LIMIT))
    wanted = {key: profile[key] for key in ("oauthAccount", "hasCompletedOnboarding") if key in profile}
    if wanted and known | wanted != known:
        homes.write(config, ".claude.json", json.dumps(known | wanted))


def _json_file(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path.read_text())
    except (OSError, ValueError):
        return {}


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        return obj(json.loads(text or ""))
    except (ValueError, RecursionError):
        return {}
