"""Mail that was read by nobody who could act on it comes again; a mailbox goes when nobody needs it."""

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .clock import Clock
from .conftest import Yard, column, value
from .letters import has_mail, mailboxes, read, running, session, tell, texts
from .yardwork import (
    claim,
    end,
    insert,
    refusal,
    register,
    status,
)


def test_mail_that_was_read_by_an_attempt_that_was_lost_comes_again(db: Connection[DictRow]) -> None:
    runner, task, attempt = running(db)
    session(db, attempt)
    tell(db, task, "one")
    tell(db, task, "two")
    assert texts(db, attempt, 1) == ["one"]
    assert end(db, attempt, "crashed") == "queued"
    assert [row["note"] for row in claim(db, runner)] == ["Message from yard: one\n\nMessage from yard: two"]
    assert not has_mail(db, task)


def test_mail_that_was_read_does_not_come_again_to_the_session_that_read_it(db: Connection[DictRow]) -> None:
    runner, task, attempt = running(db)
    session(db, attempt)
    tell(db, task, "one")
    read(db, attempt)
    end(db, attempt, "failed")
    db.execute("select retry_task(%s)", [task])
    (row,) = claim(db, runner)
    assert (row["session_id"], "Message from" in row["note"]) == ("the-session", False)
    # Its successor was given nothing, and ended before its first word: the session that goes on is the same.
    tell(db, task, "two")
    assert end(db, row["attempt_id"], "rate_limited") == "queued"


@pytest.mark.parametrize("between", ["rate_limited", "crashed"])
def test_mail_in_a_note_that_nobody_got_to_read_comes_again(db: Connection[DictRow], between: str) -> None:
    runner, task, attempt = running(db)
    session(db, attempt)
    tell(db, task, "one")
    end(db, attempt)
    (row,) = claim(db, runner)
    assert row["note"] == "Message from yard: one"
    end(db, row["attempt_id"], between)
    db.execute("select clear_limit('command')")
    (row,) = claim(db, runner)
    assert row["session_id"] == "the-session"
    assert "Message from yard: one" in row["note"]


def test_a_new_session_is_told_all_mail_of_those_before(db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    session(db, attempt)
    for text in ("one", "two", "three"):
        tell(db, task, text)
        texts(db, attempt, 1) if text != "three" else None
    end(db, attempt, "failed")
    db.execute("select retry_task(%s)", [task])
    elsewhere = value(db, "select register_runner('elsewhere', 4, p_host => 'elsewhere')")
    (row,) = claim(db, elsewhere)
    assert row["session_id"] is None
    assert "\n\n".join(f"Message from yard: {text}" for text in ("one", "two", "three")) in row["note"]


def test_a_note_holds_so_much_mail_and_says_that_there_is_more(db: Connection[DictRow]) -> None:
    runner, task, attempt = running(db)
    session(db, attempt)
    for letter in "abc":
        tell(db, task, letter * 9_000)
    end(db, attempt)
    (row,) = claim(db, runner)
    assert len(row["note"]) < 20_000
    assert row["note"].endswith("b\n\nThere is more mail: read_messages.")
    assert has_mail(db, task)
    assert [text[0] for text in texts(db, row["attempt_id"])] == ["c"]


def test_a_message_longer_than_a_note_is_told_all_the_same(db: Connection[DictRow]) -> None:
    """Else an agent without tools would be sent into the same session for ever, and never get it."""
    runner, task, attempt = running(db)
    session(db, attempt)
    tell(db, task, "a" * 100_000)
    end(db, attempt)
    (row,) = claim(db, runner)
    assert row["note"] == f"Message from yard: {'a' * 100_000}"
    assert end(db, row["attempt_id"]) == "completed"


def test_a_mailbox_goes_a_day_after_its_task_has_ended(yard: Yard) -> None:
    db = yard.connect()
    clock = Clock(yard, db)
    _, task, attempt = running(db)
    tell(db, task, "one")
    read(db, attempt)
    end(db, attempt)
    other = insert(db, agent="default", run_at="2100-01-01")
    tell(db, other, "stays")
    owner = yard.connect(superuser=True)
    owner.execute("set role taskyard_owner")
    owner.execute("set search_path = taskyard, pg_catalog, pg_temp")
    dropping = Clock(yard, owner)
    dropping.set(clock.now)
    assert value(owner, "select _drop_mailboxes()") == 0
    dropping.set(value(db, "select finished_at + interval '25 hours' from tasks where id = %s", task))
    assert value(owner, "select _drop_mailboxes()") == 1
    assert mailboxes(db) == [f"mail_{other}"]
    assert column(
        db, "select relname::text from pg_class where relname ~ '^[qa]_mail' and relkind = 'r' order by 1"
    ) == [f"a_mail_{other}", f"q_mail_{other}"]
    db.execute("select cancel_task(%s)", [other])
    owner.execute("delete from tasks where id = %s", [other])
    assert value(owner, "select _drop_mailboxes()") == 1, "that of a deleted task at once"
    assert mailboxes(db) == []


def test_a_task_that_failed_with_mail_is_told_it_when_it_is_tried_again(yard: Yard, db: Connection[DictRow]) -> None:
    runner, task, attempt = running(db)
    session(db, attempt)
    tell(db, task, "one")
    end(db, attempt, "permission_denied")
    assert status(db, task) == "failed"
    assert has_mail(db, task)
    db.execute("select retry_task(%s)", [task])
    assert "Message from yard: one" in claim(db, runner)[0]["note"]


def test_a_dump_of_the_database_does_not_hold_up_the_clean_up(yard: Yard, db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    tell(db, task, "one")
    read(db, attempt)
    end(db, attempt)
    owner = yard.connect(superuser=True)
    owner.execute("update taskyard.tasks set finished_at = now() - interval '2 days' where id = %s", [task])
    owner.execute("set role taskyard_owner")
    owner.execute("set search_path = taskyard, pg_catalog, pg_temp")
    dump = yard.connect(superuser=True)
    dump.execute("begin")
    dump.execute(f"lock table pgmq.q_mail_{task} in access share mode".encode())
    assert value(owner, "select _drop_mailboxes()") == 0
    dump.execute("rollback")
    assert value(owner, "select _drop_mailboxes()") == 1


def test_a_queue_of_others_is_never_taken_for_a_mailbox(yard: Yard, db: Connection[DictRow]) -> None:
    task = insert(db)
    other = yard.connect(superuser=True)
    other.execute("select pgmq.create(%s)", [f"mail_{task}"])
    error = refusal(db, "select say(%s, 'x')", task)
    assert error is not None and error.sqlstate == "TY009"
    assert error.diag.message_primary == f"Taskyard cannot make the mailbox of task {task}."
    (row,) = claim(db, register(db))
    assert read(db, row["attempt_id"]) == []
    assert end(db, row["attempt_id"]) == "completed"
    other.execute("update taskyard.tasks set finished_at = now() - interval '2 days'")
    other.execute("set role taskyard_owner")
    other.execute("set search_path = taskyard, pg_catalog, pg_temp")
    assert value(other, "select _drop_mailboxes()") == 0
    assert mailboxes(db) == [f"mail_{task}"]
