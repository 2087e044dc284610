"""What `codex exec --json` prints: lines to events, and the end to an outcome.

The only verdicts are turn.completed and turn.failed; errors in between also occur in runs that succeed. Why a turn
failed is told by the session's own file (see codex_rollout.py), else by the message, whose beginnings were measured
with 0.169.0 (apostrophes in them are U+2019).
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..verbs import Claim, Ending, Usage, Window, storable
from .base import Exit, Reading, Said, Seen, Session
from .codex_rollout import Turn, last_turn
from .fields import first_line, obj, objs, string
from .json_answers import completed
from .resets import parse_reset
from .tools import count, gist, json_line, said

SIGNALS = (129, 130, 137, 143)  # 128 + SIGHUP, SIGINT, SIGKILL, SIGTERM, as a launcher reports them
NETWORK_PATIENCE = 20.0  # seconds of waiting for a network; the tool itself waits for ever
NO_NETWORK = "Reconnecting... waiting for network"

TOOLS = ("command_execution", "file_change", "mcp_tool_call", "web_search", "collab_tool_call")
KINDS = {
    "usage_limit_exceeded": "quota_exhausted",
    "rate_limit_exceeded": "rate_limited",
    "server_overloaded": "overloaded",
    "internal_server_error": "overloaded",
    "context_window_exceeded": "context_overflow",
    "unauthorized": "unauthenticated",
}
MESSAGES = (
    (r"You['’]ve hit your usage limit|Quota exceeded\.", "quota_exhausted"),  # noqa: RUF001
    (r"exceeded retry limit, last status: 429|unexpected status 429|rate limit exceeded:", "rate_limited"),
    (r"exceeded retry limit, last status: 40[13]|unexpected status 40[13]", "unauthenticated"),
    (r"Missing environment variable:|To use Codex with your ChatGPT plan", "unauthenticated"),
    (r"exceeded retry limit, last status: (?:5|408)|unexpected status (?:5|408)", "overloaded"),
    (r"We['’]re currently experiencing high demand|Selected model is at capacity", "overloaded"),  # noqa: RUF001
    (r"Codex ran out of room in the model['’]s context window", "context_overflow"),  # noqa: RUF001
    (r"stream disconnected before completion|Connection failed|error sending request", "network"),
)


class CodexReading(Reading):
    """One run; `home` is its CODEX_HOME, `now` and `monotonic` are clocks."""

    def __init__(
        self,
        claim: Claim,
        home: Path,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._claim = claim
        self._home = home
        self._now = now
        self._monotonic = monotonic
        self._thread: str | None = None
        self._turns = 0
        self._answering = False  # the model is: what it does until a tool's result is one turn
        self._called: set[str] = set()  # tool calls in the transcript
        self._waiting_since: float | None = None
        self._began = False
        self._answer: str | None = None
        self._completed: Usage | None = None
        self._failed: str | None = None

    def line(self, text: str) -> list[Seen]:
        event = json_line(text)
        if event is None:
            return [said("note", text)] if text.strip() else []
        waits = event.get("type") == "error" and string(event.get("message")).startswith(NO_NETWORK)
        if not waits:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = self._monotonic()
        return list(self._event(event))

    @property
    def hopeless(self) -> bool:
        """It waits for a network, or has had more turns than it may."""
        if self._completed is not None or self._failed is not None:
            return False
        return self._disconnected or self._too_many_turns

    @property
    def _disconnected(self) -> bool:
        return self._waiting_since is not None and self._monotonic() - self._waiting_since >= NETWORK_PATIENCE

    @property
    def _too_many_turns(self) -> bool:
        return self._claim.max_turns is not None and self._turns > self._claim.max_turns

    def ending(self, ended: Exit) -> Ending:
        turn = last_turn(self._home, self._thread) if self._thread else Turn()
        # A launcher that was killed says nothing about the program, which may have gone on to its end.
        if self._completed is not None and (ended.code <= 0 or ended.code in SIGNALS):
            return self._success(ended.code, replace(self._completed, model=turn.model or self._completed.model))
        usage = self._completed or self._usage(turn.tokens, turn.model)
        if self._failed is not None:
            outcome = _verdict(turn.error, self._failed)
            proof = {"message": self._failed, "codex_error_info": turn.error, "rate_limits": turn.limits}
            evidence = json.dumps({key: value for key, value in proof.items() if value}, ensure_ascii=False)[:4000]
            error = _sentence(self._failed)
            window = self._window(outcome, turn)
            return Ending(outcome, None, error, ended.code, evidence, usage, self._thread, window)
        outcome, error = self._without_verdict(ended)
        proof = storable(ended.stderr.strip()[-2000:]) or None
        session = None if outcome == "session_lost" else self._thread
        return Ending(outcome, None, error, ended.code, proof, usage, session)

    def _success(self, code: int, usage: Usage) -> Ending:
        wants_json = self._claim.output_schema is not None or self._claim.result_format == "json"
        ending = completed(self._answer or "", wants_json=wants_json)
        return replace(ending, exit_code=code, usage=usage, session_id=self._thread)

    def _without_verdict(self, ended: Exit) -> tuple[str, str]:
        """Outcome and sentence of a run that printed no end of its turn."""
        told = [line for line in ended.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        if self._disconnected:
            return "network", "Codex waits for a network: the provider cannot be reached."
        if self._too_many_turns:
            return "turn_limit", f"The agent used up its {self._claim.max_turns} turns."
        if ended.code < 0 or ended.code in SIGNALS:
            return "crashed", "Codex was ended by a signal."
        lost = re.search(r"no rollout found for thread id", ended.stderr)
        if self._claim.session_id and self._thread is None and lost:
            return "session_lost", "Codex does not know the session any more."
        if self._began and self._completed is None and ended.code:
            return "crashed", "Codex ended in the middle of its turn."
        if not ended.code:
            return "unknown", "Codex ended without an end of its turn."
        last = next((line for line in told if re.match("error", line, re.IGNORECASE)), told[-1] if told else "")
        return "failed", storable(first_line(last)) or f"Codex ended with exit status {ended.code}."

    def _window(self, outcome: str, turn: Turn) -> Window | None:
        if outcome == "quota_exhausted":
            if used_up := [window for window in turn.windows if (window.used_percent or 0) >= 100]:
                return max(used_up, key=lambda window: window.resets_at or datetime.min.replace(tzinfo=UTC))
            resets_at = parse_reset(self._failed or "", self._now())
            return Window("usage_limit", resets_at, 100) if resets_at else None
        if outcome == "rate_limited":
            resets_at = parse_reset(self._failed or "", self._now())
            return Window("requests", resets_at) if resets_at else None
        return None

    def _event(self, event: dict[str, Any]) -> Iterator[Seen]:
        match event.get("type"):
            case "thread.started" if thread := string(event.get("thread_id")):
                self._thread = thread
                yield Session(self._thread)
            case "turn.started":
                self._began = True
            case "turn.completed":
                self._completed, self._failed = self._usage(obj(event.get("usage")), None), None
                yield self._completed
            case "turn.failed":
                self._completed, self._failed = None, string(obj(event.get("error")).get("message"))
                yield said("error", _sentence(self._failed))
            case "error":
                yield said("error", string(event.get("message")))
            case "item.started":
                yield from self._started(obj(event.get("item")))
            case "item.completed":
                yield from self._done(obj(event.get("item")))
            case _:
                pass

    def _started(self, item: dict[str, Any]) -> Iterator[Said]:
        if item.get("type") in TOOLS:
            self._answers()
            self._called.add(string(item.get("id")))
            yield _call(item)

    def _done(self, item: dict[str, Any]) -> Iterator[Said]:
        kind, text = item.get("type"), string(item.get("text"))
        if kind == "agent_message":
            self._answers()
            self._answer = text
            if text.strip():
                yield said("text", text)
        elif kind == "reasoning":
            self._answers()
            if text.strip():
                yield said("thinking", text)
        elif kind == "error":
            yield said("note", string(item.get("message")))
        elif kind in TOOLS:
            if string(item.get("id")) not in self._called:
                yield from self._started(item)
            self._answering = False
            yield _result(item)

    def _answers(self) -> None:
        if not self._answering:
            self._answering = True
            self._turns += 1

    def _usage(self, totals: dict[str, Any], model: str | None) -> Usage:
        """Of this run: the tool counts all of the thread, of which earlier attempts had session_usage."""
        before = obj(self._claim.session_usage) if self._claim.session_id else {}

        def spent(name: str, ours: str) -> int | None:
            return max(0, (count(totals.get(name)) or 0) - (count(before.get(ours)) or 0)) if totals else None

        cached = spent("cached_input_tokens", "cached_tokens")
        used = spent("input_tokens", "input_tokens"), cached, spent("output_tokens", "output_tokens")
        return Usage(*used, turns=self._turns, model=model or self._claim.model)


def _verdict(info: Any, message: str) -> str:
    """The outcome of a failed turn: by the tool's own error code, else by how its message begins."""
    if re.match(r"To use Codex with your ChatGPT plan", message):  # told with the code of a limit that ends
        return "unauthenticated"
    if isinstance(info, str) and info in KINDS:
        return KINDS[info]
    for detail in obj(info).values():
        status = count(obj(detail).get("http_status_code")) or 0
        if status == 429:
            return "rate_limited"
        if status in (401, 403):
            return "unauthenticated"
        if status >= 500 or status == 408:
            return "overloaded"
        if not status:  # a connection that broke before there was an answer
            return "network"
    return next((outcome for pattern, outcome in MESSAGES if re.match(pattern, message)), "failed")


