"""The channel's tools, carried out by the real verbs, and what comes of arguments that make no sense."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection, Connection
from psycopg.rows import DictRow, dict_row

from taskyard.runner import agent_verbs
from taskyard.runner.channel.tools import LARGEST_ANSWER, NAMES, OVER, TOOLS, Channel, Pause, Refused

from .conftest import Yard, column, rows, value


@dataclass
class Seat:
    """An agent at its channel: what it is answered, and what its attempt heard of it."""

    db: Connection[DictRow]
    attempt: int
    task: int
    channel: Channel
    call: Callable[..., tuple[str, bool]]
    pauses: list[Pause | None]
    saved: list[str] = field(default_factory=list[str])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])

    def ask(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The answer of a call that is carried out."""
        text, done = self.call(tool, arguments)
        assert done, text
        return json.loads(text)

    def refused(self, tool: str, **arguments: Any) -> str:
        text, done = self.call(tool, arguments)
        assert not done, text
        return text


@pytest.fixture
def seat(yard18: Yard) -> Iterator[Seat]:
    db = yard18.connect()
    runner = value(db, 'select register_runner(\'mill\', 10, \'{}\', \'[{"provider": "command", "account": ""}]\')')
    task = value(db, "select submit_task('the whole', 'shell')")
    attempt = value(db, "select attempt_id from claim_task(%s)", runner)
    with asyncio.Runner() as loop:
        connection = loop.run(AsyncConnection[DictRow].connect(yard18.dsn, autocommit=True, row_factory=dict_row))

        async def call(verb: Any, *arguments: Any) -> Any:
            return await verb(connection, *arguments)

        async def read(path: str) -> tuple[int, str, bytes | None]:
            if path not in made.files:
                raise Refused(f"There is no file {path}.")
            content = made.files[path]
            return len(content), value(db, "select encode(sha256(%s), 'hex')", content), content

        async def saved(status: str) -> None:
            made.saved.append(status)

        pauses: list[Pause | None] = []
        channel = Channel(attempt, call, read, pauses.append, saved)

        def ask(tool: str, given: dict[str, Any]) -> tuple[str, bool]:
            return loop.run(channel.answer(tool, given))

        made = Seat(db, attempt, task, channel, ask, pauses)
        yield made
        loop.run(connection.close())


def end(seat: Seat, task: int, result: str = "done") -> None:
    """Some runner carries this task out."""
    runner = value(seat.db, "select register_runner('other-' || %s, 10, '{}', '[{\"provider\": \"command\"}]')", task)
    attempt = value(seat.db, "select attempt_id from claim_task(%s) where task_id = %s", runner, task)
    seat.db.execute("select complete_task(%s, 'completed', to_jsonb(%s::text))", (attempt, result))


def test_a_child_is_created_once_waited_for_and_its_result_read(seat: Seat) -> None:
    made = seat.ask("spawn_task", prompt="a part", agent="shell", timeout="10 minutes", requires=[], payload={"a": [1]})
    assert made == {"task": made["task"], "status": "queued", "existed": False}
    assert seat.ask("spawn_task", prompt="a part", agent="shell", payload={"a": [1]})["existed"]
    waiting = seat.ask("wait_for", tasks=[made["task"]])
    assert waiting["waiting"] and waiting["unfinished"] == [made["task"]] and "End your turn now" in waiting["now"]
    assert seat.pauses == ["wait"]
    end(seat, made["task"], "the part")
    came = seat.ask("wait_for", tasks=[made["task"]])
    assert not came["waiting"] and came["results"][0]["result"] == "the part" and "now" not in came
    assert seat.pauses == ["wait", None], "an agent that asks again, and gets what it waited for, works on"
    assert seat.ask("read_result", task=made["task"])["result"] == "the part"


def test_what_a_human_was_asked_is_waited_for_whatever_else_comes(seat: Seat) -> None:
    child = seat.ask("spawn_task", prompt="a part", agent="shell")["task"]
    end(seat, child)
    assert "now" in seat.ask("ask_human", question="May I?", within_minutes=5)
    seat.ask("wait_for", tasks=[child])
    assert seat.pauses == ["wait"]
    asked = rows(seat.db, "select question, kind, deadline - asked_at as within from approvals")
    assert asked == [{"question": "May I?", "kind": "question", "within": timedelta(minutes=5)}]


