"""What runners cost that have nothing to do: queries a second, and CPU of the server."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import LiteralString

import psutil
from psycopg import Connection

from ..bench import Bench, Found
from ..contenders import Taskyard
from ..errors import BenchError
from ..report import Table, at_most
from ..server import Row

RUNNERS = 50


def measure_idle(bench: Bench) -> Found:
    count = bench.pick(RUNNERS, 5)
    seconds = bench.pick(30, 10)
    with bench.queues(Taskyard()) as (database, _):
        url = database.url
        program = str(Path(sys.executable).with_name("taskyard"))
        bench.say(f"starting {count} runners")
        runners = [
            subprocess.Popen(
                [program, "runner", "--name", f"idle-{number}", "--slots", "1"],
                env={**os.environ, "TASKYARD_DSN": url},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(count)
        ]
        try:
            with database.connect() as connection:
                _await(
                    lambda: _one(connection, "select count(*) from runners where locked and gone_at is null") == count,
                    "all runners to be up",
                )
                bench.say(f"{seconds} seconds of rest")
                time.sleep(10)
                server = psutil.Process(bench.server.cluster.status().pid)
                queries, used = _commits(connection), _cpu(server)
                memory = max(psutil.Process(runner.pid).memory_info().rss for runner in runners)
                time.sleep(seconds)
                rate = (_commits(connection) - queries - 1) / seconds
                load = (_cpu(server) - used) / seconds
        finally:
            for runner in runners:
                runner.terminate()
            for runner in runners:
                runner.wait(30)
    table = Table(
        f"{count} runners of one slot that wait for work: statements a second from all of them together, CPU of the"
        " server in percent of one core, and the largest runner process.",
        ["runners", "statements/s", "server CPU, %", "largest runner, MB"],
        [[str(count), f"{rate:.1f}", f"{100 * load:.2f}", f"{memory / 1e6:.0f}"]],
    )
    return [table], [
        at_most(f"statements a second of {count} idle runners", rate, 20),
        at_most(f"server CPU of {count} idle runners, % of a core", 100 * load, 2),
    ]


def _one(connection: Connection[Row], query: LiteralString) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(str(row[0]))


def _commits(connection: Connection[Row]) -> int:
    # One statement is one transaction here.
    return _one(connection, "select xact_commit from pg_stat_database where datname = current_database()")


def _cpu(server: psutil.Process) -> float:
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"waited three minutes in vain for {what}")
        time.sleep(0.5)
