"""What a provider's refusal holds back, and for how long: accounts, models, providers, hosts, logins."""

from datetime import datetime, timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .yardwork import (
    advance,
    claim,
    end,
    explained,
    heard,
    insert,
    listener,
    misfiled,
    now,
    refusal,
    refuse,
    register,
    status,
    stop_clock,
)

MINUTE = timedelta(minutes=1)
UNTIL = "select until from provider_limits where until is not null"


def agent(db: Connection[DictRow], name: str, *route: str) -> None:
    db.execute("insert into agents (name, route) values (%s, %s)", [name, list(route)])


def claimed(db: Connection[DictRow], runner: int, n: int = 1) -> list[tuple[str, str | None]]:
    """Provider and model of what a runner gets."""
    return [(row["provider"], row["model"]) for row in claim(db, runner, n)]


def attempt(db: Connection[DictRow], runner: int) -> int:
    """The one attempt that a runner gets."""
    (row,) = claim(db, runner)
    return row["attempt_id"]


def cooldown(db: Connection[DictRow]) -> timedelta:
    """How long the only limit that is hot lasts from now on."""
    (until,) = column(db, UNTIL)
    return until - now(db)


def test_a_refusal_holds_every_host_with_that_account_and_no_other_account(db: Connection[DictRow]) -> None:
    here, there, other = (
        register(db, "here", claude="a"),
        register(db, "there", claude="a"),
        register(db, "o", claude="b"),
    )
    tasks = [insert(db, agent="claude") for _ in range(2)]
    resets_at = value(db, "select date_trunc('second', now()) + interval '3 hours'")
    assert refuse(db, attempt(db, here), "quota_exhausted", name="weekly", resets_at=resets_at) == "queued"
    assert claim(db, here, 5) == claim(db, there, 5) == []
    (row,) = claim(db, other)
    assert row["account"] == "b"
    db.execute("select retire_runner(%s)", [other])
    for task in tasks:
        first, why = explained(db, task)
        assert first == "Is queued."
        assert why.startswith(f"Provider claude a has hit its limit weekly until {resets_at:%Y-%m-%d %H:}")
        assert why.endswith(" (in 3h).")
    assert rows(db, "select account, window_name, state, level, resets_at from provider_limits") == [
        {"account": "a", "window_name": "weekly", "state": "hot", "level": 0, "resets_at": resets_at}
    ]


def test_a_limit_of_one_model_holds_that_model_and_whoever_leaves_the_model_open(db: Connection[DictRow]) -> None:
    for name, entry in (("big", "claude:big"), ("small", "claude:small"), ("any", "claude")):
        agent(db, name, entry)
    runner = register(db, claude="a")
    insert(db, agent="big")
    refuse(db, attempt(db, runner), name="weekly_big", model="big")
    insert(db, agent="small")
    insert(db, agent="any")
    insert(db, agent="small", model="big")
    insert(db, agent="any", model="other")
    assert sorted(claimed(db, runner, 5), key=str) == [("claude", "other"), ("claude", "small")]
    assert "limit weekly_big of big" in explained(db, value(db, "select id from tasks where agent = 'big'"))[1]


def test_the_next_entry_of_the_route_is_used_at_once(db: Connection[DictRow]) -> None:
    agent(db, "routed", "claude:big", "claude:small", "codex")
    runner = register(db, claude="a", codex="b")
    task = insert(db, agent="routed", max_attempts=1)
    for window, expected in (
        ({"model": "big"}, ("claude", "big")),
        ({}, ("claude", "small")),
        ({}, ("codex", None)),
    ):
        (row,) = claim(db, runner)
        assert (row["task_id"], row["provider"], row["model"]) == (task, *expected)
        assert refuse(db, row["attempt_id"], **window) == "queued"
    assert claim(db, runner) == []
    lines = explained(db, task)
    assert [line.split(" has hit")[0] for line in lines[1:]] == [
        "Provider claude a",
        "Provider claude a",
        "Provider codex b",
    ]
    kept = rows(db, "select failure_count, attempt_count from tasks where id = %s", task)
    assert kept == [{"failure_count": 0, "attempt_count": 3}]