def test_a_permission_is_asked_for(seat: Seat) -> None:
    answer = seat.ask("request_permission", permissions=["network"], hosts=["example.com"], paths=[], why="to look")
    assert (answer["approval"], seat.pauses) == (value(seat.db, "select id from inbox"), ["wait"])
    assert rows(seat.db, "select permissions, hosts, task_id from approvals") == [
        {"permissions": ["network"], "hosts": ["example.com"], "task_id": seat.task}
    ]


def test_a_handoff_names_who_goes_on(seat: Seat) -> None:
    answer = seat.ask(
        "handoff", target="shell", reason="limit", context_summary="half", pending_actions=["rest"], artifacts=["a.txt"]
    )
    assert seat.pauses == ["handoff"] and "End your turn now" in answer["now"]
    assert rows(seat.db, "select id, target, reason, pending_actions, artifacts from handoffs") == [
        {
            "id": answer["handoff"],
            "target": "shell",
            "reason": "limit",
            "pending_actions": ["rest"],
            "artifacts": ["a.txt"],
        }
    ]


def test_a_checkpoint_is_saved_told_to_the_attempt_and_found_again(seat: Seat) -> None:
    assert seat.ask("load_checkpoint") == {"checkpoint": None}
    assert seat.ask("save_checkpoint", status="half", progress=0.5, data={"n": 1}, conversation=["hi"]) == {
        "version": 1
    }
    assert seat.saved == ["half"]
    found = seat.ask("load_checkpoint")["checkpoint"]
    assert (found["status"], found["progress"], found["data"], found["version"]) == ("half", 0.5, {"n": 1}, 1)
    assert "attempt" not in found


def test_progress_is_told(seat: Seat) -> None:
    seat.ask("report_progress", progress=0.25, doing="reading")
    seat.ask("report_progress", doing="writing")
    assert rows(seat.db, "select progress, doing from attempts") == [{"progress": 0.25, "doing": "writing"}]


def test_a_file_becomes_an_artifact_and_is_listed(seat: Seat) -> None:
    seat.files["out/notes.txt"] = b"a note"
    added = seat.ask("add_artifact", path="out/notes.txt")
    assert (added["artifact"], added["size"]) == ("out/notes.txt", 6)
    assert seat.ask("add_artifact", path="out/notes.txt", name="final.txt")["artifact"] == "final.txt"
    listed = seat.ask("list_artifacts")["artifacts"]
    assert [(one["path"], one["text"]) for one in listed] == [("final.txt", "a note"), ("out/notes.txt", "a note")]
    assert not any("attempt" in one for one in listed)
    assert seat.ask("list_artifacts", task=seat.task)["artifacts"] == listed
    assert seat.refused("add_artifact", path="elsewhere") == "There is no file elsewhere."


def test_messages_go_between_tasks_of_a_family(seat: Seat) -> None:
    child = seat.ask("spawn_task", prompt="a part", agent="shell")["task"]
    assert seat.ask("send_message", task=child, text="be quick")["message"] == 1
    assert value(seat.db, "select has_mail from tasks where id = %s", child)
    assert seat.ask("read_messages") == {"messages": []}


def test_mail_comes_along_with_the_next_answer_and_once(seat: Seat) -> None:
    seat.db.execute("select say(%s, 'first')", (seat.task,))
    assert "mail" not in seat.ask("report_progress", doing="x"), "nobody told its runner yet"
    seat.channel.mail = True
    assert seat.refused("read_result", task=-1) and seat.channel.mail, "a refusal brings nothing"
    [message] = seat.ask("report_progress", doing="x")["mail"]
    assert message["text"] == "first"
    assert "mail" not in seat.ask("report_progress", doing="x")
    seat.db.execute("select say(%s, 'second')", (seat.task,))
    seat.channel.mail = True
    answer = seat.ask("read_messages")
    assert [one["text"] for one in answer["messages"]] == ["second"] and "mail" not in answer
    assert not value(seat.db, "select has_mail from tasks where id = %s", seat.task)


def test_a_refusal_of_the_database_is_told_with_what_helps(seat: Seat) -> None:
    told = seat.refused("handoff", target="nobody", reason="limit")
    assert told.startswith('There is no agent "nobody". Known agents: ') and "shell" in told
    assert "handoff" not in seat.pauses


