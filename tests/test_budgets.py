"""Budgets: what is used is charged to all above, nothing is claimed beyond, and a human is asked."""

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .clock import Clock
from .conftest import Yard, column, rows, value
from .yardwork import claim, end, explained, in_background, insert, refusal, register, status

NOON = datetime(2027, 3, 14, 12, tzinfo=UTC)


@pytest.fixture
def tree(db: Connection[DictRow]) -> Connection[DictRow]:
    """default > home > home/kid, and zebra beside home."""
    db.execute(
        "insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home'), ('zebra', 'default')"
    )
    return db


def budget(db: Connection[DictRow], scope: str, measure: str, period: str, amount: float, **more: Any) -> None:
    db.execute(
        "insert into budgets (scope, measure, period, amount, stops_running) values (%s, %s, %s, %s, %s)",
        [scope, measure, period, amount, more.get("stops_running", False)],
    )


def used(db: Connection[DictRow], scope: str = "home", measure: str = "usd") -> float:
    return float(
        value(db, "select min(used) from _budgets_in_reach() where scope = %s and measure = %s", scope, measure)
    )


def spend(db: Connection[DictRow], runner: int, scope: str = "home/kid", **usage: float) -> int:
    """One task from its beginning to its end; returns the attempt."""
    insert(db, scope=scope)
    (row,) = claim(db, runner)
    end(db, row["attempt_id"], usage=Jsonb(usage))
    return row["attempt_id"]


@pytest.mark.parametrize(
    ("measure", "usage", "each"),
    [
        ("tokens", {"input_tokens": 300, "cached_tokens": 200, "output_tokens": 100}, 400),
        ("usd", {"cost_usd": 0.4}, 0.4),
    ],
)
@pytest.mark.parametrize("period", ["day", "month", "total"])
def test_what_is_used_is_counted_until_its_period_is_over(
    yard: Yard, tree: Connection[DictRow], measure: str, usage: dict[str, float], each: float, period: str
) -> None:
    clock = Clock(yard, tree)
    clock.set(NOON)
    runner = value(tree, "select register_runner('host', 4, p_lease => '1 day')")
    budget(tree, "home", measure, period, each * 3)
    for n in range(1, 4):
        spend(tree, runner, **usage)
        assert used(tree, measure=measure) == pytest.approx(n * each)
    task = insert(tree, scope="home/kid")
    assert claim(tree, runner) == []
    for later, what in (("day", timedelta(days=1)), ("month", timedelta(days=18)), ("total", timedelta(days=800))):
        clock.set(NOON + what - timedelta(hours=12, seconds=1))
        tree.execute("select heartbeat(%s)", [runner])
        assert claim(tree, runner) == [], "a second before midnight"
        clock.set(NOON + what - timedelta(hours=12))
        tree.execute("select heartbeat(%s)", [runner])
        found = claim(tree, runner)
        if later == period != "total":
            assert [row["task_id"] for row in found] == [task]
            return
        assert found == []
    assert period == "total"


def test_seconds_of_running_attempts_add_up(yard: Yard, tree: Connection[DictRow]) -> None:
    clock = Clock(yard, tree)
    clock.set(NOON)
    runner = register(tree)
    budget(tree, "home", "seconds", "day", 100)
    for _ in range(3):
        insert(tree, scope="home")
    attempts = [row["attempt_id"] for row in claim(tree, runner, 2)]
    clock.advance(timedelta(seconds=30))
    assert used(tree, measure="seconds") == 60
    end(tree, attempts[0])
    clock.advance(timedelta(seconds=39))
    assert used(tree, measure="seconds") == 99
    clock.advance(timedelta(seconds=1))
    assert claim(tree, runner) == []
    tree.execute("select tick()")
    assert value(tree, "select asks from inbox") == "Scope home has u…"
    assert value(tree, "select question from approvals") == "Scope home has used 1m of 1m a day. As much again?"


def charge_by(db: Connection[DictRow], runner: int, way: str) -> None:
    """End one attempt of home/kid that cost 0.25, in one of the ways there are."""
    insert(db, scope="home/kid")
    (row,) = claim(db, runner)
    attempt = row["attempt_id"]
    db.execute("select report_session(%s, 's', %s)", [attempt, Jsonb({"cost_usd": 0.25, "input_tokens": 5})])
    if way in ("completed", "failed", "crashed", "waiting"):
        end(db, attempt, way)
    elif way == "complete_tasks":
        db.execute("select complete_tasks(array[%s::bigint])", [attempt])
    elif way == "release_task":
        db.execute("select release_task(%s)", [attempt])
    elif way == "taken back":
        db.execute("select retire_runner(%s)", [runner])


