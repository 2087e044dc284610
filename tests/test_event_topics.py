"""Events: every change of a task's status, as a message in each pgmq queue that is bound to its topic."""

from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .yardwork import claim, end, heard, insert, listener, refusal, register, status

KEYS = {"id", "status", "scope", "agent", "parent_id", "at", "operation"}


def bind(db: Connection[DictRow], *patterns: str, queue: str = "events") -> None:
    """A queue of the login that installed the yard, bound to these topics."""
    db.execute("select pgmq.create(%s)", [queue])
    for pattern in patterns:
        db.execute("select pgmq.bind_topic(%s, %s)", [pattern, queue])


def taken(db: Connection[DictRow], queue: str = "events") -> list[dict[str, Any]]:
    """All that the queue holds, in order; it is empty afterwards."""
    found = rows(db, "select message from pgmq.pop(%s, 1000000) order by msg_id", queue)
    return [row["message"] for row in found]


def changes(db: Connection[DictRow], queue: str = "events") -> list[tuple[int, str]]:
    return [(event["id"], event["status"]) for event in taken(db, queue)]


def test_a_task_s_life_from_insert_to_end(db: Connection[DictRow]) -> None:
    bind(db, "task.#")
    parent = insert(db)
    task = insert(db, parent_id=parent)
    runner = register(db)
    for row in claim(db, runner, 2):
        end(db, row["attempt_id"])
    events = taken(db)
    assert [(e["id"], e["status"], e["operation"]) for e in events] == [
        (parent, "queued", "insert"),
        (task, "queued", "insert"),
        (parent, "running", "update"),
        (task, "running", "update"),
        (parent, "completed", "update"),
        (task, "completed", "update"),
    ]
    assert all(set(event) == KEYS for event in events)
    assert [event["parent_id"] for event in events[:2]] == [None, parent]
    assert {(event["scope"], event["agent"]) for event in events} == {("default", "shell")}
    assert value(db, "select %s::timestamptz between now() - interval '1 minute' and now()", events[0]["at"])


def test_every_way_to_change_a_status_is_told(db: Connection[DictRow]) -> None:
    bind(db, "task.#")
    runner = register(db)
    first = insert(db)
    blocked = insert(db, depends_on=[first])
    scheduled = insert(db, run_at="tomorrow")
    assert changes(db) == [(first, "queued"), (blocked, "blocked"), (scheduled, "scheduled")]
    attempt = claim(db, runner)[0]["attempt_id"]
    assert end(db, attempt, "failed") == "scheduled"
    assert changes(db) == [(first, "running"), (first, "scheduled")]
    db.execute("update tasks set run_at = null where id = any(%s)", [[first, scheduled]])
    assert sorted(changes(db)) == [(first, "queued"), (scheduled, "queued")]
    attempts = {row["task_id"]: row["attempt_id"] for row in claim(db, runner, 2)}
    assert sorted(changes(db)) == [(first, "running"), (scheduled, "running")]
    db.execute("select complete_tasks(%s)", [list(attempts.values())])
    assert sorted(changes(db)) == [(first, "completed"), (blocked, "queued"), (scheduled, "completed")]
    db.execute("select cancel_task(%s)", [blocked])
    assert changes(db) == [(blocked, "cancelled")]
    db.execute("select retry_task(%s)", [blocked])
    assert changes(db) == [(blocked, "queued")]
    attempt = claim(db, runner)[0]["attempt_id"]
    db.execute("select release_task(%s)", [attempt])
    assert changes(db) == [(blocked, "running"), (blocked, "queued")]
    attempt = claim(db, runner)[0]["attempt_id"]
    end(db, attempt, "permission_denied")
    assert changes(db) == [(blocked, "running"), (blocked, "failed")]


@pytest.mark.parametrize("how", ["end", "release"])
def test_a_task_that_begins_to_wait_is_told(db: Connection[DictRow], how: str) -> None:
    bind(db, "task.waiting.#")
    runner = register(db)
    task = insert(db)
    attempt = claim(db, runner)[0]["attempt_id"]
    question = value(db, "select ask_human(%s, 'Which one?')", attempt)
    db.execute("select release_task(%s)", [attempt]) if how == "release" else end(db, attempt, "waiting")
    assert (status(db, task), changes(db)) == ("waiting", [(task, "waiting")])
    db.execute("select answer(%s, 'this')", [question])
    assert changes(db) == []


