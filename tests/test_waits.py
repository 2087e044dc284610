"""Waiting for other tasks: without a slot, in no circle, with the urgency of whoever waits, and never for ever."""

from datetime import timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .clock import Clock
from .conftest import Yard, column, rows, value
from .family import begin, claim_of, directives, hand_over, host, spawn, wait_for, waiting, waits_on
from .letters import tell
from .test_refusals import contents, unclear
from .yardwork import claim, end, explained, insert, misfiled, refusal, status


@pytest.mark.parametrize(
    ("outcome", "became"), [("completed", "completed"), ("permission_denied", "failed"), ("cancelled", "cancelled")]
)
def test_from_the_question_to_the_next_claim(db: Connection[DictRow], outcome: str, became: str) -> None:
    db.execute("update scopes set max_concurrency = 1")
    runner = host(db)
    task, attempt = begin(db, runner)
    child = spawn(db, attempt)
    assert claim(db, runner) == [], "the only slot is taken"
    assert wait_for(db, attempt, child) == {"waiting": True, "unfinished": [child]}
    assert (status(db, task), misfiled(db)) == ("running", [])
    assert directives(db, runner, attempt) == [(attempt, "wait")]
    assert end(db, attempt, "waiting") == "waiting"
    assert (misfiled(db), waits_on(db, task)) == ([], [child])
    token = claim_of(db, runner, child)["attempt_id"]
    end(db, token, outcome, result=Jsonb({"found": 3}), error=None if outcome == "completed" else "It went wrong.")
    assert (status(db, child), status(db, task), misfiled(db)) == (became, "queued", [])
    row = claim_of(db, runner, task)
    assert (row["number"], row["session_id"]) == (2, "the-session")
    first, told = row["note"].split("\n", 1)
    assert first == "What you waited for has come:"
    assert f'"task": {child}' in told
    assert f'"status": "{became}"' in told
    assert '"found": 3' in told
    assert ("It went wrong." in told) == (outcome != "completed")
    assert value(db, "select counted from attempts where id = %s", attempt) is False
    assert end(db, row["attempt_id"]) == "completed"


