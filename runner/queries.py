"""What the command line shows of the database; what it changes is in actions.py. All its SQL is in these two files.

All functions raise psycopg.Error. Names are qualified, so that they hold whatever search_path a pooler hands out.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row

from .connection import Yard, value

STATUSES = ("blocked", "scheduled", "queued", "running", "waiting", "completed", "failed", "cancelled")
ENDED = frozenset({"completed", "failed", "cancelled"})
PAGE = 500  # transcript rows fetched at once; a row is at most some 16 kB


@dataclass(frozen=True, slots=True)
class Task:
    """A task as a list shows it."""

    id: int
    status: str
    agent: str
    scope: str
    priority: int
    prompt: str
    error: str | None
    attempt_count: int
    created_by: str
    created_at: datetime
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Ending:
    """Where a task is, and what it left if it has ended."""

    id: int
    status: str
    result: Any
    error: str | None


@dataclass(frozen=True, slots=True)
class Try:
    """An attempt as whoever follows it needs it; outcome is None while it runs."""

    id: int
    number: int
    outcome: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a transcript."""

    seq: int
    at: datetime
    kind: str
    body: str
    data: Any


def now(connection: Yard) -> datetime:
    """The database's clock, against which relative times are shown."""
    return value(connection, "select taskyard._now()")


def list_tasks(
    connection: Yard,
    statuses: Sequence[str] = (),
    agent: str | None = None,
    scope: str | None = None,
    mine: bool = False,
    limit: int = 50,
    prompt_length: int | None = None,
) -> list[Task]:
    """Tasks, newest first; prompts and errors cut to prompt_length characters."""
    with connection.cursor(row_factory=class_row(Task)) as cursor:
        cursor.execute(
            """
            select t.id, t.status, t.agent, t.scope, t.priority,
                coalesce(left(t.prompt, %(length)s), t.prompt) as prompt,
                coalesce(left(t.error, %(length)s), t.error) as error,
                t.attempt_count, t.created_by, t.created_at, t.run_at, t.started_at, t.finished_at
            from taskyard.tasks t
            where (%(statuses)s::taskyard.task_status[] is null or t.status = any(%(statuses)s::taskyard.task_status[]))
                and (%(agent)s::text is null or t.agent = %(agent)s)
                and (%(scope)s::text is null or t.scope = %(scope)s)
                and (not %(mine)s or t.created_by = taskyard._caller())
            order by t.id desc
            limit %(limit)s
            """,
            {
                "statuses": list(statuses) or None,
                "agent": agent,
                "scope": scope,
                "mine": mine,
                "limit": limit,
                "length": prompt_length,
            },
        )
        return cursor.fetchall()


def task(connection: Yard, task_id: int) -> dict[str, Any] | None:
    """All of a task but where its claim-index row is filed; None where there is none."""
    row = connection.execute("select t.* from taskyard.tasks t where t.id = %s", (task_id,)).fetchone()
    return row and {key: row[key] for key in row if key not in ("lane_id", "queue_position")}


def attempts(connection: Yard, task_id: int) -> list[dict[str, Any]]:
    """The attempts of a task, first to latest."""
    return connection.execute(
        """
        select a.id, a.number, r.name as runner, a.provider, a.account, a.model, a.session_id, a.outcome, a.counted,
            a.exit_code, a.evidence, a.input_tokens, a.cached_tokens, a.output_tokens, a.turns, a.cost_usd,
            a.lease_until, a.progress_at, a.started_at, a.finished_at
        from taskyard.attempts a left join taskyard.runners r on r.id = a.runner_id
        where a.task_id = %s
        order by a.number, a.id
        """,
        (task_id,),
    ).fetchall()


def dependencies(connection: Yard, task_id: int) -> list[dict[str, Any]]:
    """What a task depends on: {id, status, prompt}; status is None where the task was deleted."""
    return connection.execute(
        """
        select d.id, e.status, left(e.prompt, 200) as prompt
        from taskyard.tasks t
        cross join lateral unnest(t.depends_on) with ordinality d (id, place)
        left join taskyard.tasks e on e.id = d.id
        where t.id = %s
        order by d.place
        """,
        (task_id,),
    ).fetchall()


def statuses(connection: Yard, ids: Iterable[int]) -> dict[int, str]:
    """The statuses of those of the tasks that exist."""
    rows = connection.execute(
        "select t.id, t.status from taskyard.tasks t where t.id = any(%s::bigint[])", (list(ids),)
    )
    return {row["id"]: row["status"] for row in rows}


def endings(connection: Yard, ids: Iterable[int]) -> list[Ending]:
    """Status, result and error of tasks, in the order of their ids."""
    with connection.cursor(row_factory=class_row(Ending)) as cursor:
        cursor.execute(
            """
            select t.id, t.status, t.result, t.error from taskyard.tasks t
            where t.id = any(%s::bigint[]) order by t.id
            """,
            (list(ids),),
        )
        return cursor.fetchall()


