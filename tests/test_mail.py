"""Mailboxes: people and agents write to a task; its agent reads it once, and nothing is lost on the way."""

import json
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .clock import Clock
from .conftest import Yard, column, rows, value
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
    say,
    status,
    waits_for_a_lock,
)

MINUTES_AGO = "update task_events set at = at - interval '2 minutes' where kind = 'message_sent'"


def tell(db: Connection[DictRow], task: int, text: str) -> str:
    return value(db, "select say(%s, %s)", task, text)


def read(db: Connection[DictRow], attempt: int, most: int = 20) -> list[dict[str, Any]]:
    return value(db, "select read_messages(%s, %s)", attempt, most)


def texts(db: Connection[DictRow], attempt: int, most: int = 20) -> list[str]:
    return [mail["text"] for mail in read(db, attempt, most)]


def send(db: Connection[DictRow], attempt: int, task: int, text: str = "hello") -> psycopg.Error | None:
    return refusal(db, "select send_message(%s, %s, %s)", attempt, task, text)


def has_mail(db: Connection[DictRow], task: int) -> bool:
    return value(db, "select has_mail from tasks where id = %s", task)


def running(db: Connection[DictRow], name: str = "host", **columns: Any) -> tuple[int, int, int]:
    """A runner, a task and the attempt that it runs; nothing else may be queued."""
    runner = register(db, name)
    task = insert(db, **columns)
    (row,) = claim(db, runner)
    assert row["task_id"] == task
    return runner, task, row["attempt_id"]


def session(db: Connection[DictRow], attempt: int) -> None:
    """The agent has begun, in a session that could be resumed."""
    db.execute("select report_session(%s, 'the-session')", [attempt])
    say(db, attempt, "I began.")


def mailboxes(db: Connection[DictRow]) -> list[str]:
    return column(db, "select queue_name from pgmq.meta where queue_name like 'mail%%' order by created_at, queue_name")


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


@pytest.fixture
def family(db: Connection[DictRow]) -> dict[str, int]:
    """Tasks by what they are to `own`, which lives in scope home."""
    db.execute(
        "insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home'), ('zebra', 'default')"
    )
    tasks = {"grandparent": insert(db, scope="default")}
    tasks["parent"] = insert(db, scope="default", parent_id=tasks["grandparent"])
    tasks["uncle"] = insert(db, scope="default", parent_id=tasks["grandparent"])
    tasks["own"] = insert(db, scope="home", parent_id=tasks["parent"])
    tasks["sibling"] = insert(db, scope="zebra", parent_id=tasks["parent"])
    tasks["cousin"] = insert(db, scope="zebra", parent_id=tasks["uncle"])
    tasks["child"] = insert(db, scope="home/kid", parent_id=tasks["own"])
    tasks["grandchild"] = insert(db, scope="home/kid", parent_id=tasks["child"])
    tasks["neighbour"] = insert(db, scope="home")
    tasks["below"] = insert(db, scope="home/kid")
    tasks["above"] = insert(db, scope="default")
    tasks["stranger"] = insert(db, scope="zebra")
    tasks["nobody"] = 999_999
    return tasks


def test_an_agent_writes_to_its_family_and_to_its_scope(db: Connection[DictRow], family: dict[str, int]) -> None:
    runner = register(db, slots=20)
    attempts = {row["task_id"]: row["attempt_id"] for row in claim(db, runner, 20)}
    attempt = attempts[family["own"]]
    refused = {name: error for name, task in family.items() if (error := send(db, attempt, task, f"to {name}"))}
    assert set(refused) == {"own", "uncle", "cousin", "above", "stranger", "nobody"}
    for name, error in refused.items():
        # What is not there and what is out of reach are told alike.
        assert error.sqlstate == "TY006"
        assert error.diag.message_primary == f"Task {family['own']} may not write to task {family[name]}."
    for name in set(family) - set(refused):
        task = family[name]
        (mail,) = read(db, attempts[task])
        assert (mail["from"], mail["text"]) == (f"task {family['own']}", f"to {name}")
    sent = rows(
        db, "select detail from task_events where task_id = %s and kind = 'message_sent' order by at", family["own"]
    )
    assert len(sent) == len(set(family) - set(refused))


