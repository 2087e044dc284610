"""Who may write to whom, and how much."""

import json

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, rows, value
from .letters import has_mail, mailboxes, read, running, send, tell, texts
from .yardwork import (
    claim,
    end,
    insert,
    refusal,
    register,
)

MINUTES_AGO = "update task_events set at = at - interval '2 minutes' where kind = 'message_sent'"


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
