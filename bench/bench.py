"""What every measure is given, and what it gives back."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from .contenders import Contender
from .queue import Queue
from .report import Table, Verdict
from .server import Database, Server

T = TypeVar("T")
Found = tuple[list[Table], list[Verdict]]


@dataclass(frozen=True)
class Bench:
    """A server, how much to do, and where to report progress."""

    server: Server
    quick: bool
    say: Callable[[str], None]

    def pick(self, full: T, quick: T) -> T:
        """A size or a duration of this run."""
        return quick if self.quick else full

    @contextmanager
    def queues(self, *contenders: Contender) -> Generator[tuple[Database, list[Queue]]]:
        """A fresh database with an empty queue of each contender in it."""
        with self.server.database() as database:
            yield database, [Queue(self.server, database, contender) for contender in contenders]
