"""A week of traffic on a simulated clock: tables stay as large as what is kept, and a claim costs what it cost on the first day."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, rows, value
from .yardwork import advance, register, stop_clock

DAYS = 7
AT_ONCE = 200
# What grows with what is in the yard; transcripts and events go by the week (tests/test_retention.py).
BOUNDED = (
    "tasks",
    "attempts",
    "ready_tasks",
    "scheduled_tasks",
    "task_dependencies",
    "open_lanes",
    "lanes",
    "counters",
)


@dataclass
class Day:
    """At the end of a simulated day: bytes by table with its indexes, and what a claim cost, in pages and milliseconds."""

    sizes: dict[str, int]
    pages: float
    milliseconds: float

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def sizes(db: Connection[DictRow]) -> dict[str, int]:
    found = rows(
        db,
        "select c.relname::text as name, pg_total_relation_size(c.oid) as bytes from pg_class c"
        " where c.relnamespace = 'taskyard'::regnamespace and c.relname = any(%s)",
        list(BOUNDED),
    )
    return {row["name"]: row["bytes"] for row in found}


def cost(db: Connection[DictRow], runner: int) -> tuple[float, float]:
    """Medians of single claims: pages looked at, and milliseconds."""
    pages: list[float] = []
    times: list[float] = []
    db.execute("insert into tasks (prompt, agent) select 'measured', 'shell' from generate_series(1, 40)")
    for _ in range(40):
        (told,) = rows(db, "explain (analyze, buffers, format json) select * from claim_task(%s)", runner)
        plan: dict[str, Any] = told["QUERY PLAN"][0]["Plan"]
        pages.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        times.append(plan["Actual Total Time"])
    db.execute("select complete_tasks(array(select id from attempts where outcome is null))")
    return statistics.median(pages), statistics.median(times)


def live(db: Connection[DictRow], runner: int, tasks: int, step: int, vacuumed: bool) -> list[Day]:
    """A week in which so many tasks come and go, of five scopes and three priorities, some late, some that fail at first.

    `step` is how many minutes lie between two rounds; `vacuumed` where autovacuum, which looks every ten seconds, would
    come too late for a week that is over in as many: then its work is done once a day.
    """
    for name in ("a", "b", "c", "d"):
        db.execute("insert into scopes (name, parent) values (%s, 'default')", [name])
    db.execute(
        "update retention set keep = '1 day', archive = false where what in ('completed', 'failed', 'cancelled')"
    )
    rounds = 24 * 60 // step
    each = tasks // (DAYS * rounds)
    found: list[Day] = []
    for _ in range(DAYS):
        for _ in range(rounds):
            db.execute(
                """
                insert into tasks (prompt, agent, scope, priority, run_at, max_attempts)
                select 'work', 'shell', (array['default', 'a', 'b', 'c', 'd'])[1 + n %% 5], n %% 3,
                    case when n %% 20 = 0 then _now() + interval '25 minutes' end, 3
                from generate_series(1, %s) n
                """,
                [each],
            )
            busy = True
            while busy:
                claimed = [
                    row["attempt_id"] for row in rows(db, "select attempt_id from claim_task(%s, %s)", runner, AT_ONCE)
                ]
                busy = len(claimed) == AT_ONCE
                if not claimed:
                    break
                for attempt in claimed[:2]:
                    body = Jsonb([{"seq": 1, "kind": "output", "body": "half of it"}])
                    db.execute("select append_transcript(%s, %s)", [attempt, body])
                db.execute("select complete_task(%s, 'failed')", [claimed[0]])
                db.execute("select complete_tasks(%s)", [claimed[1:]])
            for _ in range(2 + each // 400):  # tick() runs every second; 500 tasks go at once
                advance(db, seconds=step * 60 / (2 + each // 400))
                db.execute("update runners set last_seen = _now()")
                db.execute("select tick(%s)", [runner])
        if vacuumed:
            db.execute("vacuum analyze tasks, attempts, ready_tasks, scheduled_tasks, open_lanes")
        pages, milliseconds = cost(db, runner)
        found.append(Day(sizes(db), pages, milliseconds))
    return found


@pytest.mark.parametrize(
    ("tasks", "step", "vacuumed"),
    [
        pytest.param(12_000, 60, True, id="12,000"),
        pytest.param(1_010_000, 10, False, id="a million", marks=pytest.mark.slow),
    ],
)
def test_a_week_leaves_tables_bounded_and_claims_as_they_were(
    yard18: Yard, tasks: int, step: int, vacuumed: bool
) -> None:
    db = yard18.connect()
    stop_clock(db)
    runner = register(db, slots=AT_ONCE + 100)
    began = time.monotonic()
    days = live(db, runner, tasks, step, vacuumed)
    print(f"\n{value(db, 'select max(id) from tasks'):,} tasks in {time.monotonic() - began:.0f} s")
    for number, day in enumerate(days, 1):
        told = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sorted(day.sizes.items()))
        print(
            f"day {number}: {day.bytes / 2**20:.1f} MiB ({told}); a claim: {day.pages:.0f} pages, {day.milliseconds:.2f} ms"
        )
    # Of the first day nothing is left on the third, and from then on as much goes as comes.
    kept = value(db, "select count(*) from tasks")
    assert kept <= tasks / DAYS * 1.3 + 200
    assert value(db, "select count(*) from attempts") <= kept * 1.3 + 200
    assert days[-1].bytes <= 1.5 * days[2].bytes + 2**20
    assert days[-1].pages <= 1.5 * days[0].pages + 20
    assert (
        value(db, "select count(*) from tasks where finished_at is null and created_at < _now() - interval '3 hours'")
        == 0
    )
