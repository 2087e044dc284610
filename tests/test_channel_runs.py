"""The channel in the life of attempts: real tools and real children at it, well-behaved and not."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .agents import MOSTLY_CLAUDE, Agents, agents_on
from .conftest import Yard, column, rows, value
from .fleet import Fleet, fleet_on, until
from .stand_in import Request, Step, run_command, text
from .test_runner import ended
from .test_teamwork import answers, ask, heard
from .vendor_tools import tool


@pytest.fixture
def fleet(yard18: Yard, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def sql(yard18: Yard) -> Connection[DictRow]:
    return yard18.connect()


def submit(sql: Connection[DictRow], prompt: str, **columns: Any) -> int:
    return value(sql, "insert into tasks (prompt, agent, scope, max_attempts) values (%s, %s, %s, 1) returning id", prompt, columns.get("agent", "shell"), columns.get("scope", "default"))  # fmt: skip


@pytest.mark.slow
def test_an_agent_that_asks_again_instead_of_ending_its_turn_works_on_with_what_came(agents: Agents) -> None:
    """It is told to end its turn; where it does not, and what it waits for is there, nobody stops it."""

    def model(_: datetime, request: Request) -> Step:
        children = answers(request, "task")
        if not children:
            return ask(request, "spawn_task", prompt="sleep 1; echo from the child", agent="shell")
        if '"results"' in heard(request):
            until(lambda: time.monotonic() > began + 17, 30)  # longer than the patience with those who wait
            return text(f"got it: {'from the child' in heard(request)}")
        return ask(request, "wait_for", tasks=children[:1])

    began = time.monotonic()
    agents.claude.script(model)
    runner = agents.start("a", "--slots", "2")
    began = time.monotonic()
    assert ended(agents.sql, agents.submit("do it", "claude"), 90)["result"] == "got it: True"
    assert column(agents.sql, "select outcome::text from attempts order by id") == ["completed", "completed"]
    print(f"resident memory {runner.memory() / 1e6:.0f} MB")
    assert runner.memory() < 150e6


@pytest.mark.slow
@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_an_agent_that_does_not_end_its_turn_is_stopped_and_resumed(agents: Agents, name: str) -> None:
    def model(_: datetime, request: Request) -> Step:
        if "It may" in request.text or "go on" in request.text:
            return text("I was let go on")
        if not request.results:
            return ask(request, "ask_human", question="May I?")
        return run_command("sleep 100")

    sql = agents.sql
    agents.account(name).script(model)
    agents.start("a")
    task = agents.submit("ask first", name)
    until(lambda: value(sql, "select outcome::text from attempts") == "waiting", 60)
    assert value(sql, "select status::text from tasks") == "waiting"
    assert (
        value(
            sql,
            "select extract(epoch from a.finished_at - q.asked_at)::real from attempts a join approvals q on q.task_id = a.task_id",
        )
        > 13
    )
    value(sql, "select answer((select id from inbox), 'go on')")
    assert ended(sql, task, 60)["result"] == "I was let go on"


@pytest.mark.slow
def test_an_agent_that_spoils_the_place_of_the_program_goes_without_it(agents: Agents) -> None:
    """Nothing is written through its link, and its later attempts are none the worse."""

    def model(_: datetime, request: Request) -> Step:
        if "go on" in request.text:
            return text("went on")
        if not request.results:
            return run_command("rm -rf ~/.local && ln -s /tmp ~/.local && readlink ~/.local")
        if any("/tmp" in result for result in request.results):
            return ask(request, "wait_for", mail=True)
        return text("I wait.")

    sql = agents.sql
    agents.claude.script(model)
    agents.start("a")
    task = agents.submit("do it", "claude")
    until(lambda: value(sql, "select status::text from tasks") == "waiting", 60)
    value(sql, "select say(%s, 'go on')", task)
    assert ended(sql, task, 60)["result"] == "went on"
    assert column(sql, "select outcome::text from attempts order by id") == ["waiting", "completed"]
    assert not Path("/tmp/bin/taskyard-agent").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemini", "claude"])
def test_an_agent_that_may_only_read_and_has_a_list_of_tools_has_the_channel(agents: Agents, name: str) -> None:
    def model(_: datetime, request: Request) -> Step:
        return text("done") if request.results else ask(request, "report_progress", progress=1)

    sql = agents.sql
    sql.execute(
        "insert into scopes (name, parent, may_write, may_execute, may_network) values ('still', 'default', false, false, false)"
    )
    sql.execute("update agents set tools = %s where name = %s", (["Read"] if name == "claude" else ["read_file"], name))
    api = agents.account(name).script(model)
    agents.start("a")
    assert ended(sql, submit(sql, "x", agent=name, scope="still"), 60)["result"] == "done"
    assert value(sql, "select progress from attempts") == 1
    assert not any(name in ("Bash", "Write", "run_shell_command", "write_file") for name in api.requests[0].tools)


@pytest.mark.slow
@pytest.mark.parametrize("permissions", ["all", "none"])
def test_opencode_has_the_channel(yard18: Yard, tmp_path: Path, permissions: str) -> None:
    def model(_: datetime, request: Request) -> Step:
        return text("done") if request.results else ask(request, "report_progress", progress=1)

    with agents_on(yard18, tmp_path) as agents:
        sql = agents.sql
        sql.execute(
            "insert into scopes (name, parent, may_write, may_execute, may_network) values ('still', 'default', false, false, false)"
        )
        served = {"base_url": agents.codex.url + "/v1", "executable": str(tool("opencode"))}
        sql.execute("update providers set settings = %s where name = 'opencode'", (Jsonb({**served, "model": "m"}),))
        sql.execute("update agents set route = '{opencode}' where name = 'opencode'")
        agents.codex.script(model)
        agents.start("a")
        task = submit(sql, "x", agent="opencode", scope="default" if permissions == "all" else "still")
        assert ended(sql, task, 120)["result"] == "done"
        assert value(sql, "select progress from attempts") == 1


def test_without_a_jail_the_channel_is_on_the_hosts_loopback(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a", "--sandbox", "container", env={"container": "podman", "HTTP_PROXY": "http://127.0.0.1:9"})
    script = 'case $TASKYARD_CHANNEL in *:3130/*) exit 1;; esac; "$TASKYARD_AGENT" report-progress 0.5 >&2 && taskyard-agent load-checkpoint'
    assert ended(sql, submit(sql, script))["result"] == '{"checkpoint": null}'
    assert value(sql, "select progress from attempts") == 0.5


def test_a_file_of_the_workspace_is_kept_and_none_that_a_link_leads_to(fleet: Fleet, sql: Connection[DictRow]) -> None:
    fleet.start("a")
    script = """
        mkdir out; echo kept > out/notes.txt; ln -s /etc/passwd link; ln -s / all; mkfifo pipe
        taskyard-agent add-artifact out/notes.txt --name notes.txt >&2 || exit 3
        for path in link all/etc/passwd pipe out ../files/out/notes.txt /etc/passwd absent; do
            taskyard-agent add-artifact "$path" 2>>told && exit 4
        done
        cat told
    """
    task = ended(sql, submit(sql, script))
    assert task["status"] == "completed", task["error"]
    assert (
        str(task["result"]).count("\n") == 6
        and str(task["result"]).count("It cannot be kept: ") == 6
        and "root" not in str(task["result"])
    )
    assert rows(sql, "select path, convert_from(content, 'utf8') as text from artifacts") == [
        {"path": "notes.txt", "text": "kept\n"}
    ]


HOSTILE = """
import os, threading, time, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
url, token = os.environ["TASKYARD_CHANNEL"], os.environ["TASKYARD_TOKEN"]
bodies = [
    b"[" + b"{}," * 1_500_000 + b"{}]", b"[" + b"{}," * 130_000 + b"{}]", b"[" * 400_000, b"1" * 5_000_000,
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_artifacts"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"save_checkpoint","arguments":{"status":"x","progress":0,"data":{"x":"' + b"x" * 3_900_000 + b'"}}}}',
]
answered = [0]
def flood(mine):
    until = time.monotonic() + 8
    while time.monotonic() < until:
        request = urllib.request.Request(url, bodies[mine % len(bodies)], {
            "Content-Type": "application/json", "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {token}"})
        try:
            opener.open(request, timeout=30).read()
        except OSError:
            pass
        answered[0] += 1
