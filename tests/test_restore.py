"""Backups: a database that was restored, or copied, accepts nothing from workers of before, and nothing is lost that was in it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow

from taskyard.runner.postgres.binaries import find_binaries

from .conftest import POSTGRES_15, Yard, column, rows, value
from .yardwork import advance, claim, end, insert, refusal, register, say, stop_clock

VERBS = (
    "select complete_task({attempt})",
    "select heartbeat({runner}, array[{attempt}::bigint])",
    """select append_transcript({attempt}, '[{{"seq": 9, "kind": "output", "body": "late"}}]')""",
    """select spawn_task({attempt}, '{{"prompt": "late"}}')""",
    """select save_checkpoint({attempt}, '{{"status": "late", "progress": 0.5}}')""",
    "select release_task({attempt}, 'late')",
    "select * from claim_task({runner})",
)


def program(yard: Yard, name: str) -> str:
    """Of the version of the yard's server."""
    is_15 = yard.connect().info.server_version < 160000
    return str((POSTGRES_15 if is_15 else find_binaries().folder) / name)


@pytest.fixture
def restored(yard: Yard, tmp_path: Path) -> Iterator[tuple[Yard, str, dict[str, int]]]:
    """A yard that was dumped while two attempts ran, and the name of the database into which the dump went."""
    db = yard.connect()
    runner = register(db, slots=5)
    for prompt in ("runs", "waits too", "waits"):
        insert(db, prompt, agent="shell")
    first, second = claim(db, runner, 2)
    say(db, first["attempt_id"], "half of it")
    dump = tmp_path / "yard.dump"
    environment = {**os.environ, "PGOPTIONS": "-c client_min_messages=error"}
    subprocess.run([program(yard, "pg_dump"), "-Fc", "-f", dump, yard.dsn], check=True, env=environment)
    end(db, second["attempt_id"])  # after the backup: the restored database knows nothing of it
    other = f"{yard.name}_restored"
    admin = Connection[DictRow].connect(yard.cluster.url("postgres", admin=True), autocommit=True)
    admin.execute(sql.SQL("create database {} owner yard").format(sql.Identifier(other)))
    try:
        target = make_conninfo(yard.dsn, dbname=other)
        done = subprocess.run(
            [program(yard, "pg_restore"), "-d", yard.cluster.url(other, admin=True), dump],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        yield (
            yard,
            target,
            {
                "runner": runner,
                "attempt": first["attempt_id"],
                "second": second["attempt_id"],
                "task": first["task_id"],
            },
        )
    finally:
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(other)))
        admin.close()


def open_at(dsn: str) -> Connection[DictRow]:
    from psycopg.rows import dict_row

    made = Connection[DictRow].connect(dsn, autocommit=True, row_factory=dict_row)
    made.execute("set search_path = taskyard, public")
    return made


def test_a_restored_dump_accepts_no_token_of_before(restored: tuple[Yard, str, dict[str, int]]) -> None:
    """Whichever verb is the first that anybody calls there, and each after it."""
    yard, dsn, ids = restored
    for verb in VERBS:
        with open_at(dsn) as db:
            error = refusal(db, verb.format(**ids))  # type: ignore[arg-type]
            assert error is not None and error.sqlstate in ("TY005", "TY007"), verb
    with open_at(dsn) as db:
        assert column(db, "select status::text from tasks order by id") == ["running", "running", "queued"]
        db.execute("select tick()")  # the first that is not refused, so what it finds stays
        assert column(db, "select status::text from tasks order by id") == ["queued", "queued", "queued"]
        assert set(column(db, "select outcome::text || ' ' || counted from attempts")) == {"crashed false"}
        assert value(db, "select restored_at is not null from incarnation")
        for verb in VERBS:
            error = refusal(db, verb.format(**ids))  # type: ignore[arg-type]
            assert error is not None and error.sqlstate in ("TY005", "TY007"), verb
        # All that was there is there, and all of it runs.
        assert column(db, "select body from transcript") == ["half of it"]
        runner = register(db, "again", slots=5)
        for row in claim(db, runner, 5):
            assert row["attempt_id"] not in ids.values()
            end(db, row["attempt_id"])
        assert set(column(db, "select status::text from tasks")) == {"completed"}
    original = yard.connect()
    assert value(original, "select status::text from tasks where id = %s", ids["task"]) == "running"
    end(original, ids["attempt"])  # the one that was not restored goes on


def test_a_copy_of_the_database_accepts_none_either(yard: Yard) -> None:
    db = yard.connect()
    runner = register(db)
    insert(db, "x", agent="shell")
    attempt = claim(db, runner)[0]["attempt_id"]
    db.close()
    copy = f"{yard.name}_copy"
    with Connection[DictRow].connect(yard.cluster.url("postgres", admin=True), autocommit=True) as admin:
        admin.execute(
            sql.SQL("create database {} template {} owner yard").format(sql.Identifier(copy), sql.Identifier(yard.name))
        )
        try:
            with open_at(make_conninfo(yard.dsn, dbname=copy)) as there:
                error = refusal(there, "select complete_task(%s)", attempt)
                assert error is not None and error.sqlstate == "TY005"
                assert "restored from a backup, or copied" in (error.diag.message_detail or "") + (
                    error.diag.message_primary or ""
                )
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(copy)))
    end(yard.connect(), attempt)


def timeline(db: Connection[DictRow], now: str) -> None:
    """As if the server had been on another timeline when it last looked."""
    db.execute("update incarnation set timeline = %s", [now])
    db.execute("set taskyard.same_yard = ''")


def test_a_standby_that_took_over_within_a_minute_goes_on_and_a_backup_of_a_while_ago_does_not(yard: Yard) -> None:
    db = yard.connect()
    stop_clock(db)
    runner = register(db)
    db.execute("select tick()")
    insert(db, "x", agent="shell")
    attempt = claim(db, runner)[0]["attempt_id"]
    timeline(db, "00000009")
    advance(db, seconds=30)
    db.execute("select heartbeat(%s, array[%s::bigint])", [runner, attempt])
    assert value(db, "select timeline from incarnation") != "00000009"
    timeline(db, "00000009")
    advance(db, seconds=90)
    error = refusal(db, "select complete_task(%s)", attempt)
    assert error is not None and error.sqlstate == "TY005"


def test_an_administrator_can_say_so(yard: Yard) -> None:
    db = yard.connect()
    runner = register(db, slots=2)
    for _ in range(2):
        insert(db, "x", agent="shell")
    attempts = [row["attempt_id"] for row in claim(db, runner, 2)]
    assert (
        value(db, "select after_restore()")
        == "2 running attempts were taken back and will run again; runners register anew."
    )
    for attempt in attempts:
        error = refusal(db, "select complete_task(%s)", attempt)
        assert error is not None and error.sqlstate == "TY005"
    assert column(db, "select status::text from tasks") == ["queued", "queued"]
    assert rows(db, "select name from runners where gone_at is null") == []
