"""What the command line changes in the database: one function for each verb, and every rule behind it.

All functions raise psycopg.Error. Those that return a string return what the change means, as the database says it.
"""

import re
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg import sql
from psycopg.types.json import Jsonb

from .connection import Yard, value
from .errors import TaskyardError


@dataclass(frozen=True, slots=True)
class Submission:
    """The parameters of submit_task() that somebody gave; None leaves the default to the database.

    A timedelta as run_at counts from the database's now.
    """

    prompt: str
    agent: str | None = None
    scope: str | None = None
    priority: int | None = None
    run_at: datetime | timedelta | None = None
    depends_on: list[int] | None = None
    payload: Jsonb | None = None
    workspace: str | None = None
    requires: list[str] | None = None
    provider: str | None = None
    model: str | None = None
    dedupe_key: str | None = None
    max_attempts: int | None = None
    timeout: timedelta | None = None
    on_dependency_failure: str | None = None
    on_limit: str | None = None
    verify: str | None = None
    output_schema: Jsonb | None = None
    repository: str | None = None
    base: str | None = None
    push_to: str | None = None


def submission_call(submission: Submission) -> tuple[sql.Composed, list[Any]]:
    """The query that calls submit_task() with what was given, and its parameters."""
    casts: dict[str, LiteralString] = {
        "priority": "integer",
        "max_attempts": "integer",
        "depends_on": "bigint[]",
        "requires": "text[]",
    }
    arguments: list[sql.Composable] = []
    values: list[Any] = []
    for field in fields(submission):
        given = getattr(submission, field.name)
        if given is None:
            continue
        delayed = field.name == "run_at" and isinstance(given, timedelta)
        shape: LiteralString = "{} => taskyard._now() + {}" if delayed else "{} => {}"
        slot: LiteralString = f"%s::{casts[field.name]}" if field.name in casts else "%s"
        arguments.append(sql.SQL(shape).format(sql.Identifier(f"p_{field.name}"), sql.SQL(slot)))
        values.append(given)
    return sql.SQL("select taskyard.submit_task({}) as id").format(sql.SQL(", ").join(arguments)), values


def submit_task(connection: Yard, submission: Submission) -> int:
    """Insert a task; returns its id, or that of the task which has its dedupe_key."""
    row = connection.execute(*submission_call(submission)).fetchone()
    assert row is not None
    return row["id"]


def cancel_task(connection: Yard, task_id: int, why: str | None, children: bool) -> str:
    """Cancel a task, with its children or without; returns cancelled, or stopping where its runner has to be told."""
    return value(
        connection,
        "select taskyard.cancel_task(%s, coalesce(%s, 'cancelled'), %s)",
        task_id,
        why,
        children,
    )


def retry_task(connection: Yard, task_id: int) -> str:
    """Give a task all its attempts again; returns its new status."""
    return value(connection, "select taskyard.retry_task(%s)", task_id)


def pause(connection: Yard, kind: str, name: str, why: str | None) -> str:
    """Pause a scope or a provider; returns what that means."""
    if kind == "scope":
        return value(connection, "select taskyard.pause_scope(%s, %s)", name, why)
    return value(connection, "select taskyard.pause_provider(%s, %s)", name, why)


def resume(connection: Yard, kind: str, name: str) -> str:
    """Undo pause(); returns what that means."""
    if kind == "scope":
        return value(connection, "select taskyard.resume_scope(%s)", name)
    return value(connection, "select taskyard.resume_provider(%s)", name)


def drain_runner(connection: Yard, name: str, draining: bool) -> str:
    """Stop a runner from claiming, or let it claim again; returns what that means."""
    return value(connection, "select taskyard.drain_runner(%s, %s)", name, draining)


def approve(connection: Yard, approval: int, note: str | None) -> str:
    """Allow what was asked for; returns what that was."""
    return value(connection, "select taskyard.approve(%s, %s)", approval, note)


def deny(connection: Yard, approval: int, why: str | None) -> str:
    """Refuse what was asked for; returns what that was."""
    return value(connection, "select taskyard.deny(%s, %s)", approval, why)


def answer(connection: Yard, approval: int, text: str) -> str:
    """Answer a question."""
    return value(connection, "select taskyard.answer(%s, %s)", approval, text)


def import_checkpoint(connection: Yard, task_id: int, document: dict[str, Any]) -> int:
    """Give a task the state of an exported checkpoint; returns its version."""
    return value(connection, "select taskyard.import_checkpoint(%s, %s)", task_id, Jsonb(document))


def import_handoff(connection: Yard, document: dict[str, Any], scope: str) -> int:
    """Create a task that goes on with an exported handoff; returns its id."""
    return value(connection, "select taskyard.import_handoff(%s, %s)", Jsonb(document), scope)


