"""The screens where there is much, and where the database goes away."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from textual.events import Key

from taskyard.runner.postgres import Cluster
from taskyard.tui.widgets.task_list import TaskList

from .conftest import Yard, value
from .tui import screens, seen, shows, text_of
from .yardwork import insert

MANY = 100_000


def play(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def filled(yard: Yard, count: int = MANY) -> Connection[DictRow]:
    """A yard with so many tasks that ended."""
    server = yard.connect(superuser=True)
    server.execute("set session_replication_role = replica")
    server.execute(
        "insert into taskyard.tasks (prompt, status, finished_at, created_at) select 'task number ' || n, 'completed', now(), now()"
        " from generate_series(1, %s) n",
        [count],
    )
    server.execute("set session_replication_role = origin")
    server.execute("analyze taskyard.tasks")
    return server


SCREENS = """
import asyncio, os, sys, time
from pathlib import Path
began = time.monotonic()
from taskyard.tui.app import Taskyard
print(f"import {time.monotonic() - began:.2f}")
async def main():
    app = Taskyard(sys.argv[1])
    async with app.run_test(size=(120, 40)) as pilot:
        list_ = app.query_one("TaskList")
        while list_.current is None:
            await asyncio.sleep(0.005)
        print(f"first {time.monotonic() - began:.2f}")
        lag = 0.0
        for key in ["pagedown"] * 30 + ["end"] + ["pageup"] * 30 + ["home"]:
            pressed = time.monotonic()
            await pilot.press(key)
            while list_.current is None:
                await asyncio.sleep(0.002)
            lag = max(lag, time.monotonic() - pressed)
        print(f"lag {lag:.3f}")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print(f"memory {pages * os.sysconf('SC_PAGE_SIZE')}")
asyncio.run(main())
"""


@pytest.mark.timed
def test_100_000_tasks_scroll_without_lag(yard18: Yard) -> None:
    filled(yard18)
    done = subprocess.run([sys.executable, "-c", SCREENS, yard18.dsn], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found = dict(line.split() for line in done.stdout.splitlines())
    assert float(found["first"]) < 1.5, "of which importing Textual takes most"
    assert float(found["lag"]) < 0.25
    assert int(found["memory"]) < 150e6


FLOOD = """
import sys, time
import psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as db:
    db.execute("set search_path = taskyard")
    while True:
        began = time.monotonic()
        made = db.execute("insert into tasks (prompt, agent) select 'x', 'shell' from generate_series(1, 50) returning id")
        db.execute("select cancel_task(id) from unnest(%s::bigint[]) id", [[row[0] for row in made.fetchall()]])
        time.sleep(max(0.0, 0.1 - (time.monotonic() - began)))
"""


@pytest.mark.timed
def test_a_thousand_changes_a_second_leave_it_responsive_and_the_database_in_peace(yard18: Yard) -> None:
    server = filled(yard18, 20_000)

    async def story() -> None:
        async with screens(yard18.dsn) as (app, _):
            painted: list[float] = []
            display: Callable[..., None] = app._display  # pyright: ignore

            def watched(*args: Any) -> None:
                display(*args)
                painted.append(time.monotonic())

            app._display = watched  # pyright: ignore
            flood = await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, yard18.superuser_dsn)
            try:
                await asyncio.sleep(2)
                lags: list[float] = []
                queries, began, paints = app.link.queries, time.monotonic(), len(painted)
                while time.monotonic() - began < 5:
                    before, pressed = app.query_one(TaskList).cursor, time.monotonic()
                    app.post_message(Key("down", None))
                    while app.query_one(TaskList).cursor == before or painted[-1] < pressed:
                        assert time.monotonic() - pressed < 5
                        await asyncio.sleep(0.002)
                    lags.append(time.monotonic() - pressed)
                    await asyncio.sleep(0.1)
                seconds = time.monotonic() - began
            finally:
                flood.kill()
                await flood.wait()
            lags.sort()
            rate, redraws = (app.link.queries - queries) / seconds, (len(painted) - paints - len(lags)) / seconds
            changes = 2 * value(server, "select count(*) from taskyard.tasks where prompt = 'x'") / (seconds + 2)
            print(f"{changes:.0f} changes and {rate:.1f} queries a second, {redraws:.1f} redraws beside those of keys;")
            print(f"key to paint {lags[len(lags) // 2] * 1000:.0f} ms, at most {lags[-1] * 1000:.0f} ms")
            assert rate <= 10
            assert lags[int(len(lags) * 0.9)] < 0.1

    play(story())


@pytest.mark.timed
def test_it_says_that_the_database_is_away_and_recovers(temporary_home: Any) -> None:
    from taskyard.runner.connection import connect
    from taskyard.runner.install import install

    cluster = Cluster(temporary_home())
    cluster.start()
    with connect(cluster.url()) as db:
        install(db)
        insert(db, "still there")

    async def story() -> None:
        async with screens(cluster.url()) as (app, pilot):
            await seen(pilot, shows(pilot, "still there"))
            await asyncio.to_thread(cluster.stop, "immediate")
            await seen(pilot, shows(pilot, "Trying again"))
            assert "still there" in text_of(app.screen)
            await pilot.press("enter", "c", "y")
            await asyncio.to_thread(cluster.start)
            await seen(pilot, lambda: "Trying again" not in text_of(app.screen))
            with connect(cluster.url()) as again:
                insert(again, "and a new one")
                assert value(again, "select count(*) from taskyard.tasks where status = 'cancelled'") == 0
            await pilot.press("escape")
            await seen(pilot, shows(pilot, "and a new one"))

    try:
        play(story())
    finally:
        cluster.stop("immediate")
