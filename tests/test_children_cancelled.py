"""Cancelling a parent: its children go along or stay, and none is left behind."""

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .family import begin, claim_of, host, refused, spawn
from .fleet import until
from .yardwork import claim, end, in_background, misfiled, refusal, status, waits_for_a_lock


def family(db: Connection[DictRow], runner: int) -> dict[str, int]:
    """A parent that runs, with below it a task in every status."""
    tasks: dict[str, int] = {}
    tasks["parent"], attempt = begin(db, runner)
    tasks["completed"], tasks["running"], tasks["waiting"] = (
        spawn(db, attempt, what) for what in ("completed", "running", "waiting")
    )
    attempts = {row["task_id"]: row["attempt_id"] for row in claim(db, runner, 3)}
    end(db, attempts[tasks["completed"]])
    tasks["queued"] = spawn(db, attempts[tasks["waiting"]], "queued")
    db.execute("select wait_for(%s, array[%s::bigint])", [attempts[tasks["waiting"]], tasks["queued"]])
    end(db, attempts[tasks["waiting"]], "waiting")
    tasks["scheduled"] = spawn(db, attempt, "scheduled", run_at="2999-01-01")
    tasks["blocked"] = spawn(db, attempt, "blocked", depends_on=[tasks["queued"]], on_dependency_failure="run")
    tasks["below"] = spawn(db, attempts[tasks["running"]], "below")
    assert {name: status(db, task) for name, task in tasks.items()} == {
        **{name: name for name in tasks}, "parent": "running", "below": "queued",
    }  # fmt: skip
    return tasks


def test_a_cancelled_parent_takes_all_below_it_along(db: Connection[DictRow]) -> None:
    runner = host(db)
    tasks = family(db, runner)
    running = column(db, "select id from attempts where outcome is null order by id")
    assert value(db, "select cancel_task(%s, 'enough')", tasks["parent"]) == "stopping"
    assert {name: status(db, task) for name, task in tasks.items()} == {
        **dict.fromkeys(tasks, "cancelled"), "completed": "completed", "parent": "running", "running": "running",
    }  # fmt: skip
    told = rows(
        db, "select attempt_id, directive, detail from heartbeat(%s, %s) where attempt_id is not null", runner, running
    )
    assert told == [{"attempt_id": a, "directive": "cancel", "detail": "enough"} for a in running]
    assert {end(db, attempt, "cancelled") for attempt in running} == {"cancelled"}
    assert value(db, "select count(*) from task_dependencies") == 0
    assert set(column(db, "select error from tasks where status = 'cancelled'")) == {"enough"}
    assert misfiled(db) == []


def test_a_cancelled_parent_leaves_its_children_alone_where_that_is_wished(db: Connection[DictRow]) -> None:
    tasks = family(db, host(db))
    before = {name: status(db, task) for name, task in tasks.items()}
    assert value(db, "select cancel_task(%s, 'enough', false)", tasks["waiting"]) == "cancelled"
    assert {name: status(db, task) for name, task in tasks.items()} == {**before, "waiting": "cancelled"}
    assert misfiled(db) == []


@pytest.mark.parametrize("which", ["the parent", "a child"])
def test_whoever_is_being_stopped_has_no_more_children(db: Connection[DictRow], which: str) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    child = claim_of(db, runner, spawn(db, attempt))
    db.execute("select cancel_task(%s)", [task])
    token = attempt if which == "the parent" else child["attempt_id"]
    refused(db, token, "TY004", prompt="an orphan")


@pytest.mark.parametrize("level", ["the parent", "a child"])
@pytest.mark.parametrize("first", ["cancel", "spawn"])
def test_a_child_created_while_its_parent_is_cancelled_is_no_orphan(yard: Yard, first: str, level: str) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    runner = host(db)
    task, attempt = begin(db, runner)
    child = claim_of(db, runner, spawn(db, attempt))
    token = attempt if level == "the parent" else child["attempt_id"]
    calls = {
        "cancel": f"select cancel_task({task})",
        "spawn": f"""select spawn_task({token}, '{{"prompt": "late", "agent": "shell"}}')""",
    }
    one.execute("begin")
    one.execute(calls.pop(first).encode())
    through: list[object] = []
    following = in_background(lambda: through.append(refusal(two, calls.popitem()[1])))
    until(lambda: bool(through) or waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(10)
    assert len(through) == 1
    assert column(db, "select id from tasks where prompt = 'late' and status <> 'cancelled'") == []


def test_children_that_end_while_they_are_cancelled_end_once(yard: Yard) -> None:
    """Endings lock from the child upwards, a cancellation from the parent downwards; whoever is refused tries again, as runners do."""
    db, other = yard.connect(), yard.connect()
    runner = host(db)
    for each in range(6):
        task, attempt = begin(db, runner, session=None)
        children = [spawn(db, attempt, f"part {n}") for n in range(12)]
        db.execute("select wait_for(%s, %s)", [attempt, children])
        end(db, attempt, "waiting")
        tokens = [row["attempt_id"] for row in claim(db, runner, 12)]

        def finish(tokens: list[int] = tokens, each: int = each) -> None:
            for n, token in enumerate(tokens):
                while (
                    error := refusal(
                        other, f"select complete_task({token}, '{'completed' if n % 3 else 'permission_denied'}')"
                    )
                ) and error.sqlstate == "40P01":
                    pass

        finishing = in_background(finish)
        until(lambda task=task, n=each: value(
            db, "select count(*) from tasks where parent_id = %s and finished_at is not null", task) >= n)  # fmt: skip
        error = refusal(db, f"select cancel_task({task})")
        finishing.join(30)
        assert not finishing.is_alive()
        assert error is None or error.sqlstate == "TY004"
        for token in column(db, "select attempt_id from tasks where parent_id = %s and attempt_id is not null", task):
            end(db, token, "cancelled")
        over = column(db, "select status::text from tasks where parent_id = %s", task)
        assert set(over) <= {"completed", "failed", "cancelled"}
        assert status(db, task) == ("cancelled" if error is None else "queued")
        db.execute("update tasks set status = 'cancelled' where id = %s and status = 'queued'", [task])
        assert misfiled(db) == []
    assert value(db, "select count(*) from task_dependencies") == 0
