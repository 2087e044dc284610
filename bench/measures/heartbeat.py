"""One call that renews a runner and a thousand leases."""

import time
from statistics import median
from typing import LiteralString

from ..bench import Bench, Found
from ..contenders import register
from ..report import Table, share
from ..server import Database
from ..statistics import updates

LEASES = 1_000
MOST_PER_CLAIM = 500
PLAIN = "select * from heartbeat(%(runner)s, %(attempts)s::bigint[])"
PROGRESS = (
    "select * from heartbeat(%(runner)s, %(attempts)s::bigint[],"
    " array_fill(clock_timestamp(), array[cardinality(%(attempts)s::bigint[])]))"
)


def measure_heartbeat(bench: Bench) -> Found:
    calls = bench.pick(200, 20)
    rows: list[list[str]] = []
    calls_of: dict[str, LiteralString] = {"leases only": PLAIN, "leases and progress": PROGRESS}
    for what, query in calls_of.items():
        with bench.server.database() as database:
            rows.append([what, *_measured(database, query, calls)])
            bench.say(f"{what}: {rows[-1][1]} ms")
    table = Table(
        f"heartbeat() of one runner with {LEASES:,} running attempts, {calls} calls. An update in place (HOT) touches"
        " no index and leaves nothing for vacuum, so the last two columns should be near 100 %. With progress each"
        " attempt is updated a second time.",
        ["call", "median ms", "slowest ms", "attempts updated in place", "runners updated in place"],
        rows,
    )
    return [table], []


def _measured(database: Database, query: LiteralString, calls: int) -> list[str]:
    milliseconds: list[float] = []
    with database.connect() as connection:
        runner = register(connection)
        connection.execute(
            "insert into tasks (prompt, agent) select 'do thing ' || g, 'shell' from generate_series(1, %s::integer) g",
            (LEASES,),
        )
        attempts: list[object] = []
        for _ in range(LEASES // MOST_PER_CLAIM):
            claimed = connection.execute(
                "select attempt_id from claim_task(%s::bigint, %s::integer)", (runner, MOST_PER_CLAIM)
            )
            attempts += [row[0] for row in claimed]
        assert len(attempts) == LEASES
        database.settle()
        before = updates(database, "attempts", "runners")
        for _ in range(calls):
            begun = time.perf_counter()
            connection.execute(query, {"runner": runner, "attempts": attempts}).fetchall()
            milliseconds.append((time.perf_counter() - begun) * 1000)
    after = updates(database, "attempts", "runners", at_least=before["attempts"].all + calls * LEASES)
    made = {name: after[name].since(before[name]) for name in after}
    return [
        f"{median(milliseconds):.1f}",
        f"{max(milliseconds):.1f}",
        *(share(made[name].hot, made[name].all) for name in ("attempts", "runners")),
    ]