def test_a_pin_ignores_the_route_and_waits_for_its_own_provider(db: Connection[DictRow]) -> None:
    stop_clock(db)
    agent(db, "routed", "claude:big", "codex")
    runner = register(db, claude="a", codex="b")
    task = insert(db, agent="routed", provider="claude")
    (row,) = claim(db, runner)
    assert (row["provider"], row["model"]) == ("claude", None), "the model belongs to the route, not to the pin"
    refuse(db, row["attempt_id"])
    assert claim(db, runner) == []
    assert [line.split(" has hit")[0] for line in explained(db, task)] == ["Is queued.", "Provider claude a"]
    advance(db, minutes=6)
    assert [row["task_id"] for row in claim(db, runner)] == [task]


def test_no_attempt_is_counted_for_the_limits_that_a_task_runs_into(db: Connection[DictRow]) -> None:
    cooling = column(db, "select outcome from outcome_policies where cools is not null order by outcome")
    assert cooling == ["network", "overloaded", "quota_exhausted", "rate_limited", "unauthenticated"]
    task = insert(db, agent="claude", max_attempts=1)
    for time in range(10):
        runner = register(db, f"host-{time}", claude=f"account-{time}")
        assert refuse(db, attempt(db, runner), cooling[time % 5]) == "queued"
        assert claim(db, runner) == []
        assert misfiled(db) == []
        db.execute("select clear_limit('claude')")
        db.execute("select retire_runner(%s)", [runner])
    assert rows(db, "select failure_count, attempt_count from tasks where id = %s", task) == [
        {"failure_count": 0, "attempt_count": 10}
    ]
    assert set(column(db, "select counted from attempts")) == {False}


@pytest.mark.parametrize("outcome", ["overloaded", "network"])
def test_fifty_times_a_busy_or_unreachable_provider_costs_nothing_and_then_it_counts(
    db: Connection[DictRow], outcome: str
) -> None:
    runner = register(db, claude="a")
    task = insert(db, agent="claude", max_attempts=1)
    for time in range(1, 52):
        assert refuse(db, attempt(db, runner), outcome) == ("failed" if time == 51 else "queued"), time
        db.execute("select clear_limit('claude')")
    assert value(db, "select failure_count from tasks where id = %s", task) == 1


def test_a_cooldown_lasts_until_a_moment_after_the_stated_reset(db: Connection[DictRow]) -> None:
    stop_clock(db)
    for hours in (1, 2, 24 * 7):
        task, runner = insert(db, agent="claude"), register(db, f"host-{hours}", claude=f"a{hours}")
        resets_at = now(db) + timedelta(hours=hours)
        refuse(db, attempt(db, runner), resets_at=resets_at)
        wait = value(db, "select until - resets_at from provider_limits where account = %s", f"a{hours}")
        assert timedelta(seconds=2) <= wait <= timedelta(seconds=62)
        db.execute("select cancel_task(%s)", [task])


def test_a_reset_in_the_past_or_a_nonsensical_one_is_a_guess_and_one_too_far_is_eight_days(
    db: Connection[DictRow],
) -> None:
    stop_clock(db)
    for number, (resets_at, expected) in enumerate(
        (
            (now(db) + timedelta(seconds=1), MINUTE),
            (now(db) + timedelta(seconds=30), MINUTE),
            (now(db) - timedelta(days=1), 5 * MINUTE),
            (datetime.fromisoformat("1970-01-01T00:00:00+00:00"), 5 * MINUTE),
            (datetime.fromisoformat("0001-01-01T00:00:00+00:00"), 5 * MINUTE),
            (now(db) + timedelta(days=30), timedelta(days=8)),
            (datetime.fromisoformat("9999-12-31T23:59:59+00:00"), timedelta(days=8)),
        )
    ):
        runner = register(db, f"host-{number}", claude=f"a{number}")
        task = insert(db, agent="claude")
        refuse(db, attempt(db, runner), name=str(number), resets_at=resets_at)
        until = value(db, "select until from provider_limits where window_name = %s", str(number))
        assert until - now(db) == expected, resets_at
        db.execute("select cancel_task(%s)", [task])


