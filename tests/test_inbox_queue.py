"""The pgmq queue inbox: whoever may submit tasks sends them with any pgmq client; nobody gets at what others sent."""

from typing import Any

import pgmq
import pytest
from psycopg import Connection, sql
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from taskyard.runner.errors import TaskyardError
from taskyard.runner.install import install, uninstall

from .conftest import Yard, column, rows, value
from .yardwork import claim, in_background, insert, misfiled, refusal, register
from .zebra import neighbours

SEND = "select * from pgmq.send('inbox', %s::jsonb)"


def login(yard: Yard, name: str, role: str, *scopes: str) -> Connection[DictRow]:
    """A connection of a login of its own."""
    connection = Connection[DictRow].connect(yard.login(name, role, *scopes), autocommit=True, row_factory=dict_row)
    yard.stack.callback(connection.close)
    return connection


def post(db: Connection[DictRow], message: object) -> int:
    return value(db, SEND, message if message is None else Jsonb(message))


def tick(db: Connection[DictRow]) -> int:
    return value(db, "select tick()")


def refused(db: Connection[DictRow]) -> list[str]:
    return column(db, "select error from rejected_submissions order by msg_id")


def left(db: Connection[DictRow]) -> int:
    return value(db, "select queue_length from pgmq.metrics('inbox')")


@pytest.fixture
def scopes(db: Connection[DictRow]) -> Connection[DictRow]:
    db.execute(
        "insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home'), ('zebra', 'default')"
    )
    return db


def test_a_message_is_a_task_by_the_next_tick(db: Connection[DictRow]) -> None:
    task = {
        "prompt": "echo hi", "agent": "shell", "priority": 7, "payload": {"a": [1, None]}, "requires": ["gpu"], "max_attempts": 2,
        "timeout": "10 minutes", "dedupe_key": "k", "on_limit": "wait", "output_schema": {"type": "object"}, "run_at": None,
    }  # fmt: skip
    post(db, task)
    assert value(db, "select count(*) from tasks") == 0
    assert tick(db) > 0
    (made,) = rows(db, "select * from tasks")
    assert {key: made[key] for key in task} == task | {"timeout": made["timeout"]}
    assert made["timeout"].total_seconds() == 600
    assert (made["created_by"], made["status"], made["parent_id"]) == ("yard", "queued", None)
    assert (left(db), refused(db), misfiled(db)) == (0, [], [])
    tick(db)
    assert value(db, "select count(*) from tasks") == 1


def test_the_same_dedupe_key_is_one_task(db: Connection[DictRow]) -> None:
    for _ in range(3):
        post(db, {"prompt": "x", "dedupe_key": "k"})
        tick(db)
    post(db, {"prompt": "y", "dedupe_key": "k"})
    post(db, {"prompt": "z", "dedupe_key": "k"})
    tick(db)
    assert column(db, "select prompt from tasks") == ["x"]
    assert (left(db), refused(db)) == (0, [])


def test_a_bound_login_submits_within_its_scopes(yard: Yard, scopes: Connection[DictRow]) -> None:
    ann = login(yard, "ann", "submitter", "home")
    theirs = insert(scopes, scope="zebra")
    mine = insert(scopes, scope="home/kid")
    for task in (
        {},
        {"scope": "default"},
        {"scope": "home"},
        {"scope": "home/kid", "depends_on": [mine]},
        {"scope": "zebra"},
        {"scope": "nowhere"},
        {"scope": ["home"]},
        {"scope": "home", "depends_on": [theirs]},
        {"scope": "home", "depends_on": [999_999]},
        {"scope": "home", "parent_id": theirs},
        {"scope": "home", "created_by": "somebody"},
    ):
        post(ann, {"prompt": "mail", **task})
    tick(scopes)
    made = rows(scopes, "select scope, created_by from tasks where prompt = 'mail' order by id")
    name = f"ann_{yard.name}"
    assert made == [{"scope": s, "created_by": name} for s in ("home", "home", "home", "home/kid")]
    assert [error.split(" An administrator")[0] for error in refused(scopes)] == [
        f"{name} does not work in scope zebra.",
        f"{name} does not work in scope nowhere.",
        f'{name} does not work in scope ["home"].',
        f"There is no task {theirs} to depend on. Insert the dependencies first and use the ids that they got.",
        "There is no task 999999 to depend on. Insert the dependencies first and use the ids that they got.",
        *(e for e in refused(scopes) if e.startswith("A task has no ")),
    ]
    assert len(refused(scopes)) == 7
    assert column(scopes, "select distinct login from rejected_submissions") == [name]
    # Theirs is not told apart from none, and nothing that was refused left a trace.
    assert value(scopes, "select count(*) from tasks") == 6
    assert misfiled(scopes) == []


