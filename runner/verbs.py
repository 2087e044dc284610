"""The verbs that a runner calls, as thin functions: every rule is in the database.

All of them raise psycopg.Error; is_lost() and is_unregistered() tell the two refusals that a runner acts on.
"""

import math
import re
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import DictRow, class_row
from psycopg.types.json import Jsonb

PROTOCOL = 4  # see register_runner(): the database refuses runners whose protocol it no longer, or not yet, knows

Connection = AsyncConnection[DictRow]


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt to run: the row that claim_task() returns (type taskyard.claim).

    `permissions` is what its scope allows, of read, write, execute, network, create_child. `session_id` names a
    session on this host to resume, `session_usage` what earlier attempts of that session used ({input_tokens, ...}).
    `note` tells the agent what became of the attempt before: as the next message of a resumed session, else with the
    prompt. `allowed_paths` are directories that it may see besides its workspace, `network_allow` the hosts that it may
    reach (None: any public one), as far as `permissions` go. `repository` is a git repository on this host, to work
    on in a branch of its own from `base`, pushed to the remote `push_to`. `files_of` is the task whose scratch folder
    this one goes on with, `branch` the one that was reported last for it.
    """

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
    max_turns: int | None
    output_schema: dict[str, Any] | None
    permissions: list[str]
    workspace: str | None
    verify: str | None
    timeout: timedelta
    first_output_timeout: timedelta | None
    idle_timeout: timedelta | None
    session_id: str | None
    session_usage: dict[str, Any] | None
    note: str | None
    lease_until: datetime
    allowed_paths: list[str] | None = None
    network_allow: list[str] | None = None
    repository: str | None = None
    base: str | None = None
    push_to: str | None = None
    files_of: int | None = None
    branch: str | None = None


_CLAIM = [field.name for field in fields(Claim)]


@dataclass(frozen=True, slots=True)
class Directive:
    """What a heartbeat brings back: lost, cancel, wait and release name an attempt; drain and tick are for the runner.

    wait: its agent waits for a human, for other tasks or for mail. handoff: another agent is to go on. message: there
    is mail for it. release: its scope does not allow it any more, or has nothing left to spend.
    """

    attempt_id: int | None
    directive: Literal["lost", "cancel", "wait", "handoff", "message", "release", "drain", "tick"]
    detail: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used, None where the tool does not say.

    Tokens: `input_tokens` are all that were read, `cached_tokens` those of them that came from a cache. `turns` counts
    the answers of the model. `cost_usd` is what the tool reports, never an estimate of ours. `model` is the one really
    used.
    """

    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    turns: int | None = None
    cost_usd: float | None = None
    model: str | None = None

    def known(self) -> dict[str, Any]:
        """The fields that are not None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Window:
    """A limit window of an account, named as the provider names it (five_hour, weekly, daily_requests, ...).

    `used_percent` is 0 to 100 or more; `resets_at` is what the provider said, None where it said nothing. `model` is
    set where the limit is that model's alone.
    """

    name: str
    resets_at: datetime | None = None
    used_percent: float | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, as an adapter read it; outcome is one of outcome_policies.

    `error` is one sentence for the user; `evidence` is what the outcome was read from, verbatim. `window` belongs to
    rate_limited, quota_exhausted and overloaded.
    """

    outcome: str
    result: Any = None
    error: str | None = None
    exit_code: int | None = None
    evidence: str | None = None
    usage: Usage | None = None
    session_id: str | None = None
    window: Window | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One row of a transcript: seq counts from 1 within the attempt."""

    seq: int
    at: datetime
    kind: str
    body: str
    data: Any = None


def storable(value: Any) -> Any:
    """The same JSON value without what PostgreSQL cannot hold: NUL, halves of surrogate pairs, infinite numbers."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(k): storable(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [storable(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _window(window: Window) -> dict[str, Any]:
    return {
        "name": storable(window.name),
        "resets_at": window.resets_at and window.resets_at.isoformat(),
        "used_percent": window.used_percent,
        "model": storable(window.model),
    }


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
    host: str,
    sandbox: dict[str, str],
) -> int:
    """Make this runner known; returns its id.

    providers: see offer_providers; host: where sessions can be resumed; sandbox: {level, trouble}, trouble only where
    it cannot be set up.
    """
    return await fetch_value(
        connection,
        "select taskyard.register_runner(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (name, slots, labels, Jsonb(storable(providers)), version, PROTOCOL, lease, host, Jsonb(storable(sandbox))),
    )


