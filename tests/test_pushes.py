"""Notifications: what is sent, when, how often and to whom; that nothing is lost, and nothing said that may not be."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .clock import Clock
from .command_line import Process, taskyard
from .conftest import Yard, column, rows, value
from .fleet import until
from .stand_in.push_server import Mood, PushServer, push_server
from .yardwork import claim, end, insert, register, status


@pytest.fixture
def server() -> Iterator[PushServer]:
    with push_server() as stand_in:
        yield stand_in


def target(db: Connection[DictRow], url: str, name: str = "me", kind: str = "webhook", **columns: Any) -> None:
    names = ["name", "kind", "url", *columns]
    places = ", ".join(["%s"] * len(names))
    db.execute(f"insert into push_targets ({', '.join(names)}) values ({places})", [name, kind, url, *columns.values()])  # type: ignore[arg-type]
    db.execute("update push_targets set digested_at = taskyard._now()")  # on the clock of the test


def mill(db: Connection[DictRow]) -> int:
    """The runner that does the work."""
    return value(db, "select max(id) from runners") or register(db, "mill", slots=100)


def fails(db: Connection[DictRow], prompt: str = "the secret prompt", **columns: Any) -> int:
    task = insert(db, prompt, max_attempts=1, priority=900, **columns)
    runner = mill(db)
    end(db, claim(db, runner)[0]["attempt_id"], "failed", error="the secret error")
    assert status(db, task) == "failed"
    return task


def asks(db: Connection[DictRow], **columns: Any) -> int:
    """A task that asks for the network; returns the question's id."""
    task = insert(db, "wants", priority=900, **columns)
    attempt = claim(db, mill(db))[0]["attempt_id"]
    question = value(db, "select request_permission(%s, '{network}', p_why => 'a secret reason')", attempt)
    end(db, attempt, "waiting")
    assert status(db, task) == "waiting"
    return question


def due(db: Connection[DictRow]) -> list[dict[str, Any]]:
    return rows(db, "select * from next_pushes(100)")


def test_what_failed_and_what_asks_is_told_once_to_each_that_wants_it(db: Connection[DictRow]) -> None:
    target(db, "http://a.example/x")
    target(db, "http://b.example/x", "all", events=["question", "failed", "completed"])
    target(db, "http://c.example/x", "off", enabled=False)
    task = fails(db)
    question = asks(db)
    done = insert(db, "done", priority=900)
    end(db, claim(db, mill(db))[0]["attempt_id"])
    told = {
        (push["target"], push["body"]["kind"], push["body"].get("approval") or push["body"]["task"]) for push in due(db)
    }
    assert told == {
        ("me", "failed", task), ("me", "question", question),
        ("all", "failed", task), ("all", "question", question), ("all", "completed", done),
    }  # fmt: skip
    assert due(db) == []


def test_nothing_of_a_text_leaves_unless_it_may(db: Connection[DictRow]) -> None:
    target(db, "http://a.example/x", "shy")
    target(db, "http://a.example/x", "frank", show_text=True)
    fails(db)
    asks(db)
    said: dict[str, str] = {"shy": "", "frank": ""}
    for push in due(db):
        said[push["target"]] += json.dumps(push["body"])
    assert "secret" not in said["shy"]
    for text in ("the secret prompt", "the secret error", "a secret reason"):
        assert text in said["frank"]


def test_a_target_hears_of_its_scope_and_below_and_not_of_children(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home'), ('work', 'default')"
    )
    target(db, "http://a.example/x", scope="home")
    wanted = [fails(db, scope="home"), fails(db, scope="home/kid")]
    fails(db, scope="work")
    fails(db)
    fails(db, scope="home", parent_id=insert(db, scope="home", run_at="2999-01-01"))
    assert sorted(push["body"]["task"] for push in due(db)) == wanted