def test_a_pattern_chooses_status_and_scope(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home'),"
        " ('odd./-name..x/', 'default'), ('zebra', 'default')"
    )
    bind(db, "task.completed.#", queue="ends")
    bind(db, "task.*.home", "task.*.home.#", queue="home")
    bind(db, "task.queued.odd.-name.x", queue="odd")
    bind(db, "logs.#", queue="other")
    tasks = {scope: insert(db, scope=scope) for scope in ("default", "home", "home/kid", "odd./-name..x/", "zebra")}
    runner = register(db, slots=10)
    for row in claim(db, runner, 10):
        end(db, row["attempt_id"])
    assert {task for task, _ in changes(db, "ends")} == set(tasks.values())
    home = taken(db, "home")
    assert {event["scope"] for event in home} == {"home", "home/kid"}
    assert len(home) == 6, "two patterns that fit make one message"
    assert [event["scope"] for event in taken(db, "odd")] == ["odd./-name..x/"]
    assert taken(db, "other") == []


@pytest.mark.parametrize(
    "name", ["a", "a/b", "a//b", "a.b", "a..b", "a/./b", "a-", "a_", "a/", "a.", "9/-/_", "x" * 100]
)
def test_every_scope_makes_a_key_that_pgmq_allows(db: Connection[DictRow], name: str) -> None:
    db.execute("insert into scopes (name, parent) values (%s, 'default')", [name])
    bind(db, "#")
    task = insert(db, scope=name)
    assert changes(db) == [(task, "queued")]
    db.execute("set role taskyard_owner")
    assert value(db, "select pgmq.validate_routing_key(taskyard._event_topic('scheduled', %s))", name)


def test_what_is_rolled_back_was_never_told(db: Connection[DictRow]) -> None:
    bind(db, "task.#")
    db.execute("begin")
    insert(db)
    db.execute("rollback")
    assert taken(db) == []


def test_nothing_is_left_out_when_more_changes_than_notifications_tell(yard: Yard, db: Connection[DictRow]) -> None:
    """A busy session's notifications are thinned out; its events are not."""
    bind(db, "task.#")
    ear = listener(yard, "task_updates")
    tasks = [insert(db) for _ in range(100)]
    assert len(heard(ear, db)) < 100
    assert changes(db) == [(task, "queued") for task in tasks]
    runner = register(db, slots=200)
    for _ in tasks:
        end(db, claim(db, runner)[0]["attempt_id"])
    told = changes(db)
    assert told == [(task, state) for task in tasks for state in ("running", "completed")]


def test_one_statement_with_many_rows(db: Connection[DictRow]) -> None:
    bind(db, "task.#")
    db.execute("insert into tasks (prompt, agent) select 'x', 'shell' from generate_series(1, 5000)")
    tasks = column(db, "select id from tasks order by id")
    assert changes(db) == [(task, "queued") for task in tasks]
    db.execute(
        "insert into tasks (prompt, agent, run_at) select 'x', 'shell', case n %% 2 when 1 then 'tomorrow'::timestamptz end from generate_series(1, 10) n",
        [],
    )
    assert {state: len([1 for _, s in told if s == state]) for told in [changes(db)] for state in ("queued", "scheduled")} == {"queued": 5, "scheduled": 5}  # fmt: skip
    runner = register(db, slots=500)
    attempts = [row["attempt_id"] for row in claim(db, runner, 500)]
    assert len(attempts) > 400
    assert [state for _, state in changes(db)] == ["running"] * len(attempts)
    db.execute("select complete_tasks(%s)", [attempts])
    assert [state for _, state in changes(db)] == ["completed"] * len(attempts)


@pytest.mark.slow
def test_a_hundred_thousand_rows_in_one_statement(db: Connection[DictRow]) -> None:
    bind(db, "task.queued.#")
    db.execute("insert into tasks (prompt, agent) select 'x', 'shell' from generate_series(1, 100000)")
    assert value(db, "select count(distinct message ->> 'id') from pgmq.q_events") == 100_000


