"""The real tools work together through their channel, inside the sandbox, in front of a stand-in for the vendors' APIs."""

import re
from datetime import datetime
from typing import Any

import pytest

from .agents import MOSTLY_CLAUDE, Agents
from .conftest import column, rows, value
from .fleet import until
from .stand_in import Request, Step, text, tool_call
from .test_runner import ended

TOOLS = ["claude", "codex", "gemini"]


def ask(request: Request, tool: str, **arguments: Any) -> Step:
    """A call of the channel's tool, by whatever name the program offers it; Codex has it deferred."""
    names = [name for name in request.tools if name.endswith(tool)]
    if not names and "tool_search" in request.tools:
        names = [f"mcp__taskyard__{tool}"]
    assert names, f"{tool} is not among {request.tools}"
    return tool_call(names[0], arguments)


def heard(request: Request) -> str:
    """All that the model was told since it spoke last."""
    return "\n".join((*request.results, request.text))


def answers(request: Request, key: str) -> list[int]:
    """The numbers that the tools told under this key in the whole conversation."""
    return [int(found) for found in re.findall(rf'\\*"{key}\\*": (\d+)', request.body.decode(errors="replace"))]


@pytest.mark.parametrize("name", ["claude", *(pytest.param(name, marks=pytest.mark.slow) for name in TOOLS[1:])])
def test_the_tools_of_the_channel_are_offered_and_can_be_called(agents: Agents, name: str) -> None:
    def model(_: datetime, request: Request) -> Step:
        if not request.results:
            return ask(request, "report_progress", progress=0.5, doing="half of it")
        return text("done")

    agents.account(name).script(model)
    agents.start("a")
    assert ended(agents.sql, agents.submit("do it", name), 60)["result"] == "done"
    assert rows(agents.sql, "select progress, doing from attempts") == [{"progress": 0.5, "doing": "half of it"}]


def parent(_: datetime, request: Request) -> Step:
    """Two children, one after the other; then it waits, unless both have ended already, and sums up what it is told."""
    children = answers(request, "task")
    words = sorted(set(re.findall(r"(\w+) speaking", heard(request))))
    if "What you waited for has come" in request.text or len(words) == 2:
        return text(f"both answered: {'and'.join(words)}")
    if len(children) == 0:
        return ask(request, "spawn_task", prompt="the first half", agent="codex")
    if len(children) == 1:
        return ask(request, "spawn_task", prompt="the second half", agent="gemini")
    if "waiting" not in heard(request):
        return ask(request, "wait_for", tasks=children[:2])
    return text("I wait.")


def test_a_parent_gets_the_results_of_its_children_on_a_runner_with_one_slot(agents: Agents) -> None:
    agents.claude.script(parent)
    agents.codex.script(text("codex speaking"))
    agents.gemini.script(text("gemini speaking"))
    agents.start("a", "--slots", "1")
    task = agents.submit("do both halves", "claude")
    assert ended(agents.sql, task, 120)["result"] == "both answered: codexandgemini"
    attempts = rows(
        agents.sql, "select outcome, session_id, counted from attempts where task_id = %s order by id", task
    )
    assert [attempt["outcome"] for attempt in attempts] == ["waiting", "completed"]
    assert attempts[0]["session_id"] == attempts[1]["session_id"] and not attempts[0]["counted"]
    assert rows(
        agents.sql, "select agent, status, parent_id, created_by from tasks where id <> %s order by id", task
    ) == [
        {"agent": agent, "status": "completed", "parent_id": task, "created_by": f"task {task}"}
        for agent in ("codex", "gemini")
    ]
    overlapping = "select count(*) from attempts a join attempts b on a.id < b.id and a.finished_at > b.started_at"
    assert value(agents.sql, overlapping) == 0


def test_codex_hands_over_to_claude_with_a_packet(agents: Agents) -> None:
    def leaving(_: datetime, request: Request) -> Step:
        if not request.results:
            return ask(
                request,
                "handoff",
                target="claude",
                reason="specialization",
                context_summary="the parser is done",
                pending_actions=["write its tests"],
            )
        return text("over to you")

    agents.codex.script(leaving)
    agents.claude.script(text("the tests are written"))
    agents.start("a")
    task = agents.submit("parser and tests", "codex")
    assert ended(agents.sql, task, 90)["result"] == "the tests are written"
    [request] = agents.claude.requests
    for told in ("You take over from codex", "the parser is done", "write its tests", "parser and tests"):
        assert told in request.text
    assert column(agents.sql, "select outcome::text from attempts order by id") == ["handed_off", "completed"]
    assert rows(agents.sql, "select source, target, reason, summary_by, to_task > task_id as later from handoffs") == [
        {"source": "codex", "target": "claude", "reason": "specialization", "summary_by": "agent", "later": True}
    ]


