"""Ten thousand children of one parent: the last thousand cost no more than the first."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .family import begin, hand_over, host, spawn, wait_for
from .test_plans import Explained, check, check_tick, filled
from .yardwork import claim, end, misfiled, status

SIZES = [1000, pytest.param(10_000, marks=pytest.mark.slow)]


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def linear(times: list[float]) -> None:
    """The last tenth took at most twice as long as the first, give or take what a busy machine does in a tenth of a second."""
    tenth = len(times) // 10
    first, last = sum(times[:tenth]), sum(times[-tenth:])
    assert last <= 2 * first + 0.1, (first, last)


def parent(yard: Yard, children: int) -> tuple[Connection[DictRow], int, int, int]:
    """A parent and so many children; the statistics know of none of them, as in a yard that begins."""
    db = yard.connect()
    yard.connect(superuser=True).execute("vacuum analyze")
    db.execute("update scopes set max_spawns_per_minute = null")
    runner = host(db, slots=1000)
    task, attempt = begin(db, runner, prompt="whole", priority=2)
    if children:
        db.execute(
            "insert into tasks (prompt, agent, parent_id, priority) select 'part ' || g, 'shell', %s, 2 from generate_series(1, %s) g",
            [task, children],
        )
    return db, runner, task, attempt


@pytest.mark.timed
@pytest.mark.parametrize("count", SIZES)
def test_children_are_created_in_the_same_time_however_many_there_are(yard: Yard, count: int) -> None:
    db, _, task, attempt = parent(yard, 0)
    times = [timed(lambda n=n: spawn(db, attempt, f"part {n}")) for n in range(count)]
    linear(times)
    assert column(db, "select children from child_counts where task_id = %s", task) == [count]
    assert value(db, "select count(*) from ready_tasks") == count
    assert [timed(lambda n=n: spawn(db, attempt, f"part {n}")) for n in range(count)]
    assert value(db, "select count(*) from tasks") == count + 1


@pytest.mark.timed
@pytest.mark.parametrize("way", ["one by one", "in batches"])
@pytest.mark.parametrize("count", SIZES)
def test_children_end_in_the_same_time_however_many_are_waited_for(yard: Yard, count: int, way: str) -> None:
    db, runner, task, attempt = parent(yard, count)
    children = column(db, "select id from tasks where parent_id = %s", task)
    assert timed(lambda: db.execute("select wait_for(%s, %s)", [attempt, children])) < count * 0.005
    end(db, attempt, "waiting")
    times: list[float] = []
    while (found := claim(db, runner, 100)) and found[0]["task_id"] != task:
        attempts = [row["attempt_id"] for row in found if row["task_id"] != task]
        if way == "one by one":
            times += [timed(lambda each=each: end(db, each)) for each in attempts]
        else:
            took = timed(lambda these=attempts: db.execute("select * from complete_tasks(%s)", [these]))
            times += [took / len(attempts)] * len(attempts)
        if len(times) < count:
            assert status(db, task) == "waiting"
    linear(times)
    assert len(times) == count
    assert status(db, task) in ("queued", "running")
    assert misfiled(db) == []
    assert value(db, "select count(*) from task_dependencies") == 0


@pytest.mark.timed
@pytest.mark.parametrize("count", SIZES)
def test_a_family_is_cancelled_in_a_time_that_grows_with_it_and_no_faster(yard: Yard, count: int) -> None:
    """Measured per task: 0.3 ms in tables where nothing has happened yet, 0.7 to 1.1 ms after that, with 100 as with 5,000."""
    took: list[float] = []
    for size in (count // 10, count // 10, count):
        db, _, task, attempt = parent(yard, size)
        children = column(db, "select id from tasks where parent_id = %s", task)
        db.execute("select wait_for(%s, %s)", [attempt, children])
        end(db, attempt, "waiting")
        took.append(timed(lambda db=db, task=task: db.execute("select cancel_task(%s)", [task])))
        assert rows(db, "select distinct status::text from tasks") == [{"status": "cancelled"}]
        assert misfiled(db) == []
        assert value(db, "select count(*) from ready_tasks") == 0
        db.execute("select retire_runner(id) from runners")
        db.execute("delete from tasks")
    _, small, large = took
    assert large <= 20 * small + 0.1, took


def test_what_agents_ask_for_reads_no_backlog(yard: Yard) -> None:
    superuser = filled(yard, "before")
    db = yard.connect()
    db.execute("update scopes set max_children = 1000, max_depth = 5")
    runner = host(db, slots=100)
    (row, *others) = claim(db, runner, 20)
    task, attempt = row["task_id"], row["attempt_id"]
    children = [spawn(db, attempt, f"part {n}") for n in range(5)]
    plans = Explained(superuser)
    check(plans.nodes("""select spawn_task(%s, '{"prompt": "new", "agent": "shell"}')""", attempt), most=30)
    check(plans.nodes("""select spawn_task(%s, '{"prompt": "new", "agent": "shell"}')""", attempt), most=30)
    check(plans.nodes("""select save_checkpoint(%s, '{"status": "x", "progress": 0}')""", attempt), most=30)
    for _ in range(2):
        check(plans.nodes("select wait_for(%s, %s)", attempt, children), most=60)
    check(plans.nodes("select complete_task(%s, 'waiting')", attempt), most=60)
    db.execute("update tasks set priority = 900 where id = any(%s)", [children])
    for row in claim(db, runner, 4):
        end(db, row["attempt_id"])
    (last,) = claim(db, runner)
    check(plans.nodes("select complete_task(%s)", last["attempt_id"]), most=60)
    assert status(db, task) == "queued"
    wait_for(db, others[0]["attempt_id"], children[0], mail=True)
    hand_over(db, others[1]["attempt_id"])
    check(plans.nodes("select complete_task(%s, 'handed_off')", others[1]["attempt_id"]), most=60)
    (new,) = claim(db, host(db, "claude-host", at="mill", claude=""))
    check(plans.nodes("select complete_task(%s)", new["attempt_id"]), most=60)
    check(plans.nodes("select * from heartbeat(%s, %s)", runner, [other["attempt_id"] for other in others]), most=300)
    check_tick(plans, most=300)
    check(plans.nodes("select cancel_task(%s)", others[2]["task_id"]), most=30)
