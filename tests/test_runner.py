"""What a runner promises about the work it starts."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .fleet import Fleet, at_work, fleet_on, open_to_agents, until


@pytest.fixture
def fleet(yard18: Yard, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def sql(yard18: Yard) -> Connection[DictRow]:
    return yard18.connect()


def submit(sql: Connection[DictRow], prompt: str, **columns: object) -> int:
    return value(
        sql,
        "select submit_task(%s, 'shell', p_timeout => %s, p_max_attempts => %s, p_workspace => %s)",
        prompt,
        columns.get("timeout"),
        columns.get("max_attempts", 1),
        columns.get("workspace"),
    )


def status(sql: Connection[DictRow], task: int) -> str:
    return value(sql, "select status from tasks where id = %s", task)


def ended(sql: Connection[DictRow], task: int, seconds: float = 20) -> dict[str, object]:
    until(lambda: value(sql, "select finished_at from tasks where id = %s", task), seconds, f"for task {task}")
    return rows(sql, "select * from tasks where id = %s", task)[0]


def test_a_plain_insert_is_run_and_its_output_is_the_result(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    sql.execute("insert into tasks (prompt, agent) values ('echo hello', 'shell')")
    task = ended(sql, 1)
    assert (task["status"], task["result"]) == ("completed", "hello")
    assert column(sql, "select body from transcript order by seq") == ["hello\n"]


def test_the_prompt_comes_on_standard_input_also_when_it_is_a_megabyte_and_unread(
    fleet: Fleet, sql: Connection[DictRow]
) -> None:
    fleet.start("a")
    sql.execute(
        "insert into agents (name, route, command) values ('count', '{command}', '{wc,-c}'), ('deaf', '{command}', '{true}')"
    )
    for agent in ("count", "deaf"):
        sql.execute("insert into tasks (prompt, agent) values (repeat('x', 1 << 20), %s)", (agent,))
    assert ended(sql, 1)["result"] == str(1 << 20)
    assert ended(sql, 2)["status"] == "completed"


def test_an_agent_of_format_json_gives_a_document_or_fails(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    sql.execute("insert into agents (name, route, command, result_format) values ('j', '{command}', '{sh,-s}', 'json')")
    sql.execute(
        "insert into tasks (prompt, agent, max_attempts) values ('echo ''{\"n\": [1, 2]}''', 'j', 1), ('echo no json', 'j', 1)"
    )
    assert ended(sql, 1)["result"] == {"n": [1, 2]}
    failed = ended(sql, 2)
    assert failed["status"] == "failed"
    assert "did not print one JSON document" in str(failed["error"])


def test_the_template_of_an_agent_is_filled_in_and_other_braces_stay(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    sql.execute(
        "insert into agents (name, route, command) values ('t', '{command}', array['echo', '{task_id}', '{attempt}', '{model}', '{}', '{other}'])"
    )
    sql.execute("insert into tasks (prompt, agent, model) values ('x', 't', 'big')")
    assert ended(sql, 1)["result"] == "1 1 big {} {other}"


def test_a_child_sees_a_clean_environment_without_our_credentials(
    fleet: Fleet, sql: Connection[DictRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "do not pass on")
    monkeypatch.setenv("PGSSLKEY", "neither")
    fleet.start("a")
    seen = str(ended(sql, submit(sql, "env; ls /proc/self/fd"))["result"])
    assert "TASKYARD_TASK=1" in seen
    for secret in ("MY_SECRET", "PGSSLKEY", "TASKYARD_DSN", "passfile", "postgresql://"):
        assert secret not in seen
    descriptors = [line for line in seen.split("\n") if line.isdigit()]
    assert set(descriptors) <= {"0", "1", "2", "3"}, "an open file of the runner reached the child"


def test_a_failing_command_fails_with_its_last_words(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    task = ended(sql, submit(sql, "echo context; echo 'disk is full' >&2; exit 7"))
    assert (task["status"], task["error"]) == ("failed", "Exit status 7: disk is full")
    assert rows(sql, "select exit_code, counted from attempts") == [{"exit_code": 7, "counted": True}]


def test_a_command_that_does_not_exist_fails_with_a_sentence(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    sql.execute("insert into agents (name, route, command) values ('gone', '{command}', '{/no/such/tool}')")
    sql.execute("insert into tasks (prompt, agent, max_attempts) values ('x', 'gone', 1)")
    assert "No such file" in str(ended(sql, 1)["error"])


@pytest.mark.slow
def test_past_its_timeout_all_that_it_started_is_ended(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    task = submit(sql, "trap '' TERM; (trap '' TERM; exec sleep 301.25) & wait; sleep 302.25", timeout="2 seconds")
    until(lambda: at_work("sleep", "301.25"), 5)
    assert "Stopped after" in str(ended(sql, task)["error"])
    assert value(sql, "select outcome from attempts") == "timed_out"
    assert at_work("sleep", "301.25") + at_work("sleep", "302.25") == []


def test_a_background_process_does_not_keep_the_task_and_does_not_stay(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    task = submit(sql, "setsid sleep 303.25 & sleep 1; echo done")
    until(lambda: at_work("sleep", "303.25"), 5)
    assert ended(sql, task, 10)["result"] == "done"
    assert at_work("sleep", "303.25") == []


@pytest.mark.timed
def test_a_running_task_is_cancelled_at_once(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    task = submit(sql, "sleep 304.25")
    until(lambda: at_work("sleep", "304.25"))
    assert value(sql, "select cancel_task(%s, 'enough')", task) == "stopping"
    took = until(lambda: status(sql, task) == "cancelled", 10)
    assert took < 3, f"the notification should beat the next heartbeat, but it took {took:.1f} s"
    assert at_work("sleep", "304.25") == []
    assert value(sql, "select error from tasks") == "enough"


@pytest.mark.timed
def test_output_is_readable_within_a_second_while_the_command_runs(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    task = submit(sql, "echo first; sleep 60")
    until(lambda: status(sql, task) == "running")
    took = until(lambda: column(sql, "select body from transcript") == ["first\n"], 5)
    assert took < 1.5
    sql.execute("select cancel_task(%s)", (task,))


@pytest.mark.timed
def test_a_task_that_is_committed_as_a_runner_falls_asleep_is_found_soon(
    fleet: Fleet, yard18: Yard, sql: Connection[DictRow]
) -> None:
    """Who inserts sees nobody sleep, and notifies nobody; the runner sees no task, and sleeps; then comes the commit."""
    asleep = (
        "select count(*) from pg_locks l join pg_database d on d.oid = l.database and d.datname = current_database()"
        " where l.locktype = 'advisory' and l.classid = 742102 and l.mode = 'ShareLock'"
    )
    fleet.start("a", "--slots", "1")
    until(lambda: value(sql, asleep) == 1)
    first = submit(sql, "sleep 2")
    until(lambda: status(sql, first) == "running" and value(sql, asleep) == 0)
    writer = yard18.connect()
    with writer.transaction():
        task = value(writer, "insert into tasks (prompt, agent) values ('echo found', 'shell') returning id")
        until(lambda: status(sql, first) == "completed" and value(sql, asleep) == 1)
        time.sleep(2)
    until(lambda: status(sql, task) == "completed", 8)  # and not after a poll


def test_nul_bytes_and_broken_utf8_in_the_output_do_no_harm(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    task = ended(sql, submit(sql, r"printf 'a\000b\377c'"))
    assert task["result"] == "a�b�c"


def test_a_workspace_is_used_and_kept_and_a_scratch_directory_goes(
    fleet: Fleet, sql: Connection[DictRow], tmp_path: Path
) -> None:
    fleet.start("a")
    workspace = open_to_agents(tmp_path / "project")
    ended(sql, submit(sql, "pwd > here", workspace=str(workspace)))
    assert (workspace / "here").read_text().strip() == str(workspace)
    scratch = str(ended(sql, submit(sql, "touch file; pwd"))["result"])
    assert not Path(scratch).exists()
    missing = ended(sql, submit(sql, "true", workspace="/no/such/place"))
    assert (missing["status"], missing["error"]) == ("failed", "This host has no directory /no/such/place.")


def test_sigterm_drains_and_a_second_one_gives_the_tasks_back(fleet: Fleet, sql: Connection[DictRow]) -> None:
    runner = fleet.start("a", "--slots", "2")
    short, long = submit(sql, "sleep 1; echo ended"), submit(sql, "sleep 300")
    until(lambda: status(sql, short) == status(sql, long) == "running")
    runner.signal(signal.SIGTERM)
    late = submit(sql, "echo late")
    assert ended(sql, short)["status"] == "completed"
    assert (status(sql, long), status(sql, late)) == ("running", "queued"), "it claims nothing more and stops nothing"
    runner.signal(signal.SIGTERM)
    assert runner.process.wait(15) == 0
    assert status(sql, long) == "queued"
    assert rows(sql, "select failure_count from tasks where id = %s", long) == [{"failure_count": 0}]
    assert value(sql, "select gone_reason from runners") == "the runner left"


def test_two_runners_of_one_name_are_refused_with_a_sentence(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    until(lambda: value(sql, "select locked from runners"))
    twin = fleet.start("a")
    assert twin.process.wait(15) == 3
    assert "A runner named a is running already." in twin.log.read_text()


def test_a_wrong_password_ends_the_runner_with_a_sentence(fleet: Fleet) -> None:
    runner = fleet.start("a", env={"PGPASSWORD": "wrong"})
    assert runner.process.wait(15) == 4
    assert "password authentication failed" in runner.log.read_text()
    assert "Traceback" not in runner.log.read_text()


def test_behind_a_pooler_polling_alone_is_enough(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a", "--pooler")
    until(lambda: value(sql, "select count(*) from runners") == 1)
    assert ended(sql, submit(sql, "echo polled"), 10)["result"] == "polled"
    assert rows(sql, "select locked from runners") == [{"locked": False}]
    assert value(sql, "select count(*) from pg_locks where locktype = 'advisory'") == 0


@pytest.mark.parametrize("size", [50_000_000, pytest.param(300_000_000, marks=pytest.mark.slow)])
def test_memory_stays_bounded_whatever_a_command_prints(fleet: Fleet, sql: Connection[DictRow], size: int) -> None:
    runner = fleet.start("a", "--slots", "8")
    tasks = [submit(sql, f"head -c {size} /dev/zero | tr '\\0' 'x'") for _ in range(8)]
    highest = 0

    def over() -> bool:
        nonlocal highest
        highest = max(highest, runner.memory())
        return value(sql, "select count(*) from tasks where finished_at is null") == 0

    until(over, 120, "for all the output")
    assert [status(sql, task) for task in tasks] == ["completed"] * 8
    assert value(sql, "select count(*) from transcript where kind = 'note'") == 8
    print(f"highest resident memory {highest / 1e6:.0f} MB with 8 slots printing {size / 1e6:.0f} MB each")
    assert highest < 150e6


def test_a_runner_at_rest_needs_less_than_80_mb(fleet: Fleet, sql: Connection[DictRow]) -> None:
    runner = fleet.start("a", "--slots", "8")
    tasks = [submit(sql, "sleep 1; echo done") for _ in range(8)]
    until(lambda: value(sql, "select count(*) from attempts where outcome is null") == 8)
    for task in tasks:
        ended(sql, task)
    print(f"resident memory {runner.memory() / 1e6:.0f} MB")
    assert runner.memory() < 80e6


@pytest.mark.timed
def test_an_agent_cannot_outlive_a_killed_runner(fleet: Fleet, sql: Connection[DictRow]) -> None:
    runner = fleet.start("a")
    submit(sql, "sleep 305.25")
    until(lambda: at_work("sleep", "305.25"))
    runner.kill()
    took = until(lambda: not at_work("sleep", "305.25"), 10)
    assert took < 1