@pytest.mark.parametrize(
    "way", ["running", "completed", "failed", "crashed", "waiting", "complete_tasks", "release_task", "taken back"]
)
def test_every_way_to_spend_is_charged_to_every_scope_above_once(tree: Connection[DictRow], way: str) -> None:
    runner = register(tree)
    for scope in ("default", "home", "home/kid", "zebra"):
        budget(tree, scope, "usd", "day", 5)
        budget(tree, scope, "tokens", "total", 5000)
    charge_by(tree, runner, way)
    for scope in ("default", "home", "home/kid"):
        assert (used(tree, scope), used(tree, scope, "tokens")) == (0.25, 5), scope
    assert used(tree, "zebra") == 0
    for _ in range(2):
        tree.execute("select tick()")
        assert used(tree, "home") == 0.25
    ended = value(tree, "select count(*) from attempts where outcome is not null")
    assert column(tree, "select attempts from usage_daily order by scope") == [1] * 3 * ended


def test_four_fifths_warn_once_per_period(yard: Yard, tree: Connection[DictRow]) -> None:
    clock = Clock(yard, tree)
    clock.set(NOON)
    runner = value(tree, "select register_runner('host', 4, p_lease => '1 day')")
    budget(tree, "home", "usd", "day", 1)

    def warnings() -> list[str]:
        tree.execute("select tick()")
        return column(tree, "select detail ->> 'why' from task_events where kind = 'budget_warning' order by at")

    spend(tree, runner, cost_usd=0.79)
    assert warnings() == []
    spend(tree, runner, cost_usd=0.01)
    for _ in range(3):
        assert warnings() == ["80% of $1.00 a day are used"]
        clock.advance(timedelta(minutes=1))
    assert value(tree, "select actor from task_events where kind = 'budget_warning'") == "yard"
    spend(tree, runner, cost_usd=0.1)
    assert len(warnings()) == 1
    clock.advance(timedelta(days=1))
    tree.execute("select heartbeat(%s)", [runner])
    assert len(warnings()) == 1
    spend(tree, runner, cost_usd=0.95)
    assert warnings() == ["80% of $1.00 a day are used", "95% of $1.00 a day are used"]
    assert rows(tree, "select * from inbox") == []


def test_a_used_up_budget_closes_its_subtree_and_asks(tree: Connection[DictRow]) -> None:
    runner = register(tree)
    budget(tree, "home", "usd", "day", 1)
    spend(tree, runner, cost_usd=1.5)
    held = {scope: insert(tree, scope=scope) for scope in ("home", "home/kid")}
    free = insert(tree, scope="zebra")
    assert [row["task_id"] for row in claim(tree, runner, 8)] == [free]
    assert claim(tree, runner) == []
    for scope, task in held.items():
        assert explained(tree, task)[1].startswith(
            "The budget of scope home is used up: $1.50 of $1.00 a day; it goes on in "
        ), scope
    for _ in range(3):
        tree.execute("select tick()")
    (asked,) = rows(tree, "select * from inbox")
    assert (asked["task"], asked["asks"]) == ("home", "Scope home has u…")
    assert column(tree, "select kind from task_events where kind like 'budget%%' order by at") == [
        "budget_warning",
        "budget_exceeded",
    ]
    (told,) = rows(tree, "select scope, budget, used from budget_use")
    assert told == {"scope": "home", "budget": "$1.00 a day", "used": 150}
    assert value(tree, "select spent from scope_tree where scope = '  home'") == "150%"


def ask_for_more(yard: Yard, db: Connection[DictRow], runner: int) -> int:
    """Use up a budget of 1 for home; returns the id of the question."""
    budget(db, "home", "usd", "day", 1)
    spend(db, runner, cost_usd=1)
    insert(db, scope="home/kid")
    insert(db, scope="home/kid")
    assert claim(db, runner) == []
    db.execute("select tick()")
    return value(db, "select id from inbox")


