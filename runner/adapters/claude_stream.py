"""What `claude -p --output-format stream-json --verbose` prints: lines to events, and the end to an outcome.

Shapes were measured with 2.1.197 and 2.1.330. Refused requests come as a result with subtype "success" and is_error
true, preceded by an assistant message that the tool made up itself (model "<synthetic>", with the category in `error`);
a limit of a subscription is told by rate_limit_event, also as a mere warning on runs that succeed.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ..verbs import Claim, Ending, Usage, Window, storable
from .base import Exit, Reading, Seen, Session
from .fields import first_line, number, obj, objs, string, strings
from .json_answers import completed
from .resets import after, at_epoch, parse_reset
from .tools import count, gist, json_line, said

SIGNALS = (129, 130, 137, 143)  # 128 + SIGHUP, SIGINT, SIGKILL, SIGTERM: the tool catches some and exits with these
LOST = "No conversation found with session ID"
LIMIT_TEXT = re.compile(r"You['’]ve (?:hit|reached) your (.{1,40}?) limit\b")  # noqa: RUF001
LIMIT_NAMES = {
    "5-hour": "five_hour",
    "session": "five_hour",
    "weekly": "seven_day",
    "opus": "seven_day_opus",
    "sonnet": "seven_day_sonnet",
}


class ClaudeReading(Reading):
    """One run; `session` is the id that it was started with."""

    def __init__(self, claim: Claim, session: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._claim = claim
        self._session = session
        self._now = now
        self._told: str | None = None  # the session that was reported
        self._model: str | None = None
        self._used: dict[str, dict[str, Any]] = {}  # usage by message id
        self._usage: Usage | None = None
        self._refused: set[str] = set()  # tool calls whose refusal is in the transcript
        self._delay: tuple[object, float] | None = None  # attempt, seconds: repeated as a countdown while it waits
        self._rejected: dict[str, Any] | None = None  # the last rate_limit_info, if it says rejected
        self._failure: dict[str, Any] = {}  # the made-up message of the last refused request
        self._results: list[dict[str, Any]] = []  # more than one where the tool went on by itself

    def line(self, text: str) -> list[Seen]:
        seen: list[Seen] = []
        if self._told is None:
            seen.append(self._tell(self._session))
        event = json_line(text)
        if event is None:
            if text.strip():
                seen.append(said("note", text))
            return seen
        match event.get("type"):
            case "system":
                seen += self._system(event)
            case "assistant":
                seen += self._assistant(event)
            case "user":
                seen += _results(event)
            case "rate_limit_event":
                seen += self._limits(obj(event.get("rate_limit_info")))
            case "result":
                self._results.append(event)
                seen += self._summary(event)
            case _:
                pass
        return seen

    def ending(self, ended: Exit) -> Ending:
        if not self._results:
            return self._without_result(ended)
        result = self._results[-1]
        if result.get("is_error") is False:
            return self._success(result, ended.code)
        outcome, window = self._verdict(result)
        told = string(result.get("result")) or "; ".join(strings(result.get("errors")))
        error = first_line(told) or f"Claude Code ended with an error ({outcome})."
        if outcome == "crashed":
            error = "Claude Code was interrupted."
        kept = ("subtype", "is_error", "api_error_status", "api_error", "terminal_reason", "result", "errors")
        evidence: dict[str, Any] = {key: result[key] for key in kept if result.get(key) is not None}
        if category := self._failure.get("error"):
            evidence["error"] = category
        if self._rejected:
            evidence["rate_limit_info"] = self._rejected
        proof = json.dumps(evidence, ensure_ascii=False)[:4000]
        session = None if outcome == "session_lost" else self._told
        return Ending(outcome, None, error, ended.code, proof, self._usage, session, window)

    def _success(self, result: dict[str, Any], code: int) -> Ending:
        if self._claim.output_schema is None:
            wants_json = self._claim.result_format == "json"
            ending = completed(string(result.get("result")), wants_json=wants_json)
        elif "structured_output" in result:
            ending = Ending("completed", result["structured_output"])
        else:
            error = "The agent ended without the structured output that its schema asks for."
            ending = Ending("failed", error=error, evidence=string(result.get("result"))[-2000:] or None)
        return replace(ending, exit_code=code, usage=self._usage, session_id=self._told)

    def _without_result(self, ended: Exit) -> Ending:
        """Nothing but the exit, standard error and what was seen on the way is left to judge by."""
        told = storable(ended.stderr.strip())
        proof = told[-2000:] or None
        if ended.code < 0 or ended.code in SIGNALS:
            error = "Claude Code was ended by a signal."
            return Ending("crashed", None, error, ended.code, proof, self._usage, self._told)
        if self._rejected:
            outcome, window = self._limit(string(self._failure.get("text")))
            error = first_line(string(self._failure.get("text"))) or "The account's limit is reached."
            proof = json.dumps(self._rejected)
            return Ending(outcome, None, error, ended.code, proof, self._usage, self._told, window)
        if self._claim.session_id and any(line.startswith(LOST) for line in told.splitlines()):
            return Ending("session_lost", None, first_line(told), ended.code, proof, self._usage)
        error = first_line(told) or f"Claude Code ended with exit status {ended.code} and no result."
        return Ending("failed" if ended.code else "unknown", None, error, ended.code, proof, self._usage, self._told)

    def _verdict(self, result: dict[str, Any]) -> tuple[str, Window | None]:
        """The outcome of a run whose result is an error. The tool's own words count only where it has no field."""
        status, category = count(result.get("api_error_status")) or 0, self._failure.get("error")
        kind, reason = result.get("api_error"), string(result.get("terminal_reason"))
        text = string(result.get("result"))
        if self._claim.session_id and any(one.startswith(LOST) for one in strings(result.get("errors"))):
            return "session_lost", None
        if result.get("subtype") == "error_max_turns" or reason == "max_turns":
            return "turn_limit", None
        if reason == "prompt_too_long" or (status == 400 and text.startswith("Prompt is too long")):
            return "context_overflow", None
        if reason.startswith("aborted"):  # SIGINT, which the tool takes for its user's Escape
            return "crashed", None
        if status == 429 or category == "rate_limit" or kind == "usage_limit_reached":
            return self._limit(text)
        if category == "billing_error" or status == 402:  # somebody has to pay first
            return "unauthenticated", None
        if category == "authentication_failed" or status in (401, 403):
            return "unauthenticated", None
        if status >= 500 or status == 408:
            return "overloaded", None
        if kind == "connection_failed" or (not status and category == "server_error"):
            return "network", None
        if self._rejected and not status and not category and not kind and not text:
            return self._limit(text)
        return "failed", None

    def _limit(self, text: str) -> tuple[str, Window | None]:
        """A window that is used up, or else just too many requests."""
        told = self._rejected or obj(obj(self._failure.get("api_error_params")).get("rate_limit_info"))
        worded = LIMIT_TEXT.match(text)
        name = string(told.get("rateLimitType"))
        if worded and not name:
            name = LIMIT_NAMES.get(worded[1].lower()) or worded[1].lower().replace(" ", "_")
        if name:
            resets_at = at_epoch(told.get("resetsAt")) or (parse_reset(text, self._now()) if worded else None)
            return "quota_exhausted", Window(name, resets_at, 100, self._only_for(name))
        resets_at = at_epoch(told.get("resetsAt")) or (after(self._delay[1], self._now()) if self._delay else None)
        return "rate_limited", Window("requests", resets_at) if resets_at else None

    def _only_for(self, window: str) -> str | None:
        """The model, where the window is that of one family of models: seven_day_opus, say."""
        model = self._claim.model or self._model
        return model if model and window.rsplit("_", 1)[-1] in model.split("-") else None

    def _limits(self, info: dict[str, Any]) -> Iterator[Window]:
        rejected = info.get("status") == "rejected"
        self._rejected = info if rejected else None
        name = string(info.get("rateLimitType"))
        windows = dict(obj(info.get("unifiedWindows")))
        if name and name != "overage":
            windows[name] = {**obj(windows.get(name)), **info}
        for window, state in windows.items():
            used = number(obj(state).get("utilization"))
            if window == name and rejected:
                # An account that goes on for money has used up its window all the same, but is not limited.
                used = None if info.get("isUsingOverage") is True else 1
            if used is not None:
                resets_at = at_epoch(obj(state).get("resetsAt"))
                yield Window(window, resets_at, round(used * 100, 2), self._only_for(window))

    def _system(self, event: dict[str, Any]) -> Iterator[Seen]:
        match event.get("subtype"):
            case "init":
                self._model = string(event.get("model")) or None
                session = string(event.get("session_id"))
                if session and session != self._told:
                    yield self._tell(session)
            case "api_retry":
                seconds = (number(event.get("retry_delay_ms")) or 0) / 1000
                if self._delay is None or self._delay[0] != event.get("attempt"):
                    self._delay = (event.get("attempt"), seconds)
                status = count(event.get("error_status")) or "no answer"
                yield said(
                    "error",
                    f"A request was refused ({status}, {string(event.get('error'))}); again in {seconds:.0f} s.",
                )
            case "permission_denied":
                self._refused.add(string(event.get("tool_use_id")))
                yield said("note", f"{string(event.get('tool_name'))} was refused. {string(event.get('message'))}")
            case "informational" | "model_fallback" if content := string(event.get("content")):
                yield said("note", content)
            case _:
                pass

    def _assistant(self, event: dict[str, Any]) -> Iterator[Seen]:
        message = obj(event.get("message"))
        blocks = objs(message.get("content"))
        made_up = event.get("error") or event.get("is_api_error_message") is True
        if made_up or message.get("model") == "<synthetic>":
            text = "\n".join(string(block.get("text")) for block in blocks)
            if made_up:
                self._failure = {**event, "text": text, "error": string(event.get("error"))}
            if text.strip():
                yield said("error" if made_up else "note", text)
            return
        self._failure = {}
        self._model = string(message.get("model")) or self._model
        for block in blocks:
            match block.get("type"):
                case "text" if string(block.get("text")).strip():
                    yield said("text", block["text"])
                case "thinking" if string(block.get("thinking")).strip():
                    yield said("thinking", block["thinking"])
                case "tool_use" | "server_tool_use":
                    name, given = string(block.get("name")), block.get("input")
                    yield said(
                        "tool_call",
                        gist(name, given),
                        {"id": block.get("id"), "name": name, "input": given},
                    )
                case _:
                    pass
        self._used[string(message.get("id"))] = obj(message.get("usage"))
        usage = _usage(list(self._used.values()), len(self._used), self._model)
        if usage != self._usage:
            self._usage = usage
            yield usage

    def _summary(self, result: dict[str, Any]) -> Iterator[Seen]:
        denials = [
            one for one in objs(result.get("permission_denials")) if string(one.get("tool_use_id")) not in self._refused
        ]
        for denial in denials:
            yield said("note", f"{gist(string(denial.get('tool_name')), denial.get('tool_input'))} was refused.")
        self._usage = self._final_usage()
        yield self._usage

    def _final_usage(self) -> Usage:
        """Of this run alone: `usage` and model_usage_since_last_result are, total_cost_usd grows with the session.

        The tool invents a price for models that it does not know (costBasis "unknown"), and older ones do not tell.
        """
        last = self._results[-1]
        turns = None if self._model is None else len(self._used)  # without init, messages were not streamed
        model = self._model or next(iter(obj(last.get("modelUsage"))), None)
        tokens = _usage([used for result in self._results for used in _spent(result)], turns, model)
        if "model_usage_since_last_result" in last:
            cost = _list_price([one for result in self._results for one in _models(result)])
        else:
            before = 0 if self._claim.session_id is None else number(obj(self._claim.session_usage).get("cost_usd"))
            total, listed = (
                number(last.get("total_cost_usd")),
                _list_price(objs(list(obj(last.get("modelUsage")).values()))),
            )
            cost = max(0, total - before) if total is not None and before is not None and listed is not None else None
        return replace(tokens, cost_usd=cost)

    def _tell(self, session: str) -> Session:
        self._told = session
        return Session(self._told)