def test_an_attempt_that_is_over_neither_writes_nor_reads(db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    other = insert(db)
    end(db, attempt, "crashed")
    tell(db, task, "for the next one")
    for error in (send(db, attempt, other), refusal(db, "select read_messages(%s)", attempt)):
        assert error is not None and error.sqlstate == "TY005"
    assert send(db, 999_999, other).sqlstate == "TY005"  # type: ignore[union-attr]
    assert has_mail(db, task)


def test_a_runner_login_uses_its_own_attempts_alone(yard: Yard, db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    other = insert(db)
    tell(db, task, "secret")
    rob = Connection[DictRow].connect(yard.login("rob", "runner"), autocommit=True)
    yard.stack.callback(rob.close)
    for error in (send(rob, attempt, other), refusal(rob, "select read_messages(%s)", attempt)):
        assert error is not None and error.sqlstate == "TY006"
    assert refusal(rob, "select say(%s, 'x')", task).sqlstate == "TY006"  # type: ignore[union-attr]
    assert texts(db, attempt) == ["secret"]


def test_a_submitter_writes_within_its_reach(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('home', 'default'), ('zebra', 'default')")
    ours, theirs = insert(db, scope="home"), insert(db, scope="zebra")
    ann = Connection[DictRow].connect(yard.login("ann", "submitter", "home"), autocommit=True)
    yard.stack.callback(ann.close)
    assert refusal(ann, "select say(%s, 'x')", ours) is None
    for task in (theirs, 999_999):
        error = refusal(ann, "select say(%s, 'x')", task)
        assert error is not None
        assert (error.sqlstate, error.diag.message_primary) == ("TY002", f"There is no task {task}.")
    assert mailboxes(db) == [f"mail_{ours}"]
    (row,) = claim(db, register(db))
    assert f"ann_{yard.name}" in (row["note"] or "") + json.dumps(read(db, row["attempt_id"]))


def test_an_agent_sends_no_more_than_60_messages_a_minute(yard: Yard, db: Connection[DictRow]) -> None:
    _, _, attempt = running(db)
    _, task, other = running(db, "other")
    for _ in range(60):
        assert send(db, attempt, task) is None
    error = send(db, attempt, task)
    assert error is not None and error.sqlstate == "TY004" and "60 messages within a minute" in str(error)
    assert send(db, other, task) is not None, "no task writes to itself"
    assert value(db, "select jsonb_array_length(read_messages(%s, 100))", other) == 60
    yard.connect(superuser=True).execute(MINUTES_AGO)
    assert send(db, attempt, task) is None


def test_two_that_thank_each_other_come_to_an_end(yard: Yard, db: Connection[DictRow]) -> None:
    _, _, attempt = running(db)
    _, task, other = running(db, "other")
    _, third, _ = running(db, "third")
    server = yard.connect(superuser=True)
    for number in range(200):
        if number % 50 == 0:
            server.execute(MINUTES_AGO)
        assert send(db, attempt, task) is None
        value(db, "select jsonb_array_length(read_messages(%s, 100))", other)
    server.execute(MINUTES_AGO)
    error = send(db, attempt, task)
    assert error is not None and error.sqlstate == "TY004" and "has sent 200 messages to task" in str(error)
    assert send(db, attempt, third) is None
    assert tell(db, task, "people still may").startswith("sent")


def test_a_mailbox_holds_no_more_than_1000_unread_messages(db: Connection[DictRow]) -> None:
    _, task, attempt = running(db)
    # Within one transaction, which is where counting is hardest.
    db.execute("select count(say(%s, n::text)) from generate_series(1, 1000) n", [task])
    for _ in range(2):
        error = refusal(db, "select say(%s, 'one more')", task)
        assert error is not None and error.sqlstate == "TY004" and "is full" in str(error)
    assert refusal(db, "select count(say(%s, 'x')) from generate_series(1, 2)", task) is not None
    assert texts(db, attempt, 1) == ["1"]
    assert tell(db, task, "room again").startswith("sent")
    got = [text for _ in range(10) for text in texts(db, attempt, 100)]
    assert got == [*map(str, range(2, 1001)), "room again"]
    assert not has_mail(db, task)


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


def test_nobody_but_the_yard_gets_at_a_mailbox(yard: Yard, db: Connection[DictRow]) -> None:
    _, task, _ = running(db)
    tell(db, task, "secret")
    for role in ("viewer", "submitter", "runner"):
        other = Connection[DictRow].connect(
            yard.login(f"a{role}", role, *(["default"] if role == "submitter" else [])), autocommit=True
        )
        yard.stack.callback(other.close)
        for statement in (
            f"select * from pgmq.q_mail_{task}",
            f"select * from pgmq.read('mail_{task}', 0, 1)",
            f"select * from pgmq.pop('mail_{task}')",
            f"select pgmq.archive('mail_{task}', 1::bigint)",
            f"select pgmq.delete('mail_{task}', 1::bigint)",
            f"select pgmq.set_vt('mail_{task}', 1::bigint, 0)",
            f"select pgmq.purge_queue('mail_{task}')",
            f"select pgmq.drop_queue('mail_{task}')",
            f"select pgmq.send('mail_{task}', '{{}}'::jsonb)",
            f"select pgmq.metrics('mail_{task}')",
            f"select pgmq.bind_topic('task.#', 'mail_{task}')",
            f"select pgmq.enable_notify_insert('mail_{task}')",
            "select pgmq.create('mine')",
            "select * from pgmq.meta",
            "select * from pgmq.topic_bindings",
        ):
            error = refusal(other, statement)
            assert error is not None, (role, statement)
            # enable_notify_insert() does not even see that there is one.
            assert error.sqlstate in ("42501", "P0001"), (role, statement, error)
    assert value(db, "select count(*) from pgmq.metrics(%s) where queue_length = 1", f"mail_{task}") == 1
