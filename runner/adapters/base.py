"""The contract between the runner and a way to run work.

An adapter turns a claim into a child process and the child's end into an Ending. It holds no state between attempts,
knows nothing of the database, and starts nothing itself.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from ..verbs import Claim, Ending


class CannotRun(Exception):
    """This attempt cannot be started here; the message says why, in one sentence."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: argument vector, bytes for standard input, and variables to add to the clean environment."""

    argv: list[str]
    stdin: bytes
    env: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended.

    `code` is the exit status, negative for the signal that ended it. `stdout` and `stderr` are what it printed, at most
    the last 4 MiB and 64 KiB of it; `stdout_cut` tells that more came before.
    """

    code: int
    stdout: str
    stderr: str
    stdout_cut: bool = False


class Adapter(ABC):
    """One way to run work, named as in providers.adapter."""

    name: str

    @abstractmethod
    def prepare(self, claim: Claim, workspace: Path) -> Launch:
        """What to start for this claim in this directory. Raises CannotRun."""

    @abstractmethod
    def conclude(self, claim: Claim, ended: Exit) -> Ending:
        """Read the outcome from a child that ended by itself."""
