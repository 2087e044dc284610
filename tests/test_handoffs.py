"""Handing over: another agent goes on with a packet, the old attempt is dead from that moment, and the task ends as the new one does."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from taskyard.runner.install import install

from .clock import Clock
from .conftest import Yard, column, rows, value
from .family import begin, claim_of, directives, hand_over, host, spawn, wait_for, waits_on
from .test_install import another
from .test_refusals import contents, unclear
from .yardwork import claim, end, explained, insert, misfiled, refusal, say, status

HANDOFF = "select handoff_task(%s, %s)"
PACKET: dict[str, Any] = {
    "target": "claude", "reason": "specialization", "context_summary": "The parser is done.", "pending_actions": ["write the tests", "run them"],
    "artifacts": ["notes.md"],
}  # fmt: skip


def handed_over(
    db: Connection[DictRow], runner: int, columns: dict[str, Any] | None = None, **packet: Any
) -> tuple[int, int]:
    """A task and the one that goes on with it."""
    task, attempt = begin(db, runner, **(columns or {}))
    handoff = hand_over(db, attempt, **packet)
    assert end(db, attempt, "handed_off") == "waiting"
    return task, value(db, "select to_task from handoffs where id = %s", handoff)


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


@pytest.mark.parametrize("how", ["handed_off", "crashed", "release_task", "retire_runner", "lease"])
@pytest.mark.parametrize("why", ["narrowed", "agent gone", "agent without a route"])
def test_a_successor_that_cannot_be_made_holds_nobody_up(
    yard: Yard, db: Connection[DictRow], why: str, how: str
) -> None:
    clock = Clock(yard, db)
    db.execute("insert into agents (name, route) values ('other', '{claude}')")
    db.execute("insert into scopes (name, parent) values ('home', 'default')")
    runner = host(db)
    task, attempt = begin(db, runner, scope="home")
    hand_over(db, attempt, "other")
    if why == "narrowed":
        db.execute("update scopes set allowed_agents = '{shell}' where name = 'home'")
    elif why == "agent gone":
        db.execute("delete from agents where name = 'other'")
    else:
        db.execute("update agents set route = '{}' where name = 'other'")
    if how == "release_task":
        db.execute("select release_task(%s)", [attempt])
    elif how == "retire_runner":
        db.execute("select retire_runner(%s)", [runner])
    elif how == "lease":
        clock.advance(timedelta(days=2))
        db.execute("select tick()")
        clock.advance(timedelta(seconds=11))
        db.execute("select tick()")
    else:
        end(db, attempt, how)
    assert value(db, "select outcome is not null from attempts where id = %s", attempt)
    assert misfiled(db) == []
    if why == "agent without a route":
        return  # its task waits for one, as any other would
    assert status(db, task) in ("queued", "scheduled", "failed")
    assert explained(db, task)


@pytest.mark.parametrize("open_still", ["a question", "a wait"])
@pytest.mark.parametrize("how", ["handed_off", "crashed", "release_task"])
def test_a_successor_that_cannot_be_made_leaves_what_else_was_waited_for(
    db: Connection[DictRow], how: str, open_still: str
) -> None:
    db.execute("insert into scopes (name, parent) values ('home', 'default')")
    task, attempt = begin(db, host(db), scope="home")
    child = spawn(db, attempt)
    if open_still == "a question":
        question = value(db, "select ask_human(%s, 'Which one?')", attempt)
        settle = f"select answer({question}, 'that')"
    else:
        wait_for(db, attempt, child)
        settle = f"select cancel_task({child})"
    hand_over(db, attempt)
    db.execute("update scopes set allowed_agents = '{shell}' where name = 'home'")
    if how == "release_task":
        db.execute("select release_task(%s)", [attempt])
    else:
        end(db, attempt, how)
    assert (status(db, task), misfiled(db)) == ("waiting", [])
    db.execute(settle.encode())
    assert (status(db, task), misfiled(db)) == ("queued", [])


# --- Chains.


def test_ten_times_and_no_more(db: Connection[DictRow]) -> None:
    runner = host(db)
    first, attempt = begin(db, runner, prompt="Write a parser.")
    after = insert(db, "after", depends_on=[first])
    tasks = [first]
    for n in range(10):
        hand_over(db, attempt, "shell" if n % 2 else "claude", context_summary=f"step {n}")
        end(db, attempt, "handed_off")
        tasks.append(value(db, "select max(to_task) from handoffs"))
        row = claim_of(db, runner, tasks[-1])
        assert (row["prompt"], row["files_of"]) == ("Write a parser.", first)
        assert f"step {n}" in row["note"]
        attempt = row["attempt_id"]
    error = refusal(db, HANDOFF, attempt, Jsonb(PACKET))
    assert unclear(error, "TY004") == ""
    end(db, attempt, result=Jsonb("at last"))
    assert {status(db, task) for task in tasks} == {"completed"}
    assert value(db, "select result from tasks where id = %s", first) == "at last"
    assert (status(db, after), misfiled(db)) == ("queued", [])


@pytest.mark.parametrize("kind", ["depends_on", "wait_for"])
@pytest.mark.parametrize(("outcome", "became"), [("permission_denied", "failed"), ("cancelled", "cancelled")])
def test_a_bad_end_is_the_end_of_all_of_them(db: Connection[DictRow], outcome: str, became: str, kind: str) -> None:
    runner = host(db)
    parent, above = begin(db, runner)
    first = spawn(db, above, "first")
    after = insert(db, "after", depends_on=[first])
    if kind == "wait_for":
        wait_for(db, above, first)
        end(db, above, "waiting")
    token, chain = claim_of(db, runner, first)["attempt_id"], [first]
    for _ in range(2):
        hand_over(db, token)
        end(db, token, "handed_off")
        chain.append(value(db, "select max(to_task) from handoffs"))
        token = claim_of(db, runner, chain[-1])["attempt_id"]
    if outcome == "cancelled":
        db.execute("select cancel_task(%s, 'enough')", [chain[-1]])
    end(db, token, outcome, error="No right to do so.")
    assert [status(db, task) for task in chain] == [became] * 3
    errors = {row["id"]: row["error"] for row in rows(db, "select id, error from tasks")}
    assert errors[first].startswith(f"Task {chain[1]}, to which it was handed over, ")
    if became == "failed":
        assert errors[first].endswith("No right to do so.")
    assert (status(db, after), errors[after].split(",")[0]) == ("failed", f"Task {first}")
    assert status(db, parent) == ("queued" if kind == "wait_for" else "running")
    assert misfiled(db) == []


def test_to_cancel_the_first_is_to_cancel_all(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, new = handed_over(db, runner)
    row = claim_of(db, runner, new)
    db.execute("select cancel_task(%s, 'enough')", [task])
    assert (status(db, task), status(db, new)) == ("cancelled", "running")
    assert directives(db, runner, row["attempt_id"]) == [(row["attempt_id"], "cancel")]
    assert end(db, row["attempt_id"], "cancelled") == "cancelled"
    assert misfiled(db) == []


def test_who_is_cancelled_before_stopping_hands_nothing_over(db: Connection[DictRow]) -> None:
    task, attempt = begin(db, host(db))
    hand_over(db, attempt)
    db.execute("select cancel_task(%s)", [task])
    assert end(db, attempt, "handed_off") == "cancelled"
    assert value(db, "select count(*) from tasks") == 1


def test_a_handoff_after_a_wait_waits_for_the_successor_alone(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    child = spawn(db, attempt)
    wait_for(db, attempt, child)
    hand_over(db, attempt)
    end(db, attempt, "handed_off")
    new = value(db, "select to_task from handoffs")
    assert waits_on(db, task) == [new]
    db.execute("select cancel_task(%s)", [new])
    assert (status(db, task), status(db, child), misfiled(db)) == ("cancelled", "queued", [])


def test_a_first_task_that_is_tried_again_begins_again(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, new = handed_over(db, runner)
    end(db, claim_of(db, runner, new)["attempt_id"], "permission_denied")
    assert status(db, task) == "failed"
    assert value(db, "select retry_task(%s)", task) == "queued"
    row = claim_of(db, runner, task)
    hand_over(db, row["attempt_id"], "shell")
    end(db, row["attempt_id"], "handed_off")
    newer = value(db, "select max(to_task) from handoffs")
    assert waits_on(db, task) == [newer]
    end(db, claim_of(db, runner, newer)["attempt_id"], result=Jsonb("second time"))
    assert (value(db, "select result from tasks where id = %s", task), misfiled(db)) == ("second time", [])


def test_a_successor_that_is_tried_again_is_waited_for_again(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, new = handed_over(db, runner)
    after = insert(db, "after", depends_on=[task])
    end(db, claim_of(db, runner, new)["attempt_id"], "permission_denied")
    assert (status(db, task), status(db, after)) == ("failed", "failed")
    error = refusal(db, f"select retry_task({new})")
    if error is not None:  # it may say that the first one is to be retried
        assert unclear(error, "TY004") == ""
        return
    assert (status(db, task), status(db, after), misfiled(db)) == ("waiting", "blocked", [])
    end(db, claim_of(db, runner, new)["attempt_id"])
    assert (status(db, task), status(db, after)) == ("completed", "queued")


def test_the_work_of_the_last_is_what_is_read_of_the_first(db: Connection[DictRow]) -> None:
    runner = host(db)
    _, above = begin(db, runner)
    first = spawn(db, above)
    token = claim_of(db, runner, first)["attempt_id"]
    db.execute("select report_work(%s, 'taskyard/2-1', %s)", [token, "a" * 40])
    hand_over(db, token)
    end(db, token, "handed_off")
    token = claim(db, runner)[0]["attempt_id"]
    db.execute("select report_work(%s, 'taskyard/3-1', %s)", [token, "b" * 40])
    db.execute("select add_artifact(%s, 'out.txt', 2, encode(sha256('hi'), 'hex'), 'hi')", [token])
    end(db, token, result=Jsonb("done"))
    told = value(db, "select read_result(%s, %s)", above, first)
    assert (told["task"], told["result"], told["branch"], told["commit"]) == (first, "done", "taskyard/3-1", "b" * 40)
    assert told["artifacts"] == [{"path": "out.txt", "kind": "file", "size": 2}]


def test_urgency_and_mail_reach_whoever_has_the_work_now(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, new = handed_over(db, runner)
    token = claim_of(db, runner, new)["attempt_id"]
    _, urgent = begin(db, runner, priority=60)
    wait_for(db, urgent, task)
    assert column(db, "select lent_priority from tasks where id in (%s, %s)", task, new) == [60, 60]
    db.execute("select say(%s, 'use tabs')", [task])
    assert [mail["text"] for mail in value(db, "select read_messages(%s)", token)] == ["use tabs"]


# --- The summary.


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
