"""Mailboxes: people and agents write to a task; its agent reads it once, and nothing is lost on the way."""

from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, rows, value
from .letters import has_mail, mailboxes, read, running, send, session, tell, texts
from .yardwork import (
    claim,
    end,
    heard,
    in_background,
    insert,
    listener,
    misfiled,
    refusal,
    register,
    status,
    waits_for_a_lock,
)


def test_what_people_say_is_read_once_and_in_order(db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    assert read(db, attempt) == []
    assert tell(db, task, "first") == "sent: its agent gets it with its next step"
    tell(db, task, "second")
    tell(db, task, "dritte\n\t“Nachricht” 🚚 \\u0041 %s {}")
    assert has_mail(db, task)
    mail = read(db, attempt, 2)
    assert [(m["id"], m["from"], m["text"]) for m in mail] == [(1, "yard", "first"), (2, "yard", "second")]
    assert set(mail[0]) == {"id", "from", "text", "at"}
    assert value(db, "select %s::timestamptz between now() - interval '1 minute' and now()", mail[0]["at"])
    assert has_mail(db, task), "one is left"
    assert texts(db, attempt) == ["dritte\n\t“Nachricht” 🚚 \\u0041 %s {}"]
    assert not has_mail(db, task)
    assert read(db, attempt) == []
    assert mailboxes(db) == [f"mail_{task}"]
    events = rows(db, "select kind, actor, detail from task_events where task_id = %s order by at", task)
    assert [(e["kind"], e["detail"]) for e in events] == [
        ("said", {"message": 1}),
        ("said", {"message": 2}),
        ("said", {"message": 3}),
        ("mail_read", {"messages": [1, 2]}),
        ("mail_read", {"messages": [3]}),
    ]


def test_a_runner_hears_of_mail_and_is_told_with_its_heartbeat(yard: Yard, db: Connection[DictRow]) -> None:
    runner, task, attempt = running(db)
    ear = listener(yard, f"taskyard_runner_{runner}")
    tell(db, task, "look")
    assert [note.payload for note in heard(ear, db)] == ["message"]
    directives = rows(db, "select directive from heartbeat(%s, %s) where attempt_id is not null", runner, [attempt])
    assert directives == [{"directive": "message"}]
    read(db, attempt)
    assert rows(db, "select * from heartbeat(%s, %s) where attempt_id is not null", runner, [attempt]) == []


@pytest.mark.parametrize("state", ["blocked", "scheduled", "queued"])
def test_mail_for_a_task_that_has_not_begun_waits_for_it(db: Connection[DictRow], state: str) -> None:
    columns: dict[str, Any] = {}
    if state == "blocked":
        columns["depends_on"] = [insert(db)]
    elif state == "scheduled":
        columns["run_at"] = "tomorrow"
    task = insert(db, **columns)
    assert status(db, task) == state
    assert tell(db, task, "use tabs") == "kept: its agent gets it when it goes on"
    assert (status(db, task), misfiled(db)) == (state, [])
    if state == "blocked":
        end(db, claim(db, register(db, "other"))[0]["attempt_id"])
    elif state == "scheduled":
        db.execute("select retry_task(%s)", [task])
    (row,) = claim(db, register(db))
    assert row["task_id"] == task
    told = row["note"] or ""
    assert "use tabs" in told or texts(db, row["attempt_id"]) == ["use tabs"], "in the note, or in the mailbox"


def test_a_task_that_ends_with_unread_mail_goes_on_with_it(db: Connection[DictRow]) -> None:
    runner, task, attempt = running(db)
    session(db, attempt)
    tell(db, task, "and the tests, please")
    assert end(db, attempt) == "queued"
    (row,) = claim(db, runner)
    assert (row["task_id"], row["session_id"]) == (task, "the-session")
    assert row["note"] == "Message from yard: and the tests, please"
    assert not has_mail(db, task)
    assert end(db, row["attempt_id"]) == "completed"
    assert value(db, "select failure_count from tasks") == 0
    assert misfiled(db) == []


def test_many_that_end_at_once_see_their_mail_too(db: Connection[DictRow]) -> None:
    runner = register(db, slots=4)
    one, two = insert(db), insert(db)
    attempts = {row["task_id"]: row["attempt_id"] for row in claim(db, runner, 2)}
    tell(db, two, "wait")
    db.execute("select complete_tasks(%s)", [list(attempts.values())])
    assert (status(db, one), status(db, two)) == ("completed", "queued")


def test_mail_ends_a_wait_for_it(db: Connection[DictRow]) -> None:
    runner, task, attempt = running(db)
    session(db, attempt)
    assert value(db, "select wait_for(%s, '{}', true)", attempt)["waiting"] is True
    assert end(db, attempt, "waiting") == "waiting"
    tell(db, task, "go on")
    assert status(db, task) == "queued"
    assert "Message from yard: go on" in claim(db, runner)[0]["note"]
    assert misfiled(db) == []


def test_mail_before_the_tool_has_stopped_ends_a_wait_too(db: Connection[DictRow]) -> None:
    runner, task, attempt = running(db)
    session(db, attempt)
    db.execute("select wait_for(%s, '{}', true)", [attempt])
    tell(db, task, "go on")
    assert end(db, attempt, "waiting") == "queued"
    assert "go on" in claim(db, runner)[0]["note"]


def test_mail_does_not_end_a_wait_for_a_human(db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    question = value(db, "select ask_human(%s, 'Which one?')", attempt)
    end(db, attempt, "waiting")
    tell(db, task, "hurry")
    assert status(db, task) == "waiting"
    db.execute("select answer(%s, 'this one')", [question])
    assert status(db, task) == "queued"


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_nobody_writes_to_a_task_that_is_over(db: Connection[DictRow], state: str) -> None:
    _, task, attempt = running(db)
    _, _, other = running(db, "other")
    if state == "cancelled":
        end(db, attempt, "waiting")
        db.execute("select cancel_task(%s)", [task])
    else:
        end(db, attempt, {"failed": "permission_denied"}.get(state, state))
    assert status(db, task) == state
    for error in (refusal(db, "select say(%s, 'x')", task), send(db, other, task)):
        assert error is not None and error.sqlstate == "TY004"
        assert error.diag.message_primary == f"Task {task} is {state} already."
    assert mailboxes(db) == []


@pytest.mark.parametrize("text", [None, "", " \n", "x" * 100_001, "é" * 50_001])
def test_a_message_has_to_say_something_and_not_too_much(db: Connection[DictRow], text: str | None) -> None:
    _, task, attempt = running(db)
    other = insert(db)
    for error in (
        refusal(db, "select say(%s, %s)", task, text),
        refusal(db, "select send_message(%s, %s, %s)", attempt, other, text),
    ):
        assert error is not None and error.sqlstate == "TY001"
    assert not has_mail(db, task)


def test_a_message_of_100_000_bytes_arrives_whole(db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    text = "é" * 50_000
    tell(db, task, text)
    assert texts(db, attempt) == [text]


def test_one_answer_holds_no_more_than_an_agent_can_take(db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    for letter in "abc":
        tell(db, task, letter * 90_000)
    assert [text[0] for text in texts(db, attempt)] == ["a", "b"]
    assert has_mail(db, task)
    assert [text[0] for text in texts(db, attempt)] == ["c"]
    for most in (0, 101, None):
        error = refusal(db, "select read_messages(%s, %s)", attempt, most)
        assert error is not None and error.sqlstate == "TY001"


def test_a_message_sent_while_the_last_one_is_read_is_not_overlooked(yard: Yard, db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    tell(db, task, "one")
    reader, writer = yard.connect(), yard.connect()
    reader.execute("begin")
    assert texts(reader, attempt) == ["one"]
    sending = in_background(lambda: tell(writer, task, "two"))
    while not waits_for_a_lock(db, writer):
        assert sending.is_alive()
    reader.execute("commit")
    sending.join(20)
    assert has_mail(db, task)
    assert texts(db, attempt) == ["two"]


def test_a_task_does_not_end_over_a_message_on_its_way(yard: Yard, db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    writer, ending = yard.connect(), yard.connect()
    writer.execute("begin")
    tell(writer, task, "one")
    ended: list[str] = []
    completing = in_background(lambda: ended.append(end(ending, attempt)))
    while not waits_for_a_lock(db, ending):
        assert completing.is_alive()
    writer.execute("commit")
    completing.join(20)
    assert (ended, status(db, task), has_mail(db, task)) == (["queued"], "queued", True)


def test_a_message_that_comes_after_the_end_is_refused(yard: Yard, db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    writer, ending = yard.connect(), yard.connect()
    ending.execute("begin")
    end(ending, attempt)
    refused: list[psycopg.Error | None] = []
    sending = in_background(lambda: refused.append(refusal(writer, "select say(%s, 'late')", task)))
    while not waits_for_a_lock(db, writer):
        assert sending.is_alive()
    ending.execute("commit")
    sending.join(20)
    assert [error and error.sqlstate for error in refused] == ["TY004"]
    assert not has_mail(db, task)


def test_two_that_write_to_each_other_at_once_both_arrive(yard: Yard, db: Connection[DictRow]) -> None:
    """And to a third whose mailbox neither has made yet."""
    _, one, first = running(db, "a")
    _, two, second = running(db, "b")
    third = insert(db)
    lines = yard.connect(), yard.connect()
    for target in ((two, one), (third, third)):
        writing = [
            in_background(lambda n=n, target=target: send(lines[n], (first, second)[n], target[n])) for n in (0, 1)
        ]
        for thread in writing:
            thread.join(20)
    assert (len(read(db, first)), len(read(db, second))) == (1, 1)
    assert value(db, "select queue_length from pgmq.metrics(%s)", f"mail_{third}") == 2