def test_numbers_that_make_no_sense_do_not_keep_an_attempt_from_ending(db: Connection[DictRow]) -> None:
    runner = register(db, claude="a")
    for percent in (-5, 1234.5, 1e9):
        insert(db, agent="claude")
        row = claim(db, runner)[0]
        db.execute("select report_limit(%s, %s)", [row["attempt_id"], Jsonb([{"name": "w", "used_percent": percent}])])
        assert refuse(db, row["attempt_id"], name="w", used_percent=percent) == "queued"
        db.execute("select clear_limit('claude')")
        db.execute("select cancel_task(%s)", [row["task_id"]])


def test_until_only_moves_later_while_it_is_hot(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db, claude="a")
    for _ in range(5):
        insert(db, agent="claude")
    later, sooner = now(db) + timedelta(hours=3), now(db) + timedelta(hours=1)
    untils: list[datetime] = []
    for row, resets_at in zip(claim(db, runner, 5), (None, sooner, later, sooner, None), strict=True):
        refuse(db, row["attempt_id"], resets_at=resets_at)
        untils += column(db, UNTIL)
    assert untils == sorted(untils)
    assert untils[0] == now(db) + 5 * MINUTE
    assert sooner < untils[1] < later < untils[2] == untils[3] == untils[4]


def test_attempts_that_were_under_way_when_the_limit_struck_do_not_lengthen_a_guess(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db, claude="a")
    for _ in range(4):
        insert(db, agent="claude")
    for row in claim(db, runner, 4):
        refuse(db, row["attempt_id"])
        advance(db, minutes=1)
    assert rows(db, "select level, until - _now() as wait, hot_since from provider_limits") == [
        {"level": 1, "wait": 1 * MINUTE, "hot_since": now(db) - 4 * MINUTE}
    ]


def test_an_overloaded_provider_cools_down_for_all_its_accounts(db: Connection[DictRow]) -> None:
    stop_clock(db)
    agent(db, "routed", "claude", "codex")
    one, two = register(db, "one", claude="a", codex="c"), register(db, "two", claude="b")
    insert(db, agent="claude")
    waits = list[timedelta]()
    for _ in range(4):
        refuse(db, attempt(db, one), "overloaded")
        waits.append(cooldown(db))
        assert claim(db, one) == claim(db, two) == []
        advance(db, seconds=waits[-1].total_seconds() + 1)
    assert waits == [1 * MINUTE, 3 * MINUTE, 10 * MINUTE, 10 * MINUTE]
    refuse(db, attempt(db, one), "overloaded")
    insert(db, agent="routed")
    assert claimed(db, one, 5) == [("codex", None)]
    assert rows(db, "select account, window_name from provider_limits") == [
        {"account": "", "window_name": "overloaded"}
    ]


def test_a_network_failure_cools_only_that_hosts_offer_and_its_strikes_grow_and_are_forgotten(
    db: Connection[DictRow],
) -> None:
    stop_clock(db)
    agent(db, "routed", "claude", "codex")
    near, far = register(db, "near", claude="a", codex="c"), register(db, "far", claude="a")
    task = insert(db, agent="claude")
    waits = list[int]()
    for _ in range(4):
        end(db, attempt(db, near), "network", evidence="ENOTFOUND")
        until, detail = next(
            (row["until"], row["detail"]) for row in rows(db, "select * from runner_providers where until > _now()")
        )
        assert detail == "ENOTFOUND"
        waits.append(int((until - now(db)).total_seconds()))
        assert claim(db, near) == []
        advance(db, seconds=waits[-1] - 1)
        assert claim(db, near) == []
        advance(db, seconds=1)
    assert waits == [15, 60, 300, 300]
    assert value(db, "select count(*) from provider_limits") == 0

    end(db, attempt(db, near), "network")
    insert(db, agent="routed", priority=-1)
    assert claimed(db, near, 5) == [("codex", None)]
    db.execute("select retire_runner(%s)", [far])
    assert explained(db, task) == ["Is queued.", "near cannot reach provider claude; it tries again in 5m."]
    assert claim(db, register(db, "far-again", claude="a"))[0]["task_id"] == task
    advance(db, minutes=36)
    insert(db, agent="claude")
    end(db, attempt(db, near), "network")
    assert value(db, "select strikes from runner_providers where until > _now()") == 1