def test_an_administrator_approves_as_much_again_for_the_period(yard: Yard, tree: Connection[DictRow]) -> None:
    clock = Clock(yard, tree)
    clock.set(NOON)
    runner = value(tree, "select register_runner('host', 4, p_lease => '1 day')")
    question = ask_for_more(yard, tree, runner)
    with Connection[DictRow].connect(
        yard.login("ann", "submitter", "home"), autocommit=True, row_factory=tree.row_factory
    ) as ann:
        error = refusal(ann, f"select approve({question})")
        assert error is not None
        assert (error.sqlstate, error.diag.message_primary) == ("TY006", f"ann_{yard.name} may not raise a budget.")
    tree.execute("select approve(%s)", [question])
    assert value(tree, "select decided_by from approvals") == "yard"
    for _ in range(2):
        (row,) = claim(tree, runner)
        end(tree, row["attempt_id"], usage=Jsonb({"cost_usd": 0.6}))
    insert(tree, scope="home")
    assert claim(tree, runner) == [], "2.20 of 2 are used"
    tree.execute("select tick()")
    assert (
        value(tree, "select question from approvals order by id desc limit 1")
        == "Scope home has used $2.20 of $2.00 a day. As much again?"
    )
    tree.execute("select approve(%s)", [value(tree, "select id from inbox")])
    assert value(tree, "select amount from _budgets_in_reach()") == 3
    clock.advance(timedelta(days=1))
    assert value(tree, "select amount from _budgets_in_reach()") == 1, "what was added was for that day"
    assert used(tree) == 0


def test_a_denied_budget_stays_closed_until_the_next_period(yard: Yard, tree: Connection[DictRow]) -> None:
    clock = Clock(yard, tree)
    clock.set(NOON)
    runner = value(tree, "select register_runner('host', 4, p_lease => '1 day')")
    tree.execute("select deny(%s, 'enough')", [ask_for_more(yard, tree, runner)])
    for _ in range(3):
        clock.advance(timedelta(hours=1))
        tree.execute("select heartbeat(%s)", [runner])
        tree.execute("select tick()")
        assert (claim(tree, runner), rows(tree, "select * from inbox")) == ([], [])
    clock.advance(timedelta(hours=12))
    tree.execute("select heartbeat(%s)", [runner])
    assert len(claim(tree, runner)) == 1


@pytest.mark.parametrize("decision", ["none", "deny", "approve"])
def test_each_day_on_which_a_budget_is_used_up_asks_anew(yard: Yard, tree: Connection[DictRow], decision: str) -> None:
    clock = Clock(yard, tree)
    clock.set(NOON)
    runner = value(tree, "select register_runner('host', 4, p_lease => '1 day')")
    question = ask_for_more(yard, tree, runner)
    if decision != "none":
        tree.execute(f"select {decision}(%s)".encode(), [question])
    clock.set(NOON + timedelta(hours=12))
    tree.execute("select heartbeat(%s)", [runner])
    tree.execute("select tick()")
    assert rows(tree, "select * from inbox") == []
    (row,) = claim(tree, runner)
    end(tree, row["attempt_id"], usage=Jsonb({"cost_usd": 1}))
    assert claim(tree, runner) == []
    tree.execute("select tick()")
    assert column(tree, "select id > %s from inbox", question) == [True]


def test_a_question_about_a_budget_that_has_room_again_is_withdrawn(yard: Yard, tree: Connection[DictRow]) -> None:
    clock = Clock(yard, tree)
    clock.set(NOON)
    runner = value(tree, "select register_runner('host', 4, p_lease => '1 day')")
    ask_for_more(yard, tree, runner)
    tree.execute("update budgets set amount = 9")
    clock.advance(timedelta(minutes=1))
    tree.execute("select tick()")
    assert value(tree, "select decision from approvals") == "withdrawn"
    assert len(claim(tree, runner)) == 1


