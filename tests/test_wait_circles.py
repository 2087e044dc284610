"""Many that wait for each other: in no circle, with the urgency of whoever waits, by the thousand."""

from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .family import begin, claim_of, host, spawn, wait_for, waiting
from .fleet import until
from .test_refusals import contents, unclear
from .yardwork import claim, end, explained, in_background, insert, misfiled, refusal, status, waits_for_a_lock


def test_nobody_waits_for_itself(db: Connection[DictRow]) -> None:
    runner = host(db)
    top, above = begin(db, runner)
    a, b = (claim_of(db, runner, spawn(db, above, name)) for name in ("a", "b"))
    assert wait_for(db, a["attempt_id"], b["task_id"])["waiting"]
    c = spawn(db, above, "c", depends_on=[a["task_id"]])
    before = contents(db)
    for attempt, tasks in (
        (above, [top]),
        (b["attempt_id"], [a["task_id"]]),  # two that wait for each other
        (b["attempt_id"], [c]),  # by way of depends_on
        (b["attempt_id"], [top, c]),
    ):
        error = refusal(db, "select wait_for(%s, %s)", attempt, tasks)
        assert unclear(error, "TY003") == "", tasks
    assert contents(db) == before
    assert wait_for(db, a["attempt_id"], top)["waiting"], "its parent may go on without it"
    error = refusal(db, "select wait_for(%s, array[%s::bigint])", above, a["task_id"])
    assert unclear(error, "TY003") == ""


def test_a_dependency_that_would_close_a_circle_through_a_wait_is_refused(db: Connection[DictRow]) -> None:
    task, (child,) = waiting(db, host(db))
    error = refusal(db, f"update tasks set depends_on = '{{{task}}}' where id = {child}")
    assert unclear(error, "TY003") == ""
    error = refusal(db, f"update tasks set depends_on = '{{{insert(db, depends_on=[task])}}}' where id = {child}")
    assert unclear(error, "TY003") == ""


