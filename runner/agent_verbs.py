"""The verbs that an agent calls through its channel, and what its runner reports of its work: thin functions.

All carry the attempt, whose token alone opens them, and raise psycopg.Error. Shapes of JSON values are told by the
comments of the functions in the database (\\df+ in psql).
"""

from datetime import timedelta
from typing import Any

from psycopg.types.json import Jsonb

from .verbs import Connection, fetch_value, storable


async def spawn_task(connection: Connection, attempt: int, task: dict[str, Any]) -> dict[str, Any]:
    """Create a child of the attempt's task; returns {task, status, existed}."""
    return await fetch_value(connection, "select taskyard.spawn_task(%s, %s)", (attempt, Jsonb(storable(task))))


async def wait_for(
    connection: Connection, attempt: int, tasks: list[int], mail: bool, within: timedelta
) -> dict[str, Any]:
    """Wait without a slot: {waiting: true, unfinished}; where nothing is left to wait for {waiting: false, results}."""
    return await fetch_value(
        connection, "select taskyard.wait_for(%s, %s::bigint[], %s, %s)", (attempt, tasks, mail, within)
    )


async def read_result(connection: Connection, attempt: int, task: int) -> dict[str, Any]:
    """{task, agent, status, result, error, branch, commit, artifacts}."""
    return await fetch_value(connection, "select taskyard.read_result(%s, %s)", (attempt, task))


async def save_checkpoint(connection: Connection, attempt: int, state: dict[str, Any]) -> int:
    """Keep {status, progress, data, conversation}; returns the version."""
    return await fetch_value(connection, "select taskyard.save_checkpoint(%s, %s)", (attempt, Jsonb(storable(state))))


async def load_checkpoint(connection: Connection, attempt: int) -> dict[str, Any] | None:
    """The task's last checkpoint, whichever attempt saved it."""
    return await fetch_value(connection, "select taskyard.load_checkpoint(%s)", (attempt,))


async def handoff_task(connection: Connection, attempt: int, packet: dict[str, Any]) -> int:
    """Ask for another agent to go on; returns the handoff's id. The directive `handoff` follows."""
    return await fetch_value(connection, "select taskyard.handoff_task(%s, %s)", (attempt, Jsonb(storable(packet))))


async def request_permission(
    connection: Connection,
    attempt: int,
    permissions: list[str],
    paths: list[str],
    hosts: list[str],
    why: str | None,
    within: timedelta,
) -> int:
    """Ask a human for more than the scope allows; returns the approval's id. The directive `wait` follows."""
    return await fetch_value(
        connection,
        "select taskyard.request_permission(%s, %s::text[], %s::text[], %s::text[], %s, %s)",
        (attempt, storable(permissions), storable(paths), storable(hosts), storable(why), within),
    )


async def ask_human(connection: Connection, attempt: int, question: str, within: timedelta) -> int:
    """Ask a human something; returns the approval's id. The directive `wait` follows."""
    return await fetch_value(connection, "select taskyard.ask_human(%s, %s, %s)", (attempt, storable(question), within))


async def send_message(connection: Connection, attempt: int, task: int, text: str) -> int:
    """Put a message into another task's mailbox; returns its id."""
    return await fetch_value(connection, "select taskyard.send_message(%s, %s, %s)", (attempt, task, storable(text)))


async def read_messages(connection: Connection, attempt: int, most: int = 20) -> list[dict[str, Any]]:
    """Take up to `most` messages out of the task's mailbox, oldest first: [{id, from, text, at}]."""
    return await fetch_value(connection, "select taskyard.read_messages(%s, %s)", (attempt, most))


async def report_progress(connection: Connection, attempt: int, progress: float | None, doing: str | None) -> None:
    """How far it is, from 0 to 1, and what it is doing."""
    await connection.execute("select taskyard.report_progress(%s, %s::real, %s)", (attempt, progress, storable(doing)))


async def list_artifacts(connection: Connection, attempt: int, task: int | None) -> list[dict[str, Any]]:
    """What a task's attempts left, None: its own: [{task, attempt, path, kind, size, sha256, text}]."""
    return await fetch_value(connection, "select taskyard.list_artifacts(%s, %s)", (attempt, task))


async def report_work(connection: Connection, attempt: int, branch: str, commit: str) -> None:
    """Where the work is in the task's repository."""
    await connection.execute("select taskyard.report_work(%s, %s, %s)", (attempt, storable(branch), commit))


async def report_verification(
    connection: Connection,
    attempt: int,
    passed: bool,
    exit_code: int | None,
    output_tail: str,
    duration: timedelta,
    commit: str | None,
) -> None:
    """What the command said that proves the work; without one that passed the attempt cannot complete."""
    await connection.execute(
        "select taskyard.report_verification(%s, %s, %s, %s, %s, %s)",
        (attempt, passed, exit_code, storable(output_tail), duration, commit),
    )
