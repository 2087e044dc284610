"""Questions to a human: an agent asks, its task waits without a slot, somebody decides, the same session goes on."""

import subprocess
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .clock import Clock
from .conftest import Yard, column, rows, value
from .yardwork import (
    claim,
    end,
    explained,
    insert,
    misfiled,
    refusal,
    register,
    say,
    status,
)

ASK = "select request_permission(%s, %s, %s, %s, %s)"


@pytest.fixture
def narrow(db: Connection[DictRow]) -> Connection[DictRow]:
    """home may do little; home/kid nothing that home may not; zebra lies beside."""
    db.execute(
        "insert into scopes (name, parent, may_network, may_execute, allowed_paths) values"
        " ('home', 'default', null, null, '{/srv}'), ('home/kid', 'home', false, false, '{/srv/kid}'), ('zebra', 'default', null, null, null)"
    )
    return db


def begin(db: Connection[DictRow], scope: str = "home/kid", host: str = "host") -> tuple[int, int, int]:
    """A runner, a task and its attempt that has said something in a session."""
    runner = value(db, "select register_runner(%s, 4, p_host => %s, p_lease => '1 day')", host, host)
    task = insert(db, scope=scope)
    attempt = claim(db, runner)[0]["attempt_id"]
    db.execute("select report_session(%s, 'the-session')", [attempt])
    say(db, attempt, "I began.")
    return runner, task, attempt


def ask(
    db: Connection[DictRow],
    attempt: int,
    permissions: list[str] | None = None,
    paths: list[str] | None = None,
    hosts: list[str] | None = None,
    why: str = "",
) -> int:
    return value(db, ASK, attempt, permissions or [], paths or [], hosts or [], why)


def directives(db: Connection[DictRow], runner: int, *attempts: int) -> list[tuple[int, str, str]]:
    found = rows(db, "select * from heartbeat(%s, %s) where attempt_id is not null", runner, list(attempts))
    return [(row["attempt_id"], row["directive"], row["detail"]) for row in found]


def submitter(yard: Yard, *scopes: str, name: str = "ann") -> Connection[DictRow]:
    connection = Connection[DictRow].connect(
        yard.login(name, "submitter", *scopes), autocommit=True, row_factory=yard.connect().row_factory
    )
    yard.stack.callback(connection.close)
    return connection


def test_a_permission_from_the_question_to_the_next_claim(yard: Yard, narrow: Connection[DictRow]) -> None:
    narrow.execute("update scopes set max_concurrency = 1 where name = 'home'")
    runner, task, attempt = begin(narrow)
    question = ask(narrow, attempt, ["execute"], ["/srv/shared/"], ["API.example.com."], "The tests need it.")
    assert directives(narrow, runner, attempt) == [
        (attempt, "wait", "May it execute, see /srv/shared, reach api.example.com? The tests need it.")
    ]
    assert end(narrow, attempt, "waiting") == "waiting"
    assert misfiled(narrow) == []
    other = insert(narrow, scope="home/kid")
    (row,) = claim(narrow, runner, 5)
    assert row["task_id"] == other, "its slot is free"
    assert row["permissions"] == ["read", "write", "create_child"]
    assert (row["allowed_paths"], row["note"]) == (["/srv/kid"], None)
    end(narrow, row["attempt_id"])
    assert explained(narrow, task) == [
        "Waits for a human; it holds no slot meanwhile.",
        f"{question}: May it execute, see /srv/shared, reach api.example.com? The tests need it. It means no in 23h.",
    ]
    ann = submitter(yard, "home")
    assert value(ann, "select approve(%s, 'just this once')", question).startswith("approved: May it execute")
    assert status(narrow, task) == "queued"
    (row,) = claim(narrow, runner)
    assert row["task_id"] == task
    assert row["permissions"] == ["read", "write", "execute", "network", "create_child"]
    assert row["allowed_paths"] == ["/srv/kid", "/srv/shared"]
    assert row["network_allow"] == ["api.example.com"], "network was not given as a whole"
    assert row["session_id"] == "the-session"
    assert row["note"] == (
        "Allowed from now on: May it execute, see /srv/shared, reach api.example.com? The tests need it.\nNote: just this once"
    )
    (decided,) = rows(narrow, "select decision, answer, decided_by, bound from approvals")
    assert decided == {
        "decision": "approved",
        "answer": "just this once",
        "decided_by": f"ann_{yard.name}",
        "bound": "home",
    }
    events = rows(narrow, "select kind, actor, attempt_id from task_events where task_id = %s order by at", task)
    assert events == [
        {"kind": "permission_asked", "actor": "yard", "attempt_id": attempt},
        {"kind": "permission_approved", "actor": f"ann_{yard.name}", "attempt_id": attempt},
    ]


