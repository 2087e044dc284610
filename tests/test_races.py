"""What two real connections at the same moment must not break."""

import time

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .fleet import until
from .yardwork import in_background, waits_for_a_lock


def register(db: Connection[DictRow], name: str = "r") -> int:
    return value(db, "select register_runner(%s, 50)", name)


def submit(db: Connection[DictRow], depends_on: list[int] | None = None, workspace: str | None = None) -> int:
    return value(
        db, "select submit_task('x', 'shell', p_depends_on => %s, p_workspace => %s)", depends_on or [], workspace
    )


def claim(db: Connection[DictRow], runner: int, n: int = 1) -> list[int]:
    return column(db, "select attempt_id from claim_task(%s, %s)", runner, n)


def status(db: Connection[DictRow], task: int) -> str:
    return value(db, "select status from tasks where id = %s", task)


def test_a_dependent_inserted_while_its_dependency_completes_is_freed(yard: Yard) -> None:
    """The inserter has seen the dependency running, the completer cannot see the dependent: one of the two must look again."""
    one, two = yard.connect(), yard.connect()
    runner = register(one)
    first = submit(one)
    (attempt,) = claim(one, runner)
    two.execute("begin")
    second = submit(two, [first])
    assert status(two, second) == "blocked"
    one.execute("select complete_task(%s)", (attempt,))
    two.execute("commit")
    assert status(one, second) == "queued"


def test_a_dependent_inserted_while_its_dependency_fails_fails_too(yard: Yard) -> None:
    one, two = yard.connect(), yard.connect()
    first = submit(one)
    two.execute("begin")
    second = submit(two, [first])
    third = submit(two, [second])
    one.execute("select cancel_task(%s)", (first,))
    two.execute("commit")
    assert (status(one, second), status(one, third)) == ("failed", "failed")


def test_a_completion_that_is_not_yet_committed_makes_the_dependent_wait_for_it(yard: Yard) -> None:
    one, two, three = yard.connect(), yard.connect(), yard.connect()
    runner = register(one)
    first = submit(one)
    (attempt,) = claim(one, runner)
    one.execute("begin")
    one.execute("select complete_task(%s)", (attempt,))
    made: list[int] = []
    inserting = in_background(lambda: made.append(submit(two, [first])))
    until(lambda: waits_for_a_lock(three, two))
    one.execute("commit")
    inserting.join(10)
    assert status(three, made[0]) == "queued"


def test_the_last_of_two_parents_frees_the_child_also_when_both_complete_at_once(yard: Yard) -> None:
    one, two, three = yard.connect(), yard.connect(), yard.connect()
    runner = register(one)
    parents = [submit(one), submit(one)]
    child = submit(one, parents)
    attempts = claim(one, runner, 2)
    one.execute("begin")
    one.execute("select complete_task(%s)", (attempts[0],))
    completing = in_background(lambda: two.execute("select complete_task(%s)", (attempts[1],)))
    until(lambda: waits_for_a_lock(three, two))
    one.execute("commit")
    completing.join(10)
    assert status(three, child) == "queued"


def test_one_open_transaction_blocks_no_other_producer_and_no_claim(yard: Yard) -> None:
    """Also in a lane that is new to both, and for a task that the open transaction has edited."""
    idle, other = yard.connect(), yard.connect()
    runner = register(other)
    edited, free = submit(other), submit(other)
    idle.execute("begin")
    idle.execute("update tasks set priority = 5 where id = %s", (edited,))
    idle.execute("insert into tasks (prompt, agent, priority) values ('x', 'shell', 77)")
    idle.execute("insert into tasks (prompt, agent, depends_on) values ('x', 'shell', array[%s::bigint])", (free,))
    other.execute("set statement_timeout = '2s'")
    other.execute("insert into tasks (prompt, agent, priority) values ('y', 'shell', 77)")
    claimed = claim(other, runner, 10)
    assert len(claimed) == 2, "all but the task that is being edited"
    other.execute("select * from complete_tasks(%s)", (claimed,))
    other.execute("select tick()")
    idle.execute("commit")
    assert len(claim(other, runner, 10)) == 3