def say(connection: Yard, task_id: int, text: str) -> str:
    """Write to a task's agent; returns when it gets that."""
    return value(connection, "select taskyard.say(%s, %s)", task_id, text)


def make_phone_role(yard: Yard, name: str, scope: str, password: str, exists: bool) -> None:
    """Make a login of taskyard_submitter that works in one scope; or, where it `exists`, give it a new password.

    Raises TaskyardError for a name that is no simple one.
    """
    with yard.transaction():
        if exists:
            set_password(yard, name, password)
            return
        make_login(yard, name, password, "taskyard_submitter", scope=scope)
        login = sql.Identifier(name)
        yard.execute(sql.SQL("alter role {} connection limit 5").format(login))
        for setting, worth in PHONE_SETTINGS.items():
            yard.execute(sql.SQL("alter role {} set {} = {}").format(login, sql.Identifier(setting), worth))


def make_login(yard: Yard, name: str, password: str, *roles: str, scope: str | None) -> None:
    """Make a login with these roles, which works in `scope` where one is named; whole, or not at all.

    Raises TaskyardError for a name that is no simple one.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,62}", name):
        raise TaskyardError(f"{name!r} is no name for a login.", "Use small letters, digits, - and _.")
    login = sql.Identifier(name)
    with yard.transaction():
        yard.execute(sql.SQL("create role {} login").format(login))
        for role in roles:
            yard.execute(sql.SQL("grant {} to {}").format(sql.Identifier(role), login))
        if scope is not None:
            yard.execute("select taskyard.grant_scope(%s, %s)", [name, scope])
        set_password(yard, name, password)


def set_password(yard: Yard, name: str, password: str) -> None:
    """Give a login a password; the server gets a SCRAM verifier and never the password itself."""
    verifier = yard.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256")
    yard.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(name), verifier.decode()))


# A query that was forgotten on a phone, or a connection that hangs in a tunnel, holds nothing up.
PHONE_SETTINGS = {
    "search_path": "taskyard",
    "statement_timeout": "30s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "1min",
}


SCHEDULE_TOLD = sql.SQL(
    "name, cron, every::text, at, timezone, scope, template, variables::text, task::text, missed, overlap,"
    " enabled::text, next_at"
)


def write_schedule(connection: Yard, name: str, columns: dict[str, Any]) -> dict[str, Any]:
    """Change a schedule in what is given, or insert it; returns its row, for people.

    `task` and `variables` are merged into what is there. A timedelta as `at` counts from the database's now.
    """
    given = {"name": name} | {key: Jsonb(told) if isinstance(told, dict) else told for key, told in columns.items()}
    slots: dict[str, sql.Composable] = {key: sql.Placeholder(key) for key in given}
    if isinstance(given.get("at"), timedelta):
        slots["at"] = sql.SQL("taskyard._now() + {}").format(slots["at"])
    sets = [
        sql.SQL("{0} = {0} || {1}" if key in ("task", "variables") else "{0} = {1}").format(sql.Identifier(key), slot)
        for key, slot in slots.items()
    ]
    # Another kind of timing takes the place of the one that it had.
    if "cron" in given:
        sets += [sql.SQL("every = null"), sql.SQL("at = null")]
    elif "every" in given or "at" in given:
        sets += [sql.SQL("cron = null")]
    update = sql.SQL("update taskyard.schedules set {} where name = {} returning {}").format(
        sql.SQL(", ").join(sets), slots["name"], SCHEDULE_TOLD
    )
    insert = sql.SQL("insert into taskyard.schedules ({}) values ({}) returning {}").format(
        sql.SQL(", ").join(map(sql.Identifier, given)), sql.SQL(", ").join(slots.values()), SCHEDULE_TOLD
    )
    row = connection.execute(update, given).fetchone() or connection.execute(insert, given).fetchone()
    assert row is not None
    return row


def run_schedule(connection: Yard, name: str) -> int:
    """Create the task of a schedule now; returns its id."""
    return value(connection, "select taskyard.run_schedule(%s)", name)


def remove_schedule(connection: Yard, name: str) -> None:
    """Delete a schedule. Raises TaskyardError where there is none that the caller may delete."""
    if connection.execute("delete from taskyard.schedules where name = %s", (name,)).rowcount == 0:
        raise TaskyardError(f'There is no schedule "{name}" of yours.', "See: taskyard schedules", "TY002")


def after_restore(connection: Yard) -> None:
    """Fence off everybody who still works on what ran when the dump was made."""
    connection.execute("select taskyard.after_restore()")
