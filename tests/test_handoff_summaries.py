"""What the next agent is told of the work so far, in this yard and in another."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from taskyard.runner.install import install

from .clock import Clock
from .conftest import Yard, column, rows, value
from .family import HANDOFF, PACKET, begin, claim_of, host
from .test_install import another
from .test_refusals import contents, unclear
from .yardwork import claim, end, misfiled, refusal, say, status


def orchestrator(db: Connection[DictRow]) -> int:
    models = [{"provider": "local", "account": "", "models": ["orchestrator"]}]
    return value(db, "select register_runner('brain', 4, '{}', %s, p_lease => '1 day')", Jsonb(models))


def without_summary(db: Connection[DictRow], runner: int) -> tuple[int, int]:
    task, attempt = begin(db, runner, prompt="Write a parser.")
    say(db, attempt, "Edit: parser.py", kind="tool_call")
    say(db, attempt, "The lexer works.")
    db.execute(HANDOFF, [attempt, Jsonb({"target": "claude", "reason": "limit", "context_summary": "  "})])
    end(db, attempt, "handed_off")
    return task, value(db, "select to_task from handoffs")


def test_an_agent_that_sums_nothing_up_is_summed_up_by_rule(db: Connection[DictRow]) -> None:
    runner = host(db)
    _, new = without_summary(db, runner)
    assert status(db, new) == "queued"
    note = claim_of(db, runner, new)["note"]
    assert "- Edit: parser.py" in note
    assert "The lexer works." in note
    assert rows(db, "select summary_by, summary_task from handoffs") == [{"summary_by": "rule", "summary_task": None}]
    assert "The lexer works." in value(db, "select context_summary from handoffs")


def test_the_orchestrator_model_sums_up_where_one_is_there(db: Connection[DictRow]) -> None:
    runner, brain = host(db), orchestrator(db)
    task, new = without_summary(db, runner)
    assert status(db, new) == "blocked"
    assert claim(db, runner) == []
    (row,) = claim(db, brain)
    assert (row["agent"], row["model"], row["timeout"]) == ("summary", "orchestrator", timedelta(minutes=1))
    assert row["prompt"].startswith("The task:\nWrite a parser.")
    assert "The lexer works." in row["prompt"]
    assert row["output_schema"]["required"] == ["summary"]
    end(db, row["attempt_id"], result=Jsonb({"summary": "A lexer is there; the parser is not."}))
    assert (status(db, new), misfiled(db)) == ("queued", [])
    note = claim_of(db, runner, new)["note"]
    assert "A lexer is there; the parser is not." in note
    assert "Edit: parser.py" not in note
    assert column(db, "select summary_by from handoffs") == ["model"]
    assert status(db, task) == "waiting"


@pytest.mark.parametrize("result", [None, "{}", '{"summary": " "}', '{"summary": 5}', "[]", '"In plain words."'])
def test_what_the_model_says_beside_the_point_is_no_summary(db: Connection[DictRow], result: str | None) -> None:
    runner, brain = host(db), orchestrator(db)
    _, new = without_summary(db, runner)
    db.execute("select complete_task(%s, 'completed', %s)", [claim(db, brain)[0]["attempt_id"], result])
    note = claim_of(db, runner, new)["note"]
    assert ("In plain words." in note) == (result == '"In plain words."')
    assert ("The lexer works." in note) == (result not in ('"In plain words."', '{"summary": 5}'))


@pytest.mark.parametrize("outcome", ["failed", "timed_out", "crashed", "overloaded", "network"])
def test_a_model_that_cannot_holds_nothing_up(yard: Yard, db: Connection[DictRow], outcome: str) -> None:
    clock = Clock(yard, db)
    runner, brain = host(db), orchestrator(db)
    task, new = without_summary(db, runner)
    end(db, claim(db, brain)[0]["attempt_id"], outcome)
    clock.advance(timedelta(minutes=1, seconds=1))
    db.execute("select tick()")
    assert (status(db, new), status(db, task), misfiled(db)) == ("queued", "waiting", [])
    assert "The lexer works." in claim_of(db, runner, new)["note"]
    assert column(db, "select summary_by from handoffs") == ["rule"]


def test_a_model_without_time_is_waited_for_a_minute(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    runner = host(db)
    orchestrator(db)
    _, new = without_summary(db, runner)
    clock.advance(timedelta(seconds=59))
    db.execute("select tick()")
    assert status(db, new) == "blocked"
    clock.advance(timedelta(seconds=2))
    db.execute("select tick()")
    assert (status(db, new), misfiled(db)) == ("queued", [])
    assert "The lexer works." in claim_of(db, runner, new)["note"]


@pytest.mark.parametrize("off", ["agent paused", "not allowed", "runner gone", "provider paused"])
def test_no_model_is_asked_that_could_not_answer(db: Connection[DictRow], off: str) -> None:
    runner, brain = host(db), orchestrator(db)
    if off == "agent paused":
        db.execute("update agents set paused_at = now() where name = 'summary'")
    elif off == "not allowed":
        db.execute("update scopes set allowed_agents = '{shell,claude}'")
    elif off == "runner gone":
        db.execute("select retire_runner(%s)", [brain])
    else:
        db.execute("select pause_provider('local')")
    _, new = without_summary(db, runner)
    assert (status(db, new), value(db, "select count(*) from tasks where agent = 'summary'")) == ("queued", 0)


# --- From one yard to another.


def test_a_handoff_goes_on_in_another_database(yard: Yard, db: Connection[DictRow]) -> None:
    runner = host(db)
    _, attempt = begin(db, runner, prompt="Write a parser.")
    handoff = value(db, HANDOFF, attempt, Jsonb(PACKET))
    document = value(db, "select export_handoff(%s)", handoff)
    assert document["kind"] == "taskyard.handoff"
    assert document["prompt"] == "Write a parser."
    assert document["packet"] == {**PACKET, "source": "shell"}
    with another(yard.cluster) as other:
        there = other.connect()
        install(there)
        there.execute("set search_path = taskyard, public")
        task = value(there, "select import_handoff(%s)", Jsonb(document))
        row = claim_of(there, host(there), task)
        assert row["agent"] == "claude"
        for part in ("You take over from shell (reason: specialization).", "The parser is done.", "- run them", "notes.md", "The task:\nWrite a parser."):  # fmt: skip
            assert part in row["prompt"]


def test_submitters_import_what_viewers_export(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('home', 'default'), ('zebra', 'default')")
    runner = host(db)
    _, attempt = begin(db, runner, scope="home")
    handoff = value(db, HANDOFF, attempt, Jsonb(PACKET))

    def login(name: str, role: str, *scopes: str) -> Connection[DictRow]:
        made = Connection[DictRow].connect(yard.login(name, role, *scopes), autocommit=True, row_factory=db.row_factory)
        yard.stack.callback(made.close)
        return made

    document = Jsonb(value(login("vic", "viewer", "home"), "select export_handoff(%s)", handoff))
    assert unclear(refusal(login("val", "viewer", "zebra"), "select export_handoff(%s)", handoff), "TY002") == ""
    ann = login("ann", "submitter", "home")
    task = value(ann, "select import_handoff(%s, 'home')", document)
    assert rows(db, "select scope, created_by from tasks where id = %s", task) == [
        {"scope": "home", "created_by": f"ann_{yard.name}"}
    ]
    assert unclear(refusal(ann, "select import_handoff(%s, 'zebra')", document), "TY006") == ""
    before = contents(db)
    told: dict[str, Any] = document.obj
    bad: list[Any] = [
        None, [], {}, {"kind": "other"}, {**told, "packet": {}}, {**told, "kind": "taskyard.checkpoint"}, {**told, "prompt": None},
    ]  # fmt: skip
    for wrong in bad:
        assert unclear(refusal(ann, "select import_handoff(%s)", Jsonb(wrong)), "TY001") == "", wrong
    assert unclear(refusal(ann, "select export_handoff(999999)"), "TY002") == ""
    assert contents(db) == before
