"""What `gemini -o stream-json` prints, and what it amounts to. Shapes as in Gemini CLI 0.61.0.

The exit status of a refused request is its HTTP status modulo 256 (429 is 173, 503 is 247), which looks like a signal's
and is none. Exit status 0 is no proof of anything: a run that was terminated ends with it, and so does one that
sent no request at all.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from ..verbs import Ending, Usage, Window
from . import json_answers
from .base import Exit, Reading, Seen, Session
from .tools import count, gist, json_line, said

SIGNALS = (129, 130, 137, 143)  # what a shell or node makes of SIGHUP, SIGINT, SIGKILL and SIGTERM
NO_LOGIN, BAD_INPUT, TURN_LIMIT, UNTRUSTED = 41, 42, 53, 55  # the tool's own exit statuses

_WAIT = re.compile(r"^(?:Suggested retry after|Please retry in) (\d{1,9}(?:\.\d{1,9})?)s\b", re.MULTILINE)
_RESET = re.compile(r"\bYour quota will reset after (?:(\d{1,5})h)?(?:(\d{1,5})m)?(?:(\d{1,9})s)?\.")
_API_ERROR = re.compile(r"\A\[API Error: (.*?)\](?:\nPlease wait and try again later\..*)?\Z", re.DOTALL)
_TOLD = re.compile(r'"message": ("(?:[^"\\]|\\.)*")')
_SESSION_LOST = re.compile(r"^Error resuming session: ", re.MULTILINE)


class GeminiReading(Reading):
    """Reads one run. `model` is the one asked for."""

    def __init__(self, model: str, *, wants_json: bool) -> None:
        self._model = model
        self._wants_json = wants_json
        self._session: str | None = None
        self._answer: list[str] = []  # since the last result of a tool
        self._turns = 0
        self._answering = False
        self._error: str | None = None  # a refusal for safety, say
        self._warning: str | None = None  # "Loop detected, stopping execution", say
        self._result: dict[str, Any] | None = None
        self._usage: Usage | None = None
        self._begun = ""

    def line(self, text: str) -> list[Seen]:
        event = json_line(text)
        if event is not None and event.get("type") == "message" and event.get("role") == "assistant":
            return self._words(event.get("content"))
        # Words come a few at a time: a row of the transcript is whole lines of them, or what came before another event.
        rest, self._begun = self._begun, ""
        return [*([said("text", rest)] if rest else []), *self._event(event, text)]

    def _words(self, content: object) -> list[Seen]:
        if not isinstance(content, str):
            return []
        self._answers()
        self._answer.append(content)
        whole, newline, self._begun = (self._begun + content).rpartition("\n")
        return [said("text", whole)] if newline and whole else []

    def _event(self, event: dict[str, Any] | None, text: str) -> list[Seen]:
        match event:
            case {"type": "init", "session_id": str(session)}:
                self._session, model = session, event.get("model")
                self._model = model if isinstance(model, str) else self._model
                return [Session(session)]
            case {"type": "message"}:  # the prompt, repeated
                return []
            case {"type": "tool_use", "tool_name": str(tool)}:
                self._answers()
                data = {"id": event.get("tool_id"), "name": tool, "input": event.get("parameters")}
                return [said("tool_call", gist(tool, event.get("parameters")), data)]
            case {"type": "tool_result"}:
                self._answering = False
                self._answer.clear()
                output = event.get("output")
                data = {"id": event.get("tool_id"), "is_error": event.get("status") != "success"}
                return [said("tool_result", output if isinstance(output, str) else "", data)]
            case {"type": "error", "severity": "warning", "message": str(message)}:
                self._warning = message
                return [said("error", message)]
            case {"type": "error", "message": str(message)}:
                self._error = message
                return [said("error", message)]
            case {"type": "result", "status": "success" | "error"}:
                self._result = event
                self._usage = self._used(event.get("stats"))
                error = _error(event)[1]
                return [*([self._usage] if self._usage else []), *([said("error", error)] if error else [])]
            case _:
                return [said("note", text)] if text.strip() else []

    def ending(self, ended: Exit) -> Ending:
        found = self._ending(ended)
        session = None if found.outcome == "session_lost" else self._session
        return Ending(
            found.outcome, found.result, found.error, ended.code, found.evidence, self._usage, session, found.window
        )

    def _ending(self, ended: Exit) -> Ending:
        if self._result is None:
            return _without_result(ended, self._model)
        if self._result["status"] == "success":
            return self._succeeded()
        kind, message = _error(self._result)
        if message is None:
            why = self._error or self._warning
            return Ending("failed", error=f"Gemini CLI stopped: {why or 'it does not say why'}", evidence=why)
        if kind == "FatalTurnLimitedError":
            return Ending("turn_limit", error="The agent used up its turns.", evidence=message)
        return _refused(message, ended.code, _time(self._result.get("timestamp")), self._model)

    def _succeeded(self) -> Ending:
        answer = "".join(self._answer)
        if answer and self._usage is not None and self._error is None:
            return json_answers.completed(answer, wants_json=self._wants_json)
        if why := self._error or self._warning:
            return Ending("failed", error=f"Gemini CLI stopped: {why}", evidence=why)
        if self._turns == 0 and self._usage is None:
            return Ending(
                "context_overflow",
                error="Gemini CLI sent no request, as it does with a conversation larger than the model's context.",
                evidence="status success, 0 tokens",
            )
        return Ending("failed", error="The run ended without an answer.", evidence="status success, no message")

    def _answers(self) -> None:
        self._turns += not self._answering
        self._answering = True

    def _used(self, stats: Any) -> Usage | None:
        """From the statistics of this run alone, also of a resumed one; None where they are zero: nothing is known."""
        match stats:
            case {"total_tokens": int(total), "models": dict() as used} if total > 0:  # pyright: ignore[reportUnknownVariableType]
                model = next(iter(used)) if len(used) == 1 else self._model  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
                tokens = (count(stats.get(name)) for name in ("input_tokens", "cached", "output_tokens"))  # pyright: ignore[reportUnknownMemberType]
                return Usage(*tokens, turns=self._turns, model=model if isinstance(model, str) else None)
            case _:
                return None


def _error(result: dict[str, Any]) -> tuple[str, str | None]:
    match result.get("error"):
        case {"type": str(kind), "message": str(message)}:
            return kind, message
        case _:
            return "", None


def _refused(message: str, code: int, now: datetime | None, model: str) -> Ending:
    """The ending of a run whose request was refused: by the status in the exit status, else in the error's body."""
    found = _API_ERROR.match(message)
    told = found[1] if found else message
    status = code + 256 if 144 <= code <= 255 else None
    body = json_line(told)
    reasons: list[Any] = []
    match body:
        case {"error": {"code": int(number), "message": str(text)}}:
            status, told = status or number, text
            details = body["error"].get("details")
            reasons = [d.get("reason") for d in details if isinstance(d, dict)] if isinstance(details, list) else []  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        case _:
            pass
    sentence = told.split("\n")[0][:500]

    def ending(outcome: str, error: str, window: Window | None = None) -> Ending:
        return Ending(outcome, error=f"{error}: {sentence}", evidence=message[:2000], window=window)

    if status == 429:
        return _limited(ending, told, now, model)
    if status in (401, 403) or "API_KEY_INVALID" in reasons:
        return ending("unauthenticated", "The login was refused")
    if status == 400 and re.match(r"The input token count .*exceeds the maximum number of tokens", told):
        return ending("context_overflow", "The conversation is larger than the model's context")
    if status == 408 or (status is not None and status >= 500):
        return ending("overloaded", "The service is too busy")
    if status is None and told in ("exception TypeError: fetch failed sending request", "terminated"):
        return ending("network", "The service could not be reached")
    return ending("failed", "The request was refused")


