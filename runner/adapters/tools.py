"""What adapters of command-line tools share: settings, finding the tool, its version, lines of JSON."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ..verbs import storable
from .base import BadSettings, CannotRun, Run, Said

VERSION_TIMEOUT = 20.0  # seconds; a cold start of the slowest tool takes 5
ARGUMENT_LIMIT = 131_071  # bytes of one argument: MAX_ARG_STRLEN of Linux, less its NUL
TEXT_LIMIT = 16 * 1024  # characters of one transcript row

Kind = Literal["text", "thinking", "tool_call", "tool_result", "error", "note", "output"]


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """providers.settings of a command-line tool: the same on every host, and never a secret.

    `executable`: name or path of the tool. `account`: name of the login, where limits are shared by several of them (an
    organisation's keys, say). `home`: folder with its login, where that is not the tool's own default.
    `base_url`: another server that speaks the vendor's protocol (a local one, say). `api_key_env`: variable of the
    runner's environment that holds the key. `model`: used where neither task nor route names one. `retries`: how often
    the tool may repeat a refused request by itself. `args`: appended to the command. `env`: further variables.
    """

    executable: str | None = None
    account: str | None = None
    home: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    model: str | None = None
    retries: int = 0
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "ToolSettings":
        """Raises BadSettings, naming the setting."""
        known = {f.name for f in fields(cls)}
        for name in settings:
            if name not in known:
                raise BadSettings(f"There is no setting {name}; known are {', '.join(sorted(known))}.")
        for name in ("executable", "account", "home", "base_url", "api_key_env", "model"):
            if not isinstance(settings.get(name), str | None):
                raise BadSettings(f"The setting {name} is not a text.")
        retries = settings.get("retries", 0)
        if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= 10:
            raise BadSettings("The setting retries is not a number from 0 to 10.")
        args, env = settings.get("args", []), settings.get("env", {})
        if not isinstance(args, list) or not all(isinstance(a, str) for a in args):  # pyright: ignore[reportUnknownVariableType]
            raise BadSettings("The setting args is not a list of texts.")
        if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):  # pyright: ignore[reportUnknownVariableType]
            raise BadSettings("The setting env is not an object of texts.")
        if not is_address(settings.get("base_url", "http://localhost")):
            raise BadSettings(f"The setting base_url is not an http or https address: {settings['base_url']}")
        return cls(**{**settings, "args": tuple(args), "env": dict(env)})  # pyright: ignore[reportUnknownArgumentType, reportArgumentType]


def is_address(value: object) -> bool:
    """Whether it is an http or https address of a host, without a login in it: settings hold no secrets."""
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and "@" not in parts.netloc
            and not parts.username
        )
    except ValueError:  # of a port or a host that is none
        return False


def find(settings: ToolSettings, name: str, environ: Mapping[str, str]) -> str | None:
    """Absolute path of the tool, or None where this host does not have it."""
    wanted = os.path.expanduser(settings.executable or name)
    found = shutil.which(wanted, path=environ.get("PATH"))
    return os.path.abspath(found) if found else None


def located(run: Run, name: str) -> tuple[ToolSettings, str]:
    """The settings of an attempt's tool and its absolute path. Raises CannotRun."""
    try:
        settings = ToolSettings.from_json(run.claim.settings)
    except BadSettings as error:
        raise CannotRun(str(error)) from None
    executable = find(settings, name, run.environ)
    if executable is None:
        raise CannotRun(f"There is no {settings.executable or name} on this host.")
    return settings, executable


def folder(settings: ToolSettings, environ: Mapping[str, str], variable: str, default: str) -> Path:
    """Where the tool keeps its login: settings.home, else environ[variable], else `default` below the user's home."""
    user = Path(environ.get("HOME") or Path.home())
    wanted = settings.home or environ.get(variable) or f"~/{default}"
    return user / wanted[2:] if wanted.startswith("~/") else Path(wanted)


def check_arguments(argv: list[str]) -> None:
    """Raises CannotRun where Linux would refuse to start this."""
    for argument in argv:
        if len(argument.encode()) > ARGUMENT_LIMIT:
            raise CannotRun(f"The argument that begins with {argument[:40]!r} has more than {ARGUMENT_LIMIT} bytes.")


def version(executable: str) -> str | None:
    """What its npm package says, else the first number that `executable --version` prints; None if none in time.

    Asked once per file: some take seconds of CPU to say their version.
    """
    try:
        return _packaged(Path(os.path.realpath(executable))) or _version(executable, os.stat(executable).st_mtime_ns)
    except OSError:
        return None


def _packaged(program: Path) -> str | None:
    for folder in program.parents:
        if (folder / "package.json").is_file() and "node_modules" in folder.parts:
            found = json_line((folder / "package.json").read_text(errors="replace"))
            number = (found or {}).get("version")
            return number if isinstance(number, str) else None
    return None


@lru_cache
def _version(executable: str, _changed: int) -> str | None:
    try:
        told = subprocess.run(
            [executable, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=VERSION_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\d+\.\d+[\w.+-]*", told.stdout)
    return match[0] if match else None


def fingerprint(secret: str) -> str:
    """Names a key without telling it: the first 8 hex digits of its SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8]


def json_line(text: str) -> dict[str, Any] | None:
    """The object that a line of output is, or None: tools print banners and warnings between their events.

    Its texts and numbers are such as PostgreSQL can hold (see storable()).
    """
    if not text.startswith("{"):
        return None
    try:
        found = storable(json.loads(text, parse_constant=lambda _: None))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType]


def count(value: Any) -> int | None:
    """A number of tokens or turns as a tool reports it; None where that is no such number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def said(kind: Kind, body: str, data: dict[str, Any] | None = None) -> Said:
    """A row of the transcript; no text in it is longer than TEXT_LIMIT."""
    return Said(kind, storable(body[:TEXT_LIMIT]), _shortened(data))


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        return value[:TEXT_LIMIT]
    if isinstance(value, list):
        return [_shortened(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {k: _shortened(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value


def gist(tool: str, arguments: Any) -> str:
    """A tool call on one line: `Bash: ls -la`, at most 300 characters."""
    if isinstance(arguments, dict):
        for key in (
            "command",
            "file_path",
            "filePath",
            "path",
            "absolute_path",
            "pattern",
            "query",
            "url",
            "description",
        ):
            found = arguments.get(key)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            if isinstance(found, list):
                found = " ".join(map(str, found))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            if isinstance(found, str) and found:
                return f"{tool}: {' '.join(found.split())}"[:300]
    rest = json.dumps(arguments, ensure_ascii=False) if arguments else ""
    return f"{tool}: {rest}"[:300] if rest else tool