threads = [threading.Thread(target=flood, args=(n,)) for n in range(24)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(answered[0] > 10)
"""


@pytest.mark.timed
def test_a_flood_of_costly_requests_neither_stops_nor_bloats_the_runner(fleet: Fleet, sql: Connection[DictRow]) -> None:
    runner = fleet.start("a", "--slots", "2", "--lease", "10s")
    task = submit(sql, f"cat > flood.py <<'END'\n{HOSTILE}\nEND\npython3 flood.py")
    until(lambda: value(sql, "select status::text from tasks where id = %s", task) == "running")
    others: list[int] = []
    most, stale = 0, 0.0

    def look() -> bool:
        nonlocal most, stale
        most = max(most, runner.memory())
        stale = max(stale, value(sql, "select extract(epoch from clock_timestamp() - last_seen)::real from runners"))
        if not others or value(sql, "select finished_at from tasks where id = %s", others[-1]):
            others.append(submit(sql, "echo fine"))
        return value(sql, "select finished_at from tasks where id = %s", task)

    until(look, 90)
    print(f"memory {most / 1e6:.0f} MB, heartbeat at most {stale:.1f} s late, {len(others) - 1} others meanwhile")
    assert (stale < 8, most < 250e6, len(others) > 1) == (True, True, True)
    assert ended(sql, task)["result"] == "True"
    assert ended(sql, others[-1])["result"] == "fine"
    assert column(sql, "select distinct outcome::text from attempts") == ["completed"]