def _limited(ending: Callable[[str, str, Window], Ending], told: str, now: datetime | None, model: str) -> Ending:
    """Gemini's limits are each model's own."""
    if told.startswith("You have exhausted your daily quota on this model."):
        return ending("quota_exhausted", "The day's allowance is used up", Window("daily_requests", model=model))
    if told.startswith("You have exhausted your capacity on this model."):
        match = _RESET.search(told)
        hours, minutes, seconds = (int(n or 0) for n in match.groups()) if match else (0, 0, 0)
        wait = timedelta(hours=hours, minutes=minutes, seconds=seconds)
        window = Window("daily_requests", _after(now, wait), model=model)
        return ending("quota_exhausted", "The allowance is used up", window)
    waits = [float(seconds) for seconds in _WAIT.findall(told)]
    window = Window("requests", _after(now, timedelta(seconds=waits[-1])) if waits else None, model=model)
    return ending("rate_limited", "Too many requests", window)


def _without_result(ended: Exit, model: str) -> Ending:
    """The tool came to no verdict: its exit status tells why. Its last words on standard error only describe it."""
    evidence = ended.stderr[-2000:] or None
    if ended.code <= 0 or ended.code in SIGNALS:
        how = f"was ended by signal {-ended.code}" if ended.code < 0 else f"ended with exit status {ended.code}"
        return Ending("crashed", error=f"Gemini CLI {how} before it came to a result.", evidence=evidence)
    if ended.code == NO_LOGIN:
        return Ending("unauthenticated", error="Gemini CLI has no login that works.", evidence=evidence)
    if ended.code == BAD_INPUT and _SESSION_LOST.search(ended.stderr):
        return Ending("session_lost", error="The session to resume is gone.", evidence=evidence)
    if ended.code == TURN_LIMIT:
        return Ending("turn_limit", error="The agent used up its turns.", evidence=evidence)
    if ended.code == UNTRUSTED:
        return Ending("failed", error="Gemini CLI does not trust the workspace.", evidence=evidence)
    if ended.code >= 144:
        return _refused(_told(ended.stderr) or f"exit status {ended.code}", ended.code, None, model)
    last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "")
    return Ending("failed", error=f"Gemini CLI ended with exit status {ended.code}: {last[:500]}", evidence=evidence)


def _told(stderr: str) -> str | None:
    """The message of the error that the tool prints there as JSON when it fails before its stream begins."""
    match json_line(f'{{"message": {(_TOLD.findall(stderr) or ["null"])[-1]}}}'):
        case {"message": str(message)}:
            return message
        case _:
            return None


def _time(text: Any) -> datetime | None:
    """An event's time, in UTC."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else None
    except (TypeError, ValueError, OverflowError):
        return None


def _after(now: datetime | None, wait: timedelta) -> datetime | None:
    try:
        return now + wait if now and wait else None
    except OverflowError:
        return None
