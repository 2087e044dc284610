"""What a scope means for real runs: files, programs, network, questions, budgets, and what is left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .agents import Agents
from .conftest import Yard, column, rows, value
from .fleet import Fleet, at_work, fleet_on, open_to_agents, until
from .stand_in import run_command, stalled, text
from .test_runner import ended, status


@pytest.fixture
def fleet(yard18: Yard, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def sql(yard18: Yard) -> Connection[DictRow]:
    return yard18.connect()


def run(sql: Connection[DictRow], prompt: str, scope: str = "default", **columns: object) -> dict[str, object]:
    return ended(sql, submit(sql, prompt, scope, **columns))


def submit(sql: Connection[DictRow], prompt: str, scope: str = "default", **columns: object) -> int:
    return value(
        sql,
        "insert into tasks (prompt, agent, scope, workspace, max_attempts) values (%s, 'shell', %s, %s, 1) returning id",
        prompt,
        scope,
        columns.get("workspace"),
    )


def test_a_scope_without_write_reads_its_workspace_and_changes_nothing(
    fleet: Fleet, sql: Connection[DictRow], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "text").write_text("as it was")
    open_to_agents(project)
    sql.execute("insert into scopes (name, parent, may_write) values ('review', 'default', false)")
    fleet.start("a")
    read = run(
        sql,
        "cat text; echo; echo new 2>/dev/null > text || echo refused; touch x || echo refused",
        "review",
        workspace=str(project),
    )
    assert read["result"] == "as it was\nrefused\nrefused"
    assert (project / "text").read_text() == "as it was"
    written = run(sql, "echo new > text", workspace=str(project))
    assert (written["status"], (project / "text").read_text()) == ("completed", "new\n")


def test_paths_of_a_scope_are_seen_and_others_do_not_exist(
    fleet: Fleet, sql: Connection[DictRow], tmp_path: Path
) -> None:
    shared, other = open_to_agents(tmp_path / "shared"), open_to_agents(tmp_path / "other")
    (shared / "notes").write_text("shared notes")
    sql.execute(
        "insert into scopes (name, parent, allowed_paths) values ('team', 'default', %s)",
        ([str(shared), "/no/such/place/on/this/host"],),
    )
    fleet.start("a")
    found = run(sql, f"cat {shared}/notes; echo; ls {other} 2>&1 | sed 's/.*: //'", "team")
    assert found["result"] == "shared notes\nNo such file or directory"


def test_without_execute_the_command_itself_starts_and_nothing_more(fleet: Fleet, sql: Connection[DictRow]) -> None:
    sql.execute("insert into scopes (name, parent, may_execute) values ('still', 'default', false)")
    fleet.start("a")
    found = run(sql, "echo the shell runs; /bin/echo so does echo 2>/dev/null || echo nothing else does", "still")
    assert found["result"] == "the shell runs\nnothing else does"


def test_refused_hosts_are_told_in_the_transcript(fleet: Fleet, sql: Connection[DictRow]) -> None:
    sql.execute("insert into scopes (name, parent, network_allow) values ('web', 'default', '{*.example.com}')")
    sql.execute("insert into agents (name, route, command) values ('python', '{command}', '{/usr/bin/python3,-}')")
    fleet.start("a")
    program = (
        "import os, socket\n"
        "proxy = os.environ['HTTPS_PROXY'].split('//')[1].split(':')\n"
        "with socket.create_connection((proxy[0], int(proxy[1]))) as s:\n"
        "    s.sendall(b'CONNECT evil.test:443 HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n')\n"
        "    print(s.recv(4096).decode().split()[1])\n"
    )
    task = value(sql, "insert into tasks (prompt, agent, scope) values (%s, 'python', 'web') returning id", program)
    assert ended(sql, task)["result"] == "403"
    until(
        lambda: column(
            sql, "select body from transcript where kind = 'note' and body like 'Not reached: evil.test:443%'"
        ),
        5,
    )


def test_files_left_for_it_become_artifacts(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    task = run(
        sql,
        'cd "$TASKYARD_ARTIFACTS"; mkdir logs; echo one > logs/a.txt; ln -s /etc/passwd link; mkfifo pipe;'
        " head -c 5000000 /dev/zero > large; echo done",
    )
    assert task["result"] == "done"
    kept = rows(sql, "select path, size, convert_from(content, 'UTF8') as text, task_id from artifacts order by path")
    assert kept == [
        {"path": "large", "size": 5000000, "text": None, "task_id": task["id"]},
        {"path": "logs/a.txt", "size": 4, "text": "one\n", "task_id": task["id"]},
    ]
    refused = column(sql, "select body from transcript where kind = 'note' order by body")
    assert ["link" in refused[0], "pipe" in refused[1], len(refused)] == [True, True, 2]


def test_an_agent_that_asks_holds_no_slot_and_goes_on_with_what_was_allowed(
    fleet: Fleet, sql: Connection[DictRow], tmp_path: Path
) -> None:
    project = open_to_agents(tmp_path / "project")
    sql.execute("insert into scopes (name, parent, may_write) values ('review', 'default', false)")
    fleet.start("a", "--slots", "1")
    task = submit(sql, "touch ok && echo written && exit; sleep 311.25", "review", workspace=str(project))
    until(lambda: at_work("sleep", "311.25"))
    attempt = value(sql, "select attempt_id from tasks where id = %s", task)
    approval = value(sql, "select request_permission(%s, '{write}', p_why => 'to fix the typo')", attempt)
    until(lambda: status(sql, task) == "waiting", 10)
    assert at_work("sleep", "311.25") == []
    assert value(sql, "select outcome from attempts") == "waiting"
    assert run(sql, "echo somebody else uses the slot")["status"] == "completed"
    assert value(sql, "select asks from inbox where id = %s", approval).startswith("write?")
    sql.execute("select approve(%s)", (approval,))
    after = ended(sql, task)
    assert (after["status"], after["result"], after["failure_count"]) == ("completed", "written", 0)
    assert (project / "ok").exists()


def test_a_permission_asked_for_and_given_goes_on_in_the_same_session(agents: Agents) -> None:
    sql = agents.sql
    sql.execute("insert into scopes (name, parent, may_network) values ('quiet', 'default', false)")
    agents.start("a")
    agents.claude.script(
        run_command("echo looked around", words="I need the network."), stalled("Let me see"), text("Looked it up.")
    )
    task = value(sql, "insert into tasks (prompt, agent, scope) values ('look it up', 'claude', 'quiet') returning id")
    agents.claude.wait_for(2, seconds=60)
    attempt = value(sql, "select attempt_id from tasks where id = %s", task)
    approval = value(
        sql, "select request_permission(%s, p_hosts => '{docs.example.com}', p_why => 'to read the manual')", attempt
    )
    until(lambda: status(sql, task) == "waiting", 20)
    assert value(sql, "select permissions from effective_scope('quiet')") == [
        "read",
        "write",
        "execute",
        "create_child",
    ]
    sql.execute("select approve(%s, 'only the manual')", (approval,))
    assert ended(sql, task, 60)["result"] == "Looked it up."
    attempts = rows(sql, "select outcome, session_id from attempts order by id")
    assert [attempt["outcome"] for attempt in attempts] == ["waiting", "completed"]
    assert attempts[0]["session_id"] == attempts[1]["session_id"] is not None
    told = agents.claude.requests[-1].text
    assert "Allowed from now on: May it reach docs.example.com? to read the manual" in told
    assert "only the manual" in told


def test_a_scope_that_is_narrowed_takes_back_what_runs(fleet: Fleet, sql: Connection[DictRow]) -> None:
    sql.execute("insert into scopes (name, parent) values ('team', 'default'), ('team/web', 'team')")
    fleet.start("a")
    inside = submit(
        sql, 'test "$TASKYARD_ATTEMPT" = 2 && echo ${HTTPS_PROXY:-no proxy} && exit; sleep 312.25', "team/web"
    )
    outside = submit(sql, "sleep 313.25")
    until(lambda: at_work("sleep", "312.25") and at_work("sleep", "313.25"))
    sql.execute("update scopes set may_network = false where name = 'team'")
    after = ended(sql, inside, 20)
    assert (after["result"], after["failure_count"]) == ("no proxy", 0)
    assert column(sql, "select evidence from attempts where task_id = %s order by id", inside)[0] == (
        "released: scope team/web was narrowed"
    )
    assert at_work("sleep", "313.25")
    sql.execute("select cancel_task(%s)", (outside,))
    until(lambda: status(sql, outside) == "cancelled")


def test_a_budget_that_stops_what_runs_gives_it_back(fleet: Fleet, sql: Connection[DictRow]) -> None:
    sql.execute("insert into scopes (name, parent) values ('home', 'default')")
    fleet.start("a")
    task = submit(sql, 'test "$TASKYARD_ATTEMPT" = 2 && echo went on && exit; sleep 314.25', "home")
    until(lambda: at_work("sleep", "314.25"))
    sql.execute(
        "insert into budgets (scope, measure, period, amount, stops_running) values ('home', 'seconds', 'total', 2, true)"
    )
    until(lambda: status(sql, task) == "queued", 15)
    assert at_work("sleep", "314.25") == []
    assert "used up" in column(sql, "select explain_task(%s)", task)[1]
    until(lambda: column(sql, "select id from inbox"), 5)
    sql.execute("update budgets set amount = 1000")
    assert ended(sql, task)["result"] == "went on"