def progress(connection: Yard, task_id: int) -> tuple[str, list[Try]] | None:
    """A task's status and its attempts, first to latest; None where there is no such task."""
    rows = connection.execute(
        """
        select t.status, a.id, a.number, a.outcome
        from taskyard.tasks t left join taskyard.attempts a on a.task_id = t.id
        where t.id = %s
        order by a.number, a.id
        """,
        (task_id,),
    ).fetchall()
    if not rows:
        return None
    tries = [Try(row["id"], row["number"], row["outcome"]) for row in rows if row["id"] is not None]
    return rows[0]["status"], tries


def transcript(connection: Yard, attempt_id: int, after: int = 0, limit: int = PAGE) -> list[Entry]:
    """Up to `limit` rows of an attempt's transcript with seq > after, in order."""
    with connection.cursor(row_factory=class_row(Entry)) as cursor:
        cursor.execute(
            """
            select x.seq, x.at, x.kind, x.body, x.data from taskyard.transcript x
            where x.attempt_id = %s and x.seq > %s order by x.seq limit %s
            """,
            (attempt_id, after, limit),
        )
        return cursor.fetchall()


def before_tail(connection: Yard, attempt_id: int, count: int) -> int:
    """The seq after which the last `count` rows of an attempt's transcript begin; 0 where there are no more."""
    return value(
        connection,
        """
        select coalesce((
            select x.seq from taskyard.transcript x where x.attempt_id = %s order by x.seq desc offset %s limit 1
        ), 0)
        """,
        attempt_id,
        count,
    )


def listen(connection: Yard) -> None:
    """Hear of changed tasks. A standby cannot listen: there, and behind a pooler, polling has to do."""
    try:
        connection.execute("listen task_updates")
    except psycopg.errors.ReadOnlySqlTransaction:
        return


def hear(connection: Yard, seconds: float, ids: frozenset[int]) -> None:
    """Return when something is said of one of the tasks, and after so many seconds at the latest."""
    for notification in connection.notifies(timeout=seconds):
        if concerns(notification.payload, ids):
            return


def concerns(payload: str, ids: frozenset[int]) -> bool:
    """Whether a notification is about one of the tasks, or says that more changed than it can name."""
    try:
        said = json.loads(payload)
        named = [said["id"], *said.get("ids", ())]
    except (ValueError, KeyError, TypeError, AttributeError):
        return True
    # Beyond 300 tasks at once the rest goes unnamed (see _announce).
    return said.get("operation") == "refresh" or len(named) > 300 or not ids.isdisjoint(named)


def explain_task(connection: Yard, task_id: int) -> list[str]:
    """Why a task is not running, one reason per line."""
    rows = connection.execute("select taskyard.explain_task(%s) as line", (task_id,))
    return [row["line"] for row in rows]


def count_tasks(connection: Yard) -> int:
    """How many tasks there are."""
    return value(connection, "select count(*) from taskyard.tasks")


def agents(connection: Yard) -> list[dict[str, Any]]:
    """The agents: {name, route, description}."""
    return connection.execute("select a.name, a.route, a.description from taskyard.agents a order by a.name").fetchall()


def inbox(connection: Yard) -> list[dict[str, Any]]:
    """Open questions, the most urgent first: {id, kind, task_id, scope, question, permissions, paths, hosts, left}.

    left is the time until silence means no, None where it never does.
    """
    return connection.execute(
        """
        select a.id, a.kind, a.task_id, a.scope, a.question, a.permissions, a.paths, a.hosts,
            a.deadline - taskyard._now() as left
        from taskyard.approvals a join taskyard.inbox i on i.id = a.id
        order by a.deadline nulls last, a.id
        """
    ).fetchall()


def export_checkpoint(connection: Yard, task_id: int) -> dict[str, Any]:
    """A task's last checkpoint as a document."""
    return value(connection, "select taskyard.export_checkpoint(%s)", task_id)


def export_handoff(connection: Yard, handoff: int) -> dict[str, Any]:
    """A handoff as a document."""
    return value(connection, "select taskyard.export_handoff(%s)", handoff)


def schedules(connection: Yard) -> list[dict[str, Any]]:
    """All schedules, soonest first: name, next (in how long), timing, last (its task, or what was left out)."""
    return connection.execute(
        "select s.name, case when not s.enabled then 'off' when s.next_at is null then 'over'"
        " when s.next_at <= taskyard._now() then 'due' else taskyard._ago(s.next_at - taskyard._now()) end as next,"
        " coalesce(s.cron, 'every ' || s.every, 'once') as timing,"
        " case when s.last_note is not null then '! ' || s.last_note else t.id || ' ' || t.status end as last,"
        " s.next_at, s.timezone, s.last_task_id"
        " from taskyard.schedules s left join taskyard.tasks t on t.id = s.last_task_id"
        " order by s.next_at nulls last, s.name"
    ).fetchall()
