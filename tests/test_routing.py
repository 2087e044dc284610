"""Agent auto: rules first, then the orchestrator model, then the agent default; never a task that is stuck."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .yardwork import (
    advance,
    claim,
    end,
    heard,
    insert,
    listener,
    misfiled,
    register,
    say,
    status,
    stop_clock,
    task_in,
)

MODELS = {"provider": "local", "account": "", "models": ["coder", "orchestrator"]}


def orchestrator(db: Connection[DictRow], name: str = "swap", *labels: str) -> int:
    """A runner that has the orchestrator model, and Claude."""
    offers = [MODELS, {"provider": "claude", "account": "a"}]
    return value(db, "select register_runner(%s, 4, %s, %s)", name, list(labels), Jsonb(offers))


def rule(db: Connection[DictRow], agent: str, **columns: Any) -> int:
    columns = {"agent": agent, **columns}
    names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
    return value(db, f"insert into routing_rules ({names}) values ({marks}) returning id", *columns.values())  # type: ignore[arg-type]


def route(db: Connection[DictRow], task: int) -> tuple[str, str | None]:
    """The task's agent, and who chose it."""
    (row,) = rows(db, "select agent, routed_by from tasks where id = %s", task)
    return row["agent"], row["routed_by"]


def ask(db: Connection[DictRow], runner: int) -> DictRow:
    """The claim that puts a task to the orchestrator."""
    (row,) = claim(db, runner)
    assert (row["agent"], row["provider"], row["model"]) == ("auto", "local", "orchestrator")
    return row


def answer(db: Connection[DictRow], asked: DictRow, result: Any) -> str:
    return end(db, asked["attempt_id"], result=Jsonb(result))