def test_a_flood_is_counted_and_questions_come_all_the_same(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    target(db, "http://a.example/x", max_per_hour=3, digest=True)
    for _ in range(5):
        fails(db)
    asks(db)
    assert sorted(push["body"]["kind"] for push in due(db)) == ["failed"] * 3 + ["question"]
    clock.advance(timedelta(hours=1, minutes=1))
    digest = [push["body"] for push in due(db) if push["body"]["kind"] == "digest"]
    assert [(d["text"], d["counts"]["failed"]) for d in digest] == [("5 failed, 1 wait for you", 5)]


def test_the_digest_is_silent_where_nothing_happened(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    target(db, "http://a.example/x", events=[])
    clock.advance(timedelta(hours=2))
    assert due(db) == []
    for _ in range(2):
        insert(db)
        end(db, claim(db, mill(db))[0]["attempt_id"])
    assert due(db) == []  # not before the hour is over
    clock.advance(timedelta(hours=1, seconds=1))
    assert [push["body"]["text"] for push in due(db)] == ["2 completed"]
    clock.advance(timedelta(hours=5))
    assert [push["try"] for push in due(db)] == [2]  # the same one, which nobody has reported, and no other


def test_what_is_not_reported_comes_again_and_backs_off_until_a_day_is_over(
    yard: Yard, db: Connection[DictRow]
) -> None:
    clock = Clock(yard, db)
    target(db, "http://a.example/x", digest=False)
    fails(db)
    (first,) = due(db)
    clock.advance(timedelta(seconds=61))
    (again,) = due(db)
    assert (again["id"], first["try"], again["try"]) == (first["id"], 1, 2)
    assert value(db, "select report_push(%s, 1, null, 'late')", first["id"]) == "nothing changed"
    waits: list[float] = []
    for number in range(2, 14):
        assert value(db, "select report_push(%s, %s, null, 'HTTP 500')", first["id"], number) == "again"
        waits.append(value(db, "select extract(epoch from next_try_at - _now())::float from pushes"))
        clock.advance(timedelta(seconds=waits[-1] + 0.1))
        assert [push["try"] for push in due(db)] == [number + 1]
    assert all(0.75 * 10 * 2**n <= wait <= 1.25 * 10 * 2**n for n, wait in enumerate(waits[:6], 1))
    assert max(waits) <= 1800 * 1.25
    assert column(db, "select state || why from sent") == ["try 14HTTP 500"]
    clock.advance(timedelta(days=1))
    assert due(db) == []
    assert value(db, "select last_error from pushes") == "given up after a day; HTTP 500"
    assert column(db, "select state from sent") == ["dropped"]


def test_who_asks_for_time_gets_it_and_a_late_yes_counts(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    target(db, "http://a.example/x", digest=False)
    fails(db)
    (push,) = due(db)
    db.execute("select report_push(%s, 1, null, 'HTTP 429', '2 hours')", [push["id"]])
    clock.advance(timedelta(hours=1, minutes=59))
    assert due(db) == []
    clock.advance(timedelta(minutes=2))
    assert len(due(db)) == 1
    assert value(db, "select report_push(%s, 1, 'yes')", push["id"]) == "delivered"
    clock.advance(timedelta(hours=1))
    assert due(db) == []


def test_what_was_decided_meanwhile_is_not_sent(db: Connection[DictRow]) -> None:
    target(db, "http://a.example/x")
    question = asks(db)
    db.execute("select approve(%s)", [question])
    assert due(db) == []
    assert column(db, "select last_error from pushes") == ["decided before it was sent"]


def buttons(push: dict[str, Any]) -> dict[str, str]:
    return {button["label"]: button["body"] for button in push["body"]["actions"]}


def test_a_button_decides_once_in_the_name_of_the_targets_scope(db: Connection[DictRow]) -> None:
    db.execute("update scopes set may_network = true where name = 'default'")
    db.execute("insert into scopes (name, parent, may_network) values ('home', 'default', false)")
    target(db, "https://ntfy.example/t", kind="ntfy", scope="home", answers_url="https://ntfy.example/a")
    question = asks(db, scope="home")
    (push,) = due(db)
    assert push["body"]["topic"] == "t"
    assert [row["url"] for row in rows(db, "select * from push_answers()")] == ["https://ntfy.example/a"]
    press = buttons(push)
    assert set(press) == {"Approve", "Deny"}
    forged = re.sub("[0-9a-f]", lambda digit: "1" if digit[0] == "0" else "0", press["Approve"][-64:])
    for message in (
        f"approve {push['id']} {forged}",
        f"approve {push['id']}",
        "hello",
        "",
        "approve x y",
        press["Approve"] + "0",
    ):
        assert value(db, "select press_button('me', %s, 'm1')", message).startswith("ignored")
    assert value(db, "select press_button('other', %s, 'm1')", press["Approve"]).startswith("ignored")
    assert value(db, "select press_button('me', %s, 'm2')", press["Approve"]) == f"approved: question {question}"
    assert value(db, "select press_button('me', %s, 'm3')", press["Deny"]) == f"ignored: question {question} is decided"
    (decided,) = rows(db, "select decision, decided_by, bound from approvals")
    # Home itself has no network: what was approved in its name is no more than that.
    assert decided == {"decision": "approved", "decided_by": "push target me", "bound": "home"}
    assert "network" not in claim(db, mill(db))[0]["permissions"]
    assert value(db, "select answers_since from push_targets") == "m3"
    assert rows(db, "select * from push_answers()") == []


def test_without_a_target_events_cost_nothing_and_the_queue_stays_empty(db: Connection[DictRow]) -> None:
    fails(db)
    assert value(db, "select count(*) from pgmq.q_push") == 0
    target(db, "http://a.example/x")
    assert set(column(db, "select pattern from pgmq.topic_bindings")) == {"question.#", "task.failed.#"}
    db.execute("update push_targets set events = '{completed}'")
    assert column(db, "select pattern from pgmq.topic_bindings") == ["task.completed.#"]
    db.execute("delete from push_targets")
    assert column(db, "select pattern from pgmq.topic_bindings") == []


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"url": "ftp://a/x"}, "url"),
        ({"url": "https://me:secret@a/x"}, "url"),
        ({"kind": "ntfy", "url": "https://a"}, "url"),
        ({"kind": "pigeon"}, "kind"),
        ({"events": ["everything"]}, "events"),
        ({"answers_url": "https://a/b"}, "answers_url"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(
    db: Connection[DictRow], columns: dict[str, Any], constraint: str
) -> None:
    with pytest.raises(Exception, match=f"push_targets_{constraint}"):
        target(db, **{"url": "https://a/x", **columns})


def test_a_viewer_does_not_read_the_addresses(yard: Yard, db: Connection[DictRow]) -> None:
    target(db, "https://ntfy.example/t", kind="ntfy")
    viewer = yard.connect("viewer")
    assert column(viewer, "select name from push_targets") == ["me"]
    with pytest.raises(Exception, match="permission denied"):
        viewer.execute("select url from push_targets")


def test_a_server_that_fails_hangs_and_loses_answers_gets_everything(
    yard18: Yard, server: PushServer, tmp_path: Any
) -> None:
    """Marked delivered only when it was: each row that says so is a message that the server took, and each was taken."""
    db = yard18.connect()
    moods: list[Mood] = [
        "fails",
        "hangs",
        "loses",
        "fails",
        "loses",
        "busy",
        "takes",
        "loses",
        "fails",
        "takes",
        "loses",
    ]
    server.moods.extend(moods)
    target(db, f"{server.address}/hook", token_env="HOOK_TOKEN")
    tasks = [fails(db) for _ in range(8)]
    notifier = Process(yard18, "notify", HOOK_TOKEN="hush")
    try:

        def hurried() -> bool:
            db.execute("update pushes set next_try_at = now() where next_try_at > now() and last_error is not null")
            return value(db, "select count(*) from pushes where delivered_at is null") == 0

        until(lambda: value(db, "select count(*) from pushes") == 8)
        until(lambda: hurried(), 40)
    finally:
        notifier.kill()
    taken = [body["task"] for _, _, body in server.got]
    assert set(taken) == set(tasks)
    assert len(taken) > len(tasks), "a lost answer means once more"
    assert column(db, "select receipt ~ '^HTTP 200, receipt-' from pushes") == [True] * 8
    assert {headers["Authorization"] for _, headers, _ in server.got} == {"Bearer hush"}
    keys = {(headers["Idempotency-Key"], body["task"]) for _, headers, body in server.got}
    assert len(keys) == 8, "one key for each notification, however often it is sent"
    assert server.address not in notifier.err.decode()


def test_ntfy_gets_buttons_and_what_is_pressed_comes_back(yard18: Yard, server: PushServer) -> None:
    db = yard18.connect()
    db.execute("update scopes set may_network = false where name = 'default'")
    target(db, f"{server.address}/topic", kind="ntfy", answers_url=f"{server.address}/answers")
    notifier = Process(yard18, "notify")
    try:
        first, second = asks(db), asks(db)
        until(lambda: len(server.got) == 2)
        assert [path for path, _, _ in server.got] == ["/", "/"]
        assert [body["topic"] for _, _, body in server.got] == ["topic", "topic"]
        server.post("answers", "somebody chats here")
        presses = {body["message"].split(",")[0]: body["actions"] for _, _, body in server.got}
        server.press(presses[f"Question {first}"][0])
        server.press(presses[f"Question {second}"][1])
        until(lambda: column(db, "select decision from approvals order by id") == ["approved", "denied"])
    finally:
        notifier.kill()


def test_one_that_is_killed_while_it_sends_loses_nothing(yard18: Yard, server: PushServer) -> None:
    db = yard18.connect()
    server.moods.append("hangs")
    target(db, f"{server.address}/hook")
    fails(db)
    first = Process(yard18, "notify")
    until(lambda: server.tried == 1)
    first.kill()
    db.execute("update pushes set next_try_at = now()")  # a minute later
    sent = taskyard(yard18, "notify", "--once")
    assert sent.output.splitlines()[-1] == "1 sent."
    assert len(server.got) == 1
    assert column(db, "select tries from pushes where delivered_at is not null") == [2]


def test_only_an_administrator_sends(yard18: Yard) -> None:
    refused = taskyard(yard18.login("eve", "submitter", "default"), "notify", "--once")
    assert refused.exit_code == 3
    assert "may not send notifications" in refused.output
