"""What `opencode run --format json` prints, and what it amounts to. Shapes as in opencode 1.18.33.

There is no final record: a run has succeeded when it ends with exit status 0 and the reason of its last step is "stop".
Errors are objects with a name, the HTTP status and the headers of the answer.
"""

import math
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from ..verbs import Ending, Usage, Window
from . import json_answers
from .base import Exit, Reading, Seen, Session
from .tools import count, gist, json_line, said

SIGNALS = (129, 130, 137, 143)  # what a shell or node makes of SIGHUP, SIGINT, SIGKILL and SIGTERM
EXHAUSTED = re.compile(r'"(?:code|type)"\s*:\s*"insufficient_quota"')

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"^Error: +(.*)", re.MULTILINE)


class OpencodeReading(Reading):
    """Reads one run. `model` is the one asked for, `max_turns` how many answers it may give."""

    def __init__(self, model: str | None, max_turns: int | None, *, wants_json: bool) -> None:
        self._model = model
        self._max_turns = max_turns
        self._wants_json = wants_json
        self._session: str | None = None
        self._answer: list[str] = []  # of the step that goes on, or ended last
        self._reason: str | None = None  # why the last step ended
        self._error: dict[str, Any] | None = None  # since the last step that ended
        self._at: Any = None  # when it was printed, in milliseconds since 1970
        self._usage: Usage | None = None

    def line(self, text: str) -> list[Seen]:
        event = json_line(text)
        if event is None:
            return [said("note", text)] if text.strip() else []
        session = event.get("sessionID")
        seen: list[Seen] = []
        if isinstance(session, str) and self._session is None:
            self._session = session
            seen.append(Session(session))
        return seen + self._event(event)

    def _event(self, event: dict[str, Any]) -> list[Seen]:
        match event:
            case {"type": "step_start"}:
                self._answer.clear()
                self._reason = None
                return []
            case {"type": "text", "part": {"text": str(text)}}:
                self._answer.append(text)
                return [said("text", text)]
            case {"type": "reasoning", "part": {"text": str(text)}}:
                return [said("thinking", text)]
            case {"type": "tool_use", "part": {"tool": str(tool), "state": dict() as state} as part}:  # pyright: ignore[reportUnknownVariableType]
                return _tool(tool, part.get("callID"), state)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
            case {"type": "step_finish", "part": {"reason": str(reason)} as part}:  # pyright: ignore[reportUnknownVariableType]
                self._reason = reason
                self._error = None  # it got over it, by making the conversation shorter, say
                self._usage = self._added(part)  # pyright: ignore[reportUnknownArgumentType]
                return [self._usage]
            case {"type": "error", "error": dict() as error}:  # pyright: ignore[reportUnknownVariableType]
                self._error = error  # pyright: ignore[reportUnknownMemberType]
                self._at = event.get("timestamp")
                return [said("error", _message(error))]  # pyright: ignore[reportUnknownArgumentType]
            case _:
                return []

    @property
    def hopeless(self) -> bool:
        """The turns are used up, and it would take another: the tool's own limit makes an answer up instead."""
        if self._max_turns is None or self._usage is None:
            return False
        return (self._usage.turns or 0) >= self._max_turns and self._reason == "tool-calls"

    def ending(self, ended: Exit) -> Ending:
        found = self._ending(ended)
        session = None if found.outcome == "session_lost" else self._session
        return Ending(
            found.outcome, found.result, found.error, ended.code, found.evidence, self._usage, session, found.window
        )

    def _ending(self, ended: Exit) -> Ending:
        if self.hopeless:
            return Ending("turn_limit", error="The agent used up its turns.", evidence=f"{self._max_turns} answers")
        if self._error is not None:
            return _failed(self._error, self._at, self._model)
        if ended.code < 0 or ended.code in SIGNALS:
            how = f"by signal {-ended.code}" if ended.code < 0 else f"with exit status {ended.code}"
            return Ending("crashed", error=f"opencode was ended {how}.", evidence=ended.stderr[-2000:] or None)
        if ended.code != 0:
            return _not_started(ended)
        evidence = f"last step: {self._reason}"
        match self._reason:
            case "stop":
                return json_answers.completed("".join(self._answer), wants_json=self._wants_json)
            case "length":
                return Ending("failed", error="The answer stopped at the model's output limit.", evidence=evidence)
            case "tool-calls":
                return Ending("failed", error="The run ended with a tool call, without an answer.", evidence=evidence)
            case "unknown" | "error" | None if self._usage is not None:
                return Ending("network", error="The answer broke off.", evidence=evidence)
            case None:
                return Ending("unknown", error="opencode ended without a word.", evidence=ended.stderr[-2000:] or None)
            case reason:
                return Ending("failed", error=f"The answer ended with the reason {reason[:100]}.", evidence=evidence)

    def _added(self, step: dict[str, Any]) -> Usage:
        """The totals with this step. Its `input` is without what was read from a cache, `output` without reasoning."""
        before = self._usage or Usage(0, 0, 0, 0)
        tokens = step.get("tokens")
        told: dict[str, Any] = tokens if isinstance(tokens, dict) else {}  # pyright: ignore[reportUnknownVariableType]
        stored = told.get("cache")
        cache: dict[str, Any] = stored if isinstance(stored, dict) else {}  # pyright: ignore[reportUnknownVariableType]
        cost = step.get("cost")
        paid = cost if isinstance(cost, int | float) and math.isfinite(cost) and cost > 0 else None
        cached = count(cache.get("read")) or 0
        read = (count(told.get("input")) or 0) + cached + (count(cache.get("write")) or 0)
        written = (count(told.get("output")) or 0) + (count(told.get("reasoning")) or 0)
        return Usage(
            (before.input_tokens or 0) + read,
            (before.cached_tokens or 0) + cached,
            (before.output_tokens or 0) + written,
            (before.turns or 0) + 1,
            (before.cost_usd or 0) + paid if paid else before.cost_usd,
            self._model,
        )


