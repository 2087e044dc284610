"""What tasks.on_limit makes of a limit: the next provider of the route, or patience."""

from datetime import timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import column, value
from .yardwork import advance, claim, explained, insert, now, refuse, register, set_clock, stop_clock


@pytest.fixture
def routed(db: Connection[DictRow]) -> int:
    """A runner with both providers of the agent "routed", on a clock that stands."""
    stop_clock(db)
    db.execute("insert into agents (name, route) values ('routed', '{claude,codex}')")
    return register(db, claude="a", codex="b")


def providers(db: Connection[DictRow], runner: int) -> list[str]:
    return [row["provider"] for row in claim(db, runner)]


def strike(db: Connection[DictRow], runner: int, **window: Any) -> None:
    """The provider claude refuses whatever its account is asked for now."""
    (row,) = claim(db, runner)
    assert row["provider"] == "claude"
    refuse(db, row["attempt_id"], **window)


def test_a_task_switches_at_once_unless_it_says_otherwise(db: Connection[DictRow], routed: int) -> None:
    insert(db, agent="routed")
    strike(db, routed, resets_at=now(db) + timedelta(minutes=2))
    assert providers(db, routed) == ["codex"]


def test_a_task_that_waits_waits_for_the_reset_however_far_it_is(db: Connection[DictRow], routed: int) -> None:
    task = insert(db, agent="routed", on_limit="wait")
    strike(db, routed, name="weekly", resets_at=now(db) + timedelta(days=6))
    assert providers(db, routed) == []
    (line,) = explained(db, task)[1:]
    assert line.startswith("Provider claude a has hit its limit weekly until ")
    assert line.endswith(" The task waits for it (on_limit).")
    other = register(db, "other", codex="b")
    assert providers(db, other) == []
    advance(db, days=7)
    assert providers(db, routed) == ["claude"]


def test_a_task_that_waits_does_not_wait_where_nobody_could_go_on(db: Connection[DictRow], routed: int) -> None:
    insert(db, agent="routed", on_limit="wait")
    strike(db, routed, resets_at=now(db) + timedelta(days=6))
    other = register(db, "other", codex="b")
    assert providers(db, other) == []
    db.execute("select pause_provider('claude')")
    assert providers(db, other) == ["codex"]
    insert(db, agent="routed", on_limit="wait")
    db.execute("select resume_provider('claude')")
    assert providers(db, other) == []
    db.execute("select retire_runner(%s)", [routed])
    assert providers(db, other) == ["codex"]


def test_a_task_that_waits_goes_by_the_model_that_it_asks_for(db: Connection[DictRow], routed: int) -> None:
    insert(db, agent="routed", model="big", on_limit="wait")
    strike(db, routed, model="big")
    assert providers(db, routed) == []
    insert(db, agent="routed", model="small", on_limit="wait")
    assert providers(db, routed) == ["claude"]


def test_a_short_limit_is_waited_for_and_a_long_one_is_left_at_once(db: Connection[DictRow], routed: int) -> None:
    task = insert(db, agent="routed", on_limit="switch after 2 hours")
    strike(db, routed, resets_at=now(db) + timedelta(hours=1))
    assert providers(db, routed) == []
    assert "The task waits for it" in explained(db, task)[1]
    advance(db, hours=1, minutes=2)
    strike(db, routed, resets_at=now(db) + timedelta(hours=3))
    assert providers(db, routed) == ["codex"]


def test_growing_guesses_are_left_once_the_whole_outage_is_too_long(db: Connection[DictRow], routed: int) -> None:
    insert(db, agent="routed", on_limit="switch after 30 minutes")
    for _ in range(2):  # 5 minutes, then 15: twenty in all
        strike(db, routed)
        assert providers(db, routed) == []
        set_clock(db, column(db, "select until from provider_limits")[0])
    strike(db, routed)  # an hour more
    assert value(db, "select until - hot_since from provider_limits") == timedelta(minutes=80)
    assert providers(db, routed) == ["codex"]


def test_those_who_wait_wait_for_the_canary_too(db: Connection[DictRow], routed: int) -> None:
    for on_limit in ("wait", "wait", "switch after 1 hour", "switch"):
        insert(db, agent="routed", on_limit=on_limit)
    strike(db, routed)
    assert providers(db, routed) == ["codex"], "the one that switches"
    assert providers(db, routed) == []
    advance(db, minutes=5)
    (canary,) = claim(db, routed)
    assert canary["provider"] == "claude"
    assert providers(db, routed) == []
    db.execute("select complete_task(%s)", [canary["attempt_id"]])
    assert [providers(db, routed) for _ in range(3)] == [["claude"], ["claude"], []]


def test_every_task_of_a_mixed_queue_gets_what_it_asked_for_in_one_batch(db: Connection[DictRow], routed: int) -> None:
    insert(db, "first", agent="routed", priority=1)
    strike(db, routed)
    for n in range(3):
        insert(db, f"switches {n}", agent="routed")
        insert(db, f"waits {n}", agent="routed", on_limit="wait")
        insert(db, f"pinned {n}", agent="routed", provider="claude")
    got = sorted((row["prompt"], row["provider"]) for row in claim(db, routed, 50))
    assert got == [("first", "codex"), *((f"switches {n}", "codex") for n in range(3))]
