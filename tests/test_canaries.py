"""After a limit, one attempt finds out whether the account answers again, and the rest waits for it."""

import threading
from datetime import timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .fleet import until
from .yardwork import (
    advance,
    claim,
    end,
    explained,
    in_background,
    insert,
    misfiled,
    now,
    refuse,
    register,
    say,
    set_clock,
    status,
    stop_clock,
    waits_for_a_lock,
)

CANARIES = "select id from attempts where canary and outcome is null"


def cooled_down(db: Connection[DictRow], *runners: int, tasks: int = 5) -> list[int]:
    """Tasks for the agent claude whose account hit a limit that is over by now; nobody has tried since."""
    made = [insert(db, agent="claude") for _ in range(tasks)]
    (row,) = claim(db, runners[0])
    refuse(db, row["attempt_id"])
    for runner in runners:
        assert claim(db, runner, 9) == []
    advance(db, minutes=5, seconds=-1)
    for runner in runners:
        assert claim(db, runner, 9) == []
    advance(db, seconds=1)
    return made


def test_after_the_time_that_explain_names_exactly_one_goes_and_the_others_wait_for_it(db: Connection[DictRow]) -> None:
    stop_clock(db)
    here, there = register(db, "here", claude="a"), register(db, "there", claude="a")
    task = insert(db, agent="claude")
    for _ in range(4):
        insert(db, agent="claude")
    refuse(db, claim(db, here)[0]["attempt_id"])
    goes_on = now(db) + timedelta(minutes=5)
    assert explained(db, task)[1:] == [
        f"Provider claude a has hit its limit rate_limited until {goes_on:%Y-%m-%d %H:%M:%S} (in 5m, a guess)."
    ]
    set_clock(db, goes_on - timedelta(seconds=1))
    assert claim(db, here) == claim(db, there, 50) == []
    set_clock(db, goes_on)
    assert explained(db, task)[1].startswith("Nothing holds it back: ")
    (canary,) = claim(db, there, 50)
    assert column(db, CANARIES) == [canary["attempt_id"]]
    assert claim(db, here, 50) == claim(db, there, 50) == []
    waiting = value(db, "select max(id) from tasks")
    assert explained(db, waiting)[1:] == [
        f"Provider claude is being tried again after its limit, by attempt {canary['attempt_id']}."
    ]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_of_two_claims_at_the_same_moment_only_one_is_the_canary(
    yard: Yard, db: Connection[DictRow], ends: str
) -> None:
    stop_clock(db)
    other, watcher = yard.connect(), yard.connect()
    here, there = register(db, "here", claude="a"), register(db, "there", claude="a")
    cooled_down(db, here, there)
    set_clock(other, now(db))
    db.execute("begin")
    assert len(claim(db, here, 5)) == 1
    got: list[list[DictRow]] = []
    claiming = in_background(lambda: got.append(claim(other, there, 5)))
    until(lambda: waits_for_a_lock(watcher, other))
    db.execute(ends.encode())
    claiming.join(20)
    assert len(got[0]) == int(ends == "rollback")
    assert len(column(db, CANARIES)) == 1
    assert claim(db, here, 5) == claim(other, there, 5) == []


def test_of_many_claims_at_once_only_one_is_the_canary_time_after_time(yard: Yard, db: Connection[DictRow]) -> None:
    stop_clock(db)
    runners = [register(db, f"host-{n}", claude="a") for n in range(4)]
    connections = [yard.connect() for _ in runners]
    cooled_down(db, *runners, tasks=20)
    for _ in range(8):
        barrier, got = threading.Barrier(len(runners)), list[int]()

        def race(connection: Connection[DictRow], runner: int, barrier: threading.Barrier, got: list[int]) -> None:
            barrier.wait(20)
            got += [row["attempt_id"] for row in claim(connection, runner, 3)]

        threads: list[threading.Thread] = []
        for connection, runner in zip(connections, runners, strict=True):
            set_clock(connection, now(db))
            threads.append(in_background(lambda c=connection, r=runner, b=barrier, g=got: race(c, r, b, g)))
        for thread in threads:
            thread.join(20)
        assert len(got) == 1
        assert column(db, CANARIES) == got
        refuse(db, got[0])
        advance(db, hours=1)