def _tool(tool: str, call: Any, state: dict[str, Any]) -> list[Seen]:
    """A call and its result: the tool prints both at once, after the result."""
    failed = state.get("status") != "completed"
    output = state.get("error" if failed else "output")
    return [
        said("tool_call", gist(tool, state.get("input")), {"id": call, "name": tool, "input": state.get("input")}),
        said("tool_result", output if isinstance(output, str) else "", {"id": call, "is_error": failed}),
    ]


def _message(error: dict[str, Any]) -> str:
    match error:
        case {"data": {"message": str(message)}} if message:
            return message
        case {"name": str(name)}:
            return name
        case _:
            return "an error without a name"


def _failed(error: dict[str, Any], at: Any, model: str | None) -> Ending:
    """The ending by the tool's last error event."""
    told = error.get("data")
    data: dict[str, Any] = told if isinstance(told, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    status, body = count(data.get("statusCode")), data.get("responseBody")
    message = _message(error)
    evidence = f"{error.get('name')} {status or ''}: {body if isinstance(body, str) else message}"[:2000]
    sentence = message.split("\n")[0][:500]

    def ending(outcome: str, text: str, window: Window | None = None) -> Ending:
        return Ending(outcome, error=f"{text}: {sentence}", evidence=evidence, window=window)

    if error.get("name") == "ContextOverflowError":
        return ending("context_overflow", "The conversation is larger than the model's context")
    if error.get("name") == "ProviderAuthError" or status in (401, 403):
        return ending("unauthenticated", "The server refuses the key")
    if error.get("name") != "APIError":
        return ending("failed", "opencode failed")
    if status == 402 or (isinstance(body, str) and EXHAUSTED.search(body)):
        return ending("quota_exhausted", "The allowance is used up", Window("quota", _reset(data, at)))
    if status == 429:
        return ending("rate_limited", "Too many requests", Window("requests", _reset(data, at)))
    if status == 408 or (status is not None and status >= 500):
        resets_at = _reset(data, at)
        window = Window("requests", resets_at) if resets_at else None
        return ending("overloaded", f"The server cannot serve {model or 'its model'} now", window)
    if status is None and data.get("isRetryable") is True:
        return ending("network", "The server could not be reached")
    return ending("failed", "The request was refused")


def _reset(data: dict[str, Any], at: Any) -> datetime | None:
    """The time that the header Retry-After tells, in seconds or as a date (RFC 9110, section 10.2.3)."""
    headers = data.get("responseHeaders")
    header = headers.get("retry-after") if isinstance(headers, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(header, str):
        return None
    try:
        if re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", header):
            return datetime.fromtimestamp(at / 1000, UTC) + timedelta(seconds=float(header))
        return parsedate_to_datetime(header).astimezone(UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _not_started(ended: Exit) -> Ending:
    """No event tells why: its one line on standard error does."""
    told = _ERROR.findall(_COLOUR.sub("", ended.stderr))
    evidence = ended.stderr[-2000:] or None
    if told and told[-1] == "Session not found":
        return Ending("session_lost", error="The session to resume is gone.", evidence=evidence)
    why = told[-1][:500] if told else "it does not say why"
    return Ending("failed", error=f"opencode ended with exit status {ended.code}: {why}", evidence=evidence)
