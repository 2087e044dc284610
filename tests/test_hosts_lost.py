"""Runners that die, stop or lose their database: nothing is lost, nothing is accepted twice."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from taskyard.runner.connection import connect
from taskyard.runner.install import install
from taskyard.runner.postgres import Cluster

from .conftest import Yard, column, rows, value
from .fleet import Fleet, at_work, fleet_on, until
from .test_runner import status, submit


@pytest.fixture
def fleet(yard18: Yard, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        yield fleet


def test_tasks_of_a_killed_runner_run_elsewhere_within_15_seconds(fleet: Fleet, yard18: Yard) -> None:
    sql = yard18.connect()
    runners = {name: fleet.start(name, "--slots", "4", "--lease", "10m") for name in ("a", "b", "c")}
    until(lambda: value(sql, "select count(*) from runners where locked") == 3)
    # As many tasks as there are slots: whoever ticks has some.
    for _ in range(12):
        submit(sql, 'test "$TASKYARD_ATTEMPT" = 1 && exec sleep 300; echo again', max_attempts=1)
    until(lambda: value(sql, "select count(*) from attempts where outcome is null") == 12)
    # The one that ticks: its successor has to notice first that nobody does.
    until(lambda: value(sql, "select runner_id from ticker"))
    ticker = value(sql, "select r.name from ticker t join runners r on r.id = t.runner_id")
    victims = column(
        sql, "select a.task_id from attempts a join runners r on r.id = a.runner_id where r.name = %s", ticker
    )
    runners[ticker].kill()
    killed = time.monotonic()
    for other in set(column(sql, "select task_id from attempts")) - set(victims):
        sql.execute("select cancel_task(%s)", (other,))
    assert len(victims) == 4
    until(lambda: all(status(sql, task) == "completed" for task in victims), 20)
    took = time.monotonic() - killed
    print(f"{len(victims)} tasks of the killed runner were done elsewhere after {took:.1f} s, lease 10 minutes")
    assert took < 15
    assert all(
        row["failure_count"] == 0 for row in rows(sql, "select failure_count from tasks where id = any(%s)", victims)
    )


def test_a_runner_that_was_stopped_and_wakes_after_its_lease_can_write_nothing(fleet: Fleet, yard18: Yard) -> None:
    sql = yard18.connect()
    sleeper = fleet.start("sleeper", "--slots", "1", "--lease", "3s")
    task = submit(
        sql,
        'if test "$TASKYARD_ATTEMPT" = 1; then sleep 306.25 & while :; do echo noise; sleep 0.1; done; fi; echo second',
        max_attempts=1,
    )
    until(lambda: at_work("sleep", "306.25"))
    sleeper.signal(signal.SIGSTOP)
    fleet.start("other", "--slots", "1")
    until(lambda: status(sql, task) == "completed", 25, "for the other runner")
    before = rows(sql, "select * from tasks"), value(sql, "select count(*) from transcript")
    assert at_work("sleep", "306.25"), "a stopped runner cannot stop its child: that is what the fence is for"
    sleeper.signal(signal.SIGCONT)
    until(lambda: not at_work("sleep", "306.25"), 10, "for the lost child to be killed")
    until(
        lambda: value(sql, "select count(*) from runners where name = 'sleeper'") == 2, 10, "for it to register again"
    )
    assert before == (rows(sql, "select * from tasks"), value(sql, "select count(*) from transcript"))
    assert value(sql, "select result #>> '{}' from tasks") == "second"


@pytest.mark.parametrize("total", [1_500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_every_task_runs_exactly_once_with_16_runners_and_limits_hold(yard18: Yard, total: int) -> None:
    """The verbs under contention; what runners add is tested above."""
    sql = yard18.connect()
    sql.execute(
        "insert into scopes (name, parent, max_concurrency) values ('one', 'default', 1), ('three', 'default', 3)"
    )
    sql.execute("insert into scopes (name, parent, weight) values ('light', 'default', 1), ('heavy', 'default', 3)")
    sql.execute(
        "insert into tasks (prompt, agent, scope, priority)"
        " select 'n', 'shell', case when g %% 40 = 0 then 'one' when g %% 10 = 1 then 'three' when g %% 2 = 0 then 'light' else 'heavy' end, g %% 3"
        " from generate_series(1, %s) g",
        (total,),
    )
    overshot: list[object] = []
    problems: list[BaseException] = []
    over = threading.Event()

    def claimer(number: int) -> None:
        try:
            with psycopg.connect(yard18.dsn, autocommit=True) as mine:
                runner = mine.execute("select register_runner(%s, 16)", (f"claimer-{number}",)).fetchone()
                assert runner
                while not over.is_set():
                    batch = mine.execute(
                        "select attempt_id from claim_task(%s, %s)", (runner[0], 1 if number % 2 else 7)
                    ).fetchall()
                    if not batch:
                        if mine.execute("select from tasks where finished_at is null limit 1").fetchone() is None:
                            return
                        time.sleep(0.002)
                        continue
                    if number % 3:
                        for (attempt,) in batch:
                            mine.execute("select complete_task(%s)", (attempt,))
                    else:
                        mine.execute("select complete_tasks(%s)", ([attempt for (attempt,) in batch],))
        except BaseException as error:
            problems.append(error)
            over.set()

    threads = [threading.Thread(target=claimer, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        overshot += rows(
            sql,
            "select a.scope, count(*) from attempts a join scopes s on s.name = a.scope"
            " where a.outcome is null and s.max_concurrency is not null group by a.scope, s.max_concurrency having count(*) > s.max_concurrency",
        )
        time.sleep(0.01)
    assert problems == []
    assert overshot == []
    assert value(sql, "select count(*) from tasks where status = 'completed'") == total
    assert value(sql, "select count(*) from attempts") == total
    assert value(sql, "select count(distinct task_id) from attempts where outcome = 'completed'") == total
    # The same from the record of all attempts, which no sampling can miss. An attempt's id holds the clock at the claim (in whole milliseconds, taken as the next);
    # started_at is when its transaction began, before it waited for its turn.
    for scope, most in (("one", 1), ("three", 3)):
        highest = value(
            sql,
            "select max(running) from (select sum(change) over (order by at, change) as running from ("
            " select to_timestamp((id / 1000 + 1767225600001) / 1000.0) as at, 1 as change from attempts where scope = %s"
            " union all select finished_at, -1 from attempts where scope = %s) x) y",
            scope,
            scope,
        )
        assert highest <= most, f"scope {scope} ran {highest} at once"


@pytest.fixture
def own_server(temporary_home: Callable[[], Path], tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(temporary_home())
    cluster.start()
    with connect(cluster.url()) as db:
        install(db)
    yield cluster
    cluster.stop("immediate")


@pytest.mark.slow
def test_postgres_restarted_under_load_loses_nothing_and_runners_go_on(own_server: Cluster, tmp_path: Path) -> None:
    total = 300
    with fleet_on(own_server.url(), tmp_path) as fleet:
        for name in ("a", "b"):
            fleet.start(name, "--slots", "8")
        with connect(own_server.url()) as sql:
            sql.execute(
                "insert into tasks (prompt, agent, max_attempts) select 'sleep 0.2; echo ' || g, 'shell', 1 from generate_series(1, %s) g",
                (total,),
            )
            long = value(
                sql, "select submit_task('sleep 12; echo survived', 'shell', p_priority => 9, p_max_attempts => 1)"
            )
            until(lambda: value(sql, "select count(*) from tasks where status = 'completed'") > 20, 30)
        for mode in ("fast", "immediate"):
            own_server.stop(mode)
            own_server.start()
            with connect(own_server.url()) as sql:
                done = value(sql, "select count(*) from tasks where status = 'completed'")
                until(lambda: value(sql, "select count(*) from tasks where status = 'completed'") > done + 20, 40)  # noqa: B023
        with connect(own_server.url()) as sql:
            until(lambda: value(sql, "select count(*) from tasks where finished_at is null") == 0, 90)
            assert rows(sql, "select status::text, count(*) from tasks group by 1") == [
                {"status": "completed", "count": total + 1}
            ]
            assert rows(sql, "select number, outcome from attempts where task_id = %s", long) == [
                {"number": 1, "outcome": "completed"}
            ], "the child went on through both restarts"
            assert all(runner.process.poll() is None for runner in fleet.runners)


def test_a_crashed_embedded_server_is_started_again_by_the_runner(
    temporary_home: Callable[[], Path], tmp_path: Path
) -> None:
    home = temporary_home()
    cluster = Cluster(home)
    cluster.start()
    try:
        with connect(cluster.url()) as db:
            install(db)
        with fleet_on("", tmp_path) as fleet:
            fleet.start("a", env={"TASKYARD_HOME": str(home)})
            with connect(cluster.url()) as sql:
                until(lambda: value(sql, "select locked from runners"))
            pid = cluster.status().pid
            assert pid
            os.kill(pid, signal.SIGKILL)
            until(lambda: cluster.status().running and cluster.status().pid != pid, 30, "for the server to be back")

            def answers() -> bool:
                try:
                    with psycopg.connect(cluster.url(), autocommit=True) as sql:
                        sql.execute("insert into tasks (prompt, agent) values ('echo back', 'shell')")
                except psycopg.OperationalError:
                    return False
                return True

            until(answers, 20)
            with connect(cluster.url()) as sql:
                until(lambda: value(sql, "select result #>> '{}' from tasks limit 1") == "back", 20)
    finally:
        cluster.stop("immediate")