def test_a_refused_login_is_out_of_use_on_every_host_until_a_human_has_seen_to_it(db: Connection[DictRow]) -> None:
    agent(db, "routed", "claude", "codex")
    here, there, other = (
        register(db, "here", claude="a", codex="a"),
        register(db, "there", claude="a"),
        register(db, "other", claude="b"),
    )
    task = insert(db, agent="claude")
    assert end(db, attempt(db, here), "unauthenticated", evidence="401 invalid x-api-key") == "queued"
    assert claim(db, here) == claim(db, there) == []
    insert(db, agent="routed", priority=-1)
    assert claimed(db, here) == [("codex", None)], "another provider with a login of that name goes on"
    assert [row["task_id"] for row in claim(db, other)] == [task], "so does another login"
    assert rows(db, "select kind, detail ->> 'account' as account from task_events where task_id = %s", task) == [
        {"kind": "login_refused", "account": "a"}
    ]
    db.execute("select retire_runner(%s)", [other])
    assert explained(db, task)[1:] == [
        "Provider claude refused the login a 0s ago; log in anew, then: select resume_provider('claude');"
    ]

    def offer(runner: int, account: str) -> None:
        told = [{"provider": "claude", "account": account, "state": "ready", "version": "9"}]
        db.execute("select offer_providers(%s, %s)", [runner, Jsonb(told)])

    offer(here, "a")  # the file with the login is still there
    assert claim(db, here) == []
    offer(here, "c")
    assert claim(db, there) == []
    second = claim(db, here)
    assert [(row["task_id"], row["account"]) for row in second] == [(task, "c")]
    assert end(db, second[0]["attempt_id"], "unauthenticated") == "queued"
    assert claim(db, here) == claim(db, there) == []
    db.execute("select resume_provider('claude')")
    assert [row["account"] for row in claim(db, there)] == ["a"]
    assert rows(
        db, "select distinct state, refused_at from runner_providers where runner_id = any(%s)", [here, there]
    ) == [{"state": "ready", "refused_at": None}]


def test_a_login_without_a_name_is_refused_on_its_own_host_alone(db: Connection[DictRow]) -> None:
    here, there = register(db, "here", claude=""), register(db, "there", claude="")
    task = insert(db, agent="claude")
    end(db, attempt(db, here), "unauthenticated")
    assert claim(db, here) == []
    assert [row["task_id"] for row in claim(db, there)] == [task]


def test_clearing_a_limit_ends_the_cooldown_of_a_provider_or_of_one_account(db: Connection[DictRow]) -> None:
    one, two = register(db, "one", claude="a"), register(db, "two", claude="b")
    for _ in range(2):
        insert(db, agent="claude")
    attempts = [attempt(db, one), attempt(db, two)]
    for token in attempts:
        refuse(db, token)
    assert claim(db, one) == claim(db, two) == []
    assert value(db, "select clear_limit('claude', 'a')") == "provider claude: 1 limit cleared"
    assert claim(db, two) == []
    (row,) = claim(db, one)
    assert value(db, "select canary from attempts where id = %s", row["attempt_id"]) is False
    refuse(db, row["attempt_id"])
    assert value(db, "select level from provider_limits where account = 'a'") == 1, "a new series"
    assert value(db, "select clear_limit('claude')") == "provider claude: 2 limits cleared"
    refuse(db, attempt(db, one), "overloaded")
    db.execute("select clear_limit('claude', 'b')")  # what holds all accounts holds this one
    assert value(db, "select count(*) from provider_limits where until is not null") == 0
    end(db, attempt(db, one), "network")
    db.execute("select clear_limit('claude')")
    assert len(claim(db, one)) == 1
    error = refusal(db, "select clear_limit('nothing')")
    assert error is not None
    assert error.sqlstate == "TY002"


