"""Claiming while somebody (a dump, a forgotten transaction) holds an old snapshot, so that vacuum removes nothing."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from ..bench import Bench, Found
from ..contenders import Contender, Raw, Taskyard
from ..errors import BenchError
from ..pgbench import WARM_UP, run
from ..queue import Queue
from ..report import Table, at_least, rate, ratio
from ..server import Database

CLIENTS = 8
MARGIN = 1.7  # times what the rate measured before would take: the machine may be faster in a minute


@dataclass(frozen=True)
class Held:
    """Rates in the first and last sixth, and of a raw queue elsewhere just before and after (the machine's drift)."""

    backlog: int
    first: float
    last: float
    before: float
    after: float


def measure_snapshot(bench: Bench) -> Found:
    seconds = bench.pick(180, 20)
    contenders: dict[str, Contender] = {"taskyard": Taskyard(), "raw": Raw()}
    found: dict[str, Held] = {}
    with bench.queues(Raw()) as (_, [probe]):
        for name, contender in contenders.items():
            with bench.queues(contender) as (database, [queue]):
                found[name] = _held(bench, database, queue, probe, seconds)
    table = Table(
        f"Claim and complete at {CLIENTS} clients, jobs/s, while a repeatable read transaction stays open for"
        f" {seconds} seconds: first and last sixth of that time. The last column is what a raw queue without a"
        " snapshot did just after, over just before: how much of the difference is the machine's.",
        ["queue", "queued at first", "first sixth, jobs/s", "last sixth, jobs/s", "last to first", "machine's drift"],
        [
            [
                name,
                f"{held.backlog:,}",
                rate(held.first),
                rate(held.last),
                ratio(held.last / held.first),
                ratio(held.after / held.before),
            ]
            for name, held in found.items()
        ],
    )
    ours = found["taskyard"]
    return [table], [
        at_least(f"rate after {seconds} seconds under a snapshot, last sixth over first", ours.last / ours.first, 0.8)
    ]


def _held(bench: Bench, database: Database, queue: Queue, probe: Queue, seconds: int) -> Held:
    queue.fill(20_000)
    database.settle()
    rate_now = queue.cycle_some(CLIENTS, bench.pick(10_000, 2_000))
    backlog = max(bench.pick(300_000, 30_000), int(rate_now * seconds * MARGIN))
    bench.say(f"{queue.name}: loading {backlog:,} jobs")
    queue.fill(backlog)
    probes = bench.pick(15_000, 3_000)
    probe.fill(2 * probes)
    database.settle()
    before = probe.cycle_some(CLIENTS, probes)
    bench.say(f"{queue.name}: {seconds} seconds under a snapshot")
    with _snapshot(database), _ticking(database, queue.variables.get("runner")):
        done = run(
            bench.server,
            database,
            queue.contender.cycle,
            CLIENTS,
            queue.variables,
            seconds=seconds - WARM_UP,
        )
    after = probe.cycle_some(CLIENTS, probes)
    sixth = seconds // 6
    slices = done.slices[WARM_UP:]
    held = Held(backlog, sum(slices[:sixth]) / sixth, sum(slices[-sixth:]) / sixth, before, after)
    bench.say(f"{queue.name}: from {held.first:,.0f} to {held.last:,.0f} per second")
    return held


@contextmanager
def _snapshot(database: Database) -> Generator[None]:
    with database.connect() as connection:
        connection.execute("begin isolation level repeatable read")
        connection.execute("select 1")
        yield
        connection.execute("rollback")


@contextmanager
def _ticking(database: Database, runner: int | None) -> Generator[None]:
    """tick() once a second, as some runner of a live fleet does; nothing without a runner."""
    if runner is None:
        yield
        return
    stop = threading.Event()
    errors: list[psycopg.Error] = []

    def tick() -> None:
        try:
            with database.connect() as connection:
                while not stop.wait(1):
                    connection.execute("select tick(%s::bigint)", (runner,))
        except psycopg.Error as error:
            errors.append(error)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    if errors:
        raise BenchError(f"tick() failed: {errors[0]}")
