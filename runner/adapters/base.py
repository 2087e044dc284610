"""The contract between the runner and a way to run work.

An adapter turns a claim into a child process, the child's output into events, and its end into an Ending. It holds no
state between attempts, knows nothing of the database, and starts nothing itself (probe() may ask a tool its version).
A third party's adapter is a subclass of Adapter in a package with an entry point of the group `taskyard.adapters`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from ..channel import Address
from ..verbs import Claim, Ending, Usage, Window


class CannotRun(Exception):
    """This attempt cannot be started here; the message says why, in one sentence."""


class BadSettings(Exception):
    """A provider's settings are not what its adapter understands; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Whether and how this host can use a provider, as probe() found it.

    `account` is the login that limits belong to: the same text on every host that uses the same login, never a secret
    (a key appears as the first 8 hex digits of its SHA-256). `models` is None where the tool decides.
    """

    state: Literal["ready", "unauthenticated", "missing"]
    account: str = ""
    models: list[str] | None = None
    version: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt on this host.

    `workspace` is the child's working directory. `home` is a private folder of this task and provider that outlives the
    attempt, so that a later attempt here can resume the session: configuration and state of the tool go there.
    `environ` is the runner's own environment, to take credentials from; nothing of it reaches the child by itself.
    `gateway` is where a sandboxed child finds the API of Launch.upstream (http://127.0.0.1:3101); None without one.
    `channel` is an MCP server of ours that the tool is to be configured with, and with no other; None: there is none.
    Both folders have the same path within. An agent before may have filled `home` with links and pipes: it is written
    and read with homes.py only.
    """

    claim: Claim
    workspace: Path
    home: Path
    environ: Mapping[str, str]
    gateway: str | None = None
    channel: Address | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """The API behind Run.gateway: requests go to `url` plus their own path, with `headers` put in place of theirs.

    So a key is in these headers alone, and never where the agent can read it.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: argument vector, bytes for standard input, and variables to add to the clean environment.

    For a sandboxed child: `upstream` is the API that it reaches by Run.gateway; `hosts` are names that it reaches
    through the proxy whatever its scope says (where a login is refreshed); `programs` are directories and files that
    the tool needs besides /usr, seen read-only at their own paths; `shared` are directories seen writable at theirs.
    """

    argv: list[str]
    stdin: bytes
    env: dict[str, str] = field(default_factory=dict[str, str])
    upstream: Upstream | None = None
    hosts: tuple[str, ...] = ()
    programs: tuple[Path, ...] = ()
    shared: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended.

    `code` is the exit status, negative for the signal that ended it. `stdout` and `stderr` are what it printed, at most
    the last 4 MiB (64 KiB where the adapter is structured) and 64 KiB of it; `stdout_cut` tells that more came before.
    """

    code: int
    stdout: str
    stderr: str
    stdout_cut: bool = False


@dataclass(frozen=True, slots=True)
class Said:
    """One row of the transcript.

    kind: `text` (the agent's own words), `thinking`, `tool_call` (body: the tool and the gist of its input on one line;
    data: {id, name, input}), `tool_result` (body: what came back; data: {id, is_error}), `error` (the tool's, not the
    agent's: a refused request, say), `note` (anything else worth keeping). The first text, thinking or tool call of an
    attempt proves that the provider answers: never use these kinds for messages that the tool made up itself.
    """

    kind: Literal["text", "thinking", "tool_call", "tool_result", "error", "note", "output"]
    body: str
    data: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """The session's id, as soon as it is known: a later attempt can resume it."""

    id: str


Seen = Said | Session | Usage | Window


class Reading(ABC):
    """What one run prints, line by line, and what it amounts to. Pure but for the clock and files below `home`."""

    @abstractmethod
    def line(self, text: str) -> list[Seen]:
        """Take one line of standard output, without its newline.

        A Usage holds the totals of this attempt so far. A Window is a limit's state, reported by a healthy run too.
        """

    @property
    def hopeless(self) -> bool:
        """The tool will not come to an end by itself any more (it waits for a network for ever, say): stop it."""
        return False

    @abstractmethod
    def ending(self, ended: Exit) -> Ending:
        """The outcome, once the child ended by itself or because it was hopeless.

        Evidence, in this order: structured event, structured error body, anchored final prose, exit code. What an agent
        says is no evidence.
        """


class Adapter(ABC):
    """One way to run work, named as in providers.adapter.

    `first_output` and `idle`: how long a run may be silent at first, and between two lines, unless its agent says
    otherwise; None for ever. `structured`: it prints one JSON event per line; where that is False, output goes into the
    transcript as it comes, line() is never called, and ending() reads Exit.stdout. `tested`: versions of the tool that
    the adapter was tried with.
    """

    name: str
    first_output: timedelta | None = None
    idle: timedelta | None = None
    structured: bool = True
    tested: tuple[str, ...] = ()

    @abstractmethod
    def probe(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Offer:
        """What this host can offer. May look at files and run `tool --version`, for 20 seconds at most.

        Raises BadSettings.
        """

    def loaded(self, settings: Mapping[str, Any], environ: Mapping[str, str]) -> list[str] | None:
        """Which local models are in memory on this host now; None where that cannot be told. For 2 seconds at most."""
        return None

    @abstractmethod
    def prepare(self, run: Run) -> Launch:
        """What to start. May write files below run.home. Raises CannotRun."""

    def settle(self, run: Run) -> None:
        """Bring what the tool left outside of run.home to its place (a login that it refreshed, say).

        Called every minute while it runs, and once after its end. Never raises.
        """
        return

    @abstractmethod
    def read(self, run: Run) -> Reading:
        """A fresh reading of what prepare()'s launch will print."""
