"""The proof of done: what has a command that verifies it does not complete before that has passed."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .clock import Clock
from .conftest import Yard, column, rows, value
from .family import begin, claim_of, host
from .test_refusals import contents, unclear
from .yardwork import claim, end, insert, misfiled, refusal, say, status

VERIFIED = "select report_verification(%s, %s, %s, %s, interval '3 seconds', %s)"


def verified(
    db: Connection[DictRow],
    attempt: int,
    passed: bool,
    code: int | None = None,
    output: str = "",
    commit: str | None = None,
) -> None:
    db.execute(VERIFIED, [attempt, passed, (0 if passed else 2) if code is None else code, output, commit])


@pytest.mark.parametrize("way", ["complete_task", "complete_tasks", "beside others"])
def test_it_does_not_complete_without_a_proof(db: Connection[DictRow], way: str) -> None:
    runner = host(db)
    task, attempt = begin(db, runner, verify="make test")
    other, beside = begin(db, runner)
    many = f"array[{beside},{attempt}]" if way == "beside others" else f"array[{attempt}]"
    complete = (
        f"select complete_task({attempt})"
        if way == "complete_task"
        else f"select * from complete_tasks({many}::bigint[])"
    )
    before = contents(db)
    for told in (None, False):
        if told is False:
            verified(db, attempt, False, output="1 failed")
            before = contents(db)
        error = refusal(db, complete)
        if error is not None:
            assert unclear(error, "TY004") == ""
            assert error.diag.message_detail == "make test"
            assert contents(db) == before
        assert status(db, task) == "running"
    assert way != "beside others" or status(db, other) in ("running", "completed")
    assert value(db, "select outcome is null from attempts where id = %s", attempt)


@pytest.mark.parametrize("many", [False, True])
def test_it_completes_with_one(db: Connection[DictRow], many: bool) -> None:
    runner = host(db)
    task, attempt = begin(db, runner, verify="make test")
    plain, beside = begin(db, runner)
    verified(db, attempt, True, output="12 passed", commit="c" * 40)
    if many:
        done = rows(db, "select * from complete_tasks(%s, %s)", [attempt, beside], [Jsonb("a"), Jsonb("b")])
        assert {row["status"] for row in done} == {"completed"}
        assert column(db, "select result from tasks where id in (%s, %s) order by id", task, plain) == ["a", "b"]
    else:
        assert end(db, attempt) == "completed"
    assert (status(db, task), misfiled(db)) == ("completed", [])
    (row,) = rows(
        db,
        "select attempt_id, task_id, command, passed, exit_code, output_tail, duration, commit_id from verifications",
    )
    assert row == {
        "attempt_id": attempt, "task_id": task, "command": "make test", "passed": True, "exit_code": 0, "output_tail": "12 passed",
        "duration": timedelta(seconds=3), "commit_id": "c" * 40,
    }  # fmt: skip


def test_work_that_did_not_pass_goes_back_to_its_session_with_what_was_said(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner, verify="make test", max_attempts=3)
    verified(db, attempt, False, 2, "FAILED test_parser\n1 failed")
    assert end(db, attempt, "verify_failed") == "queued"
    assert misfiled(db) == []
    row = claim_of(db, runner, task)
    assert row["session_id"] == "the-session"
    assert row["note"] == (
        "Your work was checked and did not pass.\nThe command: make test\nIts exit code: 2\nThe end of what it printed:\n"
        "FAILED test_parser\n1 failed\nMend the work (the command stays as it is), then end your turn: it will be run again."
    )
    say(db, row["attempt_id"], "Mended.")
    verified(db, row["attempt_id"], True, output="2 passed")
    assert end(db, row["attempt_id"]) == "completed"
    assert rows(db, "select attempt_id, passed, output_tail from verifications order by attempt_id") == [
        {"attempt_id": attempt, "passed": False, "output_tail": "FAILED test_parser\n1 failed"},
        {"attempt_id": row["attempt_id"], "passed": True, "output_tail": "2 passed"},
    ]
    assert rows(db, "select outcome::text, counted from attempts order by id") == [
        {"outcome": "verify_failed", "counted": True},
        {"outcome": "completed", "counted": False},
    ]


def test_it_goes_back_no_more_often_than_it_may(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner, verify="make test", max_attempts=3)
    for n in range(1, 4):
        verified(db, attempt, False, output=f"run {n}")
        assert end(db, attempt, "verify_failed", error=f"run {n}") == ("queued" if n < 3 else "failed")
        if n < 3:
            row = claim_of(db, runner, task)
            assert f"run {n}\n" in row["note"]
            attempt = row["attempt_id"]
            say(db, attempt, "Again.")
    assert value(db, "select count(*) from verifications") == 3
    assert value(db, "select error from tasks where id = %s", task) == "run 3"


def test_a_command_that_was_stopped_has_no_exit_code(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner, verify="sleep 99")
    db.execute("select report_verification(%s, false, null, null, interval '1 minute')", [attempt])
    end(db, attempt, "verify_failed")
    assert "Its exit code: none, it was stopped" in claim_of(db, runner, task)["note"]
    assert column(db, "select output_tail from verifications") == [""]


def test_the_end_of_a_long_output_is_kept(db: Connection[DictRow]) -> None:
    _, attempt = begin(db, host(db), verify="true")
    verified(db, attempt, False, output="x" * 100_000 + "ü" * 30_000 + "the end")
    (kept,) = column(db, "select output_tail from verifications")
    assert kept.endswith("ü" * 1000 + "the end")
    assert len(kept) == 20_000


def test_the_first_word_counts(db: Connection[DictRow]) -> None:
    """A repeated call, because its answer was lost, changes nothing; nor does an agent that would like another word."""
    _, attempt = begin(db, host(db), verify="true")
    verified(db, attempt, False, output="no")
    for passed in (False, True):
        verified(db, attempt, passed, output="again")
    assert rows(db, "select passed, output_tail from verifications") == [{"passed": False, "output_tail": "no"}]
    assert unclear(refusal(db, f"select complete_task({attempt})"), "TY004") == ""


@pytest.mark.parametrize(
    "call",
    [
        "{attempt}, null, 0, '', '1 s'", "{attempt}, true, 1, '', '1 s'", "{attempt}, true, null, '', '1 s'", "{attempt}, true, 0, '', null",
        "{plain}, true, 0, '', '1 s'",
    ],
)  # fmt: skip
def test_a_word_that_cannot_be_is_refused(db: Connection[DictRow], call: str) -> None:
    runner = host(db)
    (_, attempt), (_, plain) = begin(db, runner, verify="true"), begin(db, runner)
    before = contents(db)
    error = refusal(db, f"select report_verification({call.format(attempt=attempt, plain=plain)})")
    assert unclear(error, "TY001") == ""
    assert contents(db) == before


def test_an_attempt_that_is_over_is_not_verified(db: Connection[DictRow]) -> None:
    _, attempt = begin(db, host(db), verify="true")
    end(db, attempt, "crashed")
    assert unclear(refusal(db, f"select report_verification({attempt}, true, 0, '', '1 s')"), "TY005") == ""
    assert value(db, "select count(*) from verifications") == 0


def test_a_proof_of_one_attempt_is_none_of_the_next(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner, verify="true")
    verified(db, attempt, True)
    end(db, attempt, "crashed")
    again = claim_of(db, runner, task)["attempt_id"]
    assert unclear(refusal(db, f"select complete_task({again})"), "TY004") == ""


# --- Which command.


def test_an_agent_has_a_command_of_its_own_and_a_task_another(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into agents (name, route, command, verify) values ('careful', '{command}', '{true}', 'make lint')"
    )
    runner = host(db)
    for verify in (None, "make test"):
        task = insert(db, agent="careful", verify=verify)
        row = claim_of(db, runner, task)
        assert row["verify"] == (verify or "make lint")
        assert unclear(refusal(db, "select complete_task(%s)", row["attempt_id"]), "TY004") == ""
        verified(db, row["attempt_id"], True)
        assert end(db, row["attempt_id"]) == "completed"
    assert column(db, "select command from verifications order by attempt_id") == ["make lint", "make test"]


def test_many_that_are_claimed_at_once_have_it_too(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into agents (name, route, command, verify) values ('careful', '{command}', '{true}', 'make lint')"
    )
    for _ in range(5):
        insert(db, agent="careful")
    found = claim(db, host(db), 50)
    assert [row["verify"] for row in found] == ["make lint"] * 5
    for row in found:
        assert unclear(refusal(db, "select complete_task(%s)", row["attempt_id"]), "TY004") == ""


def test_nobody_changes_the_command_while_it_runs(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute(
        "insert into agents (name, route, command, verify) values ('careful', '{command}', '{true}', 'make lint')"
    )
    runner = host(db)
    task, attempt = begin(db, runner, verify="make test")
    other = insert(db, agent="careful")
    own = claim_of(db, runner, other)["attempt_id"]
    for connection in (db, yard.connect("submitter")):
        for change in ("verify = null", "verify = 'true'"):
            error = refusal(connection, f"update tasks set {change} where id = {task}")
            assert unclear(error, "TY004") == "", change
    # An administrator may change the agent: that holds from the next claim on.
    db.execute("update agents set verify = null where name = 'careful'")
    for token, command in ((attempt, "make test"), (own, "make lint")):
        error = refusal(db, "select complete_task(%s)", token)
        assert error is not None
        assert (error.sqlstate, error.diag.message_detail) == ("TY004", command)


def test_what_has_been_edited_between_attempts_holds_from_the_next_on(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner, verify="make test")
    verified(db, attempt, False)
    end(db, attempt, "verify_failed")
    db.execute("update tasks set verify = 'make check' where id = %s", [task])
    row = claim_of(db, runner, task)
    assert row["verify"] == "make check"
    verified(db, row["attempt_id"], True)
    end(db, row["attempt_id"])
    assert column(db, "select command from verifications order by attempt_id") == ["make test", "make check"]


def test_who_goes_on_with_mail_after_passing_is_not_told_of_a_failure_before(
    yard: Yard, db: Connection[DictRow]
) -> None:
    clock = Clock(yard, db)
    here, there = host(db), host(db, "barn")
    task, attempt = begin(db, here, verify="make test")
    verified(db, attempt, False, output="1 failed")
    end(db, attempt, "verify_failed")
    row = claim_of(db, here, task)
    say(db, row["attempt_id"], "Mended.")
    verified(db, row["attempt_id"], True)
    db.execute("select say(%s, 'one more thing')", [task])
    assert end(db, row["attempt_id"]) == "queued"
    clock.advance(timedelta(minutes=3))
    db.execute("select tick()")
    note = claim_of(db, there, task)["note"]
    assert "one more thing" in note
    assert "did not pass" not in note


def test_the_question_which_agent_it_is_for_is_not_verified(db: Connection[DictRow]) -> None:
    models: list[dict[str, Any]] = [{"provider": "local", "account": "", "models": ["orchestrator"]}]
    brain = value(db, "select register_runner('brain', 4, '{}', %s)", Jsonb(models))
    task = insert(db, agent="auto", verify="make test")
    (row,) = claim(db, brain)
    assert row["verify"] is None
    assert end(db, row["attempt_id"], result=Jsonb({"agent": "shell"})) == "queued"
    row = claim_of(db, host(db), task)
    assert (row["agent"], row["verify"]) == ("shell", "make test")
    assert unclear(refusal(db, "select complete_task(%s)", row["attempt_id"]), "TY004") == ""
