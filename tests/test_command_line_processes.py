"""What the command line promises to scripts and terminals: real processes, signals, pipes and lost connections."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import psycopg
import pytest

from .command_line import DEADLINE, PROGRAM, Process, Worker, insert, until
from .conftest import Yard, column, value

LISTENING = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'taskyard'"


class Start(Protocol):
    def __call__(self, yard: Yard | None, *arguments: str, **environment: str) -> Process: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, and kills those that the test leaves behind."""
    with ExitStack() as stack:

        def run(yard: Yard | None, *arguments: str, **environment: str) -> Process:
            process = Process(yard, *arguments, **environment)
            stack.callback(process.kill)
            return process

        yield run


def test_wait_tells_how_tasks_ended_by_its_exit_code(start: Start, yard18: Yard) -> None:
    db = yard18.connect()
    worker = Worker(db)
    completed, failed, cancelled, waiting = (str(insert(db)) for _ in range(4))
    worker.end(worker.claim(), result=42)
    worker.end(worker.claim(), "permission_denied", error="may not")
    db.execute("select cancel_task(%s, 'never mind')", (cancelled,))
    expected = {
        (completed,): 0,
        (completed, failed, cancelled): 1,
        (completed, cancelled): 6,
        (failed, waiting, "--timeout", "0s"): 5,
        (waiting, "--timeout", "1s"): 5,
    }
    for arguments, code in expected.items():
        process = start(yard18, "wait", *arguments)
        assert process.end() == code, arguments
    process = start(yard18, "wait", completed, failed, cancelled)
    process.end()
    assert process.out.decode().splitlines() == [
        f"{completed} completed",
        f"{failed} failed: may not",
        f"{cancelled} cancelled: never mind",
    ]
    process = start(yard18, "wait", completed, "--json")
    process.end()
    assert json.loads(process.out) == [{"id": int(completed), "status": "completed", "result": 42, "error": None}]


def test_wait_ends_when_the_last_task_does(start: Start, yard18: Yard) -> None:
    db = yard18.connect()
    worker = Worker(db)
    ids = [insert(db), insert(db)]
    process = start(yard18, "wait", *map(str, ids))
    until(lambda: value(db, LISTENING))
    worker.end(worker.claim())
    worker.end(worker.claim())
    assert process.end() == 0


def test_submit_can_wait_and_still_prints_the_id_alone(start: Start, yard18: Yard) -> None:
    db = yard18.connect()
    worker = Worker(db)
    process = start(yard18, "submit", "--agent", "shell", "--wait", "work")
    attempt = until(worker.claim)
    assert until(lambda: process.out) == f"{column(db, 'select id from tasks')[0]}\n".encode()
    worker.end(attempt, "permission_denied", error="it may not")
    assert process.end() == 1
    assert b"it may not" in process.err
    process = start(yard18, "submit", "--agent", "shell", "--wait", "--json", "work")
    worker.end(until(worker.claim), result={"a": 1})
    assert process.end() == 0
    assert json.loads(process.out)["result"] == {"a": 1}


@pytest.mark.parametrize("command", ["wait", "logs -f"])
def test_ctrl_c_ends_quietly(start: Start, yard18: Yard, command: str) -> None:
    db = yard18.connect()
    number = insert(db)
    worker = Worker(db)
    worker.write(worker.claim(), (1, "output", "hello\n"))
    process = start(yard18, *command.split(), str(number))
    until(lambda: process.out == b"hello\n" if command == "logs -f" else value(db, LISTENING))
    process.interrupt()
    assert process.end() == 130
    assert process.err == b""


def test_a_reader_that_goes_away_is_no_error(yard18: Yard) -> None:
    db = yard18.connect()
    number = insert(db)
    worker = Worker(db)
    attempt = worker.claim()
    worker.write(attempt, *[(seq, "output", "x" * 9999 + "\n") for seq in range(1, 101)])  # more than a pipe holds
    for command in (f"logs {number}", f"logs --json {number}"):
        done = subprocess.run(
            ["bash", "-c", f"{PROGRAM} --dsn '{yard18.dsn}' {command} | head -c 5; echo ${{PIPESTATUS[0]}}"],
            capture_output=True,
            timeout=DEADLINE,
        )
        assert done.stderr == b""
        assert done.stdout.endswith(b"141\n")