@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_a_permission_is_given_from_psql_and_the_same_session_goes_on(agents: Agents, name: str) -> None:
    def model(_: datetime, request: Request) -> Step:
        if "Allowed from now on" in request.text:
            return text("now I can")
        if not request.results:
            return ask(request, "request_permission", permissions=["network"], hosts=["example.com"], why="to look")
        return text("I wait.")

    sql = agents.sql
    sql.execute("insert into scopes (name, parent, may_network) values ('shut', 'default', false)")
    agents.account(name).script(model)
    agents.start("a")
    task = value(sql, "insert into tasks (prompt, agent, scope) values ('look', %s, 'shut') returning id", name)
    until(lambda: value(sql, "select status::text from tasks where id = %s", task) == "waiting", 60)
    assert value(sql, "select count(*) from attempts where outcome is null") == 0
    sql.execute("select approve((select id from inbox))")
    assert ended(sql, task, 60)["result"] == "now I can"
    assert value(sql, "select count(distinct session_id) from attempts") == 1


def test_mail_reaches_a_running_agent_with_its_next_tool_call(agents: Agents) -> None:
    def model(_: datetime, request: Request) -> Step:
        if "stop at the first error" in heard(request):
            return text("I was told")
        return ask(request, "report_progress", doing=f"step {len(agents.claude.requests)}")

    sql = agents.sql
    agents.claude.script(model)
    agents.start("a")
    task = agents.submit("go on and on", "claude")
    until(lambda: value(sql, "select doing from attempts"), 60)
    value(sql, "select say(%s, 'stop at the first error')", task)
    assert ended(sql, task, 60)["result"] == "I was told"
    assert column(sql, "select outcome::text from attempts") == ["completed"]


@pytest.mark.slow
def test_mail_that_comes_too_late_for_a_call_is_the_next_turn(agents: Agents) -> None:
    told: list[str] = []

    def model(_: datetime, request: Request) -> Step:
        if "one thing more" in request.text:
            return text("that too")
        told.append(value(agents.sql, "select say(1, 'one thing more')"))
        return text("done")

    agents.claude.script(model)
    agents.start("a")
    assert ended(agents.sql, agents.submit("do it", "claude"), 60)["result"] == "that too"
    assert told and column(agents.sql, "select outcome::text from attempts order by id") == ["waiting", "completed"]


def test_a_shell_task_has_the_tools_as_a_program(agents: Agents) -> None:
    script = """
        set -e
        child=$(taskyard-agent spawn-task 'echo from the child' --agent shell)
        echo "$child"
        number=$(echo "$child" | sed 's/.*"task": \\([0-9]*\\).*/\\1/')
        taskyard-agent wait-for "$number"
    """
    agents.start("a", "--slots", "1")
    task = agents.submit(script, "shell")
    result = str(ended(agents.sql, task, 60)["result"])
    assert '"existed": true' in result and "from the child" in result
    assert value(agents.sql, "select count(*) from tasks") == 2


@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_without_leave_to_execute_the_tools_are_there_all_the_same(agents: Agents, name: str) -> None:
    def model(_: datetime, request: Request) -> Step:
        return text("done") if request.results else ask(request, "report_progress", progress=1)

    sql = agents.sql
    sql.execute("insert into scopes (name, parent, may_execute, may_network) values ('still', 'default', false, false)")
    agents.account(name).script(model)
    agents.start("a")
    task = value(sql, "insert into tasks (prompt, agent, scope) values ('x', %s, 'still') returning id", name)
    assert ended(sql, task, 60)["result"] == "done"
    assert value(sql, "select progress from attempts") == 1


@pytest.mark.timed
def test_an_agent_is_told_when_its_attempt_is_over(agents: Agents) -> None:
    """The runner is not: it is cut off from the database's word, and asks on."""
    sql = agents.sql

    def model(_: datetime, request: Request) -> Step:
        if not request.results:
            with sql.transaction():  # else its runner has claimed the task again before it is cancelled
                sql.execute("select complete_task(attempt_id, 'crashed') from tasks where status = 'running'")
                sql.execute("update tasks set status = 'cancelled'")
            return ask(request, "report_progress", progress=1)
        return text("so be it")

    api = agents.claude.script(model)
    agents.start("a")
    agents.submit("do it", "claude")
    until(
        lambda: any("This attempt is over" in heard(request) for request in api.requests) or len(api.requests) > 1, 60
    )
    assert any("This attempt is over" in heard(request) for request in api.requests) or api.requests[-1].hung_up