def test_it_is_for_that_task_alone(narrow: Connection[DictRow]) -> None:
    runner, task, attempt = begin(narrow)
    question = ask(narrow, attempt, ["network"])
    end(narrow, attempt, "waiting")
    narrow.execute("select approve(%s)", [question])
    other = insert(narrow, scope="home/kid")
    found = {row["task_id"]: row["permissions"] for row in claim(narrow, runner, 4)}
    assert ("network" in found[task], "network" in found[other]) == (True, False)


def test_a_later_attempt_elsewhere_has_the_permission_too(narrow: Connection[DictRow]) -> None:
    runner, task, attempt = begin(narrow)
    question = ask(narrow, attempt, ["execute"])
    end(narrow, attempt, "waiting")
    narrow.execute("select approve(%s)", [question])
    end(narrow, claim(narrow, runner)[0]["attempt_id"], "crashed")
    elsewhere = register(narrow, "elsewhere")
    (row,) = claim(narrow, elsewhere)
    assert (row["task_id"], row["session_id"], "execute" in row["permissions"]) == (task, None, True)


@pytest.mark.parametrize("between", ["rate_limited", "crashed", "session_lost"])
def test_an_answer_reaches_the_next_attempt_that_gets_to_work(narrow: Connection[DictRow], between: str) -> None:
    """Also where the first one after the decision never got to read it."""
    runner, _, attempt = begin(narrow)
    question = value(narrow, "select ask_human(%s, 'Which port?')", attempt)
    end(narrow, attempt, "waiting")
    narrow.execute("select answer(%s, '8080')", [question])
    (row,) = claim(narrow, runner)
    assert "The answer: 8080" in row["note"]
    end(narrow, row["attempt_id"], between)
    narrow.execute("select clear_limit('command')")
    (row,) = claim(narrow, runner)
    assert "The answer: 8080" in row["note"]


def test_a_question_is_answered_in_the_same_session(narrow: Connection[DictRow]) -> None:
    runner, task, attempt = begin(narrow)
    question = value(narrow, "select ask_human(%s, 'Which port?')", attempt)
    assert directives(narrow, runner, attempt) == [(attempt, "wait", "Which port?")]
    end(narrow, attempt, "waiting")
    for wrong, code in (
        (f"approve({question})", "TY004"),
        (f"answer({question}, ' ')", "TY001"),
        (f"answer({question}, null)", "TY001"),
    ):
        error = refusal(narrow, f"select {wrong}")
        assert error is not None
        assert error.sqlstate == code, wrong
    assert value(narrow, "select answer(%s, '8080')", question) == "answered"
    (row,) = claim(narrow, runner)
    assert (row["task_id"], row["session_id"], row["note"]) == (
        task,
        "the-session",
        "You asked: Which port?\nThe answer: 8080",
    )
    error = refusal(narrow, f"select answer({question}, '9090')")
    assert error is not None
    assert (error.sqlstate, error.diag.message_primary) == ("TY004", f"{question} was answered 0s ago by yard.")


def test_a_refusal_is_told_with_its_reason_and_gives_nothing(narrow: Connection[DictRow]) -> None:
    runner, task, attempt = begin(narrow)
    question = ask(narrow, attempt, ["execute"])
    end(narrow, attempt, "waiting")
    narrow.execute("select deny(%s, 'Too risky.')", [question])
    (row,) = claim(narrow, runner)
    assert (row["task_id"], row["note"]) == (task, "Refused: May it execute?\nWhy: Too risky.")
    assert row["permissions"] == ["read", "write", "create_child"]


