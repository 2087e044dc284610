"""Gemini CLI: `gemini -o stream-json`, the prompt on standard input. Formats and exit codes as in version 0.61.0.

What it cannot do: it has no flag for a schema, so one is asked for in the prompt (see json_answers.py). Its file tools
stay within the workspace in every mode; its shell does not. It keeps secret that an answer was cut off at the model's
output limit. It runs headless only in folders that it trusts, and with the trust come the hooks in the workspace's own
.gemini/settings.json, which overrules ours: where the scope does not allow to execute, such a workspace is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from ..verbs import Claim
from . import json_answers, models, prompts
from .base import Adapter, BadSettings, CannotRun, Launch, Offer, Run
from .gemini_stream import GeminiReading
from .tools import ToolSettings, find, fingerprint, version

DEFAULT_MODEL = "gemini-2.5-pro"  # without -m the tool asks another model which to use, which costs up to minutes
STDIN_LIMIT = 8 << 20  # bytes; the tool cuts off the rest
MOST_ATTEMPTS = 10  # of one request, whatever general.maxAttempts says
SESSIONS = UUID("6f3f0c3e-6a7e-5d55-9a2b-2f9d0f4b6c11")  # namespace of the session ids

WRITING = ["write_file", "replace"]
EXECUTING = ["run_shell_command"]
NETWORKING = ["web_fetch", "google_web_search"]


@dataclass(frozen=True, slots=True)
class Login:
    """A way to log in: the tool's name for it, the account that limits belong to, variables, and the OAuth files."""

    kind: str
    account: str
    env: dict[str, str]
    folder: Path | None = None


