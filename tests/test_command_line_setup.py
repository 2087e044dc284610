"""install, uninstall and doctor."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from taskyard.runner.cli import doctor
from taskyard.runner.health import Runner
from taskyard.runner.sandbox.levels import Confinement

from .command_line import Worker, insert, taskyard
from .conftest import Yard, value

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def bare(yard18: Yard) -> Iterator[str]:
    """A database without Taskyard; its connection string."""
    name = f"bare_{yard18.name}"
    with psycopg.connect(yard18.cluster.url("postgres", admin=True), autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} owner yard").format(sql.Identifier(name)))
        yield yard18.cluster.url(name)
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_a_database_without_taskyard_is_told_how_to_get_it(bare: str) -> None:
    for command in (["list"], ["submit", "x"], ["show", "1"], ["explain", "1"], ["wait", "1"]):
        found = taskyard(bare, *command)
        assert found.exit_code == 3, command
        assert "Run: taskyard install" in found.stderr, command


def test_install_says_what_it_did_and_can_be_repeated(bare: str) -> None:
    first = taskyard(bare, "install")
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("Taskyard is installed in database bare_")
    insert_one = taskyard(bare, "submit", "kept")
    again = taskyard(bare, "install", "--json")
    assert json.loads(again.stdout)["before"] == json.loads(again.stdout)["after"]
    assert "was current already" in taskyard(bare, "install").stdout
    assert taskyard(bare, "show", insert_one.stdout.strip()).exit_code == 0


def test_uninstall_asks_and_names_what_would_be_lost(yard18: Yard) -> None:
    db = yard18.connect()
    for _ in range(3):
        insert(db)
    for answer in ("n\n", ""):
        refused = taskyard(yard18, "uninstall", stdin=answer)
        assert refused.exit_code == 1
        assert f"drops 3 tasks for good from database {yard18.name}" in refused.stderr
        assert value(db, "select count(*) from tasks") == 3
    assert taskyard(yard18, "uninstall", "--yes").exit_code == 0
    assert value(db, "select to_regnamespace('taskyard') is null")
    assert taskyard(yard18, "uninstall", "--yes").exit_code == 3


def findings(yard: Yard | str) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in json.loads(taskyard(yard, "doctor", "--json").stdout)}


def problems(yard: Yard | str) -> set[str]:
    return {name for name, finding in findings(yard).items() if finding["state"] == "problem"}


def test_doctor_finds_nothing_wrong_with_a_yard_that_runs(yard18: Yard) -> None:
    assert problems(yard18) == {"runners"}
    assert taskyard(yard18, "doctor").exit_code == 1
    Worker(yard18.connect())
    assert problems(yard18) == set()
    found = taskyard(yard18, "doctor")
    assert found.exit_code == 0
    assert re.search(r"host-a 0/5, seen \ds ago", found.stdout)
    assert findings(yard18)["default agent"]["state"] == "remark"


def test_doctor_finds_what_is_broken_in_a_database(yard18: Yard) -> None:
    db = yard18.connect()
    Worker(db)
    owner = yard18.connect(superuser=True)
    week = value(db, "select to_char(date_trunc('week', now(), 'UTC') at time zone 'UTC', 'YYYYMMDD')")
    owner.execute(sql.SQL("drop table taskyard.{}").format(sql.Identifier(f"transcript_{week}")))
    owner.execute("update taskyard.schema_migrations set number = 999")
    owner.execute("update taskyard.runners set last_seen = now() - interval '1 minute'")
    owner.execute(sql.SQL("alter database {} reset search_path").format(sql.Identifier(yard18.name)))
    owner.execute("drop schema pgmq cascade")
    assert problems(yard18) == {"partitions", "schema", "runners", "search_path", "pgmq"}
    assert f"transcript_{week}" in findings(yard18)["partitions"]["found"]


def test_doctor_finds_a_login_without_roles(yard18: Yard) -> None:
    with psycopg.connect(yard18.superuser_dsn, autocommit=True) as admin:
        login = yard18.login("stranger", "viewer")
        admin.execute(sql.SQL("revoke taskyard_viewer from {}").format(sql.Identifier(f"stranger_{yard18.name}")))
    found = findings(login)
    assert found["login"]["state"] == "problem"
    assert "taskyard_submitter" in found["login"]["cure"]


def test_doctor_stops_where_there_is_nothing_to_look_at(bare: str) -> None:
    found = findings(bare)
    assert found["schema"]["cure"] == "taskyard install"
    assert "runners" not in found
    assert problems("host=127.0.0.1 port=1 password=hunter2") == {"database"}
    assert "hunter2" not in taskyard("host=127.0.0.1 port=1 password=hunter2", "doctor").output


@pytest.mark.parametrize(
    ("ahead", "state"), [(0.0, "ok"), (1.5, "ok"), (-1.5, "ok"), (2.5, "problem"), (-2.5, "problem")]
)
def test_clocks_may_differ_by_two_seconds(ahead: float, state: str) -> None:
    there = NOON + timedelta(seconds=ahead)
    assert doctor.judge_clock(NOON, there, NOON).state == state
    # A slow answer is not a wrong clock.
    assert doctor.judge_clock(NOON, NOON + timedelta(seconds=3), NOON + timedelta(seconds=5)).state == "ok"


def test_an_old_transaction_is_a_problem_and_hidden_ones_are_a_remark() -> None:
    old = [{"who": "pid 7 of ann", "what": "psql", "age": timedelta(hours=3)}]
    found = doctor.judge_transactions(old, all_seen=True)
    assert (found.state, "pid 7 of ann (psql) since 3h" in found.found) == ("problem", True)
    assert doctor.judge_transactions([], all_seen=False).state == "remark"
    assert doctor.judge_transactions([], all_seen=True).state == "ok"


def test_a_runner_that_fell_silent_is_a_problem() -> None:
    up = Runner("a", 2, 1, False, timedelta(seconds=3), silent=False, trouble=None)
    silent = Runner("b", 2, 0, True, timedelta(seconds=40), silent=True, trouble=None)
    assert doctor.judge_runners([up]).state == "ok"
    found = doctor.judge_runners([up, silent])
    assert (found.state, found.found) == ("problem", "a 1/2, seen 3s ago; b 0/2, draining, seen 40s ago")


def test_a_runner_without_a_sandbox_is_a_problem() -> None:
    bare = Runner("a", 2, 0, False, timedelta(seconds=3), silent=False, trouble="bwrap is not installed.")
    found = doctor.judge_runners([bare])
    assert (found.state, "a has no sandbox, so it gets nothing: bwrap" in found.found) == ("problem", True)
    here = doctor.judge_sandbox(Confinement("strict", trouble="bwrap is not installed.\napt install bubblewrap"))
    assert (here.state, here.cure) == ("remark", "apt install bubblewrap")


def test_the_schema_is_current_old_or_from_the_future() -> None:
    states = [doctor.judge_schema(number, 4).state for number in (4, 3, 5, None)]
    assert states == ["ok", "problem", "problem", "problem"]


@pytest.mark.parametrize("columns", [40, 80])
def test_doctor_fits_its_terminal(yard18: Yard, columns: int) -> None:
    lines = taskyard(yard18, "doctor", columns=columns).stdout.splitlines()
    # Paths, URLs and cures stay whole, so that they can be copied.
    long = [line for line in lines if len(line) > columns and "cure:" not in line and "/" not in line]
    assert long == []
