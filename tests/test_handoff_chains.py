"""Handing on and on: where it cannot go on, and the end of one as the end of all."""

from datetime import timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .clock import Clock
from .conftest import Yard, column, rows, value
from .family import (
    HANDOFF,
    PACKET,
    begin,
    claim_of,
    directives,
    hand_over,
    handed_over,
    host,
    spawn,
    wait_for,
    waits_on,
)
from .test_refusals import unclear
from .yardwork import claim, end, explained, insert, misfiled, refusal, status


@pytest.mark.parametrize("how", ["handed_off", "crashed", "release_task", "retire_runner", "lease"])
@pytest.mark.parametrize("why", ["narrowed", "agent gone", "agent without a route"])
def test_a_successor_that_cannot_be_made_holds_nobody_up(
    yard: Yard, db: Connection[DictRow], why: str, how: str
) -> None:
    clock = Clock(yard, db)
    db.execute("insert into agents (name, route) values ('other', '{claude}')")
    db.execute("insert into scopes (name, parent) values ('home', 'default')")
    runner = host(db)
    task, attempt = begin(db, runner, scope="home")
    hand_over(db, attempt, "other")
    if why == "narrowed":
        db.execute("update scopes set allowed_agents = '{shell}' where name = 'home'")
    elif why == "agent gone":
        db.execute("delete from agents where name = 'other'")
    else:
        db.execute("update agents set route = '{}' where name = 'other'")
    if how == "release_task":
        db.execute("select release_task(%s)", [attempt])
    elif how == "retire_runner":
        db.execute("select retire_runner(%s)", [runner])
    elif how == "lease":
        clock.advance(timedelta(days=2))
        db.execute("select tick()")
        clock.advance(timedelta(seconds=11))
        db.execute("select tick()")
    else:
        end(db, attempt, how)
    assert value(db, "select outcome is not null from attempts where id = %s", attempt)
    assert misfiled(db) == []
    if why == "agent without a route":
        return  # its task waits for one, as any other would
    assert status(db, task) in ("queued", "scheduled", "failed")
    assert explained(db, task)


@pytest.mark.parametrize("open_still", ["a question", "a wait"])
@pytest.mark.parametrize("how", ["handed_off", "crashed", "release_task"])
def test_a_successor_that_cannot_be_made_leaves_what_else_was_waited_for(
    db: Connection[DictRow], how: str, open_still: str
) -> None:
    db.execute("insert into scopes (name, parent) values ('home', 'default')")
    task, attempt = begin(db, host(db), scope="home")
    child = spawn(db, attempt)
    if open_still == "a question":
        question = value(db, "select ask_human(%s, 'Which one?')", attempt)
        settle = f"select answer({question}, 'that')"
    else:
        wait_for(db, attempt, child)
        settle = f"select cancel_task({child})"
    hand_over(db, attempt)
    db.execute("update scopes set allowed_agents = '{shell}' where name = 'home'")
    if how == "release_task":
        db.execute("select release_task(%s)", [attempt])
    else:
        end(db, attempt, how)
    assert (status(db, task), misfiled(db)) == ("waiting", [])
    db.execute(settle.encode())
    assert (status(db, task), misfiled(db)) == ("queued", [])


# --- Chains.


def test_ten_times_and_no_more(db: Connection[DictRow]) -> None:
    runner = host(db)
    first, attempt = begin(db, runner, prompt="Write a parser.")
    after = insert(db, "after", depends_on=[first])
    tasks = [first]
    for n in range(10):
        hand_over(db, attempt, "shell" if n % 2 else "claude", context_summary=f"step {n}")
        end(db, attempt, "handed_off")
        tasks.append(value(db, "select max(to_task) from handoffs"))
        row = claim_of(db, runner, tasks[-1])
        assert (row["prompt"], row["files_of"]) == ("Write a parser.", first)
        assert f"step {n}" in row["note"]
        attempt = row["attempt_id"]
    error = refusal(db, HANDOFF, attempt, Jsonb(PACKET))
    assert unclear(error, "TY004") == ""
    end(db, attempt, result=Jsonb("at last"))
    assert {status(db, task) for task in tasks} == {"completed"}
    assert value(db, "select result from tasks where id = %s", first) == "at last"
    assert (status(db, after), misfiled(db)) == ("queued", [])


@pytest.mark.parametrize("kind", ["depends_on", "wait_for"])
@pytest.mark.parametrize(("outcome", "became"), [("permission_denied", "failed"), ("cancelled", "cancelled")])
def test_a_bad_end_is_the_end_of_all_of_them(db: Connection[DictRow], outcome: str, became: str, kind: str) -> None:
    runner = host(db)
    parent, above = begin(db, runner)
    first = spawn(db, above, "first")
    after = insert(db, "after", depends_on=[first])
    if kind == "wait_for":
        wait_for(db, above, first)
        end(db, above, "waiting")
    token, chain = claim_of(db, runner, first)["attempt_id"], [first]
    for _ in range(2):
        hand_over(db, token)
        end(db, token, "handed_off")
        chain.append(value(db, "select max(to_task) from handoffs"))
        token = claim_of(db, runner, chain[-1])["attempt_id"]
    if outcome == "cancelled":
        db.execute("select cancel_task(%s, 'enough')", [chain[-1]])
    end(db, token, outcome, error="No right to do so.")
    assert [status(db, task) for task in chain] == [became] * 3
    errors = {row["id"]: row["error"] for row in rows(db, "select id, error from tasks")}
    assert errors[first].startswith(f"Task {chain[1]}, to which it was handed over, ")
    if became == "failed":
        assert errors[first].endswith("No right to do so.")
    assert (status(db, after), errors[after].split(",")[0]) == ("failed", f"Task {first}")
    assert status(db, parent) == ("queued" if kind == "wait_for" else "running")
    assert misfiled(db) == []


