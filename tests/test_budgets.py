"""Budgets: what is used is charged to all above, nothing is claimed beyond, and a human is asked."""

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .clock import Clock
from .conftest import Yard, column, rows, value
from .yardwork import claim, end, explained, insert, refusal, register, status

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


def spend(db: Connection[DictRow], runner: int, scope: str = "home/kid", **usage: Any) -> int:
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
    yard: Yard, tree: Connection[DictRow], measure: str, usage: dict[str, Any], each: float, period: str
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
    assert value(tree, "select asks from inbox").startswith("Scope home h")
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
    assert (asked["task"], asked["asks"][:12]) == ("home", "Scope home h")
    assert column(tree, "select kind from task_events where kind like 'budget%%' order by at") == [
        "budget_warning",
        "budget_exceeded",
    ]
    (told,) = rows(tree, "select scope, budget, used from budget_use")
    assert told == {"scope": "home", "budget": "$1.00/day", "used": 150}
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