@pytest.mark.parametrize("kind", ["text", "thinking", "tool_call"])
def test_the_canarys_first_word_opens_the_account_for_the_rest(db: Connection[DictRow], kind: str) -> None:
    stop_clock(db)
    here, there = register(db, "here", claude="a"), register(db, "there", claude="a")
    cooled_down(db, here, there)
    (canary,) = claim(db, here)
    for silent in ("note", "error", "output", "tool_result"):
        say(db, canary["attempt_id"], "the tool's own words", kind=silent)
        assert claim(db, there) == []
    say(db, canary["attempt_id"], "Hello.", kind=kind)
    assert len(claim(db, there, 9)) == 4
    assert rows(db, "select state, until, level, hot_since, canary_attempt from provider_limits") == [
        {"state": "open", "until": None, "level": 0, "hot_since": None, "canary_attempt": None}
    ]
    insert(db, agent="claude")
    refuse(db, canary["attempt_id"])
    assert claim(db, there) == []
    assert value(db, "select level from provider_limits") == 1, "a new series"


def test_the_canarys_completion_opens_the_account_for_the_rest(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db, claude="a")
    cooled_down(db, runner)
    assert end(db, claim(db, runner)[0]["attempt_id"]) == "completed"
    assert len(claim(db, runner, 9)) == 4
    assert value(db, "select count(*) from attempts where canary") == 1


def test_a_canary_that_is_completed_with_others_in_one_step_opens_the_account_too(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db, claude="a", command="")
    cooled_down(db, runner)
    insert(db)
    both = [row["attempt_id"] for row in claim(db, runner, 9)]
    assert len(both) == 2
    assert column(db, "select status from complete_tasks(%s)", both) == ["completed", "completed"]
    assert len(claim(db, runner, 9)) == 4


