"""Any OpenAI-compatible server, llama-swap by default: one plain chat completion, without tools and without a session.

The request is made by a child process of ours (chat.py), so that this too is a run like any other: it can be watched,
timed and stopped. The codes in the bodies of errors are those of llama-server (tools/server/README.md of llama.cpp),
llama-swap (https://github.com/mostlygeek/llama-swap) and https://platform.openai.com/docs/guides/error-codes.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..verbs import Claim, Ending, Usage, Window
from . import confined, programs, prompts
from .base import Adapter, BadSettings, CannotRun, Exit, Launch, Offer, Reading, Run, Said, Seen, Upstream
from .fields import obj
from .models import account, in_memory, offer
from .tools import TEXT_LIMIT, is_address, json_line

BASE_URL = "http://127.0.0.1:8080/v1"
CONTEXT_CODES = ("exceed_context_size_error", "context_length_exceeded")
LOADING = (
    "failed to start command",
    "upstream command exited prematurely",
    "health check timed out",
    "failed to load",
    "loading model",
)
BUSY = {408, 502, 503, 504, 529}


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """providers.settings of a server: the same on every host, and never a secret.

    `base_url`: address of the API, with its /v1. `account`: name of the login, where several share its limits.
    `api_key_env`: variable of the runner's environment that holds the key, where the server wants one. `model`: used
    where neither task nor route names one. `max_tokens`: the longest answer; without it the model's context is the
    limit. `temperature`: 0 to 2; without it the server's own. `retries`: how often a request that was one too many is
    repeated before the account is given a rest.
    """

    base_url: str = BASE_URL
    account: str | None = None
    api_key_env: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    retries: int = 3

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "ChatSettings":
        """Raises BadSettings, naming the setting."""
        known = {f.name for f in fields(cls)}
        for name in settings:
            if name not in known:
                raise BadSettings(f"There is no setting {name}; known are {', '.join(sorted(known))}.")
        read = cls(**settings)
        if not is_address(read.base_url):
            raise BadSettings(f"The setting base_url is not an http or https address: {read.base_url}")
        for name in ("account", "api_key_env", "model"):
            if not isinstance(getattr(read, name), str | None):
                raise BadSettings(f"The setting {name} is not a text.")
        if read.max_tokens is not None:
            _within("max_tokens", read.max_tokens, int, 1, 1 << 24)
        if read.temperature is not None:
            _within("temperature", read.temperature, int | float, 0, 2)
        _within("retries", settings.get("retries", 0), int, 0, 10)
        return read

    def key(self, environ: Mapping[str, str]) -> str | None:
        """The key, or None where none is wanted. Raises CannotRun if it is wanted and not there."""
        if self.api_key_env is None:
            return None
        found = environ.get(self.api_key_env, "").strip()
        if not found or not found.isascii() or not found.isprintable():
            raise CannotRun(f"The variable {self.api_key_env} of the runner's environment holds no key.")
        return found


def _within(name: str, value: Any, kind: Any, low: int, high: int) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
        raise BadSettings(f"The setting {name} is not a number from {low} to {high}.")


class OpenAI(Adapter):
    """Sends the agent's system prompt and the task's prompt; the answer is the result.

    An output schema becomes a strict `response_format`, which llama-server keeps by grammar; the result is then the
    JSON value. max_turns, tools and permissions mean nothing here: there is one answer, and the model can do nothing.
    """

    name = "openai"
    # A cold model takes up to llama-swap's healthCheckTimeout of 5 minutes to load, and before that the requests of the
    # model that makes room for it come to their end. A long prompt is read before the first word too.
    first_output = timedelta(minutes=10)
    idle = timedelta(minutes=5)

    def probe(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
        """Ready with the models that GET base_url/models lists, under all their names; asks for 3 seconds at most."""
        read = ChatSettings.from_json(settings)
        try:
            key = read.key(environ)
        except CannotRun as error:
            return Offer("unauthenticated", account(read.base_url, None), detail=str(error))
        return offer(read.base_url, key)

    def loaded(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> list[str] | None:
        """The models in memory, or on their way there, under all their names: one local request as a rule."""
        read = ChatSettings.from_json(settings)
        try:
            return in_memory(read.base_url, read.key(environ))
        except CannotRun:
            return None

    def prepare(self, run: Run) -> Launch:
        settings = _settings(run.claim)
        key = settings.key(run.environ)
        document = {
            "url": (run.gateway or settings.base_url).rstrip("/") + "/chat/completions",
            "key_env": settings.api_key_env if run.gateway is None else None,
            "retries": settings.retries,
            "request": request(run.claim, settings),
        }
        # By path and isolated: importing this package would take longer than the request.
        program = Path(__file__).with_name("chat.py")
        argv = [sys.executable, "-I", str(program)]
        if run.gateway is not None:
            python, source = programs.command(sys.executable, run.environ), str(program.resolve())
            upstream = Upstream(settings.base_url, confined.bearer(key))
            needed = programs.needed([*python, source])
            return Launch([*python, "-I", source], json.dumps(document).encode(), {}, upstream, programs=needed)
        env = {settings.api_key_env: key} if settings.api_key_env and key else {}
        return Launch(argv, json.dumps(document).encode(), env)

    def read(self, run: Run) -> "ChatReading":
        return ChatReading(run.claim, _settings(run.claim))


def _settings(claim: Claim) -> ChatSettings:
    try:
        return ChatSettings.from_json(claim.settings)
    except BadSettings as error:
        raise CannotRun(str(error)) from None


def request(claim: Claim, settings: ChatSettings) -> dict[str, Any]:
    """The body of the request, as in https://platform.openai.com/docs/api-reference/chat/create."""
    messages = [{"role": "user", "content": prompts.message(claim)}]
    if claim.system_prompt:
        messages.insert(0, {"role": "system", "content": claim.system_prompt})
    body: dict[str, Any] = {"messages": messages, "stream_options": {"include_usage": True}}
    if model := claim.model or settings.model:
        body["model"] = model
    if settings.max_tokens is not None:
        body["max_tokens"] = settings.max_tokens
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if claim.output_schema is not None:
        schema = {"name": "result", "strict": True, "schema": claim.output_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif claim.result_format == "json":
        body["response_format"] = {"type": "json_object"}
    return body


class ChatReading(Reading):
    """Reads the lines that chat.py describes."""

    def __init__(self, claim: Claim, settings: ChatSettings) -> None:
        self._model = claim.model or settings.model
        self._max_tokens = settings.max_tokens
        self._wants_json = claim.output_schema is not None or claim.result_format == "json"
        self._where = urlsplit(settings.base_url).netloc
        self._answer: list[str] = []
        self._usage: Usage | None = None
        self._last: dict[str, Any] | None = None

    def line(self, text: str) -> list[Seen]:
        line = json_line(text)
        match line:
            case {"type": "text", "delta": str(delta)}:
                self._answer.append(delta)
                return [Said("text", delta)]
            case {"type": "thinking" | "note" as kind, "delta": str(delta)}:
                return [Said(kind, delta)]
            case {"type": "refused", "message": str(message), "wait": wait}:
                return [Said("error", f"{message} (asked again after {wait:g} s)", {"wait": wait})]
            case {"type": "usage", "usage": dict() as usage, "model": model}:  # pyright: ignore[reportUnknownVariableType]
                self._usage = _usage(usage, model)  # pyright: ignore[reportUnknownArgumentType]
                return [self._usage]
            case {"type": "error", "status": status, "body": str(body)}:
                self._last = line
                return [Said("error", f"{status}: {message_of(body)}" if status else message_of(body))]
            case {"type": "unreachable" | "cut", "message": str(message)}:
                self._last = line
                return [Said("error", message)]
            case {"type": "done"}:
                self._last = line
                return []
            case _:
                return [Said("note", text[:TEXT_LIMIT])] if text else []

    def ending(self, ended: Exit) -> Ending:
        ending = self._ending(ended)
        return Ending(
            ending.outcome,
            ending.result,
            ending.error,
            ended.code,
            ending.evidence,
            self._usage,
            window=ending.window,
        )

    def _ending(self, ended: Exit) -> Ending:
        match self._last:
            case {"type": "done", "finish_reason": reason}:
                return self._done(reason)
            case {"type": "error"} as error:
                return self._refused(error)
            case {"type": "unreachable", "message": message}:
                return Ending("network", error=f"{self._where} could not be reached.", evidence=message)
            case {"type": "cut", "message": message}:
                return Ending("network", error=f"The answer of {self._where} broke off.", evidence=message)
            case _:
                how = f"by signal {-ended.code}" if ended.code < 0 else f"with exit status {ended.code}"
                return Ending(
                    "crashed", error=f"The request's process ended {how}.", evidence=ended.stderr[-2000:] or None
                )

    def _done(self, reason: str) -> Ending:
        answer = "".join(self._answer)
        evidence = json.dumps({"finish_reason": reason})
        if reason == "length":
            used = self._usage.output_tokens if self._usage else None
            if self._max_tokens is not None and (used is None or used >= self._max_tokens):
                error = f"The answer stopped at max_tokens, which is {self._max_tokens}."
                return Ending("failed", error=error, evidence=evidence)
            error = "The answer stopped where prompt and answer together filled the model's context."
            return Ending("context_overflow", error=error, evidence=evidence)
        if reason in ("content_filter", "tool_calls", "function_call"):
            return Ending("failed", error=f"The answer ended with finish_reason {reason}.", evidence=evidence)
        if not self._wants_json:
            return Ending("completed", answer)
        try:
            return Ending("completed", json.loads(answer))
        except ValueError as error:
            return Ending("failed", error=f"The answer is not a JSON value: {error}.", evidence=answer[-2000:])

    def _refused(self, error: dict[str, Any]) -> Ending:
        status, body = error["status"], error["body"]
        message = message_of(body)
        evidence = f"HTTP {status}: {body[:2000]}" if status else body[:2000]
        resets_at = None
        if error["retry_after"] is not None:
            resets_at = datetime.fromtimestamp(error["at"], UTC) + timedelta(seconds=error["retry_after"])
        if code_of(body) in CONTEXT_CODES:
            return Ending(
                "context_overflow", error=f"The prompt is longer than the context: {message}", evidence=evidence
            )
        if status in (401, 403):
            return Ending("unauthenticated", error=f"{self._where} refuses the key: {message}", evidence=evidence)
        if status == 402 or code_of(body) == "insufficient_quota":
            window = Window("quota", resets_at)
            return Ending(
                "quota_exhausted", error=f"The allowance is used up: {message}", evidence=evidence, window=window
            )
        if status == 429:
            alone = self._model if code_of(body) == "concurrency_limit" else None
            window = Window("concurrency" if alone else "requests", resets_at, model=alone)
            return Ending("rate_limited", error=f"Too many requests: {message}", evidence=evidence, window=window)
        if status in BUSY or any(text in message for text in LOADING):
            window = Window("requests", resets_at) if resets_at else None
            error_text = f"{self._where} cannot serve {self._model or 'its model'} now: {message}"
            return Ending("overloaded", error=error_text, evidence=evidence, window=window)
        if status == 404:
            what = f"the model {self._model}" if self._model else "a request that names no model"
            return Ending("failed", error=f"{self._where} does not know {what}: {message}", evidence=evidence)
        return Ending("failed", error=f"{self._where} refused the request: {message}", evidence=evidence)


def _usage(usage: Mapping[str, Any], model: str | None) -> Usage:
    cached = obj(usage.get("prompt_tokens_details")).get("cached_tokens")
    return Usage(usage.get("prompt_tokens"), cached, usage.get("completion_tokens"), turns=1, model=model)


def message_of(body: str) -> str:
    """What a refusal says. `error` is an object, in llama-swap up to version 250 a text, or there is no JSON at all."""
    match json_line(body.strip()):
        case {"error": {"message": str(message)}} | {"error": str(message)} | {"message": str(message)}:
            return message[:500]
        case _:
            return " ".join(body.split())[:500] or "no reason was given"


def code_of(body: str) -> str | None:
    """The name that a refusal has: `code` is a number in llama-server, which says it in `type`."""
    match json_line(body.strip()):
        case {"error": {"code": str(code)}} | {"error": {"type": str(code)}}:
            return code
        case _:
            return None
