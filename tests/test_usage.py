"""What attempts used: tokens, turns and money, as far as the tools say it."""

from decimal import Decimal
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import rows, value
from .yardwork import claim, end, insert, refusal, register

FIELDS = (
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "turns",
    "cost_usd",
    "cost_estimated",
    "model",
    "session_id",
)


@pytest.fixture
def token(db: Connection[DictRow]) -> int:
    """A running attempt of the model "big"."""
    insert(db, agent="claude", model="big")
    return claim(db, register(db, claude="a"))[0]["attempt_id"]


def used(db: Connection[DictRow]) -> dict[str, Any]:
    """What is known of the latest attempt; fields that are null are left out."""
    (row,) = rows(db, f"select {', '.join(FIELDS)} from attempts order by id desc limit 1")  # type: ignore[arg-type]
    return {name: known for name, known in row.items() if known is not None}


def price(db: Connection[DictRow], model: str = "big", cached: float | None = None) -> None:
    """3 dollars per million tokens of input, 15 of output."""
    db.execute("insert into prices values ('claude', %s, 3, %s, 15)", [model, cached])


def report(db: Connection[DictRow], token: int, session_id: str | None = None, /, **usage: Any) -> None:
    db.execute("select report_session(%s, %s, %s)", [token, session_id, Jsonb(usage)])


def test_a_running_attempt_reports_its_session_and_its_totals_so_far(db: Connection[DictRow], token: int) -> None:
    assert used(db) == {"cost_estimated": False, "model": "big"}
    report(db, token, "s-1")
    assert used(db) == {"cost_estimated": False, "model": "big", "session_id": "s-1"}
    report(db, token, input_tokens=100, cached_tokens=40, output_tokens=7, turns=2)
    report(db, token, input_tokens=250, turns=3, model="big-20260101")
    assert used(db) == {
        "input_tokens": 250, "cached_tokens": 40, "output_tokens": 7, "turns": 3, "model": "big-20260101",
        "session_id": "s-1", "cost_estimated": False,
    }  # fmt: skip
    end(db, token, "failed", usage=Jsonb({"output_tokens": 9, "cost_usd": 0.25}), session_id="s-2")
    assert used(db) == {
        "input_tokens": 250, "cached_tokens": 40, "output_tokens": 9, "turns": 3, "model": "big-20260101",
        "session_id": "s-2", "cost_usd": Decimal("0.25"), "cost_estimated": False,
    }  # fmt: skip
    error = refusal(db, "select report_session(%s, 's-3')", token)
    assert error is not None
    assert error.sqlstate == "TY005"


@pytest.mark.parametrize("usage", [None, {}, {"cost_usd": None, "input_tokens": None}])
def test_what_a_tool_does_not_say_stays_unknown(
    db: Connection[DictRow], token: int, usage: dict[str, Any] | None
) -> None:
    price(db)
    end(db, token, usage=None if usage is None else Jsonb(usage))
    assert used(db) == {"cost_estimated": False, "model": "big"}


def test_usage_is_kept_however_the_attempt_ends(db: Connection[DictRow]) -> None:
    runner = register(db, claude="a")
    for outcome in ("completed", "failed", "rate_limited", "cancelled", "crashed"):
        insert(db, agent="claude", priority=value(db, "select count(*) from tasks"))
        token = claim(db, runner)[0]["attempt_id"]
        end(db, token, outcome, usage=Jsonb({"input_tokens": 5, "turns": 1}))
        assert (used(db)["input_tokens"], used(db)["turns"]) == (5, 1), outcome
        db.execute("select clear_limit('claude')")


def test_a_cost_is_estimated_only_by_prices_that_you_filled_in(db: Connection[DictRow], token: int) -> None:
    price(db, "another")
    report(db, token, input_tokens=1_000_000, output_tokens=100_000)
    assert "cost_usd" not in used(db)
    price(db)
    report(db, token, input_tokens=1_000_000, cached_tokens=600_000, output_tokens=100_000)
    assert (used(db)["cost_usd"], used(db)["cost_estimated"]) == (Decimal("4.5"), True)
    db.execute("update prices set cached_usd = 0.5 where model = 'big'")
    end(db, token, usage=Jsonb({"input_tokens": 1_000_000, "cached_tokens": 600_000, "output_tokens": 200_000}))
    assert (used(db)["cost_usd"], used(db)["cost_estimated"]) == (Decimal("4.5"), True)  # 1.2 + 0.3 + 3


def test_the_price_is_that_of_the_model_really_used(db: Connection[DictRow], token: int) -> None:
    price(db, "small")
    end(db, token, usage=Jsonb({"input_tokens": 1_000_000, "output_tokens": 0, "model": "small"}))
    assert used(db)["cost_usd"] == 3


@pytest.mark.parametrize("known", [{"input_tokens": 1000}, {"output_tokens": 1000}, {"turns": 3}])
def test_half_a_number_is_no_estimate(db: Connection[DictRow], token: int, known: dict[str, int]) -> None:
    price(db)
    end(db, token, usage=Jsonb(known))
    assert "cost_usd" not in used(db)


def test_a_reported_cost_wins_over_any_estimate_before_and_after_it(db: Connection[DictRow], token: int) -> None:
    price(db)
    tokens: dict[str, Any] = {"input_tokens": 1_000_000, "output_tokens": 0}
    report(db, token, **tokens)
    assert (used(db)["cost_usd"], used(db)["cost_estimated"]) == (3, True)
    report(db, token, **tokens, cost_usd=2)
    assert (used(db)["cost_usd"], used(db)["cost_estimated"]) == (2, False)
    end(db, token, usage=Jsonb(tokens))
    assert (used(db)["cost_usd"], used(db)["cost_estimated"]) == (2, False)


def test_a_reported_cost_of_nothing_is_a_cost(db: Connection[DictRow], token: int) -> None:
    price(db)
    end(db, token, usage=Jsonb({"input_tokens": 10, "output_tokens": 10, "cost_usd": 0}))
    assert (used(db)["cost_usd"], used(db)["cost_estimated"]) == (0, False)
