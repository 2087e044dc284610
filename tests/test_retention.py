"""What ended long ago goes by itself: tasks to the archive or away, partitions as a whole; what is needed or in use stays."""

from datetime import UTC, datetime, timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .family import begin, host, spawn, wait_for
from .yardwork import advance, claim, end, insert, register, status, stop_clock

# What a task leaves, and where; a task that goes takes all of it along.
LEFT_BY_A_TASK = (
    "attempts",
    "artifacts",
    "checkpoints",
    "approvals",
    "verifications",
    "task_dependencies",
    "child_counts",
    "waits",
)


@pytest.fixture
def db(yard: Yard) -> Connection[DictRow]:
    made = yard.connect()
    stop_clock(made)
    return made


def ended(db: Connection[DictRow], outcome: str = "completed", prompt: str = "x") -> int:
    runner = value(db, "select min(id) from runners") or register(db)
    task = insert(db, prompt, agent="shell", max_attempts=1)
    end(db, claim(db, runner)[0]["attempt_id"], outcome)
    return task


def finish(db: Connection[DictRow], runner: int, count: int) -> None:
    """Claim and complete so many, a hundred at a time, all in the same instant."""
    for _ in range(count // 100):
        db.execute("select * from complete_tasks(array(select attempt_id from claim_task(%s, 100)))", [runner])


def tick(db: Connection[DictRow], times: int = 1) -> None:
    for _ in range(times):
        db.execute("select tick()")


def left(db: Connection[DictRow]) -> list[int]:
    return column(db, "select id from tasks order by id")


def test_by_default_what_completed_is_archived_after_sixty_days_and_what_failed_after_a_hundred_and_twenty(
    db: Connection[DictRow],
) -> None:
    done, failed, queued = ended(db), ended(db, "failed"), insert(db)
    advance(db, days=59)
    tick(db)
    assert left(db) == [done, failed, queued]
    advance(db, days=2)
    tick(db)
    assert left(db) == [failed, queued]
    advance(db, days=60)
    tick(db)
    assert left(db) == [queued]
    archived = rows(db, "select id, prompt, status::text, result, attempts from archived_tasks order by id")
    assert [(row["id"], row["status"]) for row in archived] == [(done, "completed"), (failed, "failed")]
    (attempt,) = archived[0]["attempts"]
    assert (attempt["number"], attempt["provider"], attempt["outcome"]) == (1, "command", "completed")
    advance(db, days=365)
    tick(db)
    assert left(db) == [queued]


def test_a_task_takes_along_all_that_belongs_to_it(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    db.execute("""select save_checkpoint(%s, '{"status": "half", "progress": 0.5}')""", [attempt])
    db.execute('select append_transcript(%s, \'[{"seq": 1, "kind": "text", "body": "hello"}]\')', [attempt])
    child = spawn(db, attempt)
    wait_for(db, attempt, child)
    end(db, attempt, "waiting")
    end(db, claim(db, runner)[0]["attempt_id"])
    end(db, claim(db, runner)[0]["attempt_id"])
    assert status(db, task) == "completed"
    advance(db, days=61)
    tick(db, 3)
    assert left(db) == []
    for table in LEFT_BY_A_TASK:
        assert value(db, f"select count(*) from {table}") == 0, table
    assert column(db, "select id from archived_tasks order by id") == sorted([task, child])


def test_deleted_and_not_archived_where_that_is_wanted_or_kept_for_ever(db: Connection[DictRow]) -> None:
    db.execute("update retention set archive = false, keep = '1 day' where what = 'cancelled'")
    db.execute("update retention set keep = null where what = 'completed'")
    done, gone = ended(db), insert(db)
    db.execute("select cancel_task(%s)", [gone])
    advance(db, days=500)
    tick(db)
    assert left(db) == [done]
    assert value(db, "select count(*) from archived_tasks") == 0


def waiting_parent(db: Connection[DictRow], runner: int) -> tuple[int, int, int]:
    """A task that waits for a child which has its time yet to come; and its attempt, and that child."""
    task, attempt = begin(db, runner)
    never = spawn(db, attempt, "never", run_at="2999-01-01")
    wait_for(db, attempt, never)
    return task, attempt, never


def test_what_has_an_unfinished_parent_or_child_stays_until_that_is_over(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt, never = waiting_parent(db, runner)
    child = spawn(db, attempt)
    end(db, attempt, "waiting")
    end(db, claim(db, runner)[0]["attempt_id"])
    parent, early = begin(db, runner)
    late = spawn(db, early, "late", run_at="2999-01-01")
    end(db, early)
    assert [status(db, one) for one in (task, child, parent, late)] == [
        "waiting",
        "completed",
        "completed",
        "scheduled",
    ]
    advance(db, days=90)
    tick(db, 2)
    assert left(db) == [task, never, child, parent, late]
    db.execute("select cancel_task(%s)", [task])
    db.execute("select cancel_task(%s)", [late])
    advance(db, days=1)  # looked at once a day
    tick(db, 2)
    assert left(db) == [task, never, late]


def test_more_than_fit_into_one_tick_go_with_the_next_ones(db: Connection[DictRow]) -> None:
    runner = register(db, slots=1000)
    db.execute("insert into tasks (prompt, agent) select 'x', 'shell' from generate_series(1, 1300)")
    finish(db, runner, 1300)
    assert value(db, "select count(distinct finished_at) from tasks") == 1
    advance(db, days=61)
    counts: list[int] = []
    for _ in range(5):
        tick(db)
        counts.append(value(db, "select count(*) from tasks"))
    assert counts == [800, 300, 0, 0, 0]
    assert value(db, "select count(distinct id) from archived_tasks") == 1300


def test_what_stays_does_not_hide_what_may_go(db: Connection[DictRow]) -> None:
    """More children of an unfinished parent than one look takes, all of one instant, and something behind them."""
    runner = host(db, slots=1000)
    task, attempt, never = waiting_parent(db, runner)
    db.execute(
        "insert into tasks (prompt, agent, parent_id) select 'part', 'shell', %s from generate_series(1, 1100)", [task]
    )
    end(db, attempt, "waiting")
    finish(db, runner, 1100)
    advance(db, seconds=1)
    behind = ended(db)
    advance(db, days=61)
    tick(db, 8)
    assert [status(db, one) for one in (task, never)] == ["queued", "scheduled"]  # it has waited for a day, and goes on
    assert value(db, "select count(*) from tasks where parent_id = %s and status = 'completed'", task) == 1100
    assert behind not in left(db)


def test_a_dependent_that_is_tried_again_after_its_dependency_went_is_not_blocked_for_ever(
    db: Connection[DictRow],
) -> None:
    first = ended(db)
    then = insert(db, "then", agent="shell", depends_on=[first], max_attempts=1)
    end(db, claim(db, value(db, "select min(id) from runners"))[0]["attempt_id"], "failed")
    advance(db, days=61)
    tick(db)
    assert left(db) == [then]
    db.execute("select retry_task(%s)", [then])
    tick(db)
    assert status(db, then) == "queued"


def partitions(db: Connection[DictRow], table: str) -> list[str]:
    return column(
        db, "select inhrelid::regclass::text from pg_inherits where inhparent = %s::regclass order by 1", table
    )


def older(db: Connection[DictRow], weeks: int) -> tuple[str, str]:
    """Partitions of a week that long ago, as tick() had made them then."""
    week = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(weeks=weeks)
    week -= timedelta(days=week.weekday())
    db.execute("set role taskyard_owner")
    name, end_of_it = f"{week:%Y%m%d}", week + timedelta(weeks=1)
    db.execute("select taskyard._ensure_partition('task_events', %s, %s, %s)", [name, f"{week}", f"{end_of_it}"])
    db.execute(
        "select taskyard._ensure_partition('transcript', %s, taskyard._attempt_id(%s, 0)::text, taskyard._attempt_id(%s, 0)::text)",
        [name, week, end_of_it],
    )
    db.execute("reset role")
    return f"transcript_{name}", f"task_events_{name}"


def a_minute_later(db: Connection[DictRow]) -> None:
    advance(db, minutes=1)
    tick(db)


def test_partitions_go_as_a_whole_when_all_in_them_is_old(db: Connection[DictRow]) -> None:
    transcript, _ = older(db, 12)  # its end is 11 weeks ago at most
    old_transcript, old_events = older(db, 15)
    very_old, very_old_events = older(db, 30)
    a_minute_later(db)
    assert transcript in partitions(db, "transcript")
    assert {old_transcript, very_old} & set(partitions(db, "transcript")) == set()
    assert old_events in partitions(db, "task_events")
    assert very_old_events not in partitions(db, "task_events")
    db.execute("update retention set keep = null where what = 'events'")
    _, for_ever = older(db, 300)
    a_minute_later(db)
    assert for_ever in partitions(db, "task_events")


def test_who_reads_a_table_for_long_is_not_waited_for(yard: Yard, db: Connection[DictRow]) -> None:
    """A dump holds its locks for hours: partitions are made all the same, and old ones go afterwards; nobody waits."""
    old, _ = older(db, 20)
    (this_week,) = [name for name in partitions(db, "transcript") if name == max(partitions(db, "transcript"))]
    db.execute("set role taskyard_owner")
    db.execute(f"drop table {this_week}")  # type: ignore[arg-type]
    db.execute("reset role")
    with yard.connect(superuser=True) as dump:
        dump.execute("begin isolation level repeatable read")
        dump.execute("select count(*) from taskyard.transcript")
        db.execute("set statement_timeout = '2s'")
        a_minute_later(db)
        assert old in partitions(db, "transcript")
        assert this_week in partitions(db, "transcript")
        dump.execute("rollback")
    a_minute_later(db)
    assert old not in partitions(db, "transcript")


def test_there_is_no_default_partition_and_the_next_ones_are_there(db: Connection[DictRow]) -> None:
    for table in ("transcript", "task_events", "archived_tasks"):
        assert value(db, "select partdefid from pg_partitioned_table where partrelid = %s::regclass", table) == 0
    assert value(db, "select count(*) from pg_inherits where inhparent = 'transcript'::regclass") >= 2
    bounds = column(
        db,
        "select pg_get_expr(relpartbound, oid) from pg_class where relname like 'archived_tasks_2%%' order by relname",
    )
    assert bounds


def test_the_time_of_an_attempt_is_read_from_its_id(db: Connection[DictRow]) -> None:
    at = datetime(2026, 11, 23, 12, 34, 56, 789000, tzinfo=UTC)
    assert value(db, "select _attempt_time(_attempt_id(%s, 17))", at) == at


def test_an_administrator_says_how_long_and_nobody_else(yard: Yard) -> None:
    yard.connect("admin").execute("update retention set keep = '1 year' where what = 'completed'")
    for role in ("viewer", "submitter", "runner"):
        with pytest.raises(Exception, match="permission denied"):
            yard.connect(role).execute("update retention set keep = '1 day'")
    with pytest.raises(Exception, match="retention_keep_is_a_day_or_more"):
        yard.connect("admin").execute("update retention set keep = '1 hour'")
