"""Behind PgBouncer in transaction mode: no LISTEN, no session locks, no prepared statements, and all works."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from taskyard.runner.connection import connect, is_pooled
from taskyard.tui.store.link import Link
from taskyard.tui.store.models import Change

from .command_line import taskyard
from .conftest import Yard, column, value
from .fleet import Fleet, fleet_on, until
from .poolers import PROGRAM, pgbouncer

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Debian's pgbouncer")


@pytest.fixture
def pooled(yard18: Yard, temporary_home: Callable[..., Path]) -> Iterator[str]:
    """The connection string of the yard through the pooler."""
    with pgbouncer(yard18.dsn, temporary_home()) as dsn:
        yield dsn


@pytest.fixture
def sql(yard18: Yard) -> Connection[DictRow]:
    """Past the pooler."""
    return yard18.connect()


@pytest.fixture
def fleet(pooled: str, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(pooled, tmp_path) as fleet:
        yield fleet


def test_a_pooler_is_noticed(pooled: str, sql: Connection[DictRow]) -> None:
    assert not is_pooled(sql)
    with connect(pooled) as through:
        assert is_pooled(through)


def test_three_runners_find_out_by_themselves_and_one_that_is_killed_costs_nothing(
    fleet: Fleet, sql: Connection[DictRow]
) -> None:
    tasks = column(
        sql,
        "insert into tasks (prompt, agent) select 'sleep 0.4; echo ' || n, 'shell' from generate_series(1, 30) n returning id",
    )
    victim = fleet.start("victim", "--lease", "6s")
    for name in ("a", "b"):
        fleet.start(name, "--lease", "6s")
    until(lambda: value(sql, "select count(*) from tasks where status = 'completed'") >= 4, 30)
    until(
        lambda: value(
            sql,
            "select count(*) from attempts a join runners r on r.id = a.runner_id where r.name = 'victim' and a.outcome is null",
        ),
        30,
    )
    victim.kill()
    until(lambda: value(sql, "select bool_and(status = 'completed') from tasks where id = any(%s)", tasks), 60)
    assert (
        value(
            sql,
            "select max(n) from (select count(*) filter (where outcome = 'completed') as n from attempts group by task_id) x",
        )
        == 1
    )
    # Nobody listens, and nobody holds a lock of a session on a connection that is everybody's.
    assert (
        value(
            sql, "select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen%%'"
        )
        == 0
    )
    assert value(sql, "select count(*) from pg_locks where locktype = 'advisory'") == 0
    assert "prepared statement" not in fleet.logs()


def test_the_command_line_works_through_it(pooled: str, fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    done = taskyard(pooled, "submit", "--agent", "shell", "--json", "echo through the pooler")
    assert done.exit_code == 0, done.output
    task = str(json.loads(done.output)["id"])
    done = taskyard(pooled, "wait", task, "--timeout", "30s")
    assert done.exit_code == 0, done.output
    for words in (["list"], ["show", task], ["logs", task], ["explain", task], ["doctor"], ["schedules"], ["inbox"]):
        done = taskyard(pooled, *words)
        assert done.exit_code == 0, done.output
    assert "through the pooler" in taskyard(pooled, "logs", task).output
    # However often a session of the pool was ours, its path was lengthened once.
    with connect(pooled) as through:
        assert value(through, "select current_setting('search_path')").count("taskyard") == 1


def test_the_screens_look_by_themselves_where_they_hear_nothing(pooled: str, sql: Connection[DictRow]) -> None:
    async def watch() -> int:
        heard: asyncio.Queue[Change] = asyncio.Queue()
        link = Link(pooled, heard.put_nowait, lambda _: None)
        running = asyncio.create_task(link.run())
        try:
            async with asyncio.timeout(20):
                for _ in range(3):
                    await heard.get()
                return await link.value("select count(*) from taskyard.tasks")
        finally:
            running.cancel()

    assert asyncio.run(watch()) == 0
    assert (
        value(
            sql, "select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen%%'"
        )
        == 0
    )
