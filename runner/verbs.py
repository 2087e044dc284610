"""The verbs that a runner calls, as thin functions: every rule is in the database.

All of them raise psycopg.Error; is_lost() and is_unregistered() tell the two refusals that a runner acts on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import DictRow, class_row
from psycopg.types.json import Jsonb

PROTOCOL = 1  # see register_runner(): the database refuses runners whose protocol it no longer, or not yet, knows

Connection = AsyncConnection[DictRow]


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt to run: the row that claim_task() returns (type taskyard.claim)."""

    attempt_id: int
    task_id: int
    number: int
    prompt: str
    payload: Any
    agent: str
    scope: str
    provider: str
    account: str
    model: str | None
    adapter: str
    settings: dict[str, Any]
    command: list[str] | None
    result_format: Literal["text", "json"]
    system_prompt: str | None
    tools: list[str] | None
    workspace: str | None
    verify: str | None
    timeout: timedelta
    session_id: str | None
    lease_until: datetime


@dataclass(frozen=True, slots=True)
class Directive:
    """What a heartbeat brings back: lost and cancel name an attempt; drain and tick are for the runner."""

    attempt_id: int | None
    directive: Literal["lost", "cancel", "drain", "tick"]
    detail: str | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, as an adapter read it; outcome is one of outcome_policies."""

    outcome: str
    result: Any = None
    error: str | None = None
    exit_code: int | None = None
    evidence: str | None = None
    usage: dict[str, Any] | None = None
    session_id: str | None = None
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One row of a transcript: seq counts from 1 within the attempt."""

    seq: int
    at: datetime
    kind: str
    body: str
    data: Any = None


def is_lost(error: psycopg.Error) -> bool:
    """The attempt is somebody else's now: stop its work and write nothing."""
    return error.sqlstate == "TY005"


def is_unregistered(error: psycopg.Error) -> bool:
    """The runner was given up: stop all its work and register again."""
    return error.sqlstate == "TY007"


def is_refusal(error: psycopg.Error) -> bool:
    """The database said no, with a sentence; asking again will not help."""
    return (error.sqlstate or "").startswith("TY") or isinstance(error, psycopg.errors.InsufficientPrivilege)


async def register_runner(
    connection: Connection,
    name: str,
    slots: int,
    labels: list[str],
    providers: list[dict[str, Any]],
    version: str,
    lease: timedelta,
) -> int:
    """Make this runner known; returns its id. providers: [{provider, account, state, models, detail}]."""
    return await _value(
        connection,
        "select taskyard.register_runner(%s, %s, %s, %s, %s, %s, %s)",
        (name, slots, labels, Jsonb(providers), version, PROTOCOL, lease),
    )


async def hold_runner_lock(connection: Connection, runner: int) -> bool:
    """Take the session lock that proves this process alive."""
    return await _value(connection, "select taskyard.hold_runner_lock(%s)", (runner,))


async def claim_task(connection: Connection, runner: int, n: int) -> list[Claim]:
    """Claim up to n tasks (1 to 500)."""
    async with connection.cursor(row_factory=class_row(Claim)) as cursor:
        await cursor.execute("select * from taskyard.claim_task(%s, %s)", (runner, n))
        return await cursor.fetchall()


async def heartbeat(
    connection: Connection, runner: int, attempts: list[int], progress: list[datetime | None]
) -> list[Directive]:
    """Renew the runner and its leases. progress: when each attempt last showed output, in the same order."""
    async with connection.cursor(row_factory=class_row(Directive)) as cursor:
        await cursor.execute(
            "select * from taskyard.heartbeat(%s, %s::bigint[], %s::timestamptz[])",
            (runner, attempts, progress),
        )
        return await cursor.fetchall()


async def complete_task(connection: Connection, attempt: int, ending: Ending) -> str:
    """Report how the attempt ended; returns the task's new status."""
    return await _value(
        connection,
        "select taskyard.complete_task(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            attempt,
            ending.outcome,
            None if ending.result is None else Jsonb(ending.result),
            ending.error,
            ending.exit_code,
            ending.evidence,
            None if ending.usage is None else Jsonb(ending.usage),
            ending.session_id,
            ending.retry_at,
        ),
    )


async def release_task(connection: Connection, attempt: int, why: str) -> str:
    """Give the task back unharmed."""
    return await _value(connection, "select taskyard.release_task(%s, %s)", (attempt, why))


async def append_transcript(connection: Connection, attempt: int, events: list[Event]) -> int:
    """Add to the transcript; events that are there already do no harm. Returns how many were new."""
    rows = [{"seq": e.seq, "at": e.at.isoformat(), "kind": e.kind, "body": e.body, "data": e.data} for e in events]
    return await _value(connection, "select taskyard.append_transcript(%s, %s)", (attempt, Jsonb(rows)))


async def tick(connection: Connection, runner: int) -> int:
    """Do what the passing of time causes; returns how many tasks moved."""
    return await _value(connection, "select taskyard.tick(%s)", (runner,))


async def retire_runner(connection: Connection, runner: int) -> int:
    """Leave; returns how many attempts were still held (they are taken back)."""
    return await _value(connection, "select taskyard.retire_runner(%s)", (runner,))


async def listen(connection: Connection, runner: int) -> None:
    """Hear of new tasks and of cancellations."""
    await connection.execute("listen task_ready")
    await connection.execute(sql.SQL("listen {}").format(sql.Identifier(f"taskyard_runner_{runner}")))


async def sleep_begin(connection: Connection) -> None:
    """From now on new tasks notify; claim once more after it."""
    await connection.execute("select taskyard.sleep_begin()")


async def sleep_end(connection: Connection) -> None:
    """The counterpart of sleep_begin()."""
    await connection.execute("select taskyard.sleep_end()")


async def known_providers(connection: Connection) -> list[dict[str, Any]]:
    """The providers of this database: {name, adapter, settings}."""
    cursor = await connection.execute("select * from taskyard.known_providers()")
    return list(await cursor.fetchall())


async def _value(connection: Connection, query: LiteralString, parameters: tuple[Any, ...]) -> Any:
    cursor = await connection.execute(query, parameters)
    row = await cursor.fetchone()
    assert row is not None
    return next(iter(row.values()))