def test_a_runner_that_is_bound_itself_takes_the_submissions_of_others(yard: Yard, scopes: Connection[DictRow]) -> None:
    ann = login(yard, "ann", "submitter", "home")
    rob = login(yard, "rob", "runner")
    scopes.execute("select grant_scope(%s, 'zebra')", [f"rob_{yard.name}"])
    with yard.connect(superuser=True) as admin:
        admin.execute(sql.SQL("grant taskyard_submitter to {}").format(sql.Identifier(f"rob_{yard.name}")))
    post(ann, {"prompt": "x", "scope": "home"})
    assert tick(rob) > 0
    assert refused(scopes) == []
    (made,) = rows(scopes, "select scope, created_by from tasks")
    assert made == {"scope": "home", "created_by": f"ann_{yard.name}"}


def test_rights_are_those_at_the_moment_of_the_tick(yard: Yard, scopes: Connection[DictRow]) -> None:
    ann = login(yard, "ann", "submitter", "home")
    bob = login(yard, "bob", "submitter", "home")
    dan = login(yard, "dan", "submitter", "home")
    for sender in (ann, bob, dan):
        post(sender, {"prompt": "x", "scope": "home"})
    scopes.execute("select revoke_scope(%s, 'home')", [f"ann_{yard.name}"])
    with yard.connect(superuser=True) as admin:
        admin.execute(sql.SQL("revoke taskyard_submitter from {}").format(sql.Identifier(f"bob_{yard.name}")))
        dan.close()
        admin.execute(sql.SQL("drop role {}").format(sql.Identifier(f"dan_{yard.name}")))
    tick(scopes)
    assert value(scopes, "select count(*) from tasks") == 0
    assert [error.split(".")[0] for error in refused(scopes)] == [
        f"ann_{yard.name} does not work in scope home",
        f"bob_{yard.name} may not submit tasks",
        f"There is no login dan_{yard.name}",
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {"taskyard_login": "postgres"},
        {"taskyard_login": None},
        {"taskyard_login": {"a": 1}},
        ["taskyard_login", "postgres"],
        "postgres",
        None,
    ],
)
def test_nobody_signs_with_another_s_name(yard: Yard, scopes: Connection[DictRow], headers: Any) -> None:
    ann = login(yard, "ann", "submitter", "home")
    ann.execute("select pgmq.send('inbox', %s, %s::jsonb)", [Jsonb({"prompt": "x", "scope": "zebra"}), Jsonb(headers)])
    ann.execute("set role taskyard_submitter")  # in whose name ann may speak: it has no scope at all
    ann.execute("select pgmq.send('inbox', %s, %s::jsonb)", [Jsonb({"prompt": "x"}), Jsonb(headers)])
    tick(scopes)
    assert value(scopes, "select count(*) from tasks") == 0
    assert column(scopes, "select login from rejected_submissions order by msg_id") == [
        f"ann_{yard.name}",
        "taskyard_submitter",
    ]


@pytest.mark.parametrize("setting", ["taskyard.on_behalf_of", "taskyard.told", "taskyard.topics"])
def test_no_setting_of_the_sender_changes_whose_task_it_is(
    yard: Yard, scopes: Connection[DictRow], setting: str
) -> None:
    ann = login(yard, "ann", "submitter", "home")
    ann.execute("select set_config(%s, '9', false)", [setting])
    post(ann, {"prompt": "x"})
    tick(scopes)
    assert column(scopes, "select created_by from tasks") == [f"ann_{yard.name}"]


@pytest.mark.parametrize("role", ["viewer", "runner"])
def test_only_submitters_and_administrators_may_send(yard: Yard, db: Connection[DictRow], role: str) -> None:
    other = login(yard, "other", role)
    error = refusal(other, "select pgmq.send('inbox', '{\"prompt\": \"x\"}'::jsonb)")
    assert error is not None and error.sqlstate == "42501"
    assert left(db) == 0
    admin = login(yard, "admin", "admin")
    post(admin, {"prompt": "x"})
    tick(db)
    assert column(db, "select created_by from tasks") == [f"admin_{yard.name}"]


