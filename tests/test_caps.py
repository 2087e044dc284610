"""Your own caps on requests: kept by all hosts together, for each account on its own."""

import re
import threading
from datetime import timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .fleet import until
from .yardwork import (
    advance,
    claim,
    end,
    explained,
    in_background,
    refuse,
    register,
    stop_clock,
    waits_for_a_lock,
)


def cap(db: Connection[DictRow], period: str, most: int, provider: str = "claude", account: str = "") -> None:
    db.execute(
        "insert into provider_caps (provider, account, period, max_requests) values (%s, %s, %s, %s)",
        [provider, account, period, most],
    )


def queue(db: Connection[DictRow], tasks: int, agent: str = "claude") -> None:
    db.execute("insert into tasks (prompt, agent) select 'x', %s from generate_series(1, %s)", [agent, tasks])


@pytest.mark.slow
def test_eight_connections_that_claim_as_fast_as_they_can_keep_two_caps_at_every_moment(
    yard: Yard, db: Connection[DictRow]
) -> None:
    """As 60 a minute and 1,000 a day, only faster."""
    a_period, in_all = 12, 40
    cap(db, "2 seconds", a_period)
    cap(db, "1 day", in_all)
    queue(db, 200)
    hosts = [(yard.connect(), register(db, f"host-{n}", claude="a")) for n in range(8)]
    over = threading.Event()

    def work(connection: Connection[DictRow], runner: int, batch: int) -> None:
        while not over.is_set():
            claim(connection, runner, batch)

    threads = [in_background(lambda c=c, r=r, b=1 + n % 3: work(c, r, b)) for n, (c, r) in enumerate(hosts)]
    until(lambda: value(db, "select count(*) from attempts") >= in_all, 40)
    # Once the short cap has room again, only the long one holds them.
    until(lambda: value(db, "select max(started_at) < now() - interval '2.2 seconds' from attempts"))
    over.set()
    for thread in threads:
        thread.join(20)
    assert value(db, "select count(*) from attempts") == in_all
    busiest = value(
        db,
        "select max(n) from (select count(*) over (order by started_at range between '2 seconds' preceding and current row)"
        " as n from attempts) x",
    )
    assert busiest == a_period
    assert (
        value(
            db,
            "select sum(requests) from provider_cap_usage u join provider_caps c on c.id = cap_id where period = '1 day'",
        )
        == in_all
    )


def test_two_claims_that_overlap_do_not_share_the_last_requests(yard: Yard, db: Connection[DictRow]) -> None:
    cap(db, "1 minute", 5)
    queue(db, 20)
    other, watcher = yard.connect(), yard.connect()
    here, there = register(db, "here", claude="a"), register(db, "there", claude="a")
    db.execute("begin")
    assert len(claim(db, here, 3)) == 3
    got: list[list[DictRow]] = []
    claiming = in_background(lambda: got.append(claim(other, there, 9)))
    until(lambda: waits_for_a_lock(watcher, other))
    db.execute("commit")
    claiming.join(20)
    assert len(got[0]) == 2
    assert claim(db, here) == claim(other, there) == []


def test_a_batch_takes_no_more_than_the_tightest_cap_admits(db: Connection[DictRow]) -> None:
    stop_clock(db)
    cap(db, "1 minute", 7)
    cap(db, "1 hour", 10)
    cap(db, "1 minute", 1, provider="codex")
    queue(db, 100)
    here, there = register(db, "here", claude="a"), register(db, "there", claude="a")
    assert len(claim(db, here, 5)) == 5
    assert len(claim(db, there, 50)) == 2
    assert claim(db, here, 50) == []
    advance(db, minutes=1, seconds=4)
    assert len(claim(db, here, 50)) == 3
    advance(db, minutes=50)
    assert claim(db, there, 50) == []
    advance(db, minutes=14)
    assert len(claim(db, there, 50)) == 7


def test_a_batch_over_several_lanes_and_limits_keeps_the_cap_of_their_account(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into agents (name, route) values ('b', '{claude:big}'), ('s', '{claude:small}'), ('o', '{codex}')"
    )
    db.execute("update agents set max_concurrency = 2 where name = 'b'")
    cap(db, "1 minute", 9)
    for name in "bso":
        queue(db, 20, name)
    got = [row["agent"] for row in claim(db, register(db, claude="a", codex="b"), 50)]
    assert (got.count("b"), got.count("s"), got.count("o")) == (2, 7, 20)


def test_a_cap_slides_in_twentieths_and_admits_no_more_in_any_period(db: Connection[DictRow]) -> None:
    stop_clock(db)
    cap(db, "1 minute", 10)
    queue(db, 500)
    runner, got = register(db, claude="a"), list[int]()
    for _ in range(240):
        got.append(len(claim(db, runner, 3)))
        advance(db, seconds=1)
    assert max(sum(got[start : start + 60]) for start in range(len(got))) == 10
    assert sum(got) >= 30, "it goes on a moment after each period"


