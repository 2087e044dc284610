"""Tasks that work together: what their agents ask the yard for, and what their runners are told."""

from typing import Any

from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import rows, value
from .test_refusals import contents, unclear
from .yardwork import claim, end, insert, refusal, say

SPAWN = "select spawn_task(%s, %s)"
HANDOFF = "select handoff_task(%s, %s)"
PACKET: dict[str, Any] = {
    "target": "claude", "reason": "specialization", "context_summary": "The parser is done.", "pending_actions": ["write the tests", "run them"],
    "artifacts": ["notes.md"],
}  # fmt: skip


def host(db: Connection[DictRow], name: str = "mill", at: str = "", slots: int = 100, **accounts: str) -> int:
    """A runner on the machine `at` (none said: one of its own name) whose lease outlasts any move of the clock by hours."""
    providers = [{"provider": p, "account": a} for p, a in (accounts or {"command": "", "claude": ""}).items()]
    return value(
        db, "select register_runner(%s, %s, '{}', %s, p_host => %s, p_lease => '1 day')", name, slots, Jsonb(providers), at or name
    )  # fmt: skip


def claim_of(db: Connection[DictRow], runner: int, task: int) -> DictRow:
    """The claim of one task; what comes before it runs too."""
    while found := claim(db, runner):
        if found[0]["task_id"] == task:
            return found[0]
    raise AssertionError(f"task {task} cannot be had")


def begin(db: Connection[DictRow], runner: int, session: str | None = "the-session", **columns: Any) -> tuple[int, int]:
    """A task and its attempt, whose agent has said something in a session."""
    task = insert(db, **{"prompt": "whole", **columns})
    attempt = claim_of(db, runner, task)["attempt_id"]
    if session:
        db.execute("select report_session(%s, %s)", [attempt, session])
        say(db, attempt, "I began.")
    return task, attempt


def spawned(db: Connection[DictRow], attempt: int, prompt: str = "part", **wishes: Any) -> dict[str, Any]:
    """What spawn_task() answers."""
    return value(db, "select spawn_task(%s, %s)", attempt, Jsonb({"prompt": prompt, "agent": "shell", **wishes}))


def spawn(db: Connection[DictRow], attempt: int, prompt: str = "part", **wishes: Any) -> int:
    return spawned(db, attempt, prompt, **wishes)["task"]


def wait_for(
    db: Connection[DictRow], attempt: int, *tasks: int, mail: bool = False, within: str = "1 day"
) -> dict[str, Any]:
    return value(db, "select wait_for(%s, %s, %s, %s::interval)", attempt, list(tasks), mail, within)


def hand_over(db: Connection[DictRow], attempt: int, target: str = "claude", **more: Any) -> int:
    packet = {"target": target, "reason": "specialization", "context_summary": "Half done.", **more}
    return value(db, "select handoff_task(%s, %s)", attempt, Jsonb(packet))


def directives(db: Connection[DictRow], runner: int, *attempts: int) -> list[tuple[int, str]]:
    found = rows(db, "select * from heartbeat(%s, %s) where attempt_id is not null", runner, list(attempts))
    return [(row["attempt_id"], row["directive"]) for row in found]


def waits_on(db: Connection[DictRow], task: int) -> list[int]:
    """What a task still waits for."""
    found = rows(db, "select depends_on from task_dependencies where task_id = %s order by 1", task)
    return [row["depends_on"] for row in found]


def handed_over(
    db: Connection[DictRow], runner: int, columns: dict[str, Any] | None = None, **packet: Any
) -> tuple[int, int]:
    """A task and the one that goes on with it."""
    task, attempt = begin(db, runner, **(columns or {}))
    handoff = hand_over(db, attempt, **packet)
    assert end(db, attempt, "handed_off") == "waiting"
    return task, value(db, "select to_task from handoffs where id = %s", handoff)


def waiting(db: Connection[DictRow], runner: int, children: int = 1, **columns: Any) -> tuple[int, list[int]]:
    """A task that waits for children of its own, which are queued."""
    task, attempt = begin(db, runner, **columns)
    made = [spawn(db, attempt, f"part {n}") for n in range(children)]
    assert wait_for(db, attempt, *made) == {"waiting": True, "unfinished": made}
    assert end(db, attempt, "waiting") == "waiting"
    return task, made


def refused(db: Connection[DictRow], attempt: int, code: str, **wishes: Any) -> str:
    """The sentence by which a child is refused, which changes nothing."""
    before = contents(db)
    error = refusal(db, SPAWN, attempt, Jsonb({"prompt": "part", "agent": "shell", **wishes}))
    assert unclear(error, code) == "", wishes
    assert contents(db) == before
    return (error.diag.message_primary if error else None) or ""