def test_silence_past_the_deadline_means_no(yard: Yard, narrow: Connection[DictRow]) -> None:
    clock = Clock(yard, narrow)
    runner, task, attempt = begin(narrow)
    narrow.execute("select request_permission(%s, '{execute}', p_within => '2 hours')", [attempt])
    end(narrow, attempt, "waiting")
    clock.advance(timedelta(hours=2, seconds=-1))
    narrow.execute("select heartbeat(%s)", [runner])
    narrow.execute("select tick(%s)", [runner])
    assert status(narrow, task) == "waiting"
    assert column(narrow, 'select "left" from inbox') == ["1s"]
    clock.advance(timedelta(seconds=1))
    narrow.execute("select tick(%s)", [runner])
    assert status(narrow, task) == "queued"
    assert rows(narrow, "select decision, decided_by from approvals") == [{"decision": "expired", "decided_by": None}]
    assert (
        column(narrow, "select kind from task_events where task_id = %s order by at", task)[-1] == "permission_expired"
    )
    (row,) = claim(narrow, runner)
    assert row["note"] == "Nobody decided in time, which means no: May it execute?"
    assert "execute" not in row["permissions"]


def test_all_questions_of_a_task_have_to_be_decided(narrow: Connection[DictRow]) -> None:
    _, task, attempt = begin(narrow)
    first, second = ask(narrow, attempt, ["execute"]), value(narrow, "select ask_human(%s, 'Why?')", attempt)
    end(narrow, attempt, "waiting")
    narrow.execute("select approve(%s)", [first])
    assert status(narrow, task) == "waiting"
    narrow.execute("select answer(%s, 'So.')", [second])
    assert status(narrow, task) == "queued"


@pytest.mark.parametrize("before", [True, False], ids=["decided while it runs", "decided while it waits"])
def test_it_makes_no_difference_whether_it_is_decided_before_or_after_the_attempt_stops(
    narrow: Connection[DictRow], before: bool
) -> None:
    runner, task, attempt = begin(narrow)
    question = ask(narrow, attempt, ["execute"])
    if before:
        narrow.execute("select approve(%s)", [question])
        assert directives(narrow, runner, attempt) == []
    assert end(narrow, attempt, "waiting") == ("queued" if before else "waiting")
    if not before:
        narrow.execute("select approve(%s)", [question])
    (row,) = claim(narrow, runner)
    assert (row["task_id"], "execute" in row["permissions"]) == (task, True)


@pytest.mark.parametrize("how", ["retired", "lease", "released", "failed", "rate_limited"])
def test_a_task_whose_attempt_ends_otherwise_waits_all_the_same(
    yard: Yard, narrow: Connection[DictRow], how: str
) -> None:
    clock = Clock(yard, narrow)
    runner, task, attempt = begin(narrow)
    question = value(narrow, "select request_permission(%s, '{execute}', p_within => '30 days')", attempt)
    if how == "retired":
        narrow.execute("select retire_runner(%s)", [runner])
    elif how == "lease":
        clock.advance(timedelta(days=2))
        narrow.execute("select tick()")
    elif how == "released":
        narrow.execute("select release_task(%s)", [attempt])
    else:
        end(narrow, attempt, how)
    assert status(narrow, task) == "waiting"
    assert value(narrow, "select outcome is not null from attempts where id = %s", attempt)
    narrow.execute("select approve(%s)", [question])
    assert status(narrow, task) == "queued"


@pytest.mark.parametrize("running", [True, False])
def test_questions_of_a_cancelled_task_are_withdrawn(yard: Yard, narrow: Connection[DictRow], running: bool) -> None:
    clock = Clock(yard, narrow)
    _, task, attempt = begin(narrow)
    question = ask(narrow, attempt, ["execute"])
    if not running:
        end(narrow, attempt, "waiting")
    narrow.execute("select cancel_task(%s)", [task])
    if running:
        assert end(narrow, attempt, "waiting") == "cancelled"
    assert rows(narrow, "select * from inbox") == []
    error = refusal(narrow, f"select approve({question})")
    assert error is not None
    assert error.sqlstate == "TY004"
    clock.advance(timedelta(minutes=1))
    narrow.execute("select tick()")
    assert value(narrow, "select decision from approvals") == "withdrawn"
    assert status(narrow, task) == "cancelled"


