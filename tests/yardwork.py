"""What several tests do with a yard: bring tasks into a state, own the clock, hear notifications."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import Connection, Notify
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value

# Everything that is filed wrongly; empty in every state that users can bring about.
MISFILED = """
    select 'in the claim index, but not queued there' as what, r.task_id as id
    from ready_tasks r left join tasks t on t.id = r.task_id
    where (t.status = 'queued' and t.lane_id = r.lane_id and t.queue_position = r.position) is not true
    union all
    select 'queued, but not in the claim index', t.id from tasks t
    where t.status = 'queued' and not exists (select from ready_tasks r where r.task_id = t.id)
        and not exists (select from workspace_waits w where w.task_id = t.id)
    union all
    select 'in the claim index twice', task_id from ready_tasks group by task_id having count(*) > 1
    union all
    select 'among the scheduled ones, but not scheduled', s.task_id
    from scheduled_tasks s left join tasks t on t.id = s.task_id
    where (t.status = 'scheduled' and t.run_at = s.run_at) is not true
    union all
    select 'scheduled, but not among them', t.id from tasks t
    where t.status = 'scheduled' and not exists (select from scheduled_tasks s where s.task_id = t.id)
    union all
    select 'waits for a task, but neither is blocked by it nor has asked to wait', d.task_id
    from task_dependencies d left join tasks t on t.id = d.task_id
    left join waits w on w.task_id = d.task_id and w.over_at is null
    where (
        (t.status = 'blocked' and d.depends_on = any(t.depends_on))
        or (t.status in ('running', 'waiting') and d.depends_on = any(w.tasks))) is not true
    union all
    select 'waits for nothing', t.id from tasks t
    where t.status = 'waiting'
        and not exists (select from approvals a where a.task_id = t.id and a.decision is null)
        and not exists (
            select from waits w where w.task_id = t.id and w.over_at is null
                and (w.for_mail or exists (select from task_dependencies d where d.task_id = t.id)))
    union all
    select 'waits for what has ended', d.task_id
    from task_dependencies d join tasks e on e.id = d.depends_on join tasks t on t.id = d.task_id
    where e.status >= 'completed' and t.status = 'waiting'
    union all
    select 'has ended or is queued, but waits', w.task_id
    from waits w join tasks t on t.id = w.task_id
    where w.over_at is null and t.status not in ('running', 'waiting')
    union all
    select 'blocked by nothing', t.id from tasks t
    where t.status = 'blocked' and not exists (select from task_dependencies d where d.task_id = t.id)
    union all
    select 'in a lane that is not open', r.task_id from ready_tasks r
    where not exists (select from open_lanes o where o.lane_id = r.lane_id)
    union all
    select 'in a lane of others', t.id from tasks t join lanes l on l.id = t.lane_id
    where t.status = 'queued' and (l.scope, l.agent, l.priority, l.requires, l.exclusive)
        is distinct from (
            t.scope, t.agent, greatest(t.priority, t.lent_priority),
            case when t.stays_on is null then t.requires else t.requires || ('@' || t.stays_on) end,
            t.workspace is not null and t.agent <> 'auto')