def test_what_has_ended_already_is_told_at_once(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    one, two = spawn(db, attempt, "one"), spawn(db, attempt, "two")
    end(db, claim_of(db, runner, one)["attempt_id"], result=Jsonb(one))
    db.execute("select cancel_task(%s, 'no need')", [two])
    for _ in range(2):
        assert wait_for(db, attempt, two, one) == {
            "waiting": False,
            "results": [
                {"task": two, "agent": "shell", "status": "cancelled", "error": "no need"},
                {"task": one, "agent": "shell", "status": "completed", "result": one},
            ],
        }
    assert directives(db, runner, attempt) == []
    assert end(db, attempt, "waiting") == "queued", "it waits for nothing"
    assert misfiled(db) == []
    assert status(db, task) == "queued"


def test_some_that_have_ended_are_told_with_the_others(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    one, two = spawn(db, attempt, "one"), spawn(db, attempt, "two")
    end(db, claim(db, runner)[0]["attempt_id"])
    assert wait_for(db, attempt, one, two) == {"waiting": True, "unfinished": [two]}
    end(db, attempt, "waiting")
    end(db, claim(db, runner)[0]["attempt_id"])
    note = claim_of(db, runner, task)["note"]
    assert note.index(f'"task": {one}') < note.index(f'"task": {two}')


def test_it_goes_on_when_the_last_has_ended_and_not_before(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, children = waiting(db, runner, 3)
    for child in children:
        assert status(db, task) == "waiting"
        assert waits_on(db, task) == [c for c in children if c >= child]
        end(db, claim_of(db, runner, child)["attempt_id"])
    assert status(db, task) == "queued"


@pytest.mark.parametrize("way", ["complete_tasks", "cancel_task", "by hand", "retire_runner", "failed dependency"])
def test_every_way_to_end_wakes_whoever_waits(db: Connection[DictRow], way: str) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    child = spawn(db, attempt, max_attempts=1)
    below = spawn(db, attempt, "below", depends_on=[child])
    awaited = below if way == "failed dependency" else child
    wait_for(db, attempt, awaited)
    end(db, attempt, "waiting")
    other = host(db, "barn")
    if way in ("complete_tasks", "retire_runner"):
        token = claim(db, other)[0]["attempt_id"]
        if way == "retire_runner":  # which is no end of the task yet
            for _ in range(2):
                db.execute("select retire_runner(%s)", [other])
                assert (status(db, child), status(db, task)) == ("queued", "waiting")
                other = host(db, "barn")
                claim(db, other)
            db.execute("select retire_runner(%s)", [other])
            assert status(db, child) == "failed", "twice is free, then it counts"
        else:
            db.execute("select * from complete_tasks(array[%s::bigint])", [token])
    elif way == "by hand":
        db.execute("update tasks set status = 'cancelled' where id = %s", [child])
    else:
        db.execute("select cancel_task(%s)", [child])
    assert (status(db, task), misfiled(db)) == ("queued", [])


# --- Not for ever.


@pytest.mark.parametrize("stopped", [True, False])
def test_past_its_deadline_it_goes_on_with_what_there_is(yard: Yard, db: Connection[DictRow], stopped: bool) -> None:
    clock = Clock(yard, db)
    runner = host(db)
    task, attempt = begin(db, runner)
    one, two = spawn(db, attempt, "one"), spawn(db, attempt, "two")
    wait_for(db, attempt, one, two, within="10 minutes")
    end(db, claim(db, runner)[0]["attempt_id"])
    if stopped:
        end(db, attempt, "waiting")
    clock.advance(timedelta(minutes=9, seconds=59))
    db.execute("select tick()")
    assert status(db, task) == ("waiting" if stopped else "running")
    clock.advance(timedelta(seconds=1))
    assert value(db, "select tick()") > 0
    assert misfiled(db) == []
    if not stopped:
        assert directives(db, runner, attempt) == []
        assert end(db, attempt, "waiting") == "queued"
    assert (status(db, task), waits_on(db, task)) == ("queued", [])
    note = claim_of(db, runner, task)["note"]
    assert note.startswith("The time that you wanted to wait is up. What became of the tasks until now:\n")
    assert f'"task": {two}' in note
    assert status(db, two) in ("queued", "running")


def test_mail_ends_a_wait_where_that_is_wished(db: Connection[DictRow]) -> None:
    runner = host(db)
    (deaf, _), (task, attempt) = waiting(db, runner), begin(db, runner)
    child = spawn(db, attempt)
    assert wait_for(db, attempt, child, mail=True)["waiting"]
    end(db, attempt, "waiting")
    for each in (deaf, task):
        tell(db, each)
    assert (status(db, deaf), status(db, task), misfiled(db)) == ("waiting", "queued", [])


def test_mail_that_is_there_already_is_not_waited_for(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    tell(db, task)
    assert wait_for(db, attempt, mail=True) == {"waiting": False, "results": []}
    child = spawn(db, attempt)
    (result,) = wait_for(db, attempt, child, mail=True)["results"]
    assert (result["task"], result["status"]) == (child, "queued")
    assert wait_for(db, attempt, child)["waiting"], "it did not say that mail would do"


def test_a_question_and_a_wait_are_both_waited_for(db: Connection[DictRow]) -> None:
    runner = host(db)
    for first in ("answer", "child"):
        task, attempt = begin(db, runner)
        child = spawn(db, attempt, first)
        wait_for(db, attempt, child)
        question = value(db, "select ask_human(%s, 'Which one?')", attempt)
        end(db, attempt, "waiting")
        steps = [f"select answer({question}, 'that')", f"select cancel_task({child})"]
        db.execute(steps[first == "child"].encode())
        assert (status(db, task), misfiled(db)) == ("waiting", [])
        db.execute(steps[first == "answer"].encode())
        assert (status(db, task), misfiled(db)) == ("queued", [])
        note = claim_of(db, runner, task)["note"]
        assert "The answer: that" in note
        assert '"status": "cancelled"' in note


@pytest.mark.parametrize("child_first", [True, False])
@pytest.mark.parametrize("how", ["retired", "released", "crashed", "stalled", "rate_limited"])
def test_a_runner_that_dies_between_asking_and_stopping_changes_nothing(
    db: Connection[DictRow], how: str, child_first: bool
) -> None:
    runner, other = host(db), host(db, "barn")
    task, attempt = begin(db, runner)
    child = spawn(db, attempt)
    token = claim_of(db, other, child)["attempt_id"]
    wait_for(db, attempt, child)
    if child_first:
        end(db, token)
        assert status(db, task) == "running"
    if how == "retired":
        db.execute("select retire_runner(%s)", [runner])
    elif how == "released":
        db.execute("select release_task(%s)", [attempt])
    else:
        end(db, attempt, how)
    assert misfiled(db) == []
    if not child_first:
        assert status(db, task) == "waiting"
        end(db, token)
    # After a failure there is a pause before the next try.
    assert status(db, task) == ("scheduled" if child_first and how == "stalled" else "queued")
    assert misfiled(db) == []


def test_who_has_failed_too_often_does_not_wait_any_more(db: Connection[DictRow]) -> None:
    task, attempt = begin(db, host(db), max_attempts=1)
    wait_for(db, attempt, spawn(db, attempt))
    assert end(db, attempt, "failed") == "failed"
    assert (waits_on(db, task), misfiled(db)) == ([], [])


@pytest.mark.parametrize("many", [True, False])
def test_who_completes_after_all_waits_for_nothing_any_more(db: Connection[DictRow], many: bool) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    child = spawn(db, attempt)
    wait_for(db, attempt, child)
    if many:
        db.execute("select * from complete_tasks(array[%s::bigint])", [attempt])
    else:
        end(db, attempt)
    assert (status(db, task), waits_on(db, task), misfiled(db)) == ("completed", [], [])
    db.execute("delete from tasks where id = %s", [child])


def test_to_wait_again_is_to_wait_for_something_else(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    one, two = spawn(db, attempt, "one"), spawn(db, attempt, "two")
    wait_for(db, attempt, one)
    wait_for(db, attempt, two, within="1 hour")
    assert waits_on(db, task) == [two]
    end(db, attempt, "waiting")
    db.execute("select cancel_task(%s)", [two])
    assert (status(db, task), misfiled(db)) == ("queued", [])
    attempt = claim_of(db, runner, task)["attempt_id"]
    wait_for(db, attempt, one)
    db.execute("select cancel_task(%s)", [one])
    assert end(db, attempt, "waiting") == "queued"
    note = claim_of(db, runner, task)["note"]
    assert f'"task": {one}' in note
    assert f'"task": {two}' not in note


# --- Retried, cancelled, deleted.


def test_a_waiting_task_that_was_cancelled_and_is_retried_waits_for_nothing(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, (child,) = waiting(db, runner)
    db.execute("select cancel_task(%s, 'no', false)", [task])
    assert (waits_on(db, task), misfiled(db)) == ([], [])
    assert value(db, "select retry_task(%s)", task) == "queued"
    db.execute("select cancel_task(%s)", [child])
    assert (status(db, task), misfiled(db)) == ("queued", [])
    assert "waited for" not in claim_of(db, runner, task)["note"]


def test_a_child_that_is_retried_later_does_not_bring_its_parent_back(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, (child,) = waiting(db, runner)
    db.execute("select cancel_task(%s)", [child])
    token = claim_of(db, runner, task)["attempt_id"]
    db.execute("select retry_task(%s)", [child])
    assert status(db, task) == "running"
    assert wait_for(db, token, child)["waiting"]
    end(db, token, "waiting")
    end(db, claim_of(db, runner, child)["attempt_id"])
    assert (status(db, task), misfiled(db)) == ("queued", [])


def test_nobody_queues_a_waiting_task_by_hand(db: Connection[DictRow]) -> None:
    task, _ = waiting(db, host(db))
    for change in (
        "status = 'queued'",
        "status = 'blocked'",
        "run_at = now() + interval '1 hour', status = 'scheduled'",
    ):
        assert unclear(refusal(db, f"update tasks set {change} where id = {task}"), "TY004") == ""
    assert unclear(refusal(db, f"select retry_task({task})"), "TY004") == ""
    assert status(db, task) == "waiting"


def test_a_waiting_task_is_deleted_and_what_it_waits_for_is_not(db: Connection[DictRow]) -> None:
    task, (child,) = waiting(db, host(db))
    error = refusal(db, f"delete from tasks where id = {child}")
    assert unclear(error, "TY004") == ""
    db.execute("delete from tasks where id = %s", [task])
    assert column(db, "select count(*) from waits union all select count(*) from task_dependencies") == [0, 0]
    assert rows(db, "select id, parent_id from tasks") == [{"id": child, "parent_id": None}]
    db.execute("delete from tasks where id = %s", [child])


def test_a_child_that_was_deleted_after_its_end_is_named_all_the_same(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, children = waiting(db, runner, 2)
    for child in children:
        db.execute("select cancel_task(%s)", [child])
    db.execute("delete from tasks where id = %s", [children[0]])
    assert f'"task": {children[0]}' in claim_of(db, runner, task)["note"]


# --- Circles.


def test_it_is_explained(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, (child,) = waiting(db, runner)
    assert explained(db, task) == [
        "Waits for other tasks, 23h more at most; it holds no slot meanwhile.",
        f"Task {child} is queued: part 0",
    ]
    letters, attempt = begin(db, runner)
    wait_for(db, attempt, mail=True, within="30 minutes")
    end(db, attempt, "waiting")
    assert explained(db, letters) == [f"Waits for mail, 29m more at most: select say({letters}, '...');"]


def test_who_waits_or_runs_is_not_in_the_queue(db: Connection[DictRow]) -> None:
    runner = host(db)
    waiting(db, runner)
    _, attempt = begin(db, runner)
    child = spawn(db, attempt, "later", run_at="2999-01-01")
    blocked = insert(db, depends_on=[child])
    wait_for(db, attempt, child)
    assert rows(db, "select id, state from queue order by id desc") == [
        {"id": blocked, "state": "blocked"},
        {"id": child, "state": value(db, "select state from queue where id = %s", child)},
    ]


def test_a_wait_that_means_nothing_is_refused(db: Connection[DictRow]) -> None:
    _, attempt = begin(db, host(db))
    child = spawn(db, attempt)
    before = contents(db)
    for arguments, code in (
        ("'{}'", "TY001"), ("null", "TY001"), ("'{null}'", "TY001"), (f"'{{{child},null}}'", "TY001"), ("'{}', null", "TY001"),
        (f"'{{{child}}}', p_within => '0'", "TY001"), (f"'{{{child}}}', p_within => '31 days'", "TY001"),
        (f"'{{{child}}}', p_within => null", "TY001"), (f"'{{{child}}}', p_within => '-1 hour'", "TY001"),
        (f"(select array_agg({child}) from generate_series(1, 20001))", "TY001"), (f"'{{{child},999999}}'", "TY002"), ("'{-1}'", "TY002"),
    ):  # fmt: skip
        assert unclear(refusal(db, f"select wait_for({attempt}, {arguments})"), code) == "", arguments
    assert contents(db) == before
    assert wait_for(db, attempt, child, child)["waiting"], "named twice"
    end(db, attempt, "waiting")
    assert unclear(refusal(db, f"select wait_for({attempt}, '{{{child}}}')"), "TY005") == ""


def test_a_task_that_is_waited_for_is_handed_over_and_waited_for_still(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, (child,) = waiting(db, runner)
    token = claim_of(db, runner, child)["attempt_id"]
    hand_over(db, token)
    end(db, token, "handed_off")
    assert (status(db, child), status(db, task), misfiled(db)) == ("waiting", "waiting", [])
    successor = value(db, "select to_task from handoffs")
    end(db, claim_of(db, runner, successor)["attempt_id"], result=Jsonb("by the other"))
    assert (status(db, child), status(db, task), misfiled(db)) == ("completed", "queued", [])
    assert "by the other" in claim_of(db, runner, task)["note"]