class Gemini(Adapter):
    """Google's Gemini CLI, with an API key, a Google account or Vertex AI."""

    name = "gemini"
    first_output = timedelta(minutes=5)
    idle = timedelta(minutes=30)
    tested = ("0.61.0",)

    def probe(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
        tool = ToolSettings.from_json(settings)
        executable = find(tool, "gemini", environ)
        if executable is None:
            return Offer("missing", detail="Gemini CLI is not installed: npm install -g @google/gemini-cli")
        found = login(tool, environ)
        if found is None:
            how = f"set {tool.api_key_env}" if tool.api_key_env else "run `gemini` and log in, or set GEMINI_API_KEY"
            return Offer("unauthenticated", version=version(executable), detail=f"Gemini CLI has no login here: {how}.")
        return Offer("ready", found.account, version=version(executable))

    def prepare(self, run: Run) -> Launch:
        claim = run.claim
        tool = _settings(claim)
        executable = find(tool, "gemini", run.environ)
        if executable is None:
            raise CannotRun("Gemini CLI is not installed on this host.")
        found = login(tool, run.environ)
        if found is None:
            raise CannotRun("Gemini CLI has no login on this host.")
        if "execute" not in claim.permissions and (run.workspace / ".gemini" / "settings.json").exists():
            raise CannotRun("The workspace's .gemini/settings.json can run commands, which the scope does not allow.")
        text = prompt(claim).encode()
        if len(text) > STDIN_LIMIT:
            raise CannotRun("The prompt is larger than 8 MiB, which is all that Gemini CLI reads.")

        folder = run.home / ".gemini"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.json").write_text(json.dumps(configuration(claim, tool, found), indent=2))
        for name in ("oauth_creds.json", "google_accounts.json"):
            _link(folder / name, found.folder / name if found.folder else None)
        temporary = run.home / "tmp"  # its reports of failed requests hold the conversation: they go with run.home
        temporary.mkdir(exist_ok=True)

        session = claim.session_id or str(uuid5(SESSIONS, str(claim.attempt_id)))
        return Launch(
            [
                *(executable, "-o", "stream-json", "-m", claim.model or tool.model or DEFAULT_MODEL),
                *("--resume" if claim.session_id else "--session-id", session),
                *("--approval-mode", approval_mode(claim.permissions)),
                *("--allowed-mcp-server-names", "none"),  # else those of the workspace's settings are started
                *tool.args,
            ],
            text,
            {
                **found.env,
                "GEMINI_CLI_HOME": str(run.home),
                "GEMINI_CLI_TRUST_WORKSPACE": "true",
                "GEMINI_CLI_NO_RELAUNCH": "true",  # else signals reach a parent process that ignores them
                "TMPDIR": str(temporary),
                **tool.env,
            },
        )

    def read(self, run: Run) -> GeminiReading:
        wanted = run.claim.model or _settings(run.claim).model or DEFAULT_MODEL
        return GeminiReading(wanted, wants_json=run.claim.output_schema is not None)


def login(tool: ToolSettings, environ: Mapping[str, str]) -> Login | None:
    """The login to use: what the settings name, else Vertex AI, a key or a Google account, as the tool itself looks."""
    if tool.base_url:
        key = environ.get(tool.api_key_env) if tool.api_key_env else None
        env = {"GOOGLE_GEMINI_BASE_URL": tool.base_url, "GEMINI_API_KEY": key or "local"}
        return (
            None if tool.api_key_env and not key else Login("gemini-api-key", models.account(tool.base_url, key), env)
        )
    if tool.api_key_env:
        return _key(environ.get(tool.api_key_env))
    if tool.home:
        return _google_account(Path(tool.home).expanduser(), environ)
    if environ.get("GOOGLE_GENAI_USE_VERTEXAI", "").lower() in ("true", "1"):
        env = {name: text for name, text in environ.items() if name.startswith("GOOGLE_")}
        return Login("vertex-ai", env.get("GOOGLE_CLOUD_PROJECT") or "vertex", env)
    if environ.get("GEMINI_API_KEY"):
        return _key(environ["GEMINI_API_KEY"])
    home = environ.get("GEMINI_CLI_HOME") or environ.get("HOME")
    return _google_account(Path(home) / ".gemini", environ) if home else None


def approval_mode(permissions: list[str]) -> str:
    """default has no tools to write or to execute, auto_edit only those to write; yolo has all."""
    if "execute" in permissions:
        return "yolo"
    return "auto_edit" if "write" in permissions else "default"


def configuration(claim: Claim, tool: ToolSettings, found: Login) -> dict[str, Any]:
    """The tool's settings.json."""
    refused = {"write": WRITING, "execute": EXECUTING, "network": NETWORKING}
    excluded = [name for permission, names in refused.items() if permission not in claim.permissions for name in names]
    tools: dict[str, Any] = {"exclude": excluded}
    if claim.tools is not None:
        tools["core"] = claim.tools
    return {
        "security": {"auth": {"selectedType": found.kind}},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "general": {"enableAutoUpdate": False, "maxAttempts": min(tool.retries + 1, MOST_ATTEMPTS)},
        "advanced": {"ignoreLocalEnv": True},  # else the workspace's .env could name another server for the key
        "hooksConfig": {"enabled": False},
        "tools": tools,
        **({} if claim.max_turns is None else {"model": {"maxSessionTurns": claim.max_turns}}),
    }


def prompt(claim: Claim) -> str:
    """The message; above it in a new session the agent's system prompt, below it the schema.

    The tool can only replace its own system prompt as a whole (GEMINI_SYSTEM_MD), and with it all that it knows of its
    tools: so the agent's goes with the prompt.
    """
    parts = [prompts.message(claim)]
    if claim.system_prompt and claim.session_id is None:
        parts.insert(0, f"<instructions>\n{claim.system_prompt}\n</instructions>")
    if claim.output_schema is not None:
        parts.append(json_answers.instruction(claim.output_schema))
    return "\n\n".join(parts)


def _settings(claim: Claim) -> ToolSettings:
    try:
        return ToolSettings.from_json(claim.settings)
    except BadSettings as error:
        raise CannotRun(str(error)) from None


def _key(key: str | None) -> Login | None:
    return Login("gemini-api-key", f"key:{fingerprint(key)}", {"GEMINI_API_KEY": key}) if key else None


def _google_account(folder: Path, environ: Mapping[str, str]) -> Login | None:
    if not (folder / "oauth_creds.json").exists():
        return None
    account = "login"
    try:
        match json.loads((folder / "google_accounts.json").read_text()):
            case {"active": str(active)}:
                account = active
            case _:
                pass
    except (OSError, ValueError):
        pass
    found = Login("oauth-personal", account, {}, folder)
    project = environ.get("GOOGLE_CLOUD_PROJECT")  # a company's account needs one
    return replace(found, env={"GOOGLE_CLOUD_PROJECT": project}) if project else found


def _link(link: Path, target: Path | None) -> None:
    """A link to the login's own file: the tool writes refreshed tokens through it, for all runs of this login."""
    link.unlink(missing_ok=True)
    if target is not None and target.exists():
        link.symlink_to(target.absolute())