ATTACKS = [
    "select message from pgmq.q_inbox",
    "select headers from pgmq.q_inbox",
    "select * from pgmq.a_inbox",
    "select * from pgmq.read('inbox', 0, 10)",
    "select * from pgmq.read_with_poll('inbox', 0, 10, 1)",
    "select * from pgmq.pop('inbox')",
    "select pgmq.archive('inbox', 1::bigint)",
    "select pgmq.delete('inbox', 1::bigint)",
    "select pgmq.set_vt('inbox', 1::bigint, 0)",
    "select pgmq.purge_queue('inbox')",
    "select pgmq.drop_queue('inbox')",
    "select pgmq.metrics('inbox')",
    "select pgmq.enable_notify_insert('inbox')",
    "select pgmq.bind_topic('task.#', 'inbox')",
    "select pgmq.send_topic('task.completed.default', '{}')",
    "select pgmq.create('mine')",
    "select pgmq.create_unlogged('mine')",
    "select pgmq.send('others', '{}'::jsonb)",
    "select * from pgmq.read('others', 0, 1)",
    "select * from pgmq.meta",
    "select * from pgmq.list_queues()",
    "update pgmq.q_inbox set message = '{}'",
    "update pgmq.q_inbox set vt = now() where msg_id = 1",
    "delete from pgmq.q_inbox",
    "truncate pgmq.q_inbox",
    "select msg_id from pgmq.q_inbox for update",
    "alter table pgmq.q_inbox disable trigger all",
    "drop trigger taskyard_signs on pgmq.q_inbox",
    "create trigger mine after insert on pgmq.q_inbox execute function taskyard._sign_submission()",
    "insert into pgmq.q_inbox (msg_id, vt, message) overriding system value values (-1, now(), '{}')",
    "insert into pgmq.q_inbox (read_ct, vt, message) values (9, now(), '{}')",
    "insert into pgmq.q_inbox (enqueued_at, vt, message) values ('-infinity', now(), '{}')",
    "do 'begin lock table pgmq.q_inbox in access exclusive mode; end'",
    "do 'begin lock table pgmq.q_inbox in share mode; end'",
    "create table pgmq.q_mine ()",
    "set session_replication_role = replica",
    "select taskyard._take_submissions()",
    "select taskyard._submit_for('postgres', '{}')",
]


def test_a_submitter_can_do_nothing_but_send(yard: Yard, db: Connection[DictRow]) -> None:
    post(db, {"prompt": "another's secret"})
    db.execute("select pgmq.create('others')")
    db.execute("select pgmq.send('others', '{}'::jsonb)")
    ann = login(yard, "ann", "submitter", "default")
    for attack in ATTACKS:
        error = refusal(ann, attack)
        assert error is not None, attack
        assert error.sqlstate in ("42501", "P0001"), (attack, str(error))
    assert (left(db), value(db, "select queue_length from pgmq.metrics('others')")) == (1, 1)
    tick(db)
    assert column(db, "select prompt from tasks") == ["another's secret"]
    assert refused(db) == []


ODD: list[Any] = [
    None,
    0,
    "text",
    [],
    [{"prompt": "x"}],
    {},
    {"prompt": None},
    {"prompt": " \n"},
    {"prompt": ["x"], "agent": {}},
    {"prompt": "x", "agent": "nobody"},
    {"prompt": "x", "id": 1},
    {"prompt": "x", "status": "completed"},
    {"prompt": "x", "result": 1},
    {"prompt": "x", "attempt_id": 1},
    {"prompt": "x", "": 1},
    {"prompt": "x", "prompt ": 1},
    {"prompt": "x", "priority": 10**30},
    {"prompt": "x", "priority": "high"},
    {"prompt": "x", "priority": 1001},
    {"prompt": "x", "depends_on": 1},
    {"prompt": "x", "depends_on": "{1}"},
    {"prompt": "x", "depends_on": [[1], [2]]},
    {"prompt": "x", "depends_on": [None]},
    {"prompt": "x", "depends_on": {"a": 1}},
    {"prompt": "x", "requires": "gpu"},
    {"prompt": "x", "requires": [None]},
    {"prompt": "x", "requires": list(map(str, range(10_000)))},
    {"prompt": "x", "timeout": "soon"},
    {"prompt": "x", "timeout": "-1 hour"},
    {"prompt": "x", "run_at": "tomorrow or so"},
    {"prompt": "x", "workspace": "relative/../.."},
    {"prompt": "x", "output_schema": "text"},
    {"prompt": "x", "dedupe_key": "k" * 1000},
    {"prompt": "x", "dedupe_key": "child of 1: 0"},
    {"prompt": "x" * 4_200_000},
    {"prompt": "x", "payload": "x" * 4_200_000},
    {"prompt": "x", "k" * 100_000: 1},
]