def test_two_claimers_never_get_the_same_task_or_the_same_directory(yard: Yard) -> None:
    one, two = yard.connect(), yard.connect()
    for _ in range(4):
        submit(one, workspace="/w")
    here, there = register(one, "here"), register(two, "there")
    one.execute("begin")
    assert len(claim(one, here, 2)) == 1
    assert claim(two, there, 2) == []
    one.execute("commit")
    assert claim(two, there, 2) == []
    assert value(one, "select count(*) from tasks where status = 'running'") == 1


def test_a_limit_holds_between_two_claims_that_overlap(yard: Yard) -> None:
    one, two, three = yard.connect(), yard.connect(), yard.connect()
    one.execute("update scopes set max_concurrency = 3")
    for _ in range(8):
        submit(one)
    here, there = register(one, "here"), register(two, "there")
    one.execute("begin")
    assert len(claim(one, here, 2)) == 2
    got: list[list[int]] = []
    claiming = in_background(lambda: got.append(claim(two, there, 8)))
    until(lambda: waits_for_a_lock(three, two))
    one.execute("commit")
    claiming.join(10)
    assert len(got[0]) == 1


def test_a_row_that_becomes_visible_below_the_mark_is_found(yard: Yard) -> None:
    """Positions are drawn before commit: a long transaction's row may lie behind what claims have passed already."""
    late, other = yard.connect(), yard.connect()
    runner = register(other)
    late.execute("begin")
    first = submit(late)
    for _ in range(3):
        submit(other)
    assert len(claim(other, runner, 3)) == 3
    late.execute("commit")
    assert column(other, "select task_id from claim_task(%s, 5)", runner) == [first]


def test_a_claim_that_is_rolled_back_leaves_the_task_claimable(yard: Yard) -> None:
    one, two = yard.connect(), yard.connect()
    runner = register(one)
    for _ in range(3):
        submit(one)
    one.execute("begin")
    (attempt,) = claim(one, runner)
    assert len(claim(two, runner, 5)) == 2
    one.execute("rollback")
    assert len(claim(two, runner, 5)) == 1
    with pytest.raises(psycopg.Error) as refusal:
        one.execute("select complete_task(%s)", (attempt,))
    assert refusal.value.sqlstate == "TY005"


def test_a_cancellation_and_a_completion_at_once_end_in_one_of_the_two(yard: Yard) -> None:
    one, two, three = yard.connect(), yard.connect(), yard.connect()
    runner = register(one)
    task = submit(one)
    (attempt,) = claim(one, runner)
    one.execute("begin")
    one.execute("select complete_task(%s)", (attempt,))
    refused: list[str | None] = []

    def cancel() -> None:
        try:
            two.execute("select cancel_task(%s)", (task,))
        except psycopg.Error as error:
            refused.append(error.sqlstate)

    cancelling = in_background(cancel)
    until(lambda: waits_for_a_lock(three, two))
    one.execute("commit")
    cancelling.join(10)
    assert (status(three, task), refused) == ("completed", ["TY004"])


def test_two_ticks_at_once_promote_each_task_once(yard: Yard) -> None:
    connections = [yard.connect() for _ in range(4)]
    one = connections[0]
    one.execute(
        "insert into tasks (prompt, agent, run_at) select 'x', 'shell', now() + interval '0.3 seconds' from generate_series(1, 200)"
    )
    time.sleep(0.4)  # until they are due, which no condition shows before a tick
    threads = [in_background(lambda c=c: c.execute("select tick()")) for c in connections]
    for thread in threads:
        thread.join(20)
    one.execute("select tick()")
    assert rows(one, "select status::text, count(*) from tasks group by 1") == [{"status": "queued", "count": 200}]
    assert value(one, "select count(*) from ready_tasks") == 200


def test_attempt_ids_go_forward_also_when_their_sequence_was_set_back(yard: Yard) -> None:
    """A crash, a restore or a failover may lose the last values of a sequence; a token must not come twice all the same."""
    db = yard.connect()
    runner = register(db)
    before: list[int] = []
    for _ in range(3):
        submit(db)
        before += claim(db, runner)
    yard.connect(superuser=True).execute("select setval('taskyard.attempt_counter', 1, false)")
    after: list[int] = []
    for _ in range(3):
        submit(db)
        after += claim(db, runner)
    assert sorted(before + after) == before + after
    assert len(set(before + after)) == 6
    assert max(after) < 2**53, "JavaScript reads it exactly"