@pytest.mark.parametrize("other", ["wait_for", "depends_on"])
@pytest.mark.parametrize("first", [0, 1])
def test_of_two_that_close_a_circle_at_once_one_is_refused(yard: Yard, other: str, first: int) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    runner = host(db)
    _, above = begin(db, runner)
    a = claim_of(db, runner, spawn(db, above, "a"))
    b: dict[str, Any] = {"task_id": spawn(db, above, "b")}
    if other == "wait_for":
        b = claim_of(db, runner, b["task_id"])
        second = f"select wait_for({b['attempt_id']}, '{{{a['task_id']}}}')"
    else:
        second = f"update tasks set depends_on = '{{{a['task_id']}}}' where id = {b['task_id']}"
    calls = [f"select wait_for({a['attempt_id']}, '{{{b['task_id']}}}')", second]
    one.execute("begin")
    one.execute(calls[first].encode())
    refused: list[str | None] = []

    def follow() -> None:
        error = refusal(two, calls[1 - first])
        refused.append(error.sqlstate if error else None)

    following = in_background(follow)
    until(lambda: bool(refused) or waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(10)
    assert refused == ["TY003"]
    assert misfiled(db) == []


def test_a_circle_that_comes_later_is_none(db: Connection[DictRow]) -> None:
    """a waits for b while b runs; b goes back to wait for a, upon which it depends."""
    runner = host(db)
    _, above = begin(db, runner)
    a = spawn(db, above, "a", max_attempts=1)
    b = spawn(db, above, "b", depends_on=[a], on_dependency_failure="run")
    end(db, claim_of(db, runner, a)["attempt_id"], "failed")
    token = claim_of(db, runner, b)["attempt_id"]
    db.execute("select retry_task(%s)", [a])
    error = refusal(db, f"select wait_for({claim_of(db, runner, a)['attempt_id']}, '{{{b}}}')")
    end(db, token, "stalled")
    assert status(db, b) != "blocked" or (error is not None and error.sqlstate == "TY003")


# --- Urgency.


def priorities(db: Connection[DictRow], *tasks: int) -> list[int]:
    found = {row["id"]: row["p"] for row in rows(db, "select id, greatest(priority, lent_priority) as p from tasks")}
    return [found[task] for task in tasks]


def test_who_is_waited_for_is_as_urgent_as_who_waits(db: Connection[DictRow]) -> None:
    runner = host(db)
    urgent, attempt = begin(db, runner, priority=100)
    low, other = insert(db, priority=-9), insert(db, priority=2)
    wait_for(db, attempt, low)
    assert priorities(db, low, other) == [100, 2]
    assert misfiled(db) == []
    assert [row["task_id"] for row in claim(db, runner)] == [low]
    assert column(db, "select priority from tasks where id in (%s, %s) order by id", urgent, low) == [100, -9]


def test_urgency_goes_on_to_whoever_is_waited_for_in_turn(db: Connection[DictRow]) -> None:
    """urgent waits for middle, which waits for blocked, which depends on last; in both orders of waiting."""
    for first in ("below", "above"):
        runner = host(db, first)
        _, above = begin(db, runner, prompt=first)
        last = spawn(db, above, "last", priority=-3, run_at="2999-01-01")
        blocked = spawn(db, above, "blocked", priority=-2, depends_on=[last])
        middle = claim_of(db, runner, spawn(db, above, "middle"))
        urgent, attempt = begin(db, runner, priority=50)
        if first == "below":
            wait_for(db, middle["attempt_id"], blocked)
            wait_for(db, attempt, middle["task_id"])
        else:
            wait_for(db, attempt, middle["task_id"])
            wait_for(db, middle["attempt_id"], blocked)
        assert priorities(db, middle["task_id"], blocked, last) == [50, 50, 50], first
        assert misfiled(db) == []
        db.execute("select cancel_task(%s)", [urgent])


def test_urgency_is_lent_and_not_taken(db: Connection[DictRow]) -> None:
    runner = host(db)
    _, attempt = begin(db, runner, priority=5)
    child = insert(db, priority=9)
    position = value(db, "select queue_position from tasks where id = %s", child)
    wait_for(db, attempt, child)
    assert rows(db, "select lent_priority, queue_position from tasks where id = %s", child) == [
        {"lent_priority": None, "queue_position": position}
    ]


def test_a_child_of_somebody_urgent_by_loan_is_urgent_too_when_it_is_waited_for(db: Connection[DictRow]) -> None:
    runner = host(db)
    middle, attempt = begin(db, runner)
    _, urgent = begin(db, runner, priority=70)
    wait_for(db, urgent, middle)
    child = spawn(db, attempt)
    wait_for(db, attempt, child)
    assert priorities(db, child) == [70]
    assert explained(db, child)[-1].startswith("Nothing holds it back: 0 ahead of it")


# --- Many.


def test_many_wait_for_one(db: Connection[DictRow]) -> None:
    runner = host(db, slots=1000)
    child = insert(db, run_at="2999-01-01")
    insert_many = (
        "insert into tasks (prompt, agent) select 'p' || g, 'shell' from generate_series(1, 300) g returning id"
    )
    parents = column(db, insert_many)
    for row in claim(db, runner, 300):
        assert wait_for(db, row["attempt_id"], child)["waiting"]
        assert end(db, row["attempt_id"], "waiting") == "waiting"
    db.execute("select cancel_task(%s)", [child])
    assert {status(db, parent) for parent in parents} == {"queued"}
    assert misfiled(db) == []


def test_one_waits_for_two_thousand(db: Connection[DictRow]) -> None:
    runner = host(db, slots=1000)
    task, attempt = begin(db, runner)
    children = column(
        db, "insert into tasks (prompt, agent, parent_id) select 'p' || g, 'shell', %s from generate_series(1, 2000) g returning id", task
    )  # fmt: skip
    answer = wait_for(db, attempt, *children)
    assert (answer["waiting"], answer["unfinished"]) == (True, sorted(children)[:100])
    end(db, attempt, "waiting")
    for _ in range(4):
        assert status(db, task) == "waiting"
        db.execute("select complete_tasks(array(select attempt_id from claim_task(%s, 500)))", [runner])
    assert (status(db, task), misfiled(db)) == ("queued", [])
    note = claim_of(db, runner, task)["note"]
    assert '"more": 1900' in note
    assert '"completed": 2000' in note
    assert len(note) < 50_000


def test_an_answer_tells_all_of_a_few_and_the_beginnings_of_many(db: Connection[DictRow]) -> None:
    runner = host(db)
    _, attempt = begin(db, runner)
    long = "x" * 90_000
    children = [spawn(db, attempt, f"part {n}") for n in range(20)]
    for row in claim(db, runner, 20):
        end(db, row["attempt_id"], result=Jsonb(long))
    (one,) = wait_for(db, attempt, children[0])["results"]
    assert one["result"] == long
    results = wait_for(db, attempt, *children)["results"]
    assert {result["result"] for result in results} == {"x" * 5000 + "... (cut: read_result tells all)"}
    assert value(db, "select read_result(%s, %s)", attempt, children[0])["result"] == long


# --- What people see, and what is refused.
