"""Handing over: another agent goes on with a packet, the old attempt is dead from that moment, and the task ends as the new one does."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .family import (
    HANDOFF,
    PACKET,
    begin,
    claim_of,
    directives,
    hand_over,
    handed_over,
    host,
    spawn,
    wait_for,
    waits_on,
)
from .test_refusals import contents, unclear
from .yardwork import claim, end, explained, insert, misfiled, refusal, say, status


def test_from_the_packet_to_the_end(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner, prompt="Write a parser.", priority=4)
    after = insert(db, "after", depends_on=[task])
    assert value(db, HANDOFF, attempt, Jsonb(PACKET)) == value(db, "select id from handoffs")
    assert value(db, "select count(*) from tasks where handoff_id is not null") == 0, "it still runs"
    assert directives(db, runner, attempt) == [(attempt, "handoff")]
    assert misfiled(db) == []
    assert end(db, attempt, "handed_off") == "waiting"
    (row,) = rows(db, "select id, prompt, agent, scope, priority, parent_id, status::text, created_by from tasks where handoff_id is not null")  # fmt: skip
    new = row.pop("id")
    assert row == {
        "prompt": "Write a parser.", "agent": "claude", "scope": "default", "priority": 4, "parent_id": task, "status": "queued",
        "created_by": f"task {task}",
    }  # fmt: skip
    assert (status(db, task), waits_on(db, task), misfiled(db)) == ("waiting", [new], [])
    assert explained(db, task) == [
        f"Was handed over to claude; ends as task {new} does.",
        f"Task {new} is queued: Write a parser.",
    ]
    row = claim_of(db, runner, new)
    assert (row["agent"], row["number"], row["session_id"], row["files_of"]) == ("claude", 1, None, task)
    assert row["note"].splitlines() == [
        f"You take over from shell (reason: specialization), who worked on task {task}.",
        "What was done and found:", "The parser is done.", "Still to do:", "- write the tests", "- run them",
        "Look at these artifacts: notes.md",
    ]  # fmt: skip
    assert end(db, row["attempt_id"], result=Jsonb({"tests": 12})) == "completed"
    assert rows(db, "select status::text, result, error from tasks where id = %s", task) == [
        {"status": "completed", "result": {"tests": 12}, "error": None}
    ]
    assert (status(db, after), misfiled(db)) == ("queued", [])
    assert column(db, "select summary_by from handoffs") == ["agent"]
    assert {"handoff_asked", "handed_over"} <= set(
        column(db, "select kind from task_events where task_id = %s and attempt_id = %s", task, attempt)
    )


WITH_TOKEN = [
    "complete_task({attempt})", "complete_task({attempt}, 'handed_off')", "complete_task({attempt}, 'waiting')", "release_task({attempt})",
    """spawn_task({attempt}, '{{"prompt": "x", "agent": "shell"}}')""", "wait_for({attempt}, '{{{task}}}')", "wait_for({attempt}, '{{}}', true)",
    "read_result({attempt}, {task})", "list_artifacts({attempt})", """save_checkpoint({attempt}, '{{"status": "x", "progress": 0}}')""",
    "load_checkpoint({attempt})", """handoff_task({attempt}, '{{"target": "claude", "reason": "timeout"}}')""",
    "report_progress({attempt}, 0.5, 'x')", "report_work({attempt}, 'taskyard/1-1', repeat('a', 40))",
    "report_verification({attempt}, true, 0, '', '1 s')", "report_session({attempt}, 's')", "report_limit({attempt}, '[]')",
    """append_transcript({attempt}, '[{{"seq": 9, "kind": "text", "body": "x"}}]')""", "add_artifact({attempt}, 'x', 1, repeat('0', 64))",
    "request_permission({attempt}, '{{network}}')", "ask_human({attempt}, 'Now?')", "send_message({attempt}, {task}, 'x')",
    "read_messages({attempt})",
]  # fmt: skip


def test_from_then_on_the_old_attempt_opens_nothing(db: Connection[DictRow]) -> None:
    """Every verb that takes an attempt: the list is held against the catalog."""
    runner = host(db)
    task, attempt = begin(db, runner, verify="true")
    hand_over(db, attempt)
    end(db, attempt, "handed_off")
    taking = column(
        db,
        "select distinct proname::text from pg_proc where pronamespace = 'taskyard'::regnamespace"
        " and 'p_attempt' = any(proargnames) and proname not like '\\_%%'",
    )
    assert set(taking) == {call.split("(")[0] for call in WITH_TOKEN}
    before = contents(db)
    for call in WITH_TOKEN:
        error = refusal(db, "select " + call.format(attempt=attempt, task=task))
        assert unclear(error, "TY005") == "", call
    assert column(db, "select status from complete_tasks(array[%s::bigint])", attempt) == ["lost"]
    assert contents(db) == before
    assert rows(db, "select directive from heartbeat(%s, %s) where attempt_id is not null", runner, [attempt]) == [
        {"directive": "lost"}
    ]


def test_the_old_token_dies_in_the_transaction_that_creates_the_new_task(yard: Yard) -> None:
    db, one = yard.connect(), yard.connect()
    runner = host(db)
    task, attempt = begin(db, runner)
    hand_over(db, attempt)
    one.execute("begin")
    end(one, attempt, "handed_off")
    assert (status(db, task), status(one, task)) == ("running", "waiting")
    assert value(db, "select count(*) from tasks") == 1
    one.execute("rollback")
    assert value(db, "select outcome is null from attempts where id = %s", attempt)
    assert directives(db, runner, attempt) == [(attempt, "handoff")]
    assert end(db, attempt, "handed_off") == "waiting"
    assert value(db, "select count(*) from tasks where handoff_id is not null") == 1


@pytest.mark.parametrize(
    "how", ["retired", "released", "crashed", "waiting", "rate_limited", "timed_out", "permission_denied"]
)
def test_a_runner_that_dies_between_asking_and_stopping_hands_over_all_the_same(
    db: Connection[DictRow], how: str
) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    hand_over(db, attempt)
    if how == "retired":
        db.execute("select retire_runner(%s)", [runner])
        runner = host(db)
    elif how == "released":
        assert value(db, "select release_task(%s)", attempt) == "waiting"
    else:
        assert end(db, attempt, how) == "waiting"
    new = value(db, "select to_task from handoffs")
    assert (status(db, task), status(db, new), misfiled(db)) == ("waiting", "queued", [])
    db.execute("select clear_limit('command')")
    end(db, claim_of(db, runner, new)["attempt_id"])
    assert status(db, task) == "completed"


def test_what_asks_twice_hands_over_once(db: Connection[DictRow]) -> None:
    runner = host(db)
    _, attempt = begin(db, runner)
    first = value(db, HANDOFF, attempt, Jsonb(PACKET))
    assert value(db, HANDOFF, attempt, Jsonb({**PACKET, "target": "codex"})) == first
    end(db, attempt, "handed_off")
    assert column(db, "select agent from tasks where handoff_id is not null") == ["claude"]


def test_to_end_as_handed_over_takes_a_packet(db: Connection[DictRow]) -> None:
    task, attempt = begin(db, host(db))
    error = refusal(db, "select complete_task(%s, 'handed_off')", attempt)
    assert unclear(error, "TY004") == ""
    assert status(db, task) == "running"


WRONG: list[tuple[str, Any]] = [
    ("TY001", None), ("TY001", []), ("TY001", "claude"), ("TY001", {}), ("TY001", {**PACKET, "target": None}), ("TY001", {**PACKET, "target": 5}),
    ("TY001", {**PACKET, "reason": "boredom"}), ("TY001", {**PACKET, "reason": None}), ("TY001", {**PACKET, "more": 1}),
    ("TY001", {**PACKET, "context_summary": 5}), ("TY001", {**PACKET, "context_summary": "x" * 20001}),
    ("TY001", {**PACKET, "pending_actions": "x"}), ("TY001", {**PACKET, "pending_actions": [1]}), ("TY001", {**PACKET, "pending_actions": [None]}),
    ("TY001", {**PACKET, "pending_actions": ["x"] * 101}), ("TY001", {**PACKET, "pending_actions": ["x" * 2001]}),
    ("TY001", {**PACKET, "artifacts": {"a": 1}}), ("TY001", {**PACKET, "artifacts": ["x" * 2001]}),
    ("TY002", {**PACKET, "target": "nobody"}), ("TY002", {**PACKET, "target": "auto"}), ("TY002", {**PACKET, "target": "summary"}),
    ("TY002", {**PACKET, "target": "idle"}), ("TY002", {**PACKET, "target": ""}), ("TY006", {**PACKET, "target": "codex"}),
]  # fmt: skip


def test_a_packet_that_nobody_could_use_is_refused(db: Connection[DictRow]) -> None:
    db.execute("insert into agents (name, route) values ('idle', '{}')")
    db.execute("update scopes set allowed_agents = '{shell,claude,idle,summary,auto}' where name = 'default'")
    _, attempt = begin(db, host(db))
    before = contents(db)
    for code, packet in WRONG:
        assert unclear(refusal(db, HANDOFF, attempt, Jsonb(packet)), code) == "", packet
    assert unclear(refusal(db, HANDOFF, attempt, None), "TY001") == ""
    assert contents(db) == before


@pytest.mark.parametrize(
    "packet",
    [
        {"target": "claude", "reason": "timeout"},
        {"target": "claude", "reason": "escalation", "context_summary": None, "pending_actions": None, "artifacts": None},
        {"target": "shell", "reason": "limit", "context_summary": "", "pending_actions": [], "artifacts": [], "source": "me"},
    ],
)  # fmt: skip
def test_what_is_left_out_of_a_packet_is_left_out(db: Connection[DictRow], packet: dict[str, Any]) -> None:
    runner = host(db)
    _, attempt = begin(db, runner)
    db.execute(HANDOFF, [attempt, Jsonb(packet)])
    end(db, attempt, "handed_off")
    (row,) = claim(db, runner)
    assert row["agent"] == packet["target"]
    assert "Still to do" not in row["note"]
    assert "artifacts" not in row["note"]
    assert rows(db, "select source, pending_actions, artifacts, summary_by from handoffs") == [
        {"source": "shell", "pending_actions": [], "artifacts": [], "summary_by": "rule"}
    ]


# --- What goes along.


def test_all_that_the_work_needs_goes_along(db: Connection[DictRow]) -> None:
    columns: dict[str, Any] = {
        "payload": Jsonb({"a": 1}), "workspace": "/srv/app", "verify": "make test", "requires": [], "max_attempts": 7,
        "timeout": timedelta(minutes=9), "output_schema": Jsonb({"type": "object"}),
    }  # fmt: skip
    task, new = handed_over(db, host(db), columns)
    names = ", ".join(columns)
    one, two = (rows(db, f"select {names} from tasks where id = {each}") for each in (task, new))  # type: ignore[arg-type]
    assert one == two
    assert value(db, "select count(*) from workspace_holders") == 0
    (row,) = claim(db, value(db, "select id from runners"))
    assert (row["workspace"], row["verify"], row["timeout"]) == ("/srv/app", "make test", timedelta(minutes=9))


def test_a_repository_goes_along_with_the_branch_that_holds_the_work(db: Connection[DictRow]) -> None:
    runner = host(db)
    columns = {"repository": "/srv/app", "base": "main", "push_to": "origin"}
    task, attempt = begin(db, runner, **columns)
    db.execute("select report_work(%s, 'taskyard/1-1', %s)", [attempt, "a" * 40])
    hand_over(db, attempt)
    end(db, attempt, "handed_off")
    (row,) = claim(db, runner)
    assert {name: row[name] for name in (*columns, "branch", "files_of")} == {
        **columns, "branch": "taskyard/1-1", "files_of": task,
    }  # fmt: skip
    db.execute("select report_work(%s, 'taskyard/2-1', %s)", [row["attempt_id"], "b" * 40])
    hand_over(db, row["attempt_id"], "shell")
    end(db, row["attempt_id"], "handed_off")
    (row,) = claim(db, runner)
    assert (row["branch"], row["files_of"]) == ("taskyard/2-1", task)


def test_the_proof_of_the_leaving_agent_is_asked_of_the_next_one_too(db: Connection[DictRow]) -> None:
    db.execute("insert into agents (name, route, verify) values ('careful', '{claude}', 'make test')")
    runner = host(db)
    _, new = handed_over(db, runner, {"agent": "careful"}, target="shell")
    row = claim_of(db, runner, new)
    assert row["verify"] == "make test"
    assert unclear(refusal(db, "select complete_task(%s)", row["attempt_id"]), "TY004") == ""


def test_the_next_attempt_of_the_successor_gets_the_packet_again(db: Connection[DictRow]) -> None:
    """On the same host its session knows of it; on another it is told."""
    here, there = host(db), host(db, "barn")
    _, new = handed_over(db, here)
    token = claim_of(db, here, new)["attempt_id"]
    db.execute("select report_session(%s, 'its-session')", [token])
    say(db, token, "I go on.")
    end(db, token, "crashed")
    row = claim_of(db, here, new)
    assert (row["session_id"], row["files_of"] is not None) == ("its-session", True)
    assert "You take over from" not in row["note"]
    end(db, row["attempt_id"], "crashed")
    row = claim_of(db, there, new)
    assert row["session_id"] is None
    assert "You take over from shell" in row["note"]


def test_children_of_the_one_before_are_still_seen(db: Connection[DictRow]) -> None:
    runner = host(db)
    _, attempt = begin(db, runner)
    child = spawn(db, attempt)
    hand_over(db, attempt)
    end(db, attempt, "handed_off")
    new = value(db, "select to_task from handoffs")
    token = claim_of(db, runner, new)["attempt_id"]
    end(db, claim_of(db, runner, child)["attempt_id"], result=Jsonb("done"))
    assert value(db, "select read_result(%s, %s)", token, child)["result"] == "done"
    assert wait_for(db, token, child)["waiting"] is False


def test_whoever_takes_over_from_a_child_sees_its_siblings(db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home')")
    runner = host(db)
    _, above = begin(db, runner, scope="home")
    brother = spawn(db, above, "brother")
    one = claim_of(db, runner, spawn(db, above, "one", scope="home/kid"))["attempt_id"]
    assert value(db, "select read_result(%s, %s)", one, brother)["task"] == brother
    hand_over(db, one)
    end(db, one, "handed_off")
    (row,) = claim(db, runner)
    assert value(db, "select read_result(%s, %s)", row["attempt_id"], brother)["task"] == brother


def test_whoever_takes_over_is_no_child(db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent, max_children, max_depth) values ('home', 'default', 1, 1)")
    runner = host(db)
    task, attempt = begin(db, runner, scope="home")
    spawn(db, attempt)
    hand_over(db, attempt)
    assert end(db, attempt, "handed_off") == "waiting"
    assert column(db, "select children from child_counts where task_id = %s", task) == [1]
    new = claim_of(db, runner, value(db, "select to_task from handoffs"))["attempt_id"]
    spawn(db, new, "its own")
    error = refusal(
        db,
        """insert into tasks (prompt, agent, scope, parent_id, handoff_id) values ('x', 'shell', 'home', %s, 1)""",
        task,
    )
    assert unclear(error, "TY004") == ""


# --- Where it cannot go on.
