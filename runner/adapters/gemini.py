"""Gemini CLI: `gemini -o stream-json`, the prompt on standard input. Formats and exit codes as in version 0.61.0.

What it cannot do: it has no flag for a schema, so one is asked for in the prompt (see json_answers.py). Its file tools
stay within the workspace in every mode; its shell does not. It keeps secret that an answer was cut off at the model's
output limit. It runs headless only in folders that it trusts, and with the trust come the hooks in the workspace's own
.gemini/settings.json, which overrules ours: where the scope does not allow to execute, such a workspace is refused.

In a jail a key is the gateway's, and a Google account's files are copies that all jails of this host share (see
confined.py). Vertex AI is reached by the proxy, unless it is used with a key. Addresses: CODE_ASSIST_ENDPOINT,
getBaseUrl() and the OAuth client of the tool's bundle.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from ..channel import CALL_TIMEOUT, NAME, Address
from ..sandbox.logins import LoginFile
from ..verbs import Claim
from . import confined, homes, json_answers, models, programs, prompts
from .base import Adapter, BadSettings, CannotRun, Launch, Offer, Run, Upstream
from .gemini_stream import GeminiReading
from .tools import ToolSettings, find, fingerprint, version

DEFAULT_MODEL = "gemini-2.5-pro"  # without -m the tool asks another model which to use, which costs up to minutes
STDIN_LIMIT = 8 << 20  # bytes; the tool cuts off the rest
MOST_ATTEMPTS = 10  # of one request, whatever general.maxAttempts says
SESSIONS = UUID("6f3f0c3e-6a7e-5d55-9a2b-2f9d0f4b6c11")  # namespace of the session ids

# The tool's variable for the address, and the address, by its name of the login; Vertex AI has one for each region.
ADDRESSES = {
    "gemini-api-key": ("GOOGLE_GEMINI_BASE_URL", "https://generativelanguage.googleapis.com"),
    "oauth-personal": ("CODE_ASSIST_ENDPOINT", "https://cloudcode-pa.googleapis.com"),
    "vertex-ai": ("GOOGLE_VERTEX_BASE_URL", "https://aiplatform.googleapis.com"),
}
KEYS = {"gemini-api-key": "GEMINI_API_KEY", "vertex-ai": "GOOGLE_API_KEY"}
GOOGLE_ACCOUNT = (LoginFile("oauth_creds.json"), LoginFile("google_accounts.json", returns=False))
REFRESHING = ("oauth2.googleapis.com", "www.googleapis.com")  # the token, and whose it is
VERTEX = ("*.googleapis.com",)
CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
# Of all variables of Google's those that the tool uses and that are no secrets.
TOLD = ("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_QUOTA_PROJECT")

WRITING = ["write_file", "replace"]
EXECUTING = ["run_shell_command"]
NETWORKING = ["web_fetch", "google_web_search"]


@dataclass(frozen=True, slots=True)
class Login:
    """A way to log in: the tool's name for it, the account that limits belong to, variables, and files in a folder."""

    kind: str
    account: str
    env: dict[str, str]
    folder: Path | None = None
    files: tuple[LoginFile, ...] = ()


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

        homes.write(
            run.home, ".gemini/settings.json", json.dumps(configuration(claim, tool, found, run.channel), indent=2)
        )
        shared = _shared(run, found)
        for file in GOOGLE_ACCOUNT:
            # A link: the tool writes refreshed tokens through it, for all runs of this login.
            target = (shared or found.folder or Path()).absolute() / file.name
            there = file in found.files and target.exists()
            homes.link(run.home, f".gemini/{file.name}", target if there else None)
        homes.directory(run.home, "tmp")  # its reports of failed requests hold the conversation: they go with run.home
        env = {
            **found.env,
            "GEMINI_CLI_HOME": str(run.home),
            "GEMINI_CLI_TRUST_WORKSPACE": "true",
            "GEMINI_CLI_NO_RELAUNCH": "true",  # else signals reach a parent process that ignores them
            "TMPDIR": str(run.home / "tmp"),
            **tool.env,
        }
        upstream, hosts = None, ()
        if run.gateway is not None:
            env, upstream, hosts = behind(run.gateway, found, env)
            if shared and found.kind == "vertex-ai":
                env[CREDENTIALS] = str(shared / found.files[0].name)
        words, needed = programs.start(run, executable)

        session = claim.session_id or str(uuid5(SESSIONS, str(claim.attempt_id)))
        return Launch(
            [
                *(*words, "-o", "stream-json", "-m", claim.model or tool.model or DEFAULT_MODEL),
                *("--resume" if claim.session_id else "--session-id", session),
                *("--approval-mode", approval_mode(claim.permissions)),
                # Else those of the workspace's settings are started.
                *("--allowed-mcp-server-names", "none" if run.channel is None else NAME),
                *tool.args,
            ],
            text,
            env,
            upstream,
            hosts,
            needed,
            (shared,) if shared else (),
        )

    def settle(self, run: Run) -> None:
        def bring() -> None:
            found = login(ToolSettings.from_json(run.claim.settings), run.environ)
            if found is not None:
                _shared(run, found)

        confined.settled(run, bring)

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
        vertex = Login("vertex-ai", env.get("GOOGLE_CLOUD_PROJECT") or "vertex", env)
        signed = _credentials(environ)
        if signed is None:
            return vertex
        return replace(vertex, folder=signed.parent, files=(LoginFile(signed.name, returns=False),))
    if environ.get("GEMINI_API_KEY"):
        return _key(environ["GEMINI_API_KEY"])
    home = environ.get("GEMINI_CLI_HOME") or environ.get("HOME")
    return _google_account(Path(home) / ".gemini", environ) if home else None


