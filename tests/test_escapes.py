"""Hostile code that knows where everything is does not get out of the sandbox: the cases of tests/escapes, one test for each
case and situation. `make test-sandbox` tries more, and prints what.
"""

import asyncio
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from _pytest.mark import ParameterSet

from taskyard.runner.sandbox.levels import examine

from .agents import Agents
from .conftest import Yard, value
from .escapes.arena import Arena
from .escapes.cases import EXPECTED, every_case
from .escapes.findings import Findings
from .escapes.situations import AS_ROOT, SITUATIONS, Name, Situation, installed_tools
from .escapes.tools import ATTACKS
from .stand_in import run_command, text
from .test_runner import ended

TOOLS = 42

Ask = Callable[[Name], Situation]


@pytest.fixture(scope="session")
def situation() -> Iterator[Ask]:
    """Each is started once, with the victim in it."""
    tools, _ = installed_tools()
    started: dict[Name, Situation] = {}

    def get(name: Name) -> Situation:
        if name not in started:
            started[name] = Situation(name, tools)
        return started[name]

    yield get
    for each in started.values():
        each.close()


def promises() -> Iterator[ParameterSet]:
    for case in every_case().values():
        for name in ("root", "ordinary"):
            # The later cases are about time and load, which who asks changes little: `make test-sandbox` tries all twice.
            marks = [pytest.mark.slow] if case.slow or (name == "ordinary" and AS_ROOT and case.number > 25) else []
            if name not in SITUATIONS:
                marks.append(
                    pytest.mark.skip(reason="how a runner that is root confines agents needs root to be tried")
                )
            yield pytest.param(case.number, name, id=f"{case.number}: {case.name}, {name}", marks=marks)


@pytest.mark.parametrize(("number", "name"), list(promises()))
def test_an_escape_fails_where_its_control_succeeds(situation: Ask, number: int, name: Name) -> None:
    outcome = situation(name).ask(number)
    assert outcome["held"], "\n".join(outcome["broken"])
    if outcome["skipped"]:
        pytest.skip("; ".join(outcome["skipped"]))


def test_a_task_makes_children_only_where_it_may_and_never_wider_ones(yard18: Yard) -> None:
    sql = yard18.connect()
    sql.execute(
        "insert into scopes (name, parent, may_create_child) values ('alone', 'default', false), ('team', 'default', true), ('team/web', 'team', null)"
    )

    def child(parent: str, scope: str) -> str | None:
        made = value(sql, "insert into tasks (prompt, agent, scope) values ('x', 'shell', %s) returning id", parent)
        try:
            sql.execute(
                "insert into tasks (prompt, agent, scope, parent_id) values ('x', 'shell', %s, %s)", (scope, made)
            )
        except psycopg.Error as refused:
            return refused.sqlstate
        return None

    assert child("team", "team") is None and child("team", "team/web") is None
    assert child("team", "default") == child("team/web", "team") == child("team", "alone") == "TY006"
    assert child("alone", "alone") == "TY006"


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["claude", "codex", "gemini"])
def test_a_model_that_tells_a_tool_to_attack_gets_nowhere_with_a_real_runner(
    agents: Agents, tmp_path: Path, tool: str
) -> None:
    """From the row in `tasks` to its result: the attacks of cases 1 to 15, by the tool's own shell."""
    arena = Arena(examine("strict", os.environ))
    try:
        world = arena.world(carved=True)
        before, result = world.fingerprint(), world.space / "found"
        command = f"{shlex.join(world.attack(*ATTACKS))} > {shlex.quote(str(result))}"
        agents.account(tool).script(run_command(command), text("Done."))
        agents.start("a")
        task = ended(agents.sql, agents.submit("Go.", tool, workspace=str(world.space)), 90)
        assert (task["status"], task["result"]) == ("completed", "Done.")
        assert world.fingerprint() == before
        found, findings = json.loads(result.read_text().splitlines()[-1]), Findings()
        for number in ATTACKS:
            findings.judge(found[str(number)], EXPECTED[number], str(number))
        assert findings.broken == []
        control = arena.world(carved=True)
        outside = asyncio.run(arena.outside(control.attack(1, 3), control.space))
        assert json.loads(outside.stdout.splitlines()[-1])["1"][".env"] == "done"
    finally:
        arena.close()


def test_what_is_tried_as_root_is_tried_as_an_ordinary_user_too() -> None:
    assert set(SITUATIONS) == ({"root", "ordinary"} if AS_ROOT else {"ordinary"})
    assert list(every_case()) == list(range(1, 44))