@pytest.mark.parametrize("stops", [True, False])
def test_running_attempts_stop_only_where_the_budget_says_so(tree: Connection[DictRow], stops: bool) -> None:
    runner = register(tree)
    budget(tree, "home", "usd", "day", 1, stops_running=stops)
    budget(tree, "zebra", "usd", "day", 1, stops_running=True)
    for scope in ("home/kid", "home/kid", "zebra"):
        insert(tree, scope=scope)
    by_scope = [(row["scope"], row["attempt_id"]) for row in claim(tree, runner, 3)]
    attempts = [attempt for _, attempt in by_scope]
    at_home = sorted(attempt for scope, attempt in by_scope if scope != "zebra")
    directives = "select attempt_id, directive, detail from heartbeat(%s, %s) where directive <> 'tick' order by 1"
    assert rows(tree, directives, runner, attempts) == []
    tree.execute("select report_session(%s, 's', %s)", [at_home[0], Jsonb({"cost_usd": 1.2})])
    assert rows(tree, directives, runner, attempts) == [
        {"attempt_id": attempt, "directive": "release", "detail": "the budget of scope home is used up"}
        for attempt in (at_home if stops else [])
    ]


def test_a_budget_made_later_counts_what_is_on_record_and_a_deleted_one_frees(tree: Connection[DictRow]) -> None:
    runner = register(tree)
    for _ in range(3):
        spend(tree, runner, cost_usd=0.5)
    spend(tree, runner, scope="zebra", cost_usd=7)
    budget(tree, "home", "usd", "day", 1)
    assert used(tree) == 1.5
    task = insert(tree, scope="home/kid")
    assert claim(tree, runner) == []
    tree.execute("delete from budgets")
    assert [row["task_id"] for row in claim(tree, runner)] == [task]
    spend(tree, runner, cost_usd=0.25)
    budget(tree, "home", "usd", "total", 5)
    assert used(tree) == 1.75, "also what was spent while there was none"
    budget(tree, "home", "tokens", "total", 5)
    assert used(tree) == 1.75


def test_a_raised_amount_lets_the_scope_go_on(tree: Connection[DictRow]) -> None:
    runner = register(tree)
    budget(tree, "default", "usd", "month", 1)
    spend(tree, runner, cost_usd=1)
    task = insert(tree, scope="home/kid")
    assert claim(tree, runner) == []
    tree.execute("update budgets set amount = 1.01")
    assert [row["task_id"] for row in claim(tree, runner)] == [task]


def test_budgets_are_edited_in_read_committed_transactions_only(tree: Connection[DictRow]) -> None:
    tree.execute("begin isolation level repeatable read")
    error = refusal(tree, "insert into budgets (scope, measure, period, amount) values ('home', 'usd', 'day', 1)")
    tree.execute("rollback")
    assert error is not None
    assert error.sqlstate == "TY010"


def test_two_transactions_that_end_and_claim_under_one_budget_do_not_wait_for_each_other(yard: Yard) -> None:
    """Each has spent, so holds the budget shared; neither may then insist on having it alone."""
    one, two = yard.connect(), yard.connect()
    budget(one, "default", "usd", "day", 100)
    runners = [register(one, "one"), register(one, "two")]
    for _ in range(4):
        insert(one)
    attempts = [claim(one, runner)[0]["attempt_id"] for runner in runners]
    refused: list[str | None] = []

    def end_and_claim(db: Connection[DictRow], n: int) -> None:
        try:
            claim(db, runners[n])
            db.execute("commit")
        except psycopg.Error as error:
            refused.append(error.sqlstate)

    for db, attempt in zip((one, two), attempts, strict=True):
        db.execute("begin")
        end(db, attempt)
    threads = [in_background(lambda db=db, n=n: end_and_claim(db, n)) for n, db in enumerate((one, two))]
    for thread in threads:
        thread.join(20)
    assert refused == []


# A sequence number drawn by a claim while it holds the budget's lock alone, and by a charge while it holds it shared: each lock lasts
# until commit, so of a claim and a charge the one with the lower number was committed before the other began to look.
OBSERVED = """
    create table public.observed (n bigint generated always as identity, kind text, attempt bigint, usd numeric, running bigint);
    grant all on public.observed to public;
    create function public.claimed() returns trigger language plpgsql security definer as $$ begin
        insert into public.observed (kind, attempt, running)
        select 'claim', new.id, count(*) from taskyard.attempts a where a.outcome is null;
        return null;
    end $$;
    create function public.charged() returns trigger language plpgsql security definer as $$ begin
        insert into public.observed (kind, usd) values ('charge', new.cost_usd);
        return null;
    end $$;
    create trigger observed after insert on taskyard.attempts for each row execute function public.claimed();
    create trigger observed after insert on taskyard.usage_charges for each row when (new.scope = 'home') execute function public.charged();
"""


