"""State that an agent saves: by attempt and version, for whoever goes on with its task."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from taskyard.runner.install import install

from .clock import Clock
from .conftest import Yard, column, rows, value
from .family import begin, claim_of, hand_over, host
from .fleet import until
from .test_install import another
from .test_refusals import contents, unclear
from .yardwork import end, in_background, insert, refusal, status, waits_for_a_lock

STATE: dict[str, Any] = {
    "status": "tests pass, docs missing", "progress": 0.75, "data": {"files": ["a.py"], "ü": None}, "conversation": [{"role": "user", "text": "Go on."}],
}  # fmt: skip


def save(db: Connection[DictRow], attempt: int, **changes: Any) -> int:
    return value(db, "select save_checkpoint(%s, %s)", attempt, Jsonb({**STATE, **changes}))


def load(db: Connection[DictRow], attempt: int) -> dict[str, Any] | None:
    return value(db, "select load_checkpoint(%s)", attempt)


def test_what_is_saved_is_loaded(db: Connection[DictRow]) -> None:
    task, attempt = begin(db, host(db))
    assert load(db, attempt) is None
    assert save(db, attempt) == 1
    found = load(db, attempt)
    assert found is not None
    assert datetime.fromisoformat(found.pop("created_at")).tzinfo is not None
    assert found == {**STATE, "task": task, "attempt": attempt, "version": 1}


def test_nothing_but_a_status_and_a_share_is_needed(db: Connection[DictRow]) -> None:
    _, attempt = begin(db, host(db))
    for progress in (0, 1, 0.5):
        value(db, "select save_checkpoint(%s, %s)", attempt, Jsonb({"status": "  begun ", "progress": progress}))
        found = load(db, attempt)
        assert found is not None
        assert (found["status"], found["progress"], found["data"], found["conversation"]) == ("begun", progress, {}, [])


def test_saving_is_progress(yard: Yard, db: Connection[DictRow]) -> None:
    clock = Clock(yard, db)
    _, attempt = begin(db, host(db))
    clock.advance(timedelta(minutes=7))
    save(db, attempt)
    assert rows(db, "select progress, doing, progress_at = _now() as now from attempts where id = %s", attempt) == [
        {"progress": 0.75, "doing": "tests pass, docs missing", "now": True}
    ]


def test_versions_are_counted_in_each_attempt_and_the_last_twenty_are_kept(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, first = begin(db, runner)
    assert [save(db, first, status=f"first {n}") for n in range(1, 16)] == list(range(1, 16))
    end(db, first, "crashed")
    second = claim_of(db, runner, task)["attempt_id"]
    found = load(db, second)
    assert found is not None
    assert (found["attempt"], found["version"], found["status"]) == (first, 15, "first 15")
    assert [save(db, second, status=f"second {n}") for n in range(1, 8)] == list(range(1, 8))
    kept = rows(db, "select attempt_id, version from checkpoints where task_id = %s order by attempt_id, version", task)
    assert [(row["attempt_id"], row["version"]) for row in kept] == [
        *((first, n) for n in range(3, 16)),
        *((second, n) for n in range(1, 8)),
    ]
    for n in range(8, 31):
        assert save(db, second) == n
    assert column(db, "select version from checkpoints where task_id = %s order by version", task) == list(
        range(11, 31)
    )


def test_each_task_keeps_its_own(db: Connection[DictRow]) -> None:
    runner = host(db)
    (_, one), (_, two) = begin(db, runner), begin(db, runner)
    save(db, one, status="one")
    for _ in range(25):
        save(db, two)
    found = load(db, one)
    assert found is not None
    assert found["status"] == "one"


def test_two_at_once_are_two_versions(yard: Yard) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    _, attempt = begin(db, host(db))
    one.execute("begin")
    versions = [save(one, attempt)]
    following = in_background(lambda: versions.append(save(two, attempt)))
    until(lambda: waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(10)
    assert versions == [1, 2]


WRONG: list[Any] = [
    None, [], "half", 5, {}, {"status": "x"}, {"progress": 0.5}, {**STATE, "status": None}, {**STATE, "status": " "}, {**STATE, "status": 5},
    {**STATE, "status": "x" * 1001}, {**STATE, "progress": None}, {**STATE, "progress": "0.5"}, {**STATE, "progress": -0.01},
    {**STATE, "progress": 1.01}, {**STATE, "progress": True}, {**STATE, "data": []}, {**STATE, "data": "x"}, {**STATE, "conversation": {}},
    {**STATE, "conversation": "x"}, {**STATE, "more": 1}, {**STATE, "version": 3}, {**STATE, "data": {"big": "x" * 4_194_304}},
]  # fmt: skip


def test_what_is_no_state_is_refused(db: Connection[DictRow]) -> None:
    _, attempt = begin(db, host(db))
    before = contents(db)
    for state in WRONG:
        error = refusal(db, "select save_checkpoint(%s, %s)", attempt, Jsonb(state))
        assert unclear(error, "TY001") == "", str(state)[:100]
    assert unclear(refusal(db, "select save_checkpoint(%s, null)", attempt), "TY001") == ""
    assert (
        unclear(refusal(db, """select save_checkpoint(%s, '{"status": "x", "progress": 1e400}')""", attempt), "TY001")
        == ""
    )
    assert contents(db) == before
    db.execute("""select save_checkpoint(%s, '{"status": "x", "progress": 1e-300}')""", [attempt])
    save(db, attempt, data={"large": "x" * 4_000_000})


def test_an_attempt_that_is_over_saves_and_loads_nothing(db: Connection[DictRow]) -> None:
    runner = host(db)
    task, attempt = begin(db, runner)
    save(db, attempt)
    db.execute("select retire_runner(%s)", [runner])
    before = contents(db)
    for call in ('select save_checkpoint(%s, \'{"status": "x", "progress": 1}\')', "select load_checkpoint(%s)"):
        assert unclear(refusal(db, call, attempt), "TY005") == "", call
    assert contents(db) == before
    assert status(db, task) == "queued"


@pytest.mark.parametrize("between", ["crashed", "stalled", "waiting", "released", "retried"])
def test_the_next_attempt_goes_on_from_it(db: Connection[DictRow], between: str) -> None:
    here, there = host(db), host(db, "barn")
    task, attempt = begin(db, here)
    save(db, attempt)
    if between == "released":
        db.execute("select release_task(%s)", [attempt])
    elif between == "retried":
        end(db, attempt, "permission_denied")
        db.execute("select retry_task(%s)", [task])
    else:
        end(db, attempt, between)
    db.execute("update tasks set run_at = null, stays_on = null where id = %s", [task])
    row = claim_of(db, there, task)
    assert row["session_id"] is None
    assert 'It saved a checkpoint: {"data"' in row["note"]
    assert "tests pass, docs missing" in row["note"]
    found = load(db, row["attempt_id"])
    assert found is not None
    assert {key: found[key] for key in STATE} == STATE


def test_whoever_takes_over_goes_on_from_it_until_it_has_its_own(db: Connection[DictRow]) -> None:
    runner = host(db)
    _, attempt = begin(db, runner)
    save(db, attempt, status="of the first")
    for _ in range(2):
        hand_over(db, attempt)
        end(db, attempt, "handed_off")
        attempt = claim_of(db, runner, value(db, "select max(to_task) from handoffs"))["attempt_id"]
        found = load(db, attempt)
        assert found is not None
        assert found["status"] == "of the first"
    assert save(db, attempt, status="its own") == 1
    found = load(db, attempt)
    assert found is not None
    assert (found["status"], found["attempt"]) == ("its own", attempt)


def test_a_large_one_is_shown_in_part(db: Connection[DictRow]) -> None:
    here, there = host(db), host(db, "barn")
    task, attempt = begin(db, here)
    save(db, attempt, data={"log": "x" * 100_000})
    end(db, attempt, "crashed")
    row = claim_of(db, there, task)
    assert len(row["note"]) < 6000
    found = load(db, row["attempt_id"])
    assert found is not None
    assert len(found["data"]["log"]) == 100_000


# --- From one yard to another.


def test_a_checkpoint_goes_on_in_another_database(yard: Yard, db: Connection[DictRow]) -> None:
    task, attempt = begin(db, host(db))
    save(db, attempt, status="older")
    save(db, attempt)
    document = value(db, "select export_checkpoint(%s)", task)
    created = document.pop("created_at")
    assert datetime.fromisoformat(created)
    assert document == {"kind": "taskyard.checkpoint", "task": task, "attempt": attempt, "version": 2, "state": STATE}
    with another(yard.cluster) as other:
        there = other.connect()
        install(there)
        there.execute("set search_path = taskyard, public")
        for n in range(1, 3):
            for _ in range(7):
                insert(there)
            new = insert(there, "the same")
            assert (
                value(there, "select import_checkpoint(%s, %s)", new, Jsonb({**document, "created_at": created})) == 1
            )
            assert value(there, "select import_checkpoint(%s, %s)", new, Jsonb(document)) == 2
            row = claim_of(there, host(there, f"barn-{n}"), new)
            found = load(there, row["attempt_id"])
            assert found is not None
            assert {key: found[key] for key in STATE} == STATE
            assert (found["task"], found["attempt"], found["version"]) == (new, 0, 2)
            assert value(there, "select export_checkpoint(%s)", new)["state"] == STATE
            assert save(there, row["attempt_id"], status="further") == 1
            found = load(there, row["attempt_id"])
            assert found is not None
            assert found["status"] == "further"


def test_an_imported_one_is_told_to_an_agent_that_begins(db: Connection[DictRow]) -> None:
    runner = host(db)
    task = insert(db, "another")
    db.execute("select import_checkpoint(%s, %s)", [task, Jsonb({"kind": "taskyard.checkpoint", "state": STATE})])
    row = claim_of(db, runner, task)
    found = load(db, row["attempt_id"])
    assert found is not None
    assert found["status"] == STATE["status"]
    assert "A checkpoint was imported for this task: load_checkpoint" in row["note"]


def test_who_imports_what_into_which_task(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('home', 'default'), ('zebra', 'default')")
    runner = host(db)
    running, attempt = begin(db, runner, scope="home")
    save(db, attempt)
    document = value(db, "select export_checkpoint(%s)", running)
    done, token = begin(db, runner, scope="home")
    end(db, token)
    queued, foreign = insert(db, scope="home"), insert(db, scope="zebra")
    with Connection[DictRow].connect(
        yard.login("ann", "submitter", "home"), autocommit=True, row_factory=db.row_factory
    ) as ann:
        before = contents(db)
        for task in (running, done):
            error = refusal(ann, "select import_checkpoint(%s, %s)", task, Jsonb(document))
            assert unclear(error, "TY004") == ""
        for task in (foreign, 999999, None):
            for call in ("select import_checkpoint(%s, '{}')", "select export_checkpoint(%s)"):
                assert unclear(refusal(ann, call, task), "TY002") == "", call
        assert unclear(refusal(ann, "select export_checkpoint(%s)", queued), "TY002") == ""
        bad: list[Any] = [
            None, [], {}, {"kind": "x"}, {"kind": "taskyard.handoff", "state": STATE}, {"kind": "taskyard.checkpoint"}, {**document, "state": {}},
        ]  # fmt: skip
        for wrong in bad:
            assert unclear(refusal(ann, "select import_checkpoint(%s, %s)", queued, Jsonb(wrong)), "TY001") == "", wrong
        assert contents(db) == before
        assert value(ann, "select import_checkpoint(%s, %s)", queued, Jsonb(document)) == 1
    (event,) = rows(db, "select actor, detail from task_events where kind = 'checkpoint_imported'")
    assert event == {"actor": f"ann_{yard.name}", "detail": {"from": running, "version": 1}}
