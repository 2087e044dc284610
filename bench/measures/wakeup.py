"""From before the insert until a sleeping runner has its claim in hand."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import LiteralString

from psycopg import Connection, sql

from ..bench import Bench, Found
from ..contenders import Raw, register
from ..errors import BenchError
from ..report import Table, Verdict
from ..server import Database, Row

PAUSE = 0.05  # seconds between a start and the next insert: the runner sleeps by then
WARM_UP = 5
TARGET_MS = 20


@dataclass(frozen=True)
class Way:
    """How jobs come and go: `claim` returns the id that `finish` takes."""

    channel: LiteralString
    insert: LiteralString
    claim: LiteralString
    finish: LiteralString


RAW = Way(
    "raw_ready",
    "with added as (insert into raw (prompt) values ('do the thing')) select pg_notify('raw_ready', '')",
    "update raw set status = 'running' where id = (select id from raw where status = 'queued'"
    " order by priority desc, id for update skip locked limit 1) returning id",
    "update raw set status = 'completed', finished_at = now() where id = %s",
)
TASKYARD = Way(
    "task_ready",
    "insert into tasks (prompt, agent) values ('do the thing', 'shell')",
    "select attempt_id from claim_task({}, 1)",
    "select complete_task(%s)",
)


def measure_wakeup(bench: Bench) -> Found:
    samples = bench.pick(60, 15)
    taken: dict[str, list[float]] = {"raw": [], "taskyard": []}
    with bench.server.database() as database:
        with database.connect() as connection:
            Raw().prepare(connection)
        for number in range(bench.pick(5, 2)):
            taken["raw"] += _round(database, RAW, _sleep_raw, samples)
            taken["taskyard"] += _round(database, TASKYARD, _sleep_taskyard, samples)
            bench.say(f"round {number + 1}: " + ", ".join(f"{name} {median(ms):.1f} ms" for name, ms in taken.items()))
    rows: list[list[str]] = []
    p95 = 0.0
    for name, ms in taken.items():
        p95 = quantiles(ms, n=20, method="inclusive")[-1]
        rows.append([name, str(len(ms)), f"{median(ms):.1f}", f"{p95:.1f}", f"{max(ms):.1f}"])
    table = Table(
        "Milliseconds from before a plain insert until a runner that slept has claimed it (NOTIFY, then claim), one"
        " task at a time on an otherwise idle server; raw is the same with an explicit notify beside the insert.",
        ["queue", "samples", "p50", "p95", "max"],
        rows,
    )
    return [table], [Verdict("insert to start, p95", f"{p95:.1f} ms", f"less than {TARGET_MS} ms", p95 < TARGET_MS)]


def _sleep_raw(_: Connection[Row], way: Way) -> LiteralString | sql.Composed:
    return way.claim


def _sleep_taskyard(connection: Connection[Row], way: Way) -> LiteralString | sql.Composed:
    claim = sql.SQL(way.claim).format(sql.Literal(register(connection)))
    connection.execute("select sleep_begin()")
    return claim


def _round(
    database: Database,
    way: Way,
    go_to_sleep: Callable[[Connection[Row], Way], LiteralString | sql.Composed],
    samples: int,
) -> list[float]:
    """Latencies in milliseconds."""
    started: queue.Queue[float | Exception] = queue.Queue()
    asleep, stop = threading.Event(), threading.Event()

    def runner() -> None:
        try:
            with database.connect() as connection:
                connection.execute(sql.SQL("listen {}").format(sql.Identifier(way.channel)))
                claim = go_to_sleep(connection, way)
                asleep.set()
                while not stop.is_set():
                    # As a list: the generator keeps the connection's lock for as long as it is not exhausted.
                    if not list(connection.notifies(timeout=0.5, stop_after=1)):
                        continue
                    # Until there is nothing more: a hint may stand for several tasks, or for none.
                    while row := connection.execute(claim).fetchone():
                        started.put(time.perf_counter())
                        connection.execute(way.finish, row)
        except Exception as error:
            started.put(error)
            asleep.set()

    thread = threading.Thread(target=runner, daemon=True)
    thread.start()
    latencies: list[float] = []
    try:
        asleep.wait(30)
        with database.connect() as producer:
            for _ in range(samples + WARM_UP):
                time.sleep(PAUSE)
                inserted = time.perf_counter()
                producer.execute(way.insert)
                latencies.append((_next(started, way.channel) - inserted) * 1000)
    finally:
        stop.set()
        thread.join(30)
    return latencies[WARM_UP:]


def _next(started: "queue.Queue[float | Exception]", channel: str) -> float:
    try:
        found = started.get(timeout=10)
    except queue.Empty:
        raise BenchError(f"Nobody woke up on {channel} within ten seconds.") from None
    if isinstance(found, Exception):
        raise found
    return found
