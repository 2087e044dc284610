"""A session and its files are on one host: for two minutes after a pause only that one is offered the task."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .clock import Clock
from .conftest import Yard, column, value
from .family import begin, claim_of, hand_over, host, spawn, wait_for
from .yardwork import claim, end, explained, insert, misfiled, status


def paused(db: Connection[DictRow], how: str, runner: int, **columns: Any) -> int:
    """A task of `runner` that has come back from a pause and is queued."""
    task, attempt = begin(db, runner, **columns)
    if how == "waiting":
        child = spawn(db, attempt, run_at="2999-01-01")
        wait_for(db, attempt, child)
        end(db, attempt, "waiting")
        db.execute("select cancel_task(%s)", [child])
    elif how == "a question":
        question = value(db, "select ask_human(%s, 'Which one?')", attempt)
        end(db, attempt, "waiting")
        db.execute("select answer(%s, 'that')", [question])
    elif how == "verify_failed":
        end(db, attempt, "verify_failed")
    elif how == "mail":
        db.execute("select say(%s, 'one more thing')", [task])
        end(db, attempt)
    elif how == "released":
        db.execute("select release_task(%s)", [attempt])
    else:
        hand_over(db, attempt)
        end(db, attempt, "handed_off")
        task = value(db, "select to_task from handoffs")
    assert status(db, task) == "queued"
    return task


PAUSES = ["waiting", "a question", "verify_failed", "mail", "released", "handed over"]


@pytest.mark.parametrize("n", [1, 50])
@pytest.mark.parametrize("how", PAUSES)
def test_only_its_own_host_gets_it_at_first(yard: Yard, db: Connection[DictRow], how: str, n: int) -> None:
    clock = Clock(yard, db)
    here, there = host(db, "one", "mill"), host(db, "two", "barn")
    task = paused(db, how, here)
    clock.advance(timedelta(minutes=1, seconds=59))
    db.execute("select tick()")
    assert claim(db, there, n) == []
    assert misfiled(db) == []
    neighbour = host(db, "three", "mill")
    assert [row["task_id"] for row in claim(db, neighbour, n)] == [task]
    assert misfiled(db) == []


@pytest.mark.parametrize("how", PAUSES)
def test_after_two_minutes_everybody_is_offered_it(yard: Yard, db: Connection[DictRow], how: str) -> None:
    clock = Clock(yard, db)
    here, there = host(db, "one", "mill"), host(db, "two", "barn")
    task = paused(db, how, here)
    clock.advance(timedelta(minutes=2))
    assert value(db, "select tick()") > 0
    assert misfiled(db) == []
    row = claim_of(db, there, task)
    assert row["session_id"] is None
    assert row["note"]


@pytest.mark.parametrize("gone", ["retired", "draining", "lost", "without a jail"])
@pytest.mark.parametrize("how", ["waiting", "released"])
def test_where_its_host_cannot_take_it_others_get_it_at_once(
    yard: Yard, db: Connection[DictRow], how: str, gone: str
) -> None:
    clock = Clock(yard, db)
    here, there = host(db, "one", "mill"), host(db, "two", "barn")
    task = paused(db, how, here)
    db.execute("select tick()")
    assert claim(db, there) == []
    if gone == "retired":
        db.execute("select retire_runner(%s)", [here])
    elif gone == "draining":
        db.execute("select drain_runner('one')")
    elif gone == "without a jail":
        db.execute("select report_sandbox(%s, 'bwrap: not found')", [here])
    else:
        db.execute("update tasks set priority = priority where id = %s", [task])
        clock.advance(timedelta(days=1, seconds=1))
        db.execute("select tick()")
        clock.advance(timedelta(seconds=11))
        for _ in range(2):
            db.execute("select heartbeat(%s)", [there])
    db.execute("select tick()")
    assert [row["task_id"] for row in claim(db, there)] == [task]
    assert misfiled(db) == []


def test_the_two_minutes_begin_when_it_could_go_on(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    here, there = host(db, "one", "mill"), host(db, "two", "barn")
    task, attempt = begin(db, here)
    child = spawn(db, attempt, run_at="2999-01-01")
    wait_for(db, attempt, child)
    end(db, attempt, "waiting")
    clock.advance(timedelta(hours=3))
    for runner in (here, there):
        db.execute("select heartbeat(%s)", [runner])
    db.execute("select cancel_task(%s)", [child])
    clock.advance(timedelta(seconds=119))
    db.execute("select tick()")
    assert claim(db, there) == []
    clock.advance(timedelta(seconds=2))
    db.execute("select tick()")
    assert [row["task_id"] for row in claim(db, there)] == [task]


def test_a_release_with_a_delay_stays_too(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    here, there = host(db, "one", "mill"), host(db, "two", "barn")
    _, attempt = begin(db, here)
    db.execute("select release_task(%s, 'later', '10 minutes')", [attempt])
    clock.advance(timedelta(minutes=10))
    db.execute("select tick()")
    assert claim(db, there) == []
    assert len(claim(db, here)) == 1


@pytest.mark.parametrize("outcome", ["crashed", "stalled", "rate_limited", "session_lost"])
def test_after_any_other_end_the_first_who_comes_gets_it(db: Connection[DictRow], outcome: str) -> None:
    here, there = host(db, "one", "mill", command="a"), host(db, "two", "barn", command="b")
    task, attempt = begin(db, here)
    end(db, attempt, outcome)
    db.execute("update tasks set run_at = null where id = %s", [task])
    assert [row["task_id"] for row in claim(db, there)] == [task]


def test_who_is_tried_again_stays_nowhere(db: Connection[DictRow]) -> None:
    here, there = host(db, "one", "mill"), host(db, "two", "barn")
    task = paused(db, "released", here)
    db.execute("select cancel_task(%s)", [task])
    db.execute("select retry_task(%s)", [task])
    assert [row["task_id"] for row in claim(db, there)] == [task]


def test_a_runner_that_does_not_say_where_it_is_holds_nothing(db: Connection[DictRow]) -> None:
    here, there = (value(db, "select register_runner(%s, 4, p_lease => '1 day')", name) for name in ("one", "two"))
    task, attempt = begin(db, here)
    db.execute("select release_task(%s)", [attempt])
    assert [row["task_id"] for row in claim(db, there)] == [task]


def test_its_own_wishes_hold_on(db: Connection[DictRow]) -> None:
    """requires is what the task asked for, with the host beside it."""
    here = value(db, "select register_runner('one', 4, '{gpu}', p_host => 'mill', p_lease => '1 day')")
    beside = host(db, "two", "mill")
    task, attempt = begin(db, here, requires=["gpu"])
    db.execute("select release_task(%s)", [attempt])
    assert claim(db, beside) == []
    assert [row["task_id"] for row in claim(db, here)] == [task]
    assert column(db, "select requires from tasks") == [["gpu"]]


def test_a_directory_of_its_own_and_a_place_go_together(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    here, there = host(db, "one", "mill"), host(db, "two", "barn")
    task = paused(db, "released", here, workspace="/srv/app")
    other = insert(db, workspace="/srv/app")
    assert [row["task_id"] for row in claim(db, there)] == [other], "nobody holds the directory meanwhile"
    assert claim(db, here) == []
    clock.advance(timedelta(minutes=2, seconds=1))
    db.execute("select tick()")
    assert misfiled(db) == []
    end(db, value(db, "select attempt_id from tasks where id = %s", other))
    assert misfiled(db) == []
    db.execute("select tick()")
    assert [row["task_id"] for row in claim(db, there)] == [task]


def test_a_question_which_agent_it_is_for_stays_nowhere(db: Connection[DictRow]) -> None:
    models = [{"provider": "local", "account": "", "models": ["orchestrator"]}]
    brain = value(
        db, "select register_runner('brain', 4, '{}', %s, p_host => 'mill', p_lease => '1 day')", Jsonb(models)
    )
    task = insert(db, agent="auto")
    db.execute("select release_task(%s)", [claim(db, brain)[0]["attempt_id"]])
    db.execute("select tick()")
    assert column(db, "select agent from tasks") == ["auto"], "the model is there"
    assert [row["task_id"] for row in claim(db, brain)] == [task]


def test_it_is_explained(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    here = host(db, "one", "mill")
    host(db, "two", "barn")
    task = paused(db, "released", here)
    told = explained(db, task)
    assert any("mill" in line for line in told[1:]), told
    db.execute("select drain_runner('one')")
    db.execute("select tick()")
    assert not any("mill" in line for line in explained(db, task)[1:])
    db.execute("select drain_runner('one', false)")
    clock.advance(timedelta(minutes=3))
    db.execute("select tick()")
    assert not any("mill" in line for line in explained(db, task)[1:])


def test_a_task_that_asks_for_a_host_by_name_is_explained(db: Connection[DictRow]) -> None:
    host(db, "one", "mill")
    there = host(db, "two", "barn")
    task = insert(db, requires=["@mill"])
    assert claim(db, there) == []
    assert explained(db, task) == ["Is queued.", "Nothing holds it back: 0 ahead of it, 0 running, 200 slots in all."]
    nowhere = insert(db, requires=["@nowhere"])
    assert explained(db, nowhere) == ["Is queued.", "No runner has the labels @nowhere."]


def test_a_backlog_that_stays_nowhere_is_not_read(yard: Yard) -> None:
    """Those who wait out a limit have come back too: tick() does not look at each of them every second."""
    from .test_plans import Explained, check_tick

    db = yard.connect(superuser=True)
    runner = host(db, slots=1000)
    db.execute("insert into tasks (prompt, agent) select 'x', 'shell' from generate_series(1, 3000)")
    for _ in range(6):
        db.execute("select count(*) from claim_task(%s, 500)", [runner])
    db.execute("select complete_task(id, 'crashed') from attempts order by id")
    db.execute("select complete_task(attempt_id, 'rate_limited') from claim_task(%s, 1)", [runner])
    db.execute("vacuum analyze")
    assert value(db, "select count(*) from ready_tasks") == 3000
    check_tick(Explained(db), most=100)