def work_at_full_speed(yard: Yard, scopes: list[str], batch: int, tasks: int, cost: float) -> list[DictRow]:
    """Sixteen runners claim and complete until there is nothing left for them; returns what was observed, in order."""
    db = yard.connect(superuser=True)
    db.execute(OBSERVED.encode())
    for scope in scopes:
        db.execute(
            "insert into tasks (prompt, agent, scope) select 'x', 'shell', %s from generate_series(1, %s)",
            [scope, tasks // len(scopes)],
        )
    failed: list[BaseException] = []

    def work(n: int) -> None:
        try:
            with yard.connect() as own:
                runner = register(own, f"host-{n}", slots=50)
                empty = 0
                while empty < 3:
                    found = claim(own, runner, batch)
                    empty = 0 if found else empty + 1
                    for row in found:
                        end(own, row["attempt_id"], usage=Jsonb({"cost_usd": cost}))
        except BaseException as error:
            failed.append(error)
            raise

    threads = [in_background(lambda n=n: work(n)) for n in range(16)]
    for thread in threads:
        thread.join(120)
    assert failed == []
    assert not any(thread.is_alive() for thread in threads)
    return rows(db, "select * from public.observed order by n")


@pytest.mark.parametrize(
    ("holder", "scopes", "batch"),
    [
        ("home", ["home"], 1),
        ("home", ["home"], 8),
        ("home", ["home/kid/a", "home/kid/b", "home"], 1),
        ("home", ["home/kid/a", "home/kid/b"], 8),
    ],
)
def test_no_claim_is_committed_after_a_budget_was_exceeded(
    yard: Yard, holder: str, scopes: list[str], batch: int
) -> None:
    db = yard.connect()
    db.execute(
        "insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home'), ('home/kid/a', 'home/kid'), ('home/kid/b', 'home/kid')"
    )
    amount, cost = 2.0, 0.01
    budget(db, holder, "usd", "day", amount)
    observed = work_at_full_speed(yard, scopes, batch, 480, cost)
    spent, running, at_crossing = 0.0, 0, None
    for event in observed:
        if event["kind"] == "claim":
            assert spent < amount - 1e-9, event
            running += 1
        else:
            spent, running = spent + float(event["usd"]), running - 1
            if at_crossing is None and spent >= amount - 1e-9:
                at_crossing = running
    assert at_crossing is not None, "all was spent"
    assert spent <= amount + at_crossing * cost + 1e-9
    assert spent == pytest.approx(used(db, holder))
    kinds = Counter(event["kind"] for event in observed)
    assert kinds["claim"] == kinds["charge"] == round(spent / cost)
    assert value(db, "select count(*) from tasks where status = 'queued'") == 480 - kinds["claim"]


def test_the_limit_of_a_parent_holds_for_the_whole_subtree_between_sixteen_claimers(yard: Yard) -> None:
    db = yard.connect()
    db.execute(
        "insert into scopes (name, parent, max_concurrency) values ('home', 'default', 5), ('home/a', 'home', 3), ('home/b', 'home', null), ('home/b/c', 'home/b', 4)"
    )
    observed = work_at_full_speed(yard, ["home/a", "home/b", "home/b/c", "home"], 3, 240, 0)
    # Claims exclude each other until commit, so each sees all before it; what ended meanwhile can only make it fewer.
    assert max(event["running"] for event in observed) == 5
    assert value(db, "select count(*) from tasks where status = 'completed'") == 240


def test_each_limit_of_a_path_is_kept(tree: Connection[DictRow]) -> None:
    tree.execute(
        "update scopes set max_concurrency = case name when 'default' then 5 when 'home' then 3 when 'home/kid' then 2 end"
    )
    runner = register(tree, slots=50)
    for scope in itertools.chain.from_iterable([["home", "home/kid", "zebra"]] * 6):
        insert(tree, scope=scope)
    while found := claim(tree, runner, 3):
        assert found
    running = Counter(column(tree, "select scope from attempts where outcome is null"))
    assert sum(running.values()) == 5
    assert running["home"] + running["home/kid"] <= 3
    assert running["home/kid"] <= 2
    assert value(tree, "select busy from scope_tree where scope = 'default'") == "5/5"
    queued = value(tree, "select min(id) from tasks where scope = 'home/kid' and status = 'queued'")
    assert "Scope default runs 5 of at most 5." in explained(tree, queued)
    assert status(tree, queued) == "queued"
