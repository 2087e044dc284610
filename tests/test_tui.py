"""The screens, on a real database: what they show, what each key does, and what they cost."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from textual.pilot import Pilot
from textual.widgets import Input, Select, TextArea

from taskyard.tui.detail import DetailScreen
from taskyard.tui.widgets.ask import Ask, Confirm

from .conftest import Yard, rows, value
from .tui import screens, seen, shows, text_of
from .yardwork import claim, end, insert, register, status


def play(story: Coroutine[Any, Any, None]) -> None:
    """Run a test that is a coroutine."""
    asyncio.run(story)


async def type_in(pilot: Pilot[None], text: str) -> None:
    await pilot.press(*(("space" if key == " " else key) for key in text))


@pytest.fixture
def sql(yard18: Yard) -> Connection[DictRow]:
    return yard18.connect()


@pytest.mark.timed
def test_a_task_of_psql_is_seen_within_200_ms(yard18: Yard, sql: Connection[DictRow]) -> None:
    async def story() -> None:
        async with screens(yard18.dsn) as (_, pilot):
            await seen(pilot, shows(pilot, "No tasks."))
            took: list[float] = []
            for number in range(5):
                await asyncio.to_thread(insert, sql, f"find the bug number {number}")
                took.append(await seen(pilot, shows(pilot, f"bug number {number}")))
                await asyncio.sleep(0.3)
            print(f"seen after {max(took) * 1000:.0f} ms at most")
            assert sorted(took)[2] < 0.2

    play(story())


def test_the_list_follows_every_status(yard18: Yard, sql: Connection[DictRow]) -> None:
    runner = register(sql, "mill")
    first, second = insert(sql, "first of all"), insert(sql, "second to none", priority=-1)

    async def story() -> None:
        async with screens(yard18.dsn) as (_, pilot):
            await seen(pilot, shows(pilot, "first of all", "second to none", "○2"))
            attempt = claim(sql, runner)[0]["attempt_id"]
            await seen(pilot, shows(pilot, "▶1", "○1"))
            sql.execute("select report_progress(%s, 0.5::real, 'half of it')", [attempt])
            await seen(pilot, shows(pilot, "half of it · first of all"))
            end(sql, attempt, "failed", evidence="no")
            sql.execute("select cancel_task(%s), cancel_task(%s)", [first, second])
            await seen(pilot, lambda: text_of(pilot.app.screen).count("∅") >= 2)

    play(story())


def test_tabs_and_search_narrow_the_list(yard18: Yard, sql: Connection[DictRow]) -> None:
    insert(sql, "paint the door")
    insert(sql, "paint the wall 100%")
    done = insert(sql, "plaster")
    sql.execute("select cancel_task(%s)", [done])

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await seen(pilot, shows(pilot, "paint the door", "plaster"))
            await pilot.press("right")
            await seen(pilot, lambda: "plaster" not in text_of(app.screen) and shows(pilot, "paint the door")())
            await pilot.press("slash")
            await type_in(pilot, "100%")
            await seen(pilot, lambda: "door" not in text_of(app.screen) and shows(pilot, "paint the wall")())
            await pilot.press("enter", "escape")
            await seen(pilot, shows(pilot, "paint the door", "paint the wall"))

    play(story())


def test_a_tree_shows_parents_before_their_children(yard18: Yard, sql: Connection[DictRow]) -> None:
    top = insert(sql, "the top")
    insert(sql, "something else")
    below = insert(sql, "one below", parent_id=top)
    insert(sql, "the lowest", parent_id=below)

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await seen(pilot, shows(pilot, "the lowest"))
            await pilot.press("t")
            await seen(pilot, lambda: "something else" not in text_of(app.screen))
            text = text_of(app.screen)
            assert text.index("the top") < text.index("  one below") < text.index("    the lowest")
            await pilot.press("t")
            await seen(pilot, shows(pilot, "something else"))

    play(story())


def test_a_task_is_looked_into(yard18: Yard, sql: Connection[DictRow]) -> None:
    runner, task = register(sql, "mill"), insert(sql, "look into it", verify="true")
    attempt = claim(sql, runner)[0]["attempt_id"]
    entries = [
        {"seq": 1, "kind": "text", "body": "I begin with **the door**."},
        {"seq": 2, "kind": "tool_call", "body": "Bash: ls", "data": {"command": "ls -la /secret"}},
        {"seq": 3, "kind": "tool_result", "body": "one\ntwo"},
    ]

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await seen(pilot, shows(pilot, "look into it"))
            await pilot.press("enter")
            await seen(pilot, shows(pilot, "running", f"task {task}"))
            sql.execute("select append_transcript(%s, %s)", [attempt, Jsonb(entries)])
            await seen(pilot, shows(pilot, "I begin with the door.", "→ Bash: ls"))
            assert "/secret" not in text_of(app.screen)
            await pilot.press("tab")
            await pilot.press("f")
            await seen(pilot, shows(pilot, "/secret"))
            for tab in ("Result", "Attempts", "Diff", "Verify", "Handoffs", "Checkpoint", "Explain"):
                app.screen.query_one("TabbedContent").active = f"tab-{tab.lower()}"  # type: ignore[attr-defined]
                await pilot.pause()
            assert "Runs on mill" in text_of(app.screen)
            sql.execute("select report_verification(%s, true, 0, 'fine', '1 second')", [attempt])
            end(sql, attempt, "completed", result=Jsonb("the answer is 42"))
            app.screen.query_one("TabbedContent").active = "tab-result"  # type: ignore[attr-defined]
            await seen(pilot, shows(pilot, "completed", "the answer is 42"))
            await pilot.press("escape")
            await seen(pilot, lambda: not isinstance(app.screen, DetailScreen))

    play(story())


def test_keys_cancel_retry_prioritise_and_say(yard18: Yard, sql: Connection[DictRow]) -> None:
    task = insert(sql, "handle with care")

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await seen(pilot, shows(pilot, "handle with care"))
            await pilot.press("enter")
            await seen(pilot, shows(pilot, f"task {task}"))
            await pilot.press("p")
            await seen(pilot, lambda: isinstance(app.screen, Ask))
            app.screen.query_one(Input).value = "2000"
            await pilot.press("enter")
            assert isinstance(app.screen, Ask), "no such priority"
            app.screen.query_one(Input).value = "7"
            await pilot.press("enter")
            await seen(pilot, lambda: value(sql, "select priority from tasks") == 7)
            await pilot.press("s")
            await seen(pilot, lambda: isinstance(app.screen, Ask))
            await type_in(pilot, "mind the cat")
            await pilot.press("enter")
            await seen(pilot, lambda: value(sql, "select has_mail from tasks"))
            await pilot.press("c")
            await pilot.press("y")
            await seen(pilot, lambda: status(sql, task) == "cancelled")
            await seen(pilot, shows(pilot, "∅ cancelled"))
            await pilot.press("r")
            await seen(pilot, lambda: status(sql, task) == "queued")

    play(story())


def test_the_inbox_is_decided_with_one_key(yard18: Yard, sql: Connection[DictRow]) -> None:
    runner = register(sql, "mill")
    tasks = [insert(sql, f"wants {n}") for n in range(3)]
    attempts = {row["task_id"]: row["attempt_id"] for row in claim(sql, runner, 3)}
    sql.execute("update scopes set may_network = false where name = 'default'")
    for task in tasks[:2]:
        sql.execute("select request_permission(%s, '{network}', p_why => 'to fetch the spec')", [attempts[task]])
    sql.execute("select ask_human(%s, 'Which colour?')", [attempts[tasks[2]]])
    for attempt in attempts.values():
        end(sql, attempt, "waiting")

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await seen(pilot, shows(pilot, "3 need you", "Inbox (3)"))
            await pilot.press("2")
            await seen(pilot, shows(pilot, "to fetch the spec", "Which colour?"))
            decided = "select decision from approvals order by id"
            await pilot.press("a")
            await seen(pilot, lambda: [row["decision"] for row in rows(sql, decided)] == ["approved", None, None])
            await seen(pilot, shows(pilot, "Inbox (2)"))
            await pilot.press("d")
            await type_in(pilot, "no")
            await pilot.press("enter")
            await seen(pilot, lambda: [row["decision"] for row in rows(sql, decided)][1] == "denied")
            await seen(pilot, shows(pilot, "Inbox (1)"))
            await pilot.press("r")
            await seen(pilot, lambda: isinstance(app.screen, Ask))
            await type_in(pilot, "blue")
            await pilot.press("enter")
            await seen(pilot, lambda: value(sql, "select answer from approvals where kind = 'question'") == "blue")
            await seen(pilot, shows(pilot, "Nothing waits for you."))

    play(story())


def test_a_new_task_is_checked_by_the_database_while_it_is_typed(yard18: Yard, sql: Connection[DictRow]) -> None:
    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await pilot.press("n")
            await seen(pilot, lambda: bool(app.screen.query(TextArea)))
            await type_in(pilot, "write a poem")
            await seen(pilot, shows(pilot, "The yard takes this."))
            app.screen.query_one("#priority", Input).value = "5000"
            await seen(pilot, shows(pilot, "5000"))
            await seen(pilot, lambda: "The yard takes this." not in text_of(app.screen))
            await pilot.press("ctrl+s")
            await pilot.pause()
            assert value(sql, "select count(*) from tasks") == 0
            app.screen.query_one("#priority", Input).value = "5"
            await seen(pilot, shows(pilot, "The yard takes this."))
            await pilot.press("ctrl+s")
            await seen(pilot, shows(pilot, "write a poem"))
            assert rows(sql, "select prompt, priority from tasks") == [{"prompt": "write a poem", "priority": 5}]

    play(story())


def test_a_new_task_begins_from_a_template(yard18: Yard, sql: Connection[DictRow]) -> None:
    task = {"prompt": "Review {{branch}}.", "agent": "claude", "priority": 3, "timeout": "10 minutes", "payload": [1]}
    sql.execute("insert into templates (name, task) values ('review', %s)", [Jsonb(task)])

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await pilot.press("n")
            await seen(pilot, lambda: bool(app.screen.query("#template")))
            await seen(pilot, lambda: app.screen.query_one("#pair-template").display)
            app.screen.query_one("#template", Select).value = "review"
            await seen(pilot, shows(pilot, "Review {{branch}}.", "Write something for {{branch}}."))
            app.screen.query_one(TextArea).text = "Review main."
            await seen(pilot, shows(pilot, "The yard takes this."))
            await pilot.press("ctrl+s")
            await seen(pilot, lambda: value(sql, "select count(*) from tasks"))
            found = rows(sql, "select prompt, agent, priority, timeout::text, payload from tasks")
            assert found == [{**task, "prompt": "Review main.", "timeout": "00:10:00"}]

    play(story())


def test_the_command_palette_goes_places_and_does_what_the_keys_do(yard18: Yard, sql: Connection[DictRow]) -> None:
    task = insert(sql, "from the palette")

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await seen(pilot, shows(pilot, "from the palette"))
            await pilot.press("enter")
            await seen(pilot, shows(pilot, f"task {task}"))
            await pilot.press("ctrl+p")
            await type_in(pilot, "cancel")
            await seen(pilot, shows(pilot, "Key c"))
            await pilot.press("down", "enter")
            await seen(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press("y")
            await seen(pilot, lambda: status(sql, task) == "cancelled")
            await pilot.press("ctrl+p")
            await type_in(pilot, "spend")
            await seen(pilot, shows(pilot, "Go to spend"))
            await pilot.press("down", "enter")
            await seen(pilot, shows(pilot, "dollars a day"))

    play(story())


def test_scopes_and_providers_are_paused_and_resumed(yard18: Yard, sql: Connection[DictRow]) -> None:
    sql.execute("insert into scopes (name, parent, may_network) values ('home', 'default', false)")
    sql.execute("insert into budgets (scope, measure, period, amount) values ('home', 'usd', 'day', 5)")
    register(sql, "mill")

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await pilot.press("4")
            await seen(pilot, shows(pilot, "home", "rwx-c"))
            await pilot.press("down")
            await seen(pilot, shows(pilot, "$0.00 of $5.00 today"))
            await pilot.press("p")
            await seen(pilot, lambda: isinstance(app.screen, Ask))
            await type_in(pilot, "lunch")
            await pilot.press("enter")
            await seen(pilot, lambda: value(sql, "select paused_reason from scopes where name = 'home'") == "lunch")
            await seen(pilot, shows(pilot, "paused"))
            await pilot.press("u")
            await seen(pilot, lambda: value(sql, "select paused_at is null from scopes where name = 'home'"))
            await pilot.press("3")
            await seen(pilot, shows(pilot, "mill", "Providers", "Limits"))
            sql.execute(
                "insert into provider_limits (provider, state, until) values ('claude', 'hot', now() + interval '2 hours')"
            )
            await seen(pilot, shows(pilot, "1h 59m"))

    play(story())


def test_a_viewer_sees_all_and_its_keys_are_greyed(yard18: Yard, sql: Connection[DictRow]) -> None:
    task = insert(sql, "hands off")

    async def story() -> None:
        async with screens(yard18.login("eve", "viewer")) as (app, pilot):
            await seen(pilot, shows(pilot, "hands off"))
            await pilot.press("n")
            await pilot.pause()
            assert not app.screen.query(TextArea)
            await pilot.press("enter")
            await seen(pilot, shows(pilot, f"task {task}"))
            await pilot.press("c")
            await pilot.pause()
            assert isinstance(app.screen, DetailScreen)
            greyed = {key for key, binding in app.screen.active_bindings.items() if not binding.enabled}
            assert {"c", "s", "r", "p"} <= greyed

    play(story())
    assert status(sql, task) == "queued"


def test_what_an_agent_wrote_steers_no_screen(yard18: Yard, sql: Connection[DictRow]) -> None:
    insert(sql, "[bold red]not markup[/] \x1b[2Jnor escapes \u202eevil")

    async def story() -> None:
        async with screens(yard18.dsn) as (app, pilot):
            await seen(pilot, shows(pilot, "[bold red]not markup[/] nor escapes evil"))
            await pilot.press("enter")
            await seen(pilot, shows(pilot, "task", "[bold red]not markup[/]"))
            assert not {"\x1b", "\u202e"} & set(text_of(app.screen))

    play(story())
