"""What a vendor's model and server do, step by step, whichever protocol it is said in.

A step is an Answer (words, a tool call, or both) or a Refusal. Each builder below makes one; every protocol's module
renders it as that vendor would.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Why = Literal[
    "rate_limit", "usage_limit", "overloaded", "server_error", "unauthorized", "forbidden", "context_overflow"
]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an answer cost. `input` is all that was read, `cached` the part of it that came from a cache."""

    input: int = 1500
    cached: int = 300
    output: int = 50


@dataclass(frozen=True, slots=True)
class Call:
    """A call of the named tool, word for word."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A call of whatever tool the asking program writes files with."""

    path: str
    content: str


@dataclass(frozen=True, slots=True)
class RunCommand:
    """A call of whatever tool the asking program runs shell commands with."""

    command: str


@dataclass(frozen=True, slots=True)
class Structured:
    """The answer as data: a call of the tool that the program offers for it, else JSON as text."""

    value: Any


Act = Call | WriteFile | RunCommand | Structured


@dataclass(frozen=True, slots=True)
class Answer:
    """The model answers with status 200.

    `stop`: why it stops, with `length` for the output limit and `refused` for a safety block. `pause`: seconds between
    two words of a stream. `ends`: a `cut` stream loses its connection after the last word; a `stalled` one says nothing
    after it until the account is released. `held`: not even the status line before the account is released.
    """

    text: str = ""
    act: Act | None = None
    tokens: Tokens = Tokens()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    stop: Literal["end", "length", "refused"] = "end"
    pause: float = 0.0
    ends: Literal["whole", "cut", "stalled"] = "whole"
    held: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server refuses, in the vendor's own words.

    `retry_after` in seconds. `in_stream`: the status is 200, and the refusal comes as an event of the stream.
    """

    why: Why
    retry_after: int | None = None
    resets_at: datetime | None = None
    window: Literal["five_hour", "weekly"] = "five_hour"
    in_stream: bool = False


@dataclass(frozen=True, slots=True)
class HttpError:
    """A refusal as it goes over the wire; also a step of its own, for bodies that no builder here makes."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Step = Answer | Refusal | HttpError


def text(
    words: str,
    *,
    tokens: Tokens = Tokens(),
    headers: Mapping[str, str] | None = None,
    stop: Literal["end", "length", "refused"] = "end",
) -> Answer:
    """A final answer. `headers` come with it, such as those that tell how full a limit's window is."""
    return Answer(words, tokens=tokens, headers=headers or {}, stop=stop)


def tool_call(name: str, arguments: Mapping[str, Any], *, words: str = "", tokens: Tokens = Tokens()) -> Answer:
    """The call of a tool by its name; its result comes back with the next request."""
    return Answer(words, Call(name, arguments), tokens)


def write_file(path: object, content: str, *, words: str = "", tokens: Tokens = Tokens()) -> Answer:
    """Claude's Write, Codex's patch, Gemini's write_file, opencode's write. A relative path is below the workspace."""
    return Answer(words, WriteFile(str(path), content), tokens)


def run_command(command: str, *, words: str = "", tokens: Tokens = Tokens()) -> Answer:
    """Claude's Bash, Codex's exec_command or shell, Gemini's run_shell_command, opencode's bash."""
    return Answer(words, RunCommand(command), tokens)


def structured(value: Any, *, tokens: Tokens = Tokens()) -> Answer:
    """An answer that follows the schema it was asked for."""
    return Answer(act=Structured(value), tokens=tokens)


def slow(words: str, pause: float) -> Answer:
    """A final answer whose words come `pause` seconds apart."""
    return Answer(words, pause=pause)


def cut(words: str) -> Answer:
    """These words, and then the connection is closed in the middle of the stream."""
    return Answer(words, ends="cut")


def stalled(words: str) -> Answer:
    """These words, and then silence until Account.release(); after it the answer ends as it should."""
    return Answer(words, ends="stalled")


def silent() -> Answer:
    """The connection is accepted and the request read, but nothing comes back until Account.release()."""
    return Answer("Late.", held=True)


def rate_limited(retry_after: int | None = None, *, in_stream: bool = False) -> Refusal:
    """429: too many requests for the moment. `retry_after` in seconds, None where the server does not tell."""
    return Refusal("rate_limit", retry_after, in_stream=in_stream)


def usage_limit(resets_at: datetime, window: Literal["five_hour", "weekly"] = "five_hour") -> Refusal:
    """429: the account's allowance is used up.

    Claude (with a login, not with a key) and Codex tell when it resets; Gemini's daily quota and an empty balance behind
    chat completions do not: there `resets_at` and `window` go unsaid.
    """
    return Refusal("usage_limit", resets_at=resets_at, window=window)


def overloaded(*, in_stream: bool = False) -> Refusal:
    """529 from Anthropic, 503 from the others."""
    return Refusal("overloaded", in_stream=in_stream)


def server_error() -> Refusal:
    """500."""
    return Refusal("server_error")


def unauthorized() -> Refusal:
    """401: the key or login does not work."""
    return Refusal("unauthorized")


def forbidden() -> Refusal:
    """403: the key or login works, but not for this."""
    return Refusal("forbidden")


def context_overflow() -> Refusal:
    """400: the conversation is longer than the model can read."""
    return Refusal("context_overflow")


def http_error(status: int, body: Any, headers: Mapping[str, str] | None = None) -> HttpError:
    """Any other refusal, as JSON."""
    return HttpError(status, body, headers or {})
