"""What an operator is warned of: sessions that hold up others, forgotten transactions and slots, tables that are not cleaned up."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, rows
from .yardwork import in_background, waits_for_a_lock


@pytest.fixture
def db(yard: Yard) -> Connection[DictRow]:
    made = yard.connect()
    made.execute("update ticker set ticked_at = now()")
    return made


@pytest.fixture
def other(yard: Yard) -> Iterator[Connection[DictRow]]:
    """Another login's session, in a transaction."""
    with Connection[DictRow].connect(yard.superuser_dsn, application_name="dump") as made:
        yield made
        made.rollback()


def found(db: Connection[DictRow], patience: float = 0) -> dict[str, str]:
    """What is complained of, and of whom."""
    return {row["what"]: row["who"] for row in rows(db, "select what, who from _database_health(%s)", patience)}


def test_nothing_to_see_is_the_good_news(db: Connection[DictRow]) -> None:
    assert rows(db, "select * from database_health") == []


def test_a_session_that_keeps_an_old_snapshot(db: Connection[DictRow], other: Connection[DictRow]) -> None:
    other.execute("set transaction isolation level repeatable read")
    other.execute("select 1")
    assert found(db) == {"old snapshot": f"dump {other.info.backend_pid}"}
    assert found(db, 1) == {}


def test_a_transaction_that_was_left_open(db: Connection[DictRow], other: Connection[DictRow]) -> None:
    other.execute("select 1")
    assert found(db) == {"idle in tx": f"dump {other.info.backend_pid}"}


def test_who_waits_for_a_lock_and_for_whom(yard: Yard, db: Connection[DictRow], other: Connection[DictRow]) -> None:
    other.execute("lock table taskyard.tasks in access exclusive mode")
    waiting = yard.connect()
    working = in_background(lambda: waiting.execute("insert into tasks (prompt) values ('x')"))
    while not waits_for_a_lock(db, waiting):
        assert working.is_alive()
    complaints = rows(db, "select what, who, amount from _database_health(0) where what = 'lock wait'")
    assert [(row["who"].split()[-1], row["amount"]) for row in complaints] == [
        (str(waiting.info.backend_pid), f"on {other.info.backend_pid}")
    ]
    other.rollback()
    working.join()


def test_a_yard_in_which_nobody_ticks(db: Connection[DictRow]) -> None:
    db.execute("update ticker set ticked_at = now() - interval '5 minutes'")
    assert rows(db, "select what, since from database_health") == [{"what": "no tick", "since": "5m"}]
    db.execute("update ticker set ticked_at = '-infinity'")
    assert rows(db, "select * from database_health") == []  # nobody has ever: it is new


def test_a_slot_that_nobody_reads(yard: Yard, db: Connection[DictRow]) -> None:
    with yard.connect(superuser=True) as admin:
        admin.execute("select pg_create_physical_replication_slot('forgotten', true)")
        try:
            assert found(db) == {"idle slot": "forgotten"}
        finally:
            admin.execute("select pg_drop_replication_slot('forgotten')")


def test_a_table_that_is_not_cleaned_up(yard: Yard, db: Connection[DictRow]) -> None:
    with yard.connect(superuser=True) as admin:
        admin.execute("alter table taskyard.scheduled_tasks set (autovacuum_enabled = off)")
        admin.execute("insert into taskyard.scheduled_tasks select now(), g from generate_series(1, 60000) g")
        admin.execute("delete from taskyard.scheduled_tasks")
        admin.execute("select pg_stat_force_next_flush()")
        assert found(db) == {"dead rows": "scheduled_tasks"}
        admin.execute("vacuum taskyard.scheduled_tasks")
        assert found(db) == {}


def test_a_viewer_sees_it_and_a_runner_does_not(yard: Yard) -> None:
    assert rows(yard.connect("viewer"), "select * from database_health") == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        yard.connect("runner").execute("select * from database_health")


def test_without_the_right_to_see_sessions_it_says_so(db: Connection[DictRow]) -> None:
    db.execute("begin")
    db.execute("revoke pg_read_all_stats from taskyard_owner")  # of the whole server: until the rollback
    assert [row["what"] for row in rows(db, "select what from _database_health()")] == ["half blind"]
    db.execute("rollback")
