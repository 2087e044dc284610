"""Helpers for the tests of the command line: a worker made of verbs, and real processes with deadlines."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from taskyard.runner.cli import main

from .conftest import Yard, value

PROGRAM = str(Path(sys.executable).with_name("taskyard"))
NOWHERE: dict[str, str | None] = dict.fromkeys(
    ("TASKYARD_DSN", "PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")
)
DEADLINE = 30.0


def taskyard(yard: Yard | str, *arguments: str, columns: int = 80, stdin: bytes | str | None = None) -> Result:
    """Run a command in this process, on the yard's database."""
    dsn = yard if isinstance(yard, str) else yard.dsn
    environment = {**NOWHERE, "COLUMNS": str(columns)}
    return CliRunner().invoke(main, ["--dsn", dsn, *arguments], input=stdin, env=environment)


class Worker:
    """A runner that does what the test says, by the same verbs as a real one."""

    def __init__(self, connection: Connection[DictRow], name: str = "host-a") -> None:
        self._connection = connection
        self._id = value(connection, "select register_runner(%s, 5)", name)

    def claim(self) -> int:
        """Claim a task; returns the attempt's id."""
        return value(self._connection, "select attempt_id from claim_task(%s)", self._id)

    def write(self, attempt: int, *rows: tuple[int, str, str]) -> None:
        """Append (seq, kind, body) to the transcript."""
        events = [{"seq": seq, "kind": kind, "body": body} for seq, kind, body in rows]
        self._connection.execute("select append_transcript(%s, %s)", (attempt, Jsonb(events)))

    def end(self, attempt: int, outcome: str = "completed", result: Any = None, error: str | None = None) -> None:
        """End the attempt."""
        self._connection.execute(
            "select complete_task(%s, %s, %s, %s)",
            (attempt, outcome, None if result is None else Jsonb(result), error),
        )


def insert(connection: Connection[DictRow], prompt: str = "work", agent: str = "shell") -> int:
    """Insert a task; returns its id."""
    return value(connection, "insert into tasks (prompt, agent) values (%s, %s) returning id", prompt, agent)


def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition; returns what it gave. Fails at the deadline."""
    end = time.monotonic() + DEADLINE
    while True:
        if found := condition():
            return found
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Process:
    """The real program, in a process of its own, whose output is collected while it runs."""

    def __init__(self, yard: Yard | None, *arguments: str, **environment: str) -> None:
        base = {name: kept for name, kept in os.environ.items() if name not in NOWHERE}
        if yard is not None:
            base["TASKYARD_DSN"] = yard.dsn
        self._process = subprocess.Popen(
            [PROGRAM, *arguments],
            env={**base, "COLUMNS": "80", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.out = b""
        self.err = b""
        self._readers = [threading.Thread(target=self._read, args=(name,)) for name in ("out", "err")]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        stream = self._process.stdout if name == "out" else self._process.stderr
        assert stream is not None
        while chunk := os.read(stream.fileno(), 65536):
            setattr(self, name, getattr(self, name) + chunk)
        stream.close()

    def kill(self) -> None:
        """End it, if it is still there."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(DEADLINE)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Wait for its end; returns the exit code."""
        code = self._process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        assert b"Traceback" not in self.err, self.err.decode()
        return code