def test_logs_follow_goes_on_through_later_attempts(start: Start, yard18: Yard) -> None:
    db = yard18.connect()
    number = insert(db)
    worker = Worker(db)
    process = start(yard18, "logs", "--follow", str(number))
    until(lambda: b"waiting for it to start" in process.err)
    first = worker.claim()
    worker.write(first, (1, "output", "one, "))
    until(lambda: process.out == b"one, ")
    worker.write(first, (2, "output", "two"))
    worker.end(first, "crashed")
    until(lambda: process.out == b"one, two\n")
    second = worker.claim()
    worker.write(second, (1, "output", "three\n"), (2, "error", "four\n"))
    worker.end(second)
    assert process.end() == 0
    assert process.out == b"one, two\nthree\n[error] four\n"
    assert b"attempt 1: crashed\nattempt 2: completed\n" in process.err


def test_logs_follow_and_wait_survive_a_lost_connection(start: Start, yard18: Yard) -> None:
    db = yard18.connect()
    number = insert(db)
    worker = Worker(db)
    attempt = worker.claim()
    worker.write(attempt, (1, "output", "before\n"))
    logs = start(yard18, "logs", "-f", "--json", str(number))
    wait = start(yard18, "wait", str(number))
    until(lambda: logs.out.count(b"\n") == 1 and value(db, LISTENING) == 2)
    admin = yard18.connect(superuser=True)
    killed = column(
        admin,
        "select pid from pg_stat_activity where datname = current_database() and application_name = 'taskyard'",
    )
    assert len(killed) == 2
    assert all(value(admin, "select pg_terminate_backend(%s)", pid) for pid in killed)
    until(lambda: b"connected again" in logs.err and b"connected again" in wait.err)
    worker.write(attempt, (2, "output", "after\n"))
    worker.end(attempt)
    assert (logs.end(), wait.end()) == (0, 0)
    assert [json.loads(line)["body"] for line in logs.out.splitlines()] == ["before\n", "after\n"]


def test_logs_follow_asks_about_once_a_second(start: Start, yard18: Yard) -> None:
    db = yard18.connect()
    number = insert(db)
    worker = Worker(db)
    attempt = worker.claim()
    worker.write(attempt, (1, "output", "x\n"))
    process = start(yard18, "logs", "-f", str(number))
    until(lambda: process.out)
    # Others' tasks are talked about all the time; that is no reason to look.
    seen: set[str] = set()

    def polled() -> int:
        insert(db)
        seen.update(
            map(
                str,
                column(
                    db,
                    "select query_start from pg_stat_activity where datname = current_database()"
                    " and application_name = 'taskyard'",
                ),
            )
        )
        return value(db, "select clock_timestamp() > max(started_at) + interval '5 seconds' from attempts")

    until(polled)
    assert 2 <= len(seen) <= 14, seen  # two statements per look
    process.interrupt()
    process.end()


def test_db_psql_takes_psql_s_own_options(start: Start, yard18: Yard) -> None:
    home = str(yard18.cluster.home)
    process = start(None, "db", "psql", "-At", "-c", "select 40 + 2", "-c", "select 1", TASKYARD_HOME=home)
    assert (process.end(), process.out) == (0, b"42\n1\n")
    process = start(None, "db", "psql", "-c", "select nonsense", TASKYARD_HOME=home)
    assert process.end() == 1  # psql's own


def test_db_status_and_url_tell_of_the_embedded_server(start: Start, yard18: Yard, tmp_path: Path) -> None:
    home = str(yard18.cluster.home)
    process = start(None, "db", "status", "--json", TASKYARD_HOME=home)
    assert process.end() == 0
    assert json.loads(process.out)["running"] is True
    for arguments, role in (([], "yard"), (["--admin"], "postgres")):
        process = start(None, "db", "url", *arguments, TASKYARD_HOME=home)
        assert process.end() == 0
        with psycopg.connect(process.out.decode().strip()) as connection:
            assert connection.info.user == role

    empty = str(tmp_path / "empty")
    for arguments, code in ((["db", "status"], 1), (["db", "url"], 4), (["db", "psql"], 4), (["list"], 4)):
        process = start(None, *arguments, TASKYARD_HOME=empty)
        assert process.end() == code, arguments
    process = start(None, "--dsn", yard18.dsn, "db", "stop", TASKYARD_HOME=empty)
    assert process.end() == 2


def test_bytes_on_the_command_line_that_are_no_text_are_refused(yard18: Yard) -> None:
    done = subprocess.run(
        [PROGRAM.encode(), b"--dsn", yard18.dsn.encode(), b"submit", b"caf\xe9"], capture_output=True, timeout=DEADLINE
    )
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"not valid UTF-8" in done.stderr