def test_a_binding_is_seen_by_sessions_that_are_there_already(yard: Yard, db: Connection[DictRow]) -> None:
    other = yard.connect()
    insert(other)
    bind(db, "task.#")
    task = insert(other)
    assert changes(db) == [(task, "queued")]
    db.execute("select pgmq.unbind_topic('task.#', 'events')")
    insert(other)
    assert changes(db) == []


def test_several_tasks_of_one_status_are_one_round_to_each_queue(db: Connection[DictRow]) -> None:
    for queue in ("a", "b"):
        bind(db, "task.#", queue=queue)
    tasks = [insert(db), insert(db)]
    for queue in ("a", "b"):
        assert changes(db, queue) == [(task, "queued") for task in tasks]


@pytest.mark.parametrize("trouble", ["table gone", "no right", "trigger", "full"])
def test_a_broken_queue_of_a_subscriber_stops_nothing(yard: Yard, db: Connection[DictRow], trouble: str) -> None:
    bind(db, "task.#", queue="good")
    bind(db, "task.#", queue="bad")
    if trouble == "table gone":
        db.execute("drop table pgmq.q_bad")
    elif trouble == "no right":
        db.execute("revoke all on pgmq.q_bad from taskyard_owner")
    elif trouble == "trigger":
        db.execute("create function boom() returns trigger language plpgsql as 'begin raise exception $x$no$x$; end'")
        db.execute("create trigger boom before insert on pgmq.q_bad for each row execute function boom()")
    else:
        db.execute("alter table pgmq.q_bad add check (msg_id < 2)")
    task = insert(db)
    (row,) = claim(db, register(db))
    assert end(db, row["attempt_id"]) == "completed"
    assert changes(db, "good") == [(task, state) for state in ("queued", "running", "completed")]
    assert status(db, task) == "completed"


def test_a_queue_of_another_login_gets_events_once_it_lets_the_yard_in(yard: Yard, db: Connection[DictRow]) -> None:
    other = yard.connect(superuser=True)
    bind(other, "task.#", queue="theirs")
    insert(db)
    assert taken(other, "theirs") == []
    other.execute("grant select, insert on pgmq.q_theirs to taskyard_owner")
    task = insert(db)
    assert changes(other, "theirs") == [(task, "queued")]


@pytest.mark.parametrize("trouble", ["older", "gone", "closed"])
def test_a_yard_does_without_topics(yard: Yard, db: Connection[DictRow], trouble: str) -> None:
    """pgmq before 1.11 has none; and somebody may drop all of pgmq, or make it anew without telling us."""
    owner = yard.connect(superuser=True)
    if trouble == "older":
        owner.execute("drop table pgmq.topic_bindings cascade")
        owner.execute("drop function pgmq.bind_topic, pgmq.unbind_topic, pgmq.test_routing")
    elif trouble == "gone":
        owner.execute("drop schema pgmq cascade")
    else:
        owner.execute("revoke all on schema pgmq from taskyard_owner, yard, public")
        owner.execute("alter schema pgmq owner to postgres")
    task = insert(db)
    runner = register(db)
    (row,) = claim(db, runner)
    assert end(db, row["attempt_id"]) == "completed"
    assert status(db, task) == "completed"
    assert refusal(db, "select tick(%s)", runner) is None


def test_events_can_be_sent_to_the_inbox_of_a_yard(db: Connection[DictRow]) -> None:
    """A loop, and a harmless one: no event is a task."""
    db.execute("select pgmq.bind_topic('task.completed.#', 'inbox')")
    runner = register(db)
    insert(db)
    end(db, claim(db, runner)[0]["attempt_id"])
    db.execute("select tick(%s)", [runner])
    assert value(db, "select count(*) from tasks") == 1
    (error,) = column(db, "select error from rejected_submissions")
    assert error.startswith("A task has no ")


def test_the_message_is_json_that_any_client_reads(db: Connection[DictRow]) -> None:
    bind(db, "task.#")
    task = value(db, "insert into tasks (prompt, payload) values ('x', %s) returning id", Jsonb({"a": 1}))
    (event,) = taken(db)
    assert event == {
        "id": task, "status": "queued", "scope": "default", "agent": "default", "parent_id": None, "at": event["at"], "operation": "insert",
    }  # fmt: skip
