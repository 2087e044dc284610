"""Writing to tasks and reading it, for the tests of mail."""

from typing import Any

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import column, value
from .yardwork import (
    claim,
    insert,
    refusal,
    register,
    say,
)


def tell(db: Connection[DictRow], task: int, text: str = "look") -> str:
    return value(db, "select say(%s, %s)", task, text)


def read(db: Connection[DictRow], attempt: int, most: int = 20) -> list[dict[str, Any]]:
    return value(db, "select read_messages(%s, %s)", attempt, most)


def texts(db: Connection[DictRow], attempt: int, most: int = 20) -> list[str]:
    return [mail["text"] for mail in read(db, attempt, most)]


def send(db: Connection[DictRow], attempt: int, task: int, text: str = "hello") -> psycopg.Error | None:
    return refusal(db, "select send_message(%s, %s, %s)", attempt, task, text)


def has_mail(db: Connection[DictRow], task: int) -> bool:
    return value(db, "select has_mail from tasks where id = %s", task)


def running(db: Connection[DictRow], name: str = "host", **columns: Any) -> tuple[int, int, int]:
    """A runner, a task and the attempt that it runs; nothing else may be queued."""
    runner = register(db, name)
    task = insert(db, **columns)
    (row,) = claim(db, runner)
    assert row["task_id"] == task
    return runner, task, row["attempt_id"]


def session(db: Connection[DictRow], attempt: int) -> None:
    """The agent has begun, in a session that could be resumed."""
    db.execute("select report_session(%s, 'the-session')", [attempt])
    say(db, attempt, "I began.")


def mailboxes(db: Connection[DictRow]) -> list[str]:
    return column(db, "select queue_name from pgmq.meta where queue_name like 'mail%%' order by created_at, queue_name")