def test_odd_messages_are_put_aside_with_the_reason_and_the_next_one_is_a_task(db: Connection[DictRow]) -> None:
    for message in ODD:
        post(db, message)
    db.execute("select pgmq.send('inbox', null::jsonb)")
    post(db, {"prompt": "the next one"})
    tick(db)
    assert column(db, "select prompt from tasks") == ["the next one"]
    found = rows(db, "select * from rejected_submissions order by msg_id")
    assert [row["msg_id"] for row in found] == list(range(1, len(ODD) + 2))
    assert all(row["error"] and row["login"] == "yard" for row in found)
    assert left(db) == 0
    assert value(db, "select count(*) from pgmq.a_inbox") == len(found)
    assert [row["message"] for row in found if row["msg_id"] == 3] == ["text"]
    large = [row for row in found if row["error"].startswith(("The prompt is", "The payload is"))]
    assert len(large) == 2 and all(row["message"] is None for row in large), "they are in a_inbox"
    assert misfiled(db) == []


def test_nothing_huge_gets_in(db: Connection[DictRow]) -> None:
    error = refusal(db, "select pgmq.send('inbox', jsonb_build_object('prompt', repeat('x', 11000000)))")
    assert error is not None and error.sqlstate == "TY001"
    # PostgreSQL itself lets no NUL into jsonb, and nothing that is nested too deep.
    error = refusal(db, "select pgmq.send('inbox', %s::jsonb)", '{"prompt": "a\\u0000b"}')
    assert error is not None and error.sqlstate == "22P05"
    error = refusal(db, "select pgmq.send('inbox', (repeat('[', 100000) || repeat(']', 100000))::jsonb)")
    assert error is not None and error.sqlstate == "54001"
    assert left(db) == 0


def test_a_hundred_a_tick(db: Connection[DictRow]) -> None:
    db.execute(
        "select pgmq.send_batch('inbox', array(select jsonb_build_object('prompt', n) from generate_series(1, 250) n))"
    )
    seen: list[int] = []
    while tick(db):
        seen.append(value(db, "select count(*) from tasks"))
    assert seen == [100, 200, 250]
    assert column(db, "select prompt from tasks order by id") == [str(n) for n in range(1, 251)]


def test_a_delayed_message_waits_and_keeps_nobody_else(db: Connection[DictRow]) -> None:
    db.execute("select pgmq.send('inbox', '{\"prompt\": \"later\"}'::jsonb, 3600)")
    post(db, {"prompt": "now"})
    tick(db)
    assert (column(db, "select prompt from tasks"), left(db)) == (["now"], 1)


def test_who_is_about_to_insert_the_same_key_keeps_nobody_waiting(yard: Yard, db: Connection[DictRow]) -> None:
    slow = yard.connect()
    slow.execute("begin")
    slow.execute("insert into tasks (prompt, dedupe_key) values ('slow', 'k')")
    post(db, {"prompt": "held up", "dedupe_key": "k"})
    post(db, {"prompt": "behind it"})
    tick(db)
    assert column(db, "select prompt from tasks") == ["behind it"]
    assert (left(db), refused(db)) == (1, [])
    slow.execute("rollback")
    yard.connect(superuser=True).execute("update pgmq.q_inbox set vt = now()")
    tick(db)
    assert column(db, "select prompt from tasks order by id") == ["behind it", "held up"]


def test_what_somebody_holds_up_time_and_again_is_put_aside(yard: Yard, db: Connection[DictRow]) -> None:
    slow = yard.connect()
    slow.execute("begin")
    slow.execute("insert into tasks (prompt, dedupe_key) values ('slow', 'k')")
    post(db, {"prompt": "held up", "dedupe_key": "k"})
    owner = yard.connect(superuser=True)
    for _ in range(5):
        assert refused(db) == []
        tick(db)
        owner.execute("update pgmq.q_inbox set vt = now()")
    assert refused(db) == ["canceling statement due to lock timeout"]
    assert left(db) == 0


def test_a_tick_that_is_rolled_back_loses_no_message(db: Connection[DictRow]) -> None:
    post(db, {"prompt": "x"})
    db.execute("begin")
    tick(db)
    assert value(db, "select count(*) from tasks") == 1
    db.execute("rollback")
    assert left(db) == 1
    tick(db)
    assert value(db, "select count(*) from tasks") == 1