def _sentence(message: str) -> str:
    """The message; some are the body of the server's answer."""
    return first_line(string(obj(obj(json_line(message)).get("error")).get("message")) or message) or "The turn failed."


def _call(item: dict[str, Any]) -> Said:
    names = {"command_execution": "shell", "mcp_tool_call": string(item.get("tool")) or "mcp"}
    name = names.get(string(item.get("type"))) or string(item.get("type"))
    if item.get("type") == "mcp_tool_call":
        given = item.get("arguments")
    else:
        given = {key: item[key] for key in ("command", "changes", "query") if key in item}
    body = gist(name, given)
    if changes := objs(item.get("changes")):
        body = f"{name}: " + ", ".join(f"{string(one.get('kind'))} {string(one.get('path'))}" for one in changes)
    data = {"id": item.get("id"), "name": name, "input": given}
    return said("tool_call", body[:300], data)


def _result(item: dict[str, Any]) -> Said:
    failed = item.get("status") == "failed"
    body = string(item.get("aggregated_output")) or string(obj(item.get("error")).get("message"))
    if not body:
        body = "\n".join(string(part.get("text")) for part in objs(obj(item.get("result")).get("content")))
    if not body.strip():
        body = string(item.get("status")) or "completed"
    data = {"id": item.get("id"), "is_error": failed}
    return said("tool_result", body, data)
