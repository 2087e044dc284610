"""The runner is killed at each step of a piece of teamwork: it ends the same, nothing runs twice, no child is lost."""

import threading
from datetime import datetime

import pytest

from .agents import Agents
from .conftest import column, rows, value
from .stand_in import Model, Request, Step, text
from .test_runner import ended
from .test_teamwork import answers, ask, heard, parent

STEPS = ["first child", "second child", "wait", "turn", "codex", "gemini", "sum"]


def step_of(request: Request, agent: str) -> str:
    """Which step of the flow a request is."""
    if agent != "claude":
        return agent
    told = heard(request)
    if "What you waited for has come" in told:
        return "sum"
    if '"waiting"' in told or "waiting\\" in told:
        return "turn"
    return STEPS[min(len(answers(request, "task")), 2)]


class Killer:
    """Kills the runner the first time that a step is asked for."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.killed = threading.Event()
        self.seen: list[str] = []
        self.kill = lambda: None

    def watch(self, agent: str, model: Model) -> Model:
        def answer(now: datetime, request: Request) -> Step:
            step = step_of(request, agent)
            self.seen.append(step)
            if step == self.step and not self.killed.is_set():
                self.kill()
                self.killed.set()
            return model(now, request)

        return answer


def speaking(agent: str) -> Model:
    return lambda _, request: text(f"{agent} speaking")


@pytest.mark.parametrize(
    "step",
    [step if step == "second child" else pytest.param(step, marks=pytest.mark.slow) for step in STEPS],
)
def test_children_and_a_wait_survive_a_kill_at_any_step(agents: Agents, step: str) -> None:
    sql = agents.sql
    killer = Killer(step)
    agents.claude.script(killer.watch("claude", parent))
    agents.codex.script(killer.watch("codex", speaking("codex")))
    agents.gemini.script(killer.watch("gemini", speaking("gemini")))
    runner = agents.start("a", "--slots", "1")
    killer.kill = runner.kill
    task = agents.submit("do both halves", "claude")
    assert killer.killed.wait(90), killer.seen
    agents.start("a2", "--slots", "1")
    assert ended(sql, task, 120)["result"] == "both answered: codexandgemini"
    children = rows(sql, "select agent, status::text from tasks where parent_id = %s order by agent", task)
    assert children == [{"agent": agent, "status": "completed"} for agent in ("codex", "gemini")]
    assert value(sql, "select count(*) from tasks") == 3
    assert column(sql, "select count(*) from attempts where outcome = 'completed' group by task_id") == [1, 1, 1]
    assert column(sql, "select outcome::text from attempts where outcome = 'crashed'") == ["crashed"]
    assert value(sql, "select max(failure_count) from tasks") == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", ["codex", "turn", "claude"])
def test_a_handover_survives_a_kill_at_any_step(agents: Agents, step: str) -> None:
    sql = agents.sql

    def leaving(_: datetime, request: Request) -> Step:
        if "handoff" in heard(request):
            return text("over to you")
        return ask(request, "handoff", target="claude", reason="escalation", context_summary="half is done")

    killer = Killer(step)

    def watched(agent: str, model: Model) -> Model:
        def answer(now: datetime, request: Request) -> Step:
            at = "turn" if agent == "codex" and "handoff" in "".join(request.results) else agent
            if at == step and not killer.killed.is_set():
                killer.kill()
                killer.killed.set()
            return model(now, request)

        return answer

    agents.codex.script(watched("codex", leaving))
    agents.claude.script(watched("claude", lambda _, request: text("the other half is done")))
    runner = agents.start("a")
    killer.kill = runner.kill
    task = agents.submit("two halves", "codex")
    assert killer.killed.wait(60)
    agents.start("a2")
    assert ended(sql, task, 120)["result"] == "the other half is done"
    assert value(sql, "select count(*) from tasks") == 2
    assert value(sql, "select count(*) from handoffs where to_task is not null") == 1