"""


def misfiled(db: Connection[DictRow]) -> list[DictRow]:
    return rows(db, MISFILED)


def claims(db: Connection[DictRow], n: int = 100) -> list[str]:
    """The prompts that a fresh runner gets, in order, one claim each."""
    runner = value(db, "select register_runner('host-' || (select count(*) from runners))")
    prompts: list[str] = []
    while len(prompts) < n and (found := column(db, "select prompt from claim_task(%s)", runner)):
        prompts += found
    return prompts


def refusal(db: Connection[DictRow], query: str, *parameters: Any) -> psycopg.Error | None:
    """What the server says against a statement; None where it was carried out."""
    try:
        db.execute(query.encode(), parameters or None)
    except psycopg.Error as error:
        return error
    return None


def task_in(db: Connection[DictRow], status: str) -> int:
    """A task in that status, brought there the way users and runners do."""
    if status == "blocked":
        other = value(db, "insert into tasks (prompt) values ('first') returning id")
        return value(db, "insert into tasks (prompt, depends_on) values ('x', array[%s::bigint]) returning id", other)
    if status == "scheduled":
        return value(db, "insert into tasks (prompt, run_at) values ('x', now() + interval '1 hour') returning id")
    # Ahead of all that was made before.
    task = value(
        db, "insert into tasks (prompt, agent, priority) select 'x', 'shell', count(*) from tasks returning id"
    )
    if status in ("running", "waiting", "completed", "failed"):
        runner = value(db, "select register_runner('task-' || %s)", task)
        attempt = value(db, "select attempt_id from claim_task(%s)", runner)
        outcome = {"failed": "permission_denied"}.get(status, status)
        if status == "waiting":
            db.execute("select ask_human(%s, 'Which one?')", [attempt])
        if status != "running":
            db.execute("select complete_task(%s, %s)", [attempt, outcome])
    elif status == "cancelled":
        db.execute("select cancel_task(%s)", [task])
    return task


def insert(db: Connection[DictRow], prompt: str = "x", **columns: Any) -> int:
    """A task for the agent "shell", unless said otherwise; returns its id."""
    columns = {"prompt": prompt, "agent": "shell", **columns}
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    statement = f"insert into tasks ({names}) values ({marks}) returning id"
    return value(db, statement, *columns.values())  # type: ignore[arg-type]


def register(db: Connection[DictRow], name: str = "host", *labels: str, slots: int = 4, **accounts: str) -> int:
    """A runner; accounts are the providers it offers and the login of each ("command" without one, by default)."""
    providers = [{"provider": p, "account": a} for p, a in (accounts or {"command": ""}).items()]
    return value(db, "select register_runner(%s, %s, %s, %s)", name, slots, list(labels), Jsonb(providers))


def claim(db: Connection[DictRow], runner: int, n: int = 1) -> list[DictRow]:
    return rows(db, "select * from claim_task(%s, %s)", runner, n)


def end(db: Connection[DictRow], attempt: int, outcome: str = "completed", **more: Any) -> str:
    """complete_task() with more of its parameters by name, without their p_; returns the task's new status."""
    named = "".join(f", p_{name} => %s" for name in more)
    return value(db, f"select complete_task(%s, %s{named})", attempt, outcome, *more.values())  # type: ignore[arg-type]


def refuse(db: Connection[DictRow], attempt: int, outcome: str = "rate_limited", **window: Any) -> str:
    """End an attempt as its provider's refusal; window: name, resets_at, used_percent, model, as far as it was said."""
    told = {key: said.isoformat() if isinstance(said, datetime) else said for key, said in window.items()}
    return end(db, attempt, outcome, window=Jsonb(told) if told else None)


def say(db: Connection[DictRow], attempt: int, *bodies: str, kind: str = "text") -> None:
    """Append to an attempt's transcript."""
    said = value(db, "select count(*) from transcript where attempt_id = %s", attempt)
    events = [{"seq": said + n, "kind": kind, "body": body} for n, body in enumerate(bodies, 1)]
    db.execute("select append_transcript(%s, %s)", [attempt, Jsonb(events)])


def explained(db: Connection[DictRow], task: int) -> list[str]:
    return column(db, "select explain_task(%s)", task)


def status(db: Connection[DictRow], task: int) -> str:
    return value(db, "select status::text from tasks where id = %s", task)


def stop_clock(db: Connection[DictRow]) -> None:
    """From now on only advance() moves the time that this connection's verbs see."""
    db.execute("set role taskyard_owner")
    db.execute(
        "create or replace function taskyard._now() returns timestamptz language sql stable as"
        " $$ select coalesce(nullif(current_setting('taskyard.test_now', true), '')::timestamptz, now()) $$"
    )
    db.execute("reset role")
    db.execute("select set_config('taskyard.test_now', now()::text, false)")


def advance(db: Connection[DictRow], **by: float) -> None:
    db.execute(
        "select set_config('taskyard.test_now', (current_setting('taskyard.test_now')::timestamptz + %s)::text, false)",
        [timedelta(**by)],
    )


def set_clock(db: Connection[DictRow], to: datetime) -> None:
    """Move the stopped clock of this connection to a moment: that of another connection, say."""
    db.execute("select set_config('taskyard.test_now', %s, false)", [to.isoformat()])


def now(db: Connection[DictRow]) -> datetime:
    """The time that this connection's verbs see."""
    return value(db, "select taskyard._now()")


def listener(yard: Yard, *channels: str) -> Connection[DictRow]:
    connection = yard.connect()
    for channel in (*channels, "marker"):
        connection.execute(f"listen {channel}".encode())
    return connection


def heard(listening: Connection[DictRow], sender: Connection[DictRow]) -> list[Notify]:
    """What reached the listener up to now: the sender's marker comes after all that it notified before."""
    sender.execute("notify marker")
    found: list[Notify] = []
    for notification in listening.notifies(timeout=20):
        if notification.channel == "marker":
            return found
        found.append(notification)
    raise AssertionError("the marker did not arrive")


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def waits_for_a_lock(db: Connection[DictRow], other: Connection[DictRow]) -> bool:
    return value(db, "select count(*) from pg_locks where pid = %s and not granted", other.info.backend_pid) > 0