def behind(
    gateway: str, found: Login, env: Mapping[str, str]
) -> tuple[dict[str, str], Upstream | None, tuple[str, ...]]:
    """For variables that would do without a jail: those of the child, what the gateway sends on, hosts by the proxy."""
    variable, api = ADDRESSES[found.kind]
    name = KEYS.get(found.kind, "")
    key, url = env.get(name), env.get(variable)
    vertex = found.kind == "vertex-ai"
    changed = {n: text for n, text in env.items() if not (vertex and n.startswith("GOOGLE_")) or n in TOLD}
    if vertex and not key and not url:
        return changed, None, VERTEX
    changed[variable] = gateway
    if key:
        changed[name] = confined.PLACEHOLDER
        return changed, Upstream(url or api, {"x-goog-api-key": key}), ()
    return changed, Upstream(url or api), VERTEX if vertex else REFRESHING


def approval_mode(permissions: list[str]) -> str:
    """default has no tools to write or to execute, auto_edit only those to write; yolo has all."""
    if "execute" in permissions:
        return "yolo"
    return "auto_edit" if "write" in permissions else "default"


def configuration(claim: Claim, tool: ToolSettings, found: Login, channel: Address | None = None) -> dict[str, Any]:
    """The tool's settings.json."""
    refused = {"write": WRITING, "execute": EXECUTING, "network": NETWORKING}
    excluded = [name for permission, names in refused.items() if permission not in claim.permissions for name in names]
    tools: dict[str, Any] = {"exclude": excluded}
    if claim.tools is not None:
        # The list is of all tools, those of servers included.
        tools["core"] = [*claim.tools, *(() if channel is None else (f"mcp_{NAME}_*",))]
    return {
        "security": {"auth": {"selectedType": found.kind}},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "general": {"enableAutoUpdate": False, "maxAttempts": min(tool.retries + 1, MOST_ATTEMPTS)},
        "advanced": {"ignoreLocalEnv": True},  # else the workspace's .env could name another server for the key
        "hooksConfig": {"enabled": False},
        "tools": tools,
        **({} if channel is None else {"mcpServers": {NAME: _server(channel)}}),
        **({} if claim.max_turns is None else {"model": {"maxSessionTurns": claim.max_turns}}),
    }


def _server(channel: Address) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {channel.token}"}
    return {"httpUrl": channel.url, "headers": headers, "trust": True, "timeout": CALL_TIMEOUT * 1000}


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
    found = Login("oauth-personal", account, {}, folder, GOOGLE_ACCOUNT)
    project = environ.get("GOOGLE_CLOUD_PROJECT")  # a company's account needs one
    return replace(found, env={"GOOGLE_CLOUD_PROJECT": project}) if project else found


def _credentials(environ: Mapping[str, str]) -> Path | None:
    """The file that Vertex AI's requests are signed with: application default credentials, where no key is used."""
    home = environ.get("HOME")
    named = environ.get(CREDENTIALS) or (f"{home}/.config/gcloud/application_default_credentials.json" if home else "")
    if environ.get("GOOGLE_API_KEY") or not os.path.isfile(named):
        return None
    return Path(named)


def _shared(run: Run, found: Login) -> Path | None:
    """Copies of the login's files for a jail, if there is a jail, and the login has files."""
    if run.gateway is None or found.folder is None:
        return None
    return confined.shared_login(run, found.folder, found.files)