def test_an_attempt_that_is_over_is_told_so_by_every_tool(seat: Seat) -> None:
    seat.files["x"] = b"x"
    seat.db.execute("select complete_task(%s, 'completed')", (seat.attempt,))
    before = value(seat.db, "select count(*) from tasks")
    valid: dict[str, dict[str, Any]] = {
        "spawn_task": {"prompt": "x"},
        "wait_for": {"tasks": [seat.task]},
        "read_result": {"task": seat.task},
        "save_checkpoint": {"status": "x", "progress": 0},
        "handoff": {"target": "shell", "reason": "limit"},
        "request_permission": {"permissions": ["read"]},
        "ask_human": {"question": "x"},
        "send_message": {"task": seat.task, "text": "x"},
        "report_progress": {"progress": 1},
        "add_artifact": {"path": "x"},
    }
    for tool in sorted(NAMES):
        assert seat.refused(tool, **valid.get(tool, {})) == OVER, tool
    assert value(seat.db, "select count(*) from tasks") == before and not seat.pauses and not seat.saved


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("nothing", {}, "There is no tool nothing. There are: add_artifact, "),
        ("wait_for", {"tasks": "1"}, "tasks is a list of numbers."),
        ("wait_for", {"tasks": [True]}, "tasks is a list of numbers."),
        ("wait_for", {"tasks": [1.5]}, "tasks is a list of numbers."),
        ("wait_for", {"tasks": [1], "mail": 1}, "mail is true or false."),
        ("wait_for", {"tasks": [1], "within_minutes": 0}, "within_minutes is a number of minutes, 30 days at most."),
        ("wait_for", {"tasks": [1], "within_minutes": float("nan")}, "within_minutes is a number of minutes"),
        ("wait_for", {}, "It does not say what to wait for. Name 1 to 20,000 tasks, or wait for mail."),
        ("read_result", {}, "task is the number of a task."),
        ("read_result", {"task": "7"}, "task is a whole number."),
        ("read_result", {"task": True}, "task is a whole number."),
        ("read_result", {"task": 2**63}, "task is the number of a task."),
        ("request_permission", {"hosts": [1]}, "hosts is a list of texts."),
        ("report_progress", {"progress": "half"}, "progress is a number from 0 to 1."),
        ("save_checkpoint", {"status": "x", "progress": 2}, "The checkpoint is not usable"),
        ("spawn_task", {"prompt": "x", "wish": 1}, "A task has no wish. It has: prompt, "),
        ("spawn_task", {"prompt": 7, "scope": "elsewhere"}, "There is no scope"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_words(
    seat: Seat, tool: str, arguments: dict[str, Any], told: str
) -> None:
    assert told in seat.refused(tool, **arguments)
    assert column(seat.db, "select id from tasks") == [seat.task] and seat.pauses == []


def test_what_the_schemas_offer_is_what_the_database_knows(seat: Seat) -> None:
    """An argument of which the database knows nothing would be refused there, or be lost."""
    schema = next(tool.schema for tool in TOOLS if tool.name == "spawn_task")
    known = re.search(r"It has: (.*)\.", seat.refused("spawn_task", prompt="x", no_such_wish=1))
    assert known is not None and set(schema["properties"]) < set(known[1].split(", "))
    packet = next(tool.schema for tool in TOOLS if tool.name == "handoff")["properties"]
    assert set(packet["reason"]["enum"]) == {"specialization", "timeout", "escalation", "limit"}
    for tool in TOOLS:
        assert set(tool.schema["required"]) <= set(tool.schema["properties"]), tool.name


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
WORDS = sorted({name for tool in TOOLS for name in tool.schema["properties"]})


@given(
    tool=st.sampled_from([*sorted(NAMES), "x\x00"]),
    arguments=st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), JSON, max_size=5),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_there_is_an_answer(seat: Seat, tool: str, arguments: dict[str, Any]) -> None:
    text, _ = seat.call(tool, arguments)
    text.encode()
    assert value(seat.db, "select outcome from attempts where id = %s", seat.attempt) is None


def test_an_answer_has_a_limit(seat: Seat) -> None:
    async def call(verb: Any, *_: Any) -> Any:
        assert verb is agent_verbs.read_result
        return {"task": 1, "result": "x" * 10**6}

    channel = Channel(1, call, _none, seat.pauses.append, _none)
    text, done = asyncio.run(channel.answer("read_result", {"task": 1}))
    assert done and LARGEST_ANSWER < len(text) < LARGEST_ANSWER + 100 and text.endswith("(cut)")


def test_trouble_of_the_database_is_not_told_to_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    async def call(*_: Any) -> Any:
        raise psycopg.errors.UndefinedTable("the table secrets does not exist")

    text, done = asyncio.run(Channel(1, call, _none, lambda _: None, _none).answer("load_checkpoint", {}))
    assert (text, done) == ("The yard could not carry that out.", False)
    assert "the table secrets does not exist" in caplog.text


async def _none(*_: Any) -> Any:
    raise AssertionError("nobody asked for that")