def _models(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What each model did for this result, subagents' and helpers' models too."""
    return objs(list(obj(result.get("model_usage_since_last_result")).values()))


def _spent(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The usage of a result, as usage objects of the Messages API."""
    names = {
        "inputTokens": "input_tokens",
        "outputTokens": "output_tokens",
        "cacheReadInputTokens": "cache_read_input_tokens",
        "cacheCreationInputTokens": "cache_creation_input_tokens",
    }
    by_model = [{name: one.get(key) for key, name in names.items()} for one in _models(result)]
    return by_model or [obj(result.get("usage"))]


def _usage(used: list[dict[str, Any]], turns: int | None, model: str | None) -> Usage:
    """Sums usage objects of the Messages API, whose input_tokens leave out what a cache read or wrote."""

    def total(name: str) -> int:
        return sum(count(one.get(name)) or 0 for one in used)

    cached = total("cache_read_input_tokens")
    read = total("input_tokens") + total("cache_creation_input_tokens") + cached
    return Usage(read, cached, total("output_tokens"), turns, None, model)


def _list_price(models: list[dict[str, Any]]) -> float | None:
    """What all of them cost together, where each has a list price."""
    costs = [number(one.get("costUSD")) if one.get("costBasis") == "list" else None for one in models]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known and len(known) == len(costs) else None


def _results(event: dict[str, Any]) -> Iterator[Seen]:
    """What tools gave back; a text here is the tool's own, not a person's."""
    for block in objs(obj(event.get("message")).get("content")):
        if block.get("type") == "tool_result":
            given = block.get("content")
            parts = [string(part.get("text")) or f"[{string(part.get('type'))}]" for part in objs(given)]
            data = {"id": block.get("tool_use_id"), "is_error": block.get("is_error") is True}
            yield said("tool_result", string(given) or "\n".join(parts), data)
        elif block.get("type") == "text" and string(block.get("text")).strip():
            yield said("note", block["text"])