def test_further_answers_of_the_model_count_when_they_are_reported(db: Connection[DictRow]) -> None:
    cap(db, "1 minute", 10)
    queue(db, 20)
    runner = register(db, claude="a")
    (row,) = claim(db, runner)

    def used() -> int:
        return value(db, "select sum(requests) from provider_cap_usage")

    for turns, expected in ((1, 1), (4, 4), (4, 4), (None, 4), (6, 6)):
        db.execute("select report_session(%s, 's', %s)", [row["attempt_id"], Jsonb({"turns": turns})])
        assert used() == expected, turns
    end(db, row["attempt_id"], usage=Jsonb({"turns": 7}))
    assert used() == 7
    assert len(claim(db, runner, 50)) == 3


def test_more_answers_than_the_cap_has_left_are_counted_all_the_same(db: Connection[DictRow]) -> None:
    stop_clock(db)
    cap(db, "1 minute", 3)
    queue(db, 9)
    runner = register(db, claude="a")
    end(db, claim(db, runner)[0]["attempt_id"], usage=Jsonb({"turns": 50}))
    assert value(db, "select sum(requests) from provider_cap_usage") == 50
    assert claim(db, runner, 9) == []
    advance(db, seconds=64)
    assert len(claim(db, runner, 9)) == 3


def test_the_cap_of_an_account_is_its_own(db: Connection[DictRow]) -> None:
    cap(db, "1 minute", 4)
    cap(db, "1 hour", 2, account="b")
    queue(db, 50)
    one, two, three = register(db, "1", claude="a"), register(db, "2", claude="b"), register(db, "3", claude="a")
    assert [len(claim(db, runner, 3)) for runner in (one, two, three, one, two)] == [3, 2, 1, 0, 0]
    assert rows(
        db,
        """
        -- A minute's bucket may end in between.
        select u.account, c.account as cap, sum(requests)::integer as requests
        from provider_cap_usage u join provider_caps c on c.id = cap_id group by 1, 2 order by 1, 2
        """,
    ) == [
        {"account": "a", "cap": "", "requests": 4},
        {"account": "b", "cap": "", "requests": 2},
        {"account": "b", "cap": "b", "requests": 2},
    ]


def test_a_spent_cap_leads_to_the_next_entry_of_the_route(db: Connection[DictRow]) -> None:
    db.execute("insert into agents (name, route) values ('routed', '{claude,codex}')")
    cap(db, "1 minute", 2)
    queue(db, 5, "routed")
    got = [row["provider"] for row in claim(db, register(db, claude="a", codex="a"), 50)]
    assert sorted(got) == ["claude", "claude", "codex", "codex", "codex"]


def test_a_canary_counts_and_needs_room_under_the_cap(db: Connection[DictRow]) -> None:
    stop_clock(db)
    cap(db, "10 minutes", 2)
    queue(db, 9)
    runner = register(db, claude="a")
    refuse(db, claim(db, runner)[0]["attempt_id"])
    advance(db, minutes=5)
    (canary,) = claim(db, runner, 9)
    assert column(db, "select canary from attempts where id = %s", canary["attempt_id"]) == [True]
    refuse(db, canary["attempt_id"])
    db.execute("select clear_limit('claude')")
    assert claim(db, runner, 9) == []
    advance(db, minutes=6)
    assert len(claim(db, runner, 9)) == 1


def test_explain_names_the_cap_and_when_it_goes_on(db: Connection[DictRow]) -> None:
    stop_clock(db)
    cap(db, "1 day", 2)
    queue(db, 3)
    runner = register(db, claude="a")
    claim(db, runner)
    advance(db, hours=20)
    claim(db, runner)
    task = value(db, "select max(id) from tasks")
    (said,) = explained(db, task)[1:]
    assert re.fullmatch(r"Provider claude a has used up its cap of 2 requests per 1 day; it goes on in [45]h\.", said)
    advance(db, hours=6)
    assert len(claim(db, runner)) == 1


def test_usage_that_no_cap_asks_for_any_more_is_removed(db: Connection[DictRow]) -> None:
    stop_clock(db)
    cap(db, "1 minute", 1000)
    runner = register(db, claude="a")
    for _ in range(300):
        queue(db, 1)
        claim(db, runner)
        advance(db, seconds=3)
    assert 20 <= value(db, "select count(*) from provider_cap_usage") <= 41
    assert value(db, "select _now() - min(bucket) from provider_cap_usage") <= timedelta(minutes=2, seconds=6)
    db.execute("delete from provider_caps")
    assert value(db, "select count(*) from provider_cap_usage") == 0


def test_without_a_cap_nothing_is_counted(db: Connection[DictRow]) -> None:
    cap(db, "1 minute", 1, provider="codex")
    queue(db, 50)
    assert len(claim(db, register(db, claude="a"), 50)) == 50
    assert value(db, "select count(*) from provider_cap_usage") == 0