async def report_sandbox(connection: Connection, runner: int, trouble: str | None) -> None:
    """Say why the sandbox cannot be set up, so that nothing is claimed, or None once it can."""
    await connection.execute("select taskyard.report_sandbox(%s, %s)", (runner, storable(trouble)))


async def offer_providers(connection: Connection, runner: int, providers: list[dict[str, Any]]) -> None:
    """Change what this runner can run: [{provider, account, state, models, loaded, version, detail}]."""
    await connection.execute("select taskyard.offer_providers(%s, %s)", (runner, Jsonb(storable(providers))))


async def hold_runner_lock(connection: Connection, runner: int) -> bool:
    """Take the session lock that proves this process alive."""
    return await fetch_value(connection, "select taskyard.hold_runner_lock(%s)", (runner,))


async def claim_task(connection: Connection, runner: int, n: int) -> list[Claim]:
    """Claim up to n tasks (1 to 500)."""
    cursor = await connection.execute("select * from taskyard.claim_task(%s, %s)", (runner, n))
    # A newer database may tell more than this runner knows of.
    return [Claim(**{name: row[name] for name in _CLAIM}) for row in await cursor.fetchall()]


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
    return await fetch_value(
        connection,
        "select taskyard.complete_task(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            attempt,
            ending.outcome,
            None if ending.result is None else Jsonb(storable(ending.result)),
            storable(ending.error),
            ending.exit_code,
            storable(ending.evidence),
            None if ending.usage is None else Jsonb(ending.usage.known()),
            ending.session_id,
            None if ending.window is None else Jsonb(_window(ending.window)),
        ),
    )


async def release_task(connection: Connection, attempt: int, why: str, delay: timedelta = timedelta(0)) -> str:
    """Give the task back unharmed, to be claimed again after the delay."""
    return await fetch_value(connection, "select taskyard.release_task(%s, %s, %s)", (attempt, storable(why), delay))


async def append_transcript(connection: Connection, attempt: int, events: list[Event]) -> int:
    """Add to the transcript; events that are there already do no harm. Returns how many were new."""
    rows = [{"seq": e.seq, "at": e.at.isoformat(), "kind": e.kind, "body": e.body, "data": e.data} for e in events]
    return await fetch_value(connection, "select taskyard.append_transcript(%s, %s)", (attempt, Jsonb(storable(rows))))


async def add_artifact(
    connection: Connection, attempt: int, path: str, size: int, sha256: str, content: bytes | None, kind: str = "file"
) -> None:
    """Keep a file that the attempt left (kind: file, diff, log or commit); without content where it is too large."""
    await connection.execute(
        "select taskyard.add_artifact(%s, %s, %s, %s, %s, %s)",
        (attempt, storable(path), size, sha256, content, kind),
    )


async def report_session(connection: Connection, attempt: int, session: str | None, usage: Usage | None) -> None:
    """Note the session of a running attempt, and what it has used so far."""
    await connection.execute(
        "select taskyard.report_session(%s, %s, %s)",
        (attempt, session, None if usage is None else Jsonb(usage.known())),
    )


async def report_limit(connection: Connection, attempt: int, windows: list[Window]) -> None:
    """Note how far limit windows of the attempt's account are used."""
    await connection.execute(
        "select taskyard.report_limit(%s, %s)", (attempt, Jsonb([_window(window) for window in windows]))
    )


async def tasks_over(connection: Connection, tasks: list[int]) -> list[int]:
    """Which of these tasks are over for a day, or gone: nothing has to be kept for them."""
    return await fetch_value(connection, "select taskyard.tasks_over(%s::bigint[])", (tasks,))


async def tick(connection: Connection, runner: int) -> int:
    """Do what the passing of time causes; more than 0 if there may be something to claim."""
    return await fetch_value(connection, "select taskyard.tick(%s)", (runner,))


async def retire_runner(connection: Connection, runner: int) -> int:
    """Leave; returns how many attempts were still held (they are taken back)."""
    return await fetch_value(connection, "select taskyard.retire_runner(%s)", (runner,))


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


async def fetch_value(connection: Connection, query: LiteralString, parameters: tuple[Any, ...]) -> Any:
    """The one value that a query returns."""
    cursor = await connection.execute(query, parameters)
    row = await cursor.fetchone()
    assert row is not None
    return next(iter(row.values()))
