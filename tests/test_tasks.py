"""The table tasks, written with plain SQL: what goes in, where it is filed, and what may become of it."""

import itertools
from datetime import timedelta

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from .conftest import Yard, column, rows, value
from .yardwork import claims, misfiled, refusal, task_in

# Where a task may be moved by hand. What waits is put where it belongs (see WORKED_OUT), whatever the update says.
WAITING_PLACES = {"blocked", "scheduled", "queued"}
LEGAL = {
    "blocked": {*WAITING_PLACES, "failed", "cancelled"},
    "scheduled": {*WAITING_PLACES, "failed", "cancelled"},
    "queued": {*WAITING_PLACES, "failed", "cancelled"},
    "running": {"running"},
    "waiting": {"waiting", "completed", "failed", "cancelled"},  # with an open question
    "completed": {"completed"},
    "failed": {"failed", *WAITING_PLACES},
    "cancelled": {"cancelled", *WAITING_PLACES},
}


def test_a_prompt_is_all_it_takes(db: Connection[DictRow]) -> None:
    db.execute("insert into tasks (prompt) values ('Tidy the shed')")
    task = rows(db, "select * from tasks")[0]
    assert (task["prompt"], task["status"], task["agent"], task["scope"], task["priority"]) == (
        "Tidy the shed",
        "queued",
        "default",
        "default",
        0,
    )
    assert (task["depends_on"], task["requires"], task["on_limit"], task["on_dependency_failure"]) == (
        [],
        [],
        "switch",
        "fail",
    )
    assert (task["attempt_count"], task["failure_count"], task["result"], task["finished_at"]) == (0, 0, None, None)
    assert task["max_attempts"] is None
    assert task["timeout"] is None
    assert value(db, "select now() - created_at < interval '1 minute' from tasks")
    assert misfiled(db) == []


def test_a_submitter_inserts_by_set_role_and_by_a_login_of_its_own(yard: Yard) -> None:
    yard.connect("submitter").execute("insert into tasks (prompt) values ('by role')")
    name = f"phone_{yard.name}"
    with Connection[DictRow].connect(yard.login("phone", "submitter"), row_factory=dict_row) as phone:
        phone.execute("insert into tasks (prompt) values ('by login')")
        assert column(phone, "select prompt from tasks order by id") == ["by role", "by login"]
    db = yard.connect()
    assert column(db, "select created_by from tasks order by id") == ["taskyard_submitter", name]
    assert misfiled(db) == []