def test_two_runners_that_tick_at_once_take_a_message_once(yard: Yard, db: Connection[DictRow]) -> None:
    for n in range(50):
        post(db, {"prompt": str(n)})
    lines = [yard.connect() for _ in range(2)]
    ticking = [in_background(lambda line=line: [tick(line) for _ in range(5)]) for line in lines]
    for thread in ticking:
        thread.join(20)
    while tick(db):
        pass
    assert value(db, "select count(*) from tasks") == value(db, "select count(distinct prompt) from tasks") == 50


def test_ids_that_begin_again_are_no_obstacle(db: Connection[DictRow]) -> None:
    for _ in range(2):
        post(db, {"no": "prompt"})
        tick(db)
        db.execute("select pgmq.drop_queue('inbox')")
        assert tick(db) == 0, "a yard does without"
        install(db)
    assert len(refused(db)) == 1


def test_what_was_put_aside_goes_after_a_month(yard: Yard, db: Connection[DictRow]) -> None:
    post(db, 1)
    tick(db)
    owner = yard.connect(superuser=True)
    owner.execute("update taskyard.rejected_submissions set rejected_at = now() - interval '31 days'")
    owner.execute("update pgmq.a_inbox set archived_at = now() - interval '31 days'")
    post(db, 2)
    tick(db)
    assert column(db, "select message from rejected_submissions") == [2]
    assert value(db, "select count(*) from pgmq.a_inbox") == 1


def test_a_refusal_tells_nothing_of_other_scopes(yard: Yard) -> None:
    two = neighbours(yard)
    ann = login(yard, "annie", "submitter", "home")
    for task in [
        *({"prompt": "x", "depends_on": [t]} for t in two.tasks.values()),
        *({"prompt": "x", "scope": s} for s in ("zebra", "nowhere")),
        {"prompt": "x", "agent": "nobody", "scope": "home"},
        {"prompt": "x", "provider": "nothing", "scope": "home"},
    ]:
        post(ann, task)
    tick(two.admin)
    mine = rows(two.admin, "select error, message from rejected_submissions where login = %s", f"annie_{yard.name}")
    assert len(mine) > 2
    for row in mine:
        if row["message"].get("scope") != "zebra":  # else it is what the sender said
            assert "zebra" not in row["error"]


def fresh(yard: Yard) -> Connection[DictRow]:
    """The same database with neither Taskyard nor pgmq."""
    uninstall(yard.connect())
    with yard.connect(superuser=True) as owner:
        owner.execute("drop schema pgmq cascade")
    return yard.connect()


def test_uninstalling_takes_the_queues_along(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("select pgmq.create('letters')")
    task = insert(db)
    db.execute("select say(%s, 'old mail')", [task])
    post(db, {"prompt": "x"})
    uninstall(db)
    assert column(db, "select queue_name from pgmq.meta") == ["letters"]
    install(db)
    assert insert(db) == task, "ids begin again"
    assert (claim(db, register(db))[0]["note"], left(db)) == (None, 0)


def test_an_inbox_that_others_made_stays_theirs(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("select pgmq.drop_queue('inbox')")
    other = yard.connect(superuser=True)
    other.execute("select pgmq.create('inbox')")
    install(db)
    other.execute("select pgmq.send('inbox', '{\"prompt\": \"not for you\"}'::jsonb)")
    assert tick(db) == 0
    assert value(db, "select count(*) from tasks") == 0
    assert value(other, "select headers from pgmq.q_inbox") is None
    uninstall(db)
    assert column(other, "select queue_name from pgmq.meta") == ["inbox"]


def test_pgmq_of_another_owner_is_used_where_it_may_be(yard: Yard) -> None:
    db = fresh(yard)
    owner = yard.connect(superuser=True)
    owner.execute(pgmq.get_embedded_install_sql().encode())
    with pytest.raises(TaskyardError, match="pgmq belongs to postgres here, and Taskyard may not use it"):
        install(db)
    install(owner)
    install(db)
    db, owner = yard.connect(), yard.connect(superuser=True)
    db.execute("select say(%s, 'hello')", [insert(db)])
    ann = login(yard, "ann", "submitter", "default")
    post(ann, {"prompt": "x", "agent": "shell"})
    tick(db)
    assert value(db, "select count(*) from tasks") == 2
    owner.execute("select pgmq.create('events')")
    owner.execute("select pgmq.bind_topic('task.#', 'events')")
    insert(db)
    assert value(owner, "select count(*) from pgmq.q_events") == 1
    owner.execute("set role taskyard_owner")
    owner.execute("set search_path = taskyard, pg_catalog, pg_temp")
    owner.execute("update tasks set status = 'cancelled'")
    owner.execute("update tasks set finished_at = now() - interval '2 days'")
    assert value(owner, "select _drop_mailboxes()") == 1