def test_an_attempt_that_is_over_cannot_ask(narrow: Connection[DictRow]) -> None:
    _, _, attempt = begin(narrow)
    end(narrow, attempt, "failed")
    for call in (f"ask_human({attempt}, 'Now?')", f"request_permission({attempt}, '{{read}}')"):
        error = refusal(narrow, f"select {call}")
        assert error is not None
        assert error.sqlstate == "TY005"
    assert value(narrow, "select count(*) from approvals") == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("'{}'", "TY001"), ("'{create_child}'", "TY001"), ("'{read,all}'", "TY001"), ("null", "TY001"),
        ("'{}', '{srv}'", "TY001"), ("'{}', '{/srv/../etc}'", "TY001"), ("'{}', '{/}'", "TY001"),
        ("'{}', '{}', '{10.0.0.1}'", "TY001"), ("'{}', '{}', '{a.example.com:22}'", "TY001"), ("'{}', '{}', '{*}'", "TY001"),
        ("'{read}', p_within => '0'", "TY001"), ("'{read}', p_within => '31 days'", "TY001"),
        ("'{read}', p_within => null", "TY001"), ("'{}', (select array_agg('/p/' || g) from generate_series(1, 21) g)", "TY001"),
    ],
)  # fmt: skip
def test_a_request_that_means_nothing_is_refused(narrow: Connection[DictRow], arguments: str, code: str) -> None:
    _, _, attempt = begin(narrow)
    error = refusal(narrow, f"select request_permission({attempt}, {arguments})")
    assert error is not None
    assert error.sqlstate == code
    assert value(narrow, "select count(*) from approvals") == 0


def test_a_task_asks_a_hundred_times_at_most(narrow: Connection[DictRow]) -> None:
    _, _, attempt = begin(narrow)
    for _ in range(100):
        narrow.execute("select ask_human(%s, 'Again?')", [attempt])
    error = refusal(narrow, f"select ask_human({attempt}, 'Again?')")
    assert error is not None
    assert error.sqlstate == "TY004"


GIVEN: list[tuple[str, dict[str, Any], bool]] = [
    ("home", {"permissions": ["execute"]}, True),
    ("home", {"permissions": ["network"]}, True),
    ("home", {"hosts": ["a.example.com"]}, True),
    ("home", {"paths": ["/srv/shared"]}, True),
    ("home", {"paths": ["/srvx"]}, False),
    ("home", {"paths": ["/srv", "/etc"]}, False),
    ("home/kid", {"permissions": ["execute"]}, False),
    ("home/kid", {"hosts": ["a.example.com"]}, False),
    ("home/kid", {"paths": ["/srv/kid/deep"]}, True),
    ("home/kid", {"paths": ["/srv"]}, False),
    ("default", {"paths": ["/etc"], "hosts": ["*.example.com"], "permissions": ["execute"]}, True),
]


@pytest.mark.parametrize(("granted", "wanted", "allowed"), GIVEN)
def test_nobody_gives_more_than_the_uppermost_scope_granted_to_them_has(
    yard: Yard, narrow: Connection[DictRow], granted: str, wanted: dict[str, Any], allowed: bool
) -> None:
    _, task, attempt = begin(narrow)
    question = ask(narrow, attempt, **wanted)
    end(narrow, attempt, "waiting")
    error = refusal(submitter(yard, granted, "home/kid"), f"select approve({question})")
    if allowed:
        assert error is None
    else:
        assert error is not None
        assert (error.sqlstate, error.diag.message_primary) == ("TY006", f"ann_{yard.name} may not allow that.")
    assert status(narrow, task) == ("queued" if allowed else "waiting")
    if not allowed:  # an administrator knows no bound
        narrow.execute("select approve(%s)", [question])
        assert status(narrow, task) == "queued"


def given_then(yard: Yard, db: Connection[DictRow], wanted: dict[str, Any], *changes: str) -> DictRow:
    """What the next claim of a task has for which somebody of home allowed something, before home was changed."""
    runner, task, attempt = begin(db)
    question = ask(db, attempt, **wanted)
    end(db, attempt, "waiting")
    submitter(yard, "home").execute("select approve(%s)", [question])
    for change in changes:
        db.execute(change.encode())
    (row,) = claim(db, runner)
    assert row["task_id"] == task
    return row


def test_what_was_given_shrinks_with_the_scope_in_whose_name_it_was(yard: Yard, narrow: Connection[DictRow]) -> None:
    wanted = {
        "permissions": ["execute"],
        "paths": ["/srv/shared", "/srv/other/deep"],
        "hosts": ["a.example.com", "b.example.org"],
    }
    row = given_then(
        yard, narrow, wanted,
        "update scopes set may_execute = false, allowed_paths = '{/srv/shared/in,/srv/other,/srv/kid}', network_allow = '{*.example.com}' where name = 'home'",
    )  # fmt: skip
    assert row["permissions"] == ["read", "write", "network", "create_child"]
    assert row["allowed_paths"] == ["/srv/kid", "/srv/other/deep", "/srv/shared/in"]
    assert row["network_allow"] == ["a.example.com"]


