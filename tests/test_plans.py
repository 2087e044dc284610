"""The plans of the hot verbs, as they really run inside the functions, in generic-plan mode."""

import json
from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg.rows import DictRow

from .conftest import Yard, column, value

BACKLOG = 20_000
LARGE = {"tasks", "ready_tasks", "attempts", "scheduled_tasks", "task_dependencies"}


class Explained:
    """Runs a statement and returns the nodes of all plans that it, and every function in it, ran."""

    def __init__(self, connection: psycopg.Connection[DictRow]) -> None:
        self._connection = connection
        self._plans: list[Any] = []
        for setting in (
            "load 'auto_explain'",
            "set auto_explain.log_nested_statements = on",
            "set auto_explain.log_analyze = on",
            "set auto_explain.log_timing = off",
            "set auto_explain.log_format = json",
            "set auto_explain.log_min_duration = -1",
        ):
            connection.execute(setting)  # type: ignore[arg-type]
        connection.add_notice_handler(self._noticed)

    def _noticed(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        text = diagnostic.message_primary or ""
        if "plan:" in text:
            self._plans.append(json.loads(text[text.index("{") :])["Plan"])

    def nodes(self, statement: LiteralString, *parameters: object) -> list[dict[str, Any]]:
        self._plans.clear()
        with self._connection.transaction():
            self._connection.execute("set local plan_cache_mode = force_generic_plan")
            self._connection.execute("set local auto_explain.log_min_duration = 0")
            self._connection.execute("set local client_min_messages = log")
            self._connection.execute(statement, parameters)
        return [node for plan in self._plans for node in walk(plan)]


def walk(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from walk(child)


def rows_read(node: dict[str, Any]) -> float:
    loops = node.get("Actual Loops", 1)
    removed = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck", "Join Filter"))
    return (node.get("Actual Rows", 0) + removed) * loops


def filled(yard: Yard, statistics_from: str, lanes: int = 1) -> psycopg.Connection[DictRow]:
    """A backlog, with statistics taken either before it came (all the planner knows is empty tables) or after."""
    superuser = yard.connect(superuser=True)
    superuser.execute(
        "insert into scopes (name, parent) select 's' || g, 'default' from generate_series(1, %s) g", (lanes,)
    )
    if statistics_from == "before":
        superuser.execute("vacuum analyze")
    for fill in (
        "insert into tasks (prompt, agent, scope) select 'x', 'shell', 's' || (1 + g %% %s) from generate_series(1, %s) g",
        "insert into tasks (prompt, agent, scope, run_at) select 'x', 'shell', 's' || (1 + g %% %s), now() + g * interval '1 minute' from generate_series(1, %s) g",
    ):
        superuser.execute(fill, (lanes, BACKLOG))  # type: ignore[arg-type]
    # History: what is finished outnumbers what runs.
    runner = value(superuser, "select register_runner('past', 1000)")
    for _ in range(6):
        superuser.execute("select complete_tasks(array(select attempt_id from claim_task(%s, 500)))", (runner,))
    if statistics_from == "after":
        superuser.execute("vacuum analyze")
    return superuser


@pytest.fixture(params=["before", pytest.param("after", marks=pytest.mark.slow)])
def explained(request: pytest.FixtureRequest, yard: Yard) -> Callable[[int], Explained]:
    def make(lanes: int) -> Explained:
        return Explained(filled(yard, request.param, lanes))

    return make


def check(nodes: list[dict[str, Any]], most: int) -> None:
    assert nodes
    for node in nodes:
        if node.get("Relation Name") in LARGE:
            told = {key: text for key, text in node.items() if key != "Plans"}
            assert node["Node Type"] != "Seq Scan", told
            assert rows_read(node) <= most, told
        assert node["Node Type"] != "Sort" or rows_read(node) <= 100, node


def check_tick(plans: Explained, most: int) -> None:
    """tick() with what it does once a minute; but for counting what began in it, which test_metrics looks at."""
    plans.nodes("select tick()")
    plans.nodes("update counted set until = 'infinity'")
    plans.nodes("update ticker set ticked_at = _now() - interval '1 minute'")
    check(plans.nodes("select tick()"), most)


@pytest.mark.parametrize("lanes", [1, 40])
def test_a_claim_reads_a_handful_of_rows_through_indexes(
    explained: Callable[[int], Explained], lanes: int, yard: Yard
) -> None:
    plans = explained(lanes)
    runner = value(yard.connect(), "select register_runner('r', 100)")
    for _ in range(3):
        check(plans.nodes("select * from claim_task(%s)", runner), most=30)


def test_a_batch_reads_what_it_claims(explained: Callable[[int], Explained], yard: Yard) -> None:
    plans = explained(1)
    runner = value(yard.connect(), "select register_runner('r', 100)")
    check(plans.nodes("select * from claim_task(%s, 50)", runner), most=60)


def test_completion_goes_by_primary_keys(explained: Callable[[int], Explained], yard: Yard) -> None:
    plans = explained(1)
    db = yard.connect()
    runner = value(db, "select register_runner('r', 100)")
    attempts = column(db, "select attempt_id from claim_task(%s, 60)", runner)
    nodes = plans.nodes("select complete_task(%s)", attempts[0])
    check(nodes, most=1)
    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    assert {"attempts_pkey", "tasks_pkey"} <= used
    assert "attempts_live" not in used, "the partial index of live attempts looks cheap while it is believed empty"
    check(plans.nodes("select * from complete_tasks(%s)", attempts[1:51]), most=50)
    check(plans.nodes("select complete_task(%s, 'failed')", attempts[51]), most=3)
    check(plans.nodes("select release_task(%s)", attempts[52]), most=3)


def test_heartbeats_and_ticks_do_not_read_the_backlog(explained: Callable[[int], Explained], yard: Yard) -> None:
    plans = explained(1)
    db = yard.connect()
    runner = value(db, "select register_runner('r', 100)")
    attempts = column(db, "select attempt_id from claim_task(%s, 60)", runner)
    check(plans.nodes("select * from heartbeat(%s, %s)", runner, attempts), most=70)
    check_tick(plans, most=100)


def test_a_cancellation_finds_its_task_and_its_places_by_key(explained: Callable[[int], Explained], yard: Yard) -> None:
    plans = explained(1)
    queued, scheduled = (
        value(yard.connect(), "select max(id) from tasks where status = %s", status)
        for status in ("queued", "scheduled")
    )
    check(plans.nodes("select cancel_task(%s)", queued), most=2)
    check(plans.nodes("select cancel_task(%s)", scheduled), most=2)
    check(plans.nodes("update tasks set priority = 5 where id = %s", queued - 1), most=2)