def test_a_healthy_runs_report_notes_its_windows_and_holds_nothing(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db, claude="a")
    for _ in range(4):
        insert(db, agent="claude")
    token = attempt(db, runner)
    resets_at = now(db) + timedelta(hours=2)
    told = [
        {"name": "five_hour", "used_percent": 100, "resets_at": resets_at.isoformat()},
        {"name": "weekly", "used_percent": 12.5, "model": "big"},
    ]
    windows = "select window_name, model, used_percent::float8 as used, resets_at, state, until from provider_limits order by 1"
    db.execute("select report_limit(%s, %s)", [token, Jsonb(told)])
    expected = [
        {"window_name": "five_hour", "model": "", "used": 100, "resets_at": resets_at, "state": "open", "until": None},
        {"window_name": "weekly", "model": "big", "used": 12.5, "resets_at": None, "state": "open", "until": None},
    ]
    assert rows(db, windows) == expected
    other = attempt(db, runner)
    refuse(db, attempt(db, runner), name="five_hour", resets_at=resets_at)
    hot = rows(db, windows)[0]
    assert hot["state"] == "hot"
    # A run from before the limit says less than the refusal.
    db.execute("select report_limit(%s, %s)", [other, Jsonb([{"name": "five_hour", "used_percent": 3}])])
    assert rows(db, windows)[0] == hot
    assert claim(db, runner) == []
    end(db, token)
    error = refusal(db, "select report_limit(%s, '[]')", token)
    assert error is not None
    assert error.sqlstate == "TY005"


@pytest.mark.parametrize("what", ["limit", "canary", "network", "cap"])
def test_tick_wakes_sleeping_runners_when_what_cooled_down_may_be_tried_again(
    yard: Yard, db: Connection[DictRow], what: str
) -> None:
    stop_clock(db)
    if what == "cap":
        db.execute("insert into provider_caps (provider, period, max_requests) values ('claude', '2 minutes', 1)")
    runner = register(db, claude="a")
    for _ in range(2):
        insert(db, agent="claude")
    token = attempt(db, runner)
    wait = 5 * MINUTE
    if what in ("limit", "canary"):
        refuse(db, token)
    elif what == "network":
        end(db, token, "network")
        wait = timedelta(seconds=15)
    else:
        wait = timedelta(seconds=126)
    if what == "canary":
        advance(db, minutes=5)
        attempt(db, runner)  # ... and nothing more is heard of it
    listening, sleeper = listener(yard, "task_ready"), yard.connect()
    sleeper.execute("select sleep_begin()")

    def tick() -> int:
        db.execute("select heartbeat(%s, array(select id from attempts where outcome is null))", [runner])
        db.execute("select tick(%s)", [runner])
        return len(heard(listening, db))

    tick()
    advance(db, seconds=5)
    assert tick() == 0
    assert claim(db, runner) == []
    advance(db, seconds=wait.total_seconds() - 5)
    assert tick() == 1
    assert len(claim(db, runner)) == 1
    advance(db, seconds=1)
    assert tick() == 0


def test_a_task_that_a_limit_holds_back_can_be_cancelled_and_is_not_touched_by_tick(db: Connection[DictRow]) -> None:
    runner, task = register(db, claude="a"), insert(db, agent="claude")
    refuse(db, attempt(db, runner))
    db.execute("select tick(%s)", [runner])
    assert status(db, task) == "queued"
    assert value(db, "select error from tasks where id = %s", task) == "Attempt 1: too many requests for this account."
    db.execute("select cancel_task(%s)", [task])
    assert misfiled(db) == []
