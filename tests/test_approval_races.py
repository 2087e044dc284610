"""A question, its decision, its deadline and the end of the attempt that asked, at the same moment."""

from datetime import timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .clock import Clock
from .conftest import Yard, column, rows, value
from .fleet import until
from .test_approvals import begin
from .yardwork import end, in_background, misfiled, refusal, status, waits_for_a_lock


def decide_while_it_ends(yard: Yard, decide: str, ending: str, first: str) -> Connection[DictRow]:
    """Two connections: one ends the attempt that asked, the other decides; `first` commits only once the other waits for it, or is through."""
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    _, _, attempt = begin(db, scope="default")
    question = value(db, "select ask_human(%s, 'Which port?')", attempt)
    statements = {"end": ending.format(attempt), "decide": decide.format(question)}
    one.execute("begin")
    one.execute(f"select {statements.pop(first)}".encode())
    through: list[bool] = []

    def follow() -> None:
        two.execute(f"select {statements.popitem()[1]}".encode())
        through.append(True)

    following = in_background(follow)
    until(lambda: bool(through) or waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(10)
    assert through == [True]
    return db


@pytest.mark.parametrize("first", ["end", "decide"])
@pytest.mark.parametrize("ending", ["complete_task({}, 'waiting')", "complete_task({}, 'crashed')", "release_task({})"])
@pytest.mark.parametrize("decide", ["answer({}, 'x')", "deny({})"])
def test_a_decision_and_an_ending_at_once_leave_no_task_waiting_for_nothing(
    yard: Yard, decide: str, ending: str, first: str
) -> None:
    db = decide_while_it_ends(yard, decide, ending, first)
    assert column(db, "select status::text from tasks") == ["queued"]
    assert value(db, "select count(*) from approvals where decision is null") == 0
    assert misfiled(db) == []


@pytest.mark.parametrize("ask_first", [True, False])
def test_a_question_and_an_ending_at_once_leave_no_task_queued_with_one(yard: Yard, ask_first: bool) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    _, task, attempt = begin(db, scope="default")
    calls = [f"select ask_human({attempt}, 'Which port?')", f"select complete_task({attempt}, 'waiting')"]
    one.execute("begin")
    one.execute(calls[not ask_first].encode())
    refused: list[str | None] = []

    def follow() -> None:
        error = refusal(two, calls[ask_first])
        refused.append(error.sqlstate if error else None)

    following = in_background(follow)
    until(lambda: waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(10)
    assert refused == ([None] if ask_first else ["TY005"])
    assert (status(db, task), value(db, "select count(*) from approvals")) == (
        ("waiting", 1) if ask_first else ("queued", 0)
    )


def test_a_decision_and_the_deadline_at_once_count_once(yard: Yard) -> None:
    db, two = yard.connect(), yard.connect()
    clock, other = Clock(yard, db), Clock(yard, two)
    _, task, attempt = begin(db, scope="default")
    question = value(db, "select ask_human(%s, 'Which port?', '1 hour')", attempt)
    end(db, attempt, "waiting")
    clock.advance(timedelta(hours=1))
    other.set(clock.now)
    two.execute("begin")
    two.execute("select answer(%s, '8080')", [question])
    db.execute("select tick()")
    two.execute("commit")
    db.execute("select tick()")
    assert rows(db, "select decision, answer from approvals") == [{"decision": "answered", "answer": "8080"}]
    assert status(db, task) == "queued"


def test_a_tick_that_takes_an_attempt_back_and_a_decision_at_its_deadline_do_not_wait_for_each_other(
    yard: Yard,
) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    runner, task, attempt = begin(db, scope="default")
    question = value(db, "select ask_human(%s, 'Which port?', '1 second')", attempt)
    until(lambda: value(db, "select deadline < now() from approvals"))
    # As approve() does: the task, and then the question.
    one.execute("begin")
    one.execute("set role taskyard_owner")
    one.execute("select 1 from tasks where id = %s for no key update", [task])
    db.execute("set role taskyard_owner")
    db.execute("update runners set lease = '2 seconds', last_seen = now() - interval '1 hour' where id = %s", [runner])
    db.execute("update ticker set ticked_at = now(), blind_until = '-infinity'")
    db.execute("reset role")
    refused: list[str | None] = []

    def tick() -> None:
        error = refusal(two, "select tick()")
        refused.append(error.sqlstate if error else None)

    ticking = in_background(tick)
    until(lambda: waits_for_a_lock(db, two) or bool(refused))
    error = refusal(one, f"select 1 from approvals where id = {question} for no key update")
    one.execute("rollback")
    ticking.join(10)
    assert (error.sqlstate if error else None, refused) == (None, [None])