def test_hosts_of_which_none_is_left_are_not_all_hosts(yard: Yard, narrow: Connection[DictRow]) -> None:
    row = given_then(
        yard,
        narrow,
        {"hosts": ["a.example.com"]},
        "update scopes set network_allow = '{b.example.org}' where name = 'home'",
    )
    assert "network" not in row["permissions"] or row["network_allow"] == []


def test_hosts_given_in_the_name_of_a_scope_that_lost_the_network_are_lost_too(
    yard: Yard, narrow: Connection[DictRow]
) -> None:
    runner, _, attempt = begin(narrow)
    by_ann, by_admin = ask(narrow, attempt, hosts=["a.example.com"]), ask(narrow, attempt, hosts=["b.example.com"])
    end(narrow, attempt, "waiting")
    submitter(yard, "home").execute("select approve(%s)", [by_ann])
    narrow.execute("select approve(%s)", [by_admin])
    narrow.execute("update scopes set may_network = false where name = 'home'")
    (row,) = claim(narrow, runner)
    assert row["network_allow"] == ["b.example.com"]


def test_what_was_given_in_the_name_of_a_scope_that_is_gone_is_gone(yard: Yard, narrow: Connection[DictRow]) -> None:
    row = given_then(
        yard, narrow, {"permissions": ["execute"], "paths": ["/srv/shared"], "hosts": ["a.example.com"]},
        "update scopes set parent = 'zebra' where name = 'home/kid'", "delete from scopes where name = 'home'",
    )  # fmt: skip
    assert row["permissions"] == ["read", "write", "create_child"]
    assert row["allowed_paths"] == ["/srv/kid"]
    assert row["network_allow"] in ([], None)


def test_a_whole_network_that_was_given_is_that_of_the_scope(yard: Yard, narrow: Connection[DictRow]) -> None:
    narrow.execute("update scopes set network_allow = '{*.example.com}' where name = 'home'")
    row = given_then(yard, narrow, {"permissions": ["network"]})
    assert ("network" in row["permissions"], row["network_allow"]) == (True, ["*.example.com"])


def test_hosts_come_on_top_of_those_that_a_scope_has(narrow: Connection[DictRow]) -> None:
    narrow.execute("insert into scopes (name, parent, network_allow) values ('zebra/foal', 'zebra', '{*.example.com}')")
    runner, _, attempt = begin(narrow, scope="zebra/foal")
    question = ask(narrow, attempt, hosts=["a.example.com", "b.example.org"])
    end(narrow, attempt, "waiting")
    narrow.execute("select approve(%s)", [question])
    assert claim(narrow, runner)[0]["network_allow"] == ["*.example.com", "b.example.org"]


def test_a_task_with_an_open_question_is_not_queued_by_hand(yard: Yard, narrow: Connection[DictRow]) -> None:
    _, task, attempt = begin(narrow)
    ask(narrow, attempt, ["execute"])
    end(narrow, attempt, "waiting")
    error = refusal(submitter(yard, "home"), f"update tasks set status = 'queued' where id = {task}")
    assert error is not None
    assert error.sqlstate == "TY004"
    assert status(narrow, task) == "waiting"


def test_the_inbox_says_what_is_asked_and_fits_a_phone(yard: Yard) -> None:
    db = yard.connect()
    db.execute("set role taskyard_owner")
    db.execute("alter table tasks alter id restart with 1000000")
    db.execute("reset role")
    long = "a-scope-with-a-long-name/and-one-below"
    db.execute("insert into scopes (name, parent) values (%s, 'default')", [long])
    db.execute("insert into budgets (scope, measure, period, amount) values (%s, 'tokens', 'total', 0)", [long])
    db.execute("select tick()")
    _, _, attempt = begin(db, scope="default")
    ask(db, attempt, ["network"], hosts=["a-host-with-a-long-name.example.com"], why="Because of a long reason. " * 20)
    db.execute(
        "select ask_human(%s, %s, '29 days')", [attempt, "What would you like to have done with all of this?\nNow?"]
    )
    command = yard.cluster.psql_command(["-X", "-c", "table inbox"], database=yard.name)
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) >= 5
    assert max(len(line) for line in lines) <= 40, lines
    assert column(db, "select asks from inbox")[0].startswith("reach a-host")