@pytest.mark.parametrize("role", ["viewer", "runner"])
def test_viewers_and_runners_cannot_insert(yard: Yard, role: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        yard.connect(role).execute("insert into tasks (prompt) values ('x')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        Connection[DictRow].connect(yard.login("guest", role)).execute("insert into tasks (prompt) values ('x')")
    assert value(yard.connect(), "select count(*) from tasks") == 0


def test_the_origin_of_a_task_cannot_be_forged(yard: Yard, db: Connection[DictRow]) -> None:
    submitter = yard.connect("submitter")
    for column_name in ("created_by", "created_at", "status", "attempt_id", "result", "attempt_count"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            submitter.execute(f"insert into tasks (prompt, {column_name}) values ('x', default)".encode())
    db.execute("set role taskyard_owner")
    db.execute(
        "insert into tasks (prompt, created_by, created_at, result, attempt_count, failure_count, started_at, error)"
        " values ('x', 'boss', '2001-01-01', '1', 5, 5, '2001-01-01', 'e')"
    )
    forged = rows(
        db,
        "select created_by, created_at > now() - interval '1 day' as now, result, attempt_count, failure_count,"
        " started_at, error from tasks",
    )
    assert list(forged[0].values()) == ["taskyard_owner", True, None, 0, 0, None, None]
    for change in ("created_by = 'boss'", "created_at = '2001-01-01'"):
        with pytest.raises(psycopg.Error, match="never change") as refused:
            db.execute(f"update tasks set {change}".encode())
        assert refused.value.sqlstate == "TY004"


def test_many_rows_and_copy_are_filed_like_one(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into tasks (prompt, agent, priority) select 'bulk ' || n, 'shell', n from generate_series(1, 50) n"
    )
    with db.cursor().copy("copy tasks (prompt, agent, scope, run_at) from stdin") as copy:
        for n in range(50):
            copy.write_row((f"copied {n}", "shell", "default", None if n % 2 else "2999-01-01"))
    assert rows(db, "select status::text, count(*) from tasks group by 1 order by 1") == [
        {"status": "queued", "count": 75},
        {"status": "scheduled", "count": 25},
    ]
    assert misfiled(db) == []
    assert len(claims(db)) == 75
    assert misfiled(db) == []


def test_conflicts_leave_nothing_in_the_claim_index(db: Connection[DictRow]) -> None:
    insert = "insert into tasks (prompt, agent, dedupe_key) values ('a', 'shell', 'k'), ('b', 'shell', null)"
    db.execute(insert)
    db.execute(f"{insert} on conflict (dedupe_key) where dedupe_key is not null do nothing".encode())
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.execute(insert)
    assert misfiled(db) == []
    db.execute(
        "insert into tasks (prompt, agent, priority, dedupe_key) values ('c', 'shell', 5, 'k')"
        " on conflict (dedupe_key) where dedupe_key is not null"
        " do update set prompt = excluded.prompt, priority = excluded.priority"
    )
    assert misfiled(db) == []
    assert claims(db) == ["c", "b", "b"]


def test_a_task_waits_for_its_dependencies_then_for_its_time_then_in_the_queue(db: Connection[DictRow]) -> None:
    with db.transaction():  # also where the dependency is as new as the task
        first = value(db, "insert into tasks (prompt, agent) values ('first', 'shell') returning id")
        db.execute(
            "insert into tasks (prompt, agent, depends_on, run_at) values"
            " ('both', 'shell', array[%(d)s::bigint], '2999-01-01'), ('after', 'shell', array[%(d)s::bigint], null),"
            " ('past', 'shell', '{}', now() - interval '1 day'), ('null', 'shell', null, null)",
            {"d": first},
        )
    status = "select prompt, status::text from tasks where prompt <> 'first' order by id"
    assert [tuple(row.values()) for row in rows(db, status)] == [
        ("both", "blocked"),
        ("after", "blocked"),
        ("past", "queued"),
        ("null", "queued"),
    ]
    assert misfiled(db) == []
    runner = value(db, "select register_runner('host')")
    db.execute("select complete_task(attempt_id) from claim_task(%s)", [runner])
    assert [tuple(row.values()) for row in rows(db, status)] == [
        ("both", "scheduled"),
        ("after", "queued"),
        ("past", "queued"),
        ("null", "queued"),
    ]
    assert misfiled(db) == []
    late = value(db, "insert into tasks (prompt, depends_on) values ('late', array[%s::bigint]) returning id", first)
    assert value(db, "select status::text from tasks where id = %s", late) == "queued"


def test_a_task_that_depends_on_a_failed_one_fails_when_it_is_committed(db: Connection[DictRow]) -> None:
    failed = task_in(db, "failed")
    task = value(db, "insert into tasks (prompt, depends_on) values ('x', array[%s::bigint]) returning id", failed)
    assert rows(db, "select status::text, failed_dependency, error from tasks where id = %s", task) == [
        {"status": "failed", "failed_dependency": failed, "error": f"Task {failed}, which it depends on, failed."}
    ]
    db.execute(
        "insert into tasks (prompt, depends_on, on_dependency_failure) values ('y', array[%s::bigint], 'run')", [failed]
    )
    assert value(db, "select status::text from tasks where prompt = 'y'") == "queued"
    assert misfiled(db) == []


def test_editing_the_priority_moves_a_task_in_the_queue(db: Connection[DictRow]) -> None:
    db.execute("insert into tasks (prompt, agent) values ('a', 'shell'), ('b', 'shell'), ('c', 'shell')")
    db.execute("update tasks set priority = 5 where prompt = 'c'")
    db.execute("update tasks set priority = -5 where prompt = 'a'")
    assert misfiled(db) == []
    assert claims(db) == ["c", "b", "a"]


def test_editing_run_at_moves_a_task_between_the_queue_and_the_schedule(db: Connection[DictRow]) -> None:
    db.execute("insert into tasks (prompt, agent) values ('a', 'shell'), ('b', 'shell')")
    for run_at, status in (("2999-01-01", "scheduled"), ("2998-01-01", "scheduled"), (None, "queued")):
        db.execute("update tasks set run_at = %s where prompt = 'a'", [run_at])
        assert value(db, "select status::text from tasks where prompt = 'a'") == status
        assert misfiled(db) == []
    assert claims(db) == ["b", "a"]


def test_editing_agent_labels_workspace_or_prompt_refiles_a_task(db: Connection[DictRow]) -> None:
    db.execute("insert into tasks (prompt) values ('a')")
    assert claims(db) == []  # the agent "default" has no route
    db.execute("update tasks set agent = 'shell', requires = '{gpu}'")
    assert misfiled(db) == []
    assert claims(db) == []
    db.execute("update tasks set requires = '{}', workspace = '/w', prompt = 'b'")
    assert misfiled(db) == []
    assert claims(db) == ["b"]


def test_editing_depends_on_blocks_and_frees_a_task(db: Connection[DictRow]) -> None:
    one, two = column(db, "insert into tasks (prompt) values ('1'), ('2') returning id")
    task = value(db, "insert into tasks (prompt, agent) values ('x', 'shell') returning id")
    for depends_on, status in (([one], "blocked"), ([one, two], "blocked"), ([two], "blocked"), ([], "queued")):
        db.execute("update tasks set depends_on = %s where id = %s", [depends_on, task])
        assert value(db, "select status::text from tasks where id = %s", task) == status
        assert sorted(column(db, "select depends_on from task_dependencies")) == depends_on
        assert misfiled(db) == []


def test_a_running_task_cannot_be_edited(db: Connection[DictRow]) -> None:
    task = task_in(db, "running")
    editable = column(
        db,
        "select distinct column_name::text from information_schema.column_privileges where table_schema = 'taskyard'"
        " and table_name = 'tasks' and grantee = 'taskyard_submitter' and privilege_type = 'UPDATE'",
    )
    before = rows(db, "select * from tasks")
    changes = {
        "prompt": "'y'", "agent": "'default'", "scope": "'other'", "priority": "7", "run_at": "'2999-01-01'",
        "depends_on": f"array[{task}::bigint]", "on_dependency_failure": "'run'", "payload": "'1'",
        "workspace": "'/w'", "verify": "'make test'", "requires": "'{gpu}'", "provider": "'command'", "model": "'m'",
        "on_limit": "'wait'", "max_attempts": "9", "timeout": "'1 hour'", "status": "'queued'",
        "output_schema": "'{}'", "repository": "'/r'", "base": "'main'", "push_to": "'origin'",
    }  # fmt: skip
    assert sorted(changes) == sorted(editable)
    db.execute("insert into scopes (name, parent) values ('other', 'default')")
    codes = {name: refusal(db, f"update tasks set {name} = {new}") for name, new in changes.items()}
    assert {name: error and error.sqlstate for name, error in codes.items()} == dict.fromkeys(changes, "TY004")
    assert rows(db, "select * from tasks") == before


def test_a_completed_task_cannot_be_edited_and_a_failed_one_can(db: Connection[DictRow]) -> None:
    done, failed = task_in(db, "completed"), task_in(db, "failed")
    with pytest.raises(psycopg.Error, match="cannot be edited") as refused:
        db.execute("update tasks set prompt = 'y' where id = %s", [done])
    assert refused.value.sqlstate == "TY004"
    db.execute("update tasks set prompt = 'better', timeout = %s where id = %s", [timedelta(hours=1), failed])
    db.execute("select retry_task(%s)", [failed])
    assert claims(db) == ["better"]


@pytest.mark.parametrize("old", LEGAL)
def test_a_status_is_set_by_hand_only_where_that_is_legal(yard: Yard, db: Connection[DictRow], old: str) -> None:
    submitter = yard.connect("submitter")
    statuses = column(db, "select unnest(enum_range(null::task_status))::text")
    assert sorted(statuses) == sorted(LEGAL)
    for new in statuses:
        task = task_in(db, old)
        before = rows(db, "select * from tasks where id = %s", task)
        error = refusal(submitter, "update tasks set status = %s::task_status where id = %s", new, task)
        if new in LEGAL[old]:
            assert error is None, (old, new)
            worked_out = old if old in WAITING_PLACES else "queued"
            expected = worked_out if new in WAITING_PLACES else new
            assert value(db, "select status::text from tasks where id = %s", task) == expected, (old, new)
        else:
            assert error is not None, (old, new)
            assert error.sqlstate == "TY004", (old, new)
            assert rows(db, "select * from tasks where id = %s", task) == before
        assert misfiled(db) == [], (old, new)
    for new in statuses:
        assert refusal(submitter, "insert into tasks (prompt, status) values ('x', %s::task_status)", new)


def test_a_task_is_not_born_in_the_middle_of_its_life(db: Connection[DictRow]) -> None:
    before = value(db, "select count(*) from tasks")
    db.execute("set role taskyard_owner")
    for status in set(LEGAL) - {"queued"}:
        with pytest.raises(psycopg.Error, match="A new task cannot be") as refused:
            db.execute("insert into tasks (prompt, status) values ('x', %s::task_status)", [status])
        assert refused.value.sqlstate == "TY004"
    assert value(db, "select count(*) from tasks") == before


def test_deleting_a_task_takes_its_filing_along(db: Connection[DictRow]) -> None:
    kept = [task_in(db, "running"), value(db, "insert into tasks (prompt) values ('needed') returning id")]
    db.execute("insert into tasks (prompt, depends_on) values ('y', array[%s::bigint])", [kept[1]])
    gone = [task_in(db, status) for status in ("scheduled", "queued", "completed", "failed", "cancelled", "blocked")]
    for task in kept:
        with pytest.raises(psycopg.Error) as refused:
            db.execute("delete from tasks where id = %s", [task])
        assert refused.value.sqlstate == "TY004"
    db.execute("delete from tasks where id = any(%s)", [gone])
    assert value(db, "select count(*) from attempts where task_id = any(%s)", gone) == 0
    assert misfiled(db) == []


def test_children_outlive_their_parent(db: Connection[DictRow]) -> None:
    parent = value(db, "insert into tasks (prompt) values ('parent') returning id")
    db.execute("insert into tasks (prompt, parent_id) values ('child', %s)", [parent])
    db.execute("delete from tasks where id = %s", [parent])
    assert rows(db, "select prompt, parent_id from tasks") == [{"prompt": "child", "parent_id": None}]


def test_every_combination_is_filed_in_a_lane_of_its_own(db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('s', 'default')")
    providers, models, labels, workspaces = (None, "command"), (None, "m"), ("{}", "{gpu}"), (None, "/w")
    variants = list(
        itertools.product(("shell", "default"), ("default", "s"), (0, 1), providers, models, labels, workspaces)
    )
    for _ in range(2):
        with db.cursor() as cursor:
            cursor.executemany(
                "insert into tasks (prompt, agent, scope, priority, provider, model, requires, workspace)"
                " values ('x', %s, %s, %s, %s, %s, %s, %s)",
                variants,
            )
    assert value(db, "select count(*) from lanes") == len(variants) == 128
    assert misfiled(db) == []