def test_a_canary_that_is_refused_again_raises_the_guess(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner, task = register(db, claude="a"), insert(db, agent="claude")
    waits: list[int] = []
    started = now(db)
    for _ in range(5):
        (row,) = claim(db, runner)
        refuse(db, row["attempt_id"])
        (limit,) = rows(db, "select until - _now() as wait, level, hot_since from provider_limits")
        assert limit["hot_since"] == started
        assert claim(db, runner) == []
        assert ", a guess" in explained(db, task)[1]
        waits.append(int(limit["wait"].total_seconds() / 60))
        advance(db, minutes=waits[-1])
    assert waits == [5, 15, 60, 60, 60]
    # Then the provider says when: no guess any more, and the guesses begin anew after that.
    resets_at = now(db) + timedelta(hours=2)
    refuse(db, claim(db, runner)[0]["attempt_id"], resets_at=resets_at)
    assert ", a guess" not in explained(db, task)[1]
    assert value(db, "select level from provider_limits") == 0
    advance(db, hours=3)
    refuse(db, claim(db, runner)[0]["attempt_id"])
    assert rows(db, "select level, until - _now() as wait, resets_at from provider_limits") == [
        {"level": 1, "wait": timedelta(minutes=5), "resets_at": None}
    ]


def test_a_canary_that_hangs_blocks_the_others_for_five_minutes_only(db: Connection[DictRow]) -> None:
    stop_clock(db)
    here, there = register(db, "here", claude="a"), register(db, "there", claude="a")
    cooled_down(db, here, there)
    (hung,) = claim(db, here)
    advance(db, minutes=5, seconds=-1)
    assert claim(db, there, 9) == []
    advance(db, seconds=1)
    (second,) = claim(db, there, 9)
    assert claim(db, here, 9) == []
    # The first one's late word proves nothing for the second, and the account is still the second's to open.
    say(db, hung["attempt_id"], "Hello.")
    assert claim(db, here, 9) == []
    assert end(db, hung["attempt_id"]) == "completed"
    assert claim(db, here, 9) == []
    say(db, second["attempt_id"], "Hello.")
    assert len(claim(db, here, 9)) == 3


@pytest.mark.parametrize(
    "way",
    ["crashed", "failed", "timed_out", "stalled", "cancelled", "released", "retired", "lost", "unknown to its runner"],
)
def test_a_canary_that_ends_without_an_answer_frees_the_place_at_once(db: Connection[DictRow], way: str) -> None:
    stop_clock(db)
    here, there = register(db, "here", claude="a"), register(db, "there", claude="a")
    cooled_down(db, here, there)
    (canary,) = claim(db, here)
    token = canary["attempt_id"]
    assert claim(db, there) == []
    if way == "cancelled":
        db.execute("select cancel_task(%s)", [canary["task_id"]])
        assert end(db, token, "cancelled") == "cancelled"
    elif way == "released":
        db.execute("select release_task(%s)", [token])
    elif way == "retired":
        db.execute("select retire_runner(%s)", [here])
    elif way == "lost":
        for seconds in (9, 9, 9, 9, 9, 9, 9, 9):
            advance(db, seconds=seconds)
            db.execute("select heartbeat(%s)", [there])
            db.execute("select tick(%s)", [there])
    elif way == "unknown to its runner":
        advance(db, seconds=61)
        db.execute("select heartbeat(%s)", [here])
    else:
        end(db, token, way)
    assert value(db, "select outcome is not null from attempts where id = %s", token)
    (second,) = claim(db, there, 9)
    assert value(db, "select canary from attempts where id = %s", second["attempt_id"]), (
        "only one at a time all the same"
    )
    assert misfiled(db) == []


def test_the_success_of_an_attempt_from_before_the_limit_opens_nothing(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db, claude="a")
    for _ in range(5):
        insert(db, agent="claude")
    early, second, refused = (row["attempt_id"] for row in claim(db, runner, 3))
    refuse(db, refused)
    say(db, early, "Hello.")
    assert end(db, early) == "completed"
    assert claim(db, runner) == []
    advance(db, minutes=5)
    (canary,) = claim(db, runner)
    say(db, second, "Hello.")
    assert end(db, second) == "completed"
    assert claim(db, runner) == []
    refuse(db, canary["attempt_id"])
    assert value(db, "select level from provider_limits") == 2


def test_a_canary_that_spoke_before_another_refusal_came_does_not_open_what_that_closed(
    db: Connection[DictRow],
) -> None:
    stop_clock(db)
    runner = register(db, claude="a")
    for _ in range(5):
        insert(db, agent="claude")
    early, refused = (row["attempt_id"] for row in claim(db, runner, 2))
    refuse(db, refused)
    advance(db, minutes=5)
    (canary,) = claim(db, runner)
    refuse(db, early)  # the account is not open after all
    say(db, canary["attempt_id"], "Hello.")
    assert claim(db, runner) == []
    assert value(db, "select until > _now() from provider_limits")


def test_a_canary_tries_all_limits_that_it_runs_into_and_leaves_the_others_alone(db: Connection[DictRow]) -> None:
    stop_clock(db)
    db.execute("insert into agents (name, route) values ('big', '{claude:big}'), ('small', '{claude:small}')")
    runner = register(db, claude="a")
    for name in ("big", "small", "big", "small"):
        insert(db, agent=name)
    by_model = {row["model"]: row["attempt_id"] for row in claim(db, runner, 9)}
    refuse(db, by_model["big"], name="weekly_big", model="big")
    refuse(db, by_model["small"], name="five_hour")
    advance(db, minutes=5)
    canaries = claim(db, runner, 9)
    assert len(canaries) == 1
    model = canaries[0]["model"]
    tried = {"big": ["five_hour", "weekly_big"], "small": ["five_hour"]}[model]
    assert column(db, "select window_name from provider_limits where canary_attempt is not null order by 1") == tried
    say(db, canaries[0]["attempt_id"], "Hello.")
    assert column(db, "select window_name from provider_limits where state = 'open' order by 1") == tried


def test_many_limits_of_one_account_are_waited_for_until_the_last(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner, task = register(db, claude="a"), insert(db, agent="claude")
    insert(db, agent="claude")
    first, second = (row["attempt_id"] for row in claim(db, runner, 2))
    refuse(db, first, name="five_hour", resets_at=now(db) + timedelta(hours=1))
    refuse(db, second, name="weekly", resets_at=now(db) + timedelta(days=2))
    assert "its limit weekly until" in explained(db, task)[1]
    advance(db, hours=2)
    assert claim(db, runner) == []
    advance(db, days=2)
    (canary,) = claim(db, runner, 9)
    assert end(db, canary["attempt_id"]) == "completed"
    assert value(db, "select count(*) from provider_limits where state = 'hot'") == 0
    assert status(db, task) in ("completed", "queued")
    assert len(claim(db, runner, 9)) == 1
