"""Budgets and limits of subtrees under sixteen real connections at full speed."""

from collections import Counter

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, rows, value
from .test_budgets import budget, used
from .yardwork import claim, end, in_background, insert, register


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