def test_to_cancel_the_first_is_to_cancel_all(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, new = handed_over(db, runner)
    row = claim_of(db, runner, new)
    db.execute("select cancel_task(%s, 'enough')", [task])
    assert (status(db, task), status(db, new)) == ("cancelled", "running")
    assert directives(db, runner, row["attempt_id"]) == [(row["attempt_id"], "cancel")]
    assert end(db, row["attempt_id"], "cancelled") == "cancelled"
    assert misfiled(db) == []


def test_who_is_cancelled_before_stopping_hands_nothing_over(db: Connection[DictRow]) -> None:
    task, attempt = begin(db, host(db))
    hand_over(db, attempt)
    db.execute("select cancel_task(%s)", [task])
    assert end(db, attempt, "handed_off") == "cancelled"
    assert value(db, "select count(*) from tasks") == 1


def test_a_handoff_after_a_wait_waits_for_the_successor_alone(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    child = spawn(db, attempt)
    wait_for(db, attempt, child)
    hand_over(db, attempt)
    end(db, attempt, "handed_off")
    new = value(db, "select to_task from handoffs")
    assert waits_on(db, task) == [new]
    db.execute("select cancel_task(%s)", [new])
    assert (status(db, task), status(db, child), misfiled(db)) == ("cancelled", "queued", [])


def test_a_first_task_that_is_tried_again_begins_again(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, new = handed_over(db, runner)
    end(db, claim_of(db, runner, new)["attempt_id"], "permission_denied")
    assert status(db, task) == "failed"
    assert value(db, "select retry_task(%s)", task) == "queued"
    row = claim_of(db, runner, task)
    hand_over(db, row["attempt_id"], "shell")
    end(db, row["attempt_id"], "handed_off")
    newer = value(db, "select max(to_task) from handoffs")
    assert waits_on(db, task) == [newer]
    end(db, claim_of(db, runner, newer)["attempt_id"], result=Jsonb("second time"))
    assert (value(db, "select result from tasks where id = %s", task), misfiled(db)) == ("second time", [])


def test_a_successor_that_is_tried_again_is_waited_for_again(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, new = handed_over(db, runner)
    after = insert(db, "after", depends_on=[task])
    end(db, claim_of(db, runner, new)["attempt_id"], "permission_denied")
    assert (status(db, task), status(db, after)) == ("failed", "failed")
    error = refusal(db, f"select retry_task({new})")
    if error is not None:  # it may say that the first one is to be retried
        assert unclear(error, "TY004") == ""
        return
    assert (status(db, task), status(db, after), misfiled(db)) == ("waiting", "blocked", [])
    end(db, claim_of(db, runner, new)["attempt_id"])
    assert (status(db, task), status(db, after)) == ("completed", "queued")


def test_the_work_of_the_last_is_what_is_read_of_the_first(db: Connection[DictRow]) -> None:
    runner = host(db)
    _, above = begin(db, runner)
    first = spawn(db, above)
    token = claim_of(db, runner, first)["attempt_id"]
    db.execute("select report_work(%s, 'taskyard/2-1', %s)", [token, "a" * 40])
    hand_over(db, token)
    end(db, token, "handed_off")
    token = claim(db, runner)[0]["attempt_id"]
    db.execute("select report_work(%s, 'taskyard/3-1', %s)", [token, "b" * 40])
    db.execute("select add_artifact(%s, 'out.txt', 2, encode(sha256('hi'), 'hex'), 'hi')", [token])
    end(db, token, result=Jsonb("done"))
    told = value(db, "select read_result(%s, %s)", above, first)
    assert (told["task"], told["result"], told["branch"], told["commit"]) == (first, "done", "taskyard/3-1", "b" * 40)
    assert told["artifacts"] == [{"path": "out.txt", "kind": "file", "size": 2}]


def test_urgency_and_mail_reach_whoever_has_the_work_now(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, new = handed_over(db, runner)
    token = claim_of(db, runner, new)["attempt_id"]
    _, urgent = begin(db, runner, priority=60)
    wait_for(db, urgent, task)
    assert column(db, "select lent_priority from tasks where id in (%s, %s)", task, new) == [60, 60]
    db.execute("select say(%s, 'use tabs')", [task])
    assert [mail["text"] for mail in value(db, "select read_messages(%s)", token)] == ["use tabs"]


# --- The summary.
