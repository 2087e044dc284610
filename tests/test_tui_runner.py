"""Each action of the screens on tasks that a real runner runs."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from textual.widgets import Input, TextArea

from taskyard.tui.widgets.ask import Ask

from .conftest import Yard, column, value
from .fleet import Fleet, at_work, fleet_on
from .tui import screens, seen, shows
from .yardwork import status

ASKS = """
if taskyard-agent load-checkpoint | grep -q asked; then
    echo went on
else
    taskyard-agent call save_checkpoint '{"status": "asked", "progress": 0.5}'
    taskyard-agent call request_permission '{"permissions": ["network"], "why": "to fetch"}'
fi
"""


@pytest.fixture
def fleet(yard18: Yard, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def sql(yard18: Yard) -> Connection[DictRow]:
    return yard18.connect()


def test_put_in_watched_cancelled_retried_approved_and_drained(
    yard18: Yard, fleet: Fleet, sql: Connection[DictRow]
) -> None:
    sql.execute("update scopes set may_network = false where name = 'default'")
    fleet.start("mill", "--slots", "2")

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):

            async def put_in(text: str) -> int:
                before = value(sql, "select coalesce(max(id), 0) from tasks")
                app.new_task({"agent": "shell"})
                await seen(pilot, lambda: bool(app.screen.query(TextArea)))
                app.screen.query_one(TextArea).text = text
                await seen(pilot, shows(pilot, "The yard takes this."))
                await pilot.press("ctrl+s")
                await seen(pilot, lambda: value(sql, "select max(id) from tasks") > before)
                begins = text.strip().splitlines()[0][:20]
                await seen(pilot, lambda: not app.screen.query(TextArea) and shows(pilot, begins)())
                return value(sql, "select max(id) from tasks")

            async def typed(key: str, text: str) -> None:
                await pilot.press(key)
                await seen(pilot, lambda: isinstance(app.screen, Ask))
                app.screen.query_one(Input).value = text
                await pilot.press("enter")

            await seen(pilot, lambda: value(sql, "select count(*) from runners") == 1)
            await put_in("echo hello from the mill")
            await seen(pilot, shows(pilot, "✓1"))
            await pilot.press("enter")
            await seen(pilot, shows(pilot, "✓ completed", "hello from the mill"))
            await pilot.press("escape")

            long = await put_in("echo begun; sleep 305.25")
            await seen(pilot, lambda: at_work("sleep", "305.25"))
            await pilot.press("home", "enter")
            await seen(pilot, shows(pilot, "▶ running", "begun"))
            await typed("s", "never mind")
            await seen(pilot, lambda: value(sql, "select has_mail from tasks where id = %s", long))
            await pilot.press("c", "y")
            await seen(pilot, lambda: status(sql, long) == "cancelled" and not at_work("sleep", "305.25"))
            await seen(pilot, shows(pilot, "∅ cancelled"))
            await pilot.press("r")
            await seen(pilot, lambda: at_work("sleep", "305.25"))
            await seen(pilot, shows(pilot, "▶ running"))
            await pilot.press("c", "y")
            await seen(pilot, shows(pilot, "∅ cancelled"))
            await pilot.press("escape")

            asking = await put_in(ASKS)
            await seen(pilot, shows(pilot, "1 need"), 30)
            await pilot.press("2")
            await seen(pilot, shows(pilot, "to fetch"))
            await pilot.press("a")
            await seen(pilot, lambda: status(sql, asking) == "completed", 30)
            assert value(sql, "select result from tasks where id = %s", asking) == "went on"

            await pilot.press("3")
            await seen(pilot, shows(pilot, "mill"))
            await pilot.press("tab")
            await pilot.press("d")
            await seen(pilot, lambda: value(sql, "select draining from runners"))
            await pilot.press("1")
            waits = await put_in("echo later")
            await asyncio.sleep(1)
            assert status(sql, waits) == "queued"
            await pilot.press("home", "enter")
            await seen(pilot, shows(pilot, f"task {waits}"))
            await typed("p", "12")
            await seen(pilot, lambda: value(sql, "select priority from tasks where id = %s", waits) == 12)
            await pilot.press("escape", "3")
            await seen(pilot, shows(pilot, "drains"))  # d turns round what is on the screen
            await pilot.press("tab", "d")
            await seen(pilot, lambda: status(sql, waits) == "completed", 30)
            assert column(sql, "select distinct created_by from tasks") == ["yard"]

    asyncio.run(story())