def test_the_first_fitting_rule_names_the_agent(db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('web', 'default')")
    rules = {
        "long": rule(db, "gemini", pattern=r"\ylong\y", position=1),
        "label": rule(db, "local", label="gpu"),
        "web": rule(db, "codex", scope="web", position=50),
        "both": rule(db, "opencode", pattern="^fix", scope="web", position=40),
        "late": rule(db, "shell", pattern="fix", position=900),
    }
    wanted: list[tuple[dict[str, Any], str, str | None]] = [
        ({"prompt": "A LONG story"}, "gemini", "long"),
        ({"prompt": "read the\nlong one"}, "gemini", "long"),
        ({"prompt": "longer"}, "auto", None),
        ({"requires": ["docker", "gpu"]}, "local", "label"),
        ({"scope": "web"}, "codex", "web"),
        ({"scope": "web", "prompt": "Fix it"}, "opencode", "both"),
        ({"scope": "web", "requires": ["gpu"]}, "codex", "web"),
        ({"prompt": "Fix it"}, "shell", "late"),
        ({"prompt": "Fix it", "requires": ["gpu"]}, "local", "label"),
    ]
    for columns, agent, by in wanted:
        task = insert(db, **{"agent": "auto", **columns})
        assert route(db, task) == (agent, by and f"rule {rules[by]}"), columns
    assert misfiled(db) == []


def test_a_rule_without_any_condition_takes_all_and_equal_positions_go_by_age(db: Connection[DictRow]) -> None:
    first = rule(db, "codex")
    rule(db, "gemini")
    assert route(db, insert(db, agent="auto")) == ("codex", f"rule {first}")
    sooner = rule(db, "claude", position=-5)
    assert route(db, insert(db, agent="auto")) == ("claude", f"rule {sooner}")


def test_rules_are_for_agent_auto_alone(db: Connection[DictRow]) -> None:
    rule(db, "codex")
    assert route(db, insert(db, agent="shell")) == ("shell", None)


@pytest.mark.parametrize("pattern", ["(", "a{2", "[z-a]", "*"])
def test_a_broken_pattern_is_refused_when_the_rule_is_written(db: Connection[DictRow], pattern: str) -> None:
    with pytest.raises(psycopg.errors.InvalidRegularExpression):
        rule(db, "codex", pattern=pattern)
    good = rule(db, "codex", pattern="good")
    with pytest.raises(psycopg.errors.InvalidRegularExpression):
        db.execute("update routing_rules set pattern = %s where id = %s", [pattern, good])
    assert route(db, insert(db, "good", agent="auto")) == ("codex", f"rule {good}")


def test_a_rule_leads_to_an_agent_that_exists_and_is_not_auto(db: Connection[DictRow]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="routing_rules_lead_away_from_auto"):
        rule(db, "auto")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        rule(db, "nobody")


def test_where_no_rule_fits_the_orchestrator_is_asked_with_a_choice_of_agents(db: Connection[DictRow]) -> None:
    db.execute("insert into agents (name, route) values ('idle', '{claude}'), ('roadless', '{}')")
    db.execute("update agents set paused_at = now() where name = 'idle'")
    own = {"type": "object"}
    prompt = "Sum up " + "x" * 10_000
    task = insert(db, prompt, agent="auto", output_schema=Jsonb(own), workspace="/w", verify="make")
    runner = orchestrator(db)
    asked = ask(db, runner)
    schema = asked["output_schema"]
    choice = ["claude", "codex", "default", "gemini", "local", "opencode", "shell"]
    assert schema == {
        "type": "object",
        "additionalProperties": False,
        "required": ["agent"],
        "properties": {"agent": {"type": "string", "enum": choice}},
    }
    for name in choice:
        described = value(db, "select description from agents where name = %s", name)
        assert f"- {name}: {described}\n" in asked["prompt"]
    assert "Task:\nSum up xxx" in asked["prompt"]
    assert len(asked["prompt"]) < 6000
    assert asked["system_prompt"].startswith("You route tasks to agents.")
    assert (asked["workspace"], asked["verify"], asked["timeout"]) == (None, None, timedelta(minutes=1))

    assert answer(db, asked, {"agent": "claude"}) == "queued"
    assert route(db, task) == ("claude", "model orchestrator")
    (work,) = claim(db, runner)
    assert (work["task_id"], work["provider"], work["output_schema"]) == (task, "claude", own)
    assert (work["workspace"], work["verify"]) == ("/w", "make")


def test_the_tasks_own_wishes_are_for_the_work_and_not_for_the_question(db: Connection[DictRow]) -> None:
    runner = orchestrator(db)
    task = insert(db, agent="auto", provider="claude", model="big", timeout="8 hours")
    asked = ask(db, runner)
    assert asked["timeout"] == timedelta(minutes=1)
    answer(db, asked, {"agent": "codex"})
    (work,) = claim(db, runner)
    assert (work["task_id"], work["provider"], work["model"], work["timeout"]) == (
        task,
        "claude",
        "big",
        timedelta(hours=8),
    )


def test_what_was_spent_on_routing_does_not_count_and_is_no_work(db: Connection[DictRow]) -> None:
    runner, task = orchestrator(db), insert(db, agent="auto", max_attempts=1)
    asked = ask(db, runner)
    say(db, asked["attempt_id"], '{"agent": "claude"}')
    end(db, asked["attempt_id"], result=Jsonb({"agent": "claude"}), session_id="s-1")
    kept = rows(db, "select failure_count, status::text, result, error from tasks where id = %s", task)
    assert kept == [{"failure_count": 0, "status": "queued", "result": None, "error": None}]
    (work,) = claim(db, runner)
    assert (work["session_id"], work["note"], work["number"]) == (None, None, 2)
    assert end(db, work["attempt_id"], "failed") == "failed", "its one attempt"
    assert rows(db, "select agent, counted from attempts order by id") == [
        {"agent": "auto", "counted": False},
        {"agent": "claude", "counted": True},
    ]


@pytest.mark.parametrize(
    "result",
    [
        None,
        "claude",
        [],
        5,
        {},
        {"agent": None},
        {"agent": 5},
        {"agent": "nobody"},
        {"agent": "auto"},
        {"agent": ["claude"]},
    ],
)
def test_a_wrong_answer_or_none_leads_to_the_agent_default(db: Connection[DictRow], result: Any) -> None:
    task = insert(db, agent="auto")
    assert answer(db, ask(db, orchestrator(db)), result) == "queued"
    assert route(db, task) == ("default", "default")
    assert misfiled(db) == []


def test_any_failure_of_the_orchestrator_leads_to_the_agent_default(db: Connection[DictRow]) -> None:
    outcomes = column(db, "select outcome from outcome_policies where outcome <> 'completed'")
    assert len(outcomes) == 18
    for outcome in outcomes:
        runner, task = orchestrator(db, outcome), insert(db, agent="auto", max_attempts=1)
        assert end(db, ask(db, runner)["attempt_id"], outcome) == "queued", outcome
        assert route(db, task) == ("default", "default"), outcome
        assert value(db, "select failure_count from tasks where id = %s", task) == 0
        db.execute("select cancel_task(%s), clear_limit('local'), retire_runner(%s)", [task, runner])
        assert misfiled(db) == []


def test_an_orchestrator_that_hits_a_limit_cools_down_as_any_other(db: Connection[DictRow]) -> None:
    runner = orchestrator(db)
    for _ in range(2):
        insert(db, agent="auto")
    end(db, ask(db, runner)["attempt_id"], "rate_limited")
    assert [row["agent"] for row in claim(db, runner, 9)] == ["default"]
    db.execute("select tick(%s)", [runner])
    assert column(db, "select agent from tasks") == ["default", "default"]


def test_a_lost_runner_leads_to_the_agent_default_and_a_released_question_is_asked_again(
    db: Connection[DictRow],
) -> None:
    first, second = orchestrator(db, "first"), orchestrator(db, "second")
    task = insert(db, agent="auto")
    db.execute("select release_task(%s)", [ask(db, first)["attempt_id"]])
    assert route(db, task) == ("auto", None)
    ask(db, first)
    db.execute("select retire_runner(%s)", [first])
    assert route(db, task) == ("default", "default")
    (work,) = claim(db, second)
    assert (work["task_id"], work["provider"]) == (task, "claude")


def test_where_no_orchestrator_is_up_the_next_tick_gives_the_task_to_the_agent_default(
    yard: Yard, db: Connection[DictRow]
) -> None:
    runner = register(db, claude="a")
    tasks = [insert(db, agent="auto") for _ in range(3)]
    listening, sleeper = listener(yard, "task_ready"), yard.connect()
    sleeper.execute("select sleep_begin()")
    assert claim(db, runner) == []
    assert value(db, "select tick(%s)", runner) == 3
    assert heard(listening, db) != []
    assert [route(db, task) for task in tasks] == [("default", "default")] * 3
    assert misfiled(db) == []
    assert len(claim(db, runner, 9)) == 3
    assert rows(db, "select distinct kind, detail from task_events") == [
        {"kind": "routed", "detail": {"agent": "default", "by": "default"}}
    ]


@pytest.mark.parametrize(
    "why",
    [
        "select drain_runner('swap')",
        "select pause_provider('local')",
        "update tasks set requires = '{gpu}'",
        "insert into provider_limits (provider, until, state) values ('local', now() + interval '1 hour', 'hot')",
        "insert into provider_caps (provider, period, max_requests) values ('local', '1 day', 1);"
        " insert into tasks (prompt, agent, priority) values ('first', 'local', 9);"
        " select claim_task((select id from runners))",
    ],
)
def test_an_orchestrator_that_cannot_be_asked_is_none(db: Connection[DictRow], why: str) -> None:
    runner = orchestrator(db)
    task = insert(db, agent="auto")
    assert value(db, "select tick(%s)", runner) == 0
    for statement in why.split("; "):
        db.execute(statement.encode())
    assert value(db, "select tick(%s)", runner) == 1
    assert route(db, task) == ("default", "default")


def test_a_busy_orchestrator_is_waited_for_for_a_minute(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner, task = orchestrator(db), insert(db, agent="auto")
    for seconds in (0, 30, 30):
        advance(db, seconds=seconds)
        db.execute("select heartbeat(%s)", [runner])
        assert value(db, "select tick(%s)", runner) == 0
        assert route(db, task) == ("auto", None)
    advance(db, seconds=1)
    assert value(db, "select tick(%s)", runner) == 1
    assert route(db, task) == ("default", "default")


def test_a_task_that_was_scheduled_waits_its_minute_from_its_time_on(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = orchestrator(db)
    task = insert(db, agent="auto", run_at=value(db, "select _now() + interval '1 hour'"))
    advance(db, hours=1)
    for seconds, agent in ((0, "auto"), (30, "auto"), (31, "default")):
        advance(db, seconds=seconds)
        db.execute("select heartbeat(%s)", [runner])
        db.execute("select tick(%s)", [runner])
        assert route(db, task)[0] == agent, seconds


@pytest.mark.parametrize("ends", ["completed", "failed", "cancelled", "released", "lost"])
def test_a_task_that_is_cancelled_while_it_is_routed_is_cancelled(db: Connection[DictRow], ends: str) -> None:
    runner, task = orchestrator(db), insert(db, agent="auto", workspace="/w")
    asked = ask(db, runner)
    assert value(db, "select cancel_task(%s, 'enough')", task) == "stopping"
    if ends == "released":
        db.execute("select release_task(%s)", [asked["attempt_id"]])
    elif ends == "lost":
        db.execute("select retire_runner(%s)", [runner])
    else:
        assert end(db, asked["attempt_id"], ends, result=Jsonb({"agent": "claude"})) == "cancelled"
    assert rows(db, "select status::text, agent, error from tasks where id = %s", task) == [
        {"status": "cancelled", "agent": "auto", "error": "enough"}
    ]
    assert value(db, "select count(*) from workspace_holders") == 0
    assert misfiled(db) == []


def test_a_question_that_is_completed_with_others_in_one_step_is_no_completed_task(db: Connection[DictRow]) -> None:
    runner, task = orchestrator(db), insert(db, agent="auto")
    asked = ask(db, runner)
    db.execute("select * from complete_tasks(%s, %s)", [[asked["attempt_id"]], [Jsonb({"agent": "claude"})]])
    assert (status(db, task), route(db, task)) == ("queued", ("claude", "model orchestrator"))


@pytest.mark.parametrize("where", ["queued", "scheduled", "blocked", "waiting"])
def test_a_task_that_is_edited_to_agent_auto_is_routed_as_well(db: Connection[DictRow], where: str) -> None:
    task = task_in(db, where)
    db.execute("update tasks set agent = 'auto' where id = %s", [task])
    assert route(db, task) == ("auto", None)
    db.execute("update tasks set agent = 'shell' where id = %s", [task])
    by = rule(db, "codex", pattern="x")
    db.execute("update tasks set agent = 'auto' where id = %s", [task])
    assert route(db, task) == ("codex", f"rule {by}")
    assert misfiled(db) == []


def test_an_edited_task_is_put_to_the_orchestrator(db: Connection[DictRow]) -> None:
    runner, task = orchestrator(db), insert(db, agent="shell")
    db.execute("update tasks set agent = 'auto' where id = %s", [task])
    assert answer(db, ask(db, runner), {"agent": "local"}) == "queued"
    assert [(row["task_id"], row["model"]) for row in claim(db, runner)] == [(task, "coder")]


def test_a_batch_asks_about_each_task(db: Connection[DictRow]) -> None:
    runner = orchestrator(db)
    for n in range(5):
        insert(db, f"question {n}", agent="auto")
    asked = claim(db, runner, 50)
    assert [row["prompt"].splitlines()[-1] for row in asked] == [f"question {n}" for n in range(5)]
    assert {row["output_schema"]["required"][0] for row in asked} == {"agent"}
    for row in asked:
        answer(db, row, {"agent": "claude"})
    assert len(claim(db, runner, 50)) == 5
