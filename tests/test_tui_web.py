"""The screens in a browser: who is let in, and that it works."""

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import async_playwright
from psycopg.types.json import Jsonb

from taskyard.tui.web import USER, Listen, listen, refusal

from .conftest import Yard, value
from .fleet import until
from .yardwork import claim, end, insert, register, status

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

HOME = Listen("127.0.0.1", 8765)
WIDE = Listen("0.0.0.0", 8765, "open sesame")


def basic(password: str, user: str = USER) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("where", "host", "origin", "authorization", "status"),
    [
        (HOME, "127.0.0.1:8765", None, None, None),
        (HOME, "localhost:8765", "http://localhost:8765", None, None),
        # Another site in the user's own browser, and one whose name leads to loopback.
        (HOME, "127.0.0.1:8765", "https://evil.example", None, 403),
        (HOME, "evil.example:8765", "http://evil.example:8765", None, 403),
        (HOME, "127.0.0.1:8765", "http://127.0.0.1:9999", None, 403),
        (HOME, "127.0.0.1:8765", "null", None, 403),
        (HOME, None, None, None, 403),
        (WIDE, "box:8765", None, None, 401),
        (WIDE, "box:8765", None, basic("open"), 401),
        (WIDE, "box:8765", None, basic("open sesame", "root"), 401),
        (WIDE, "box:8765", None, "Bearer open sesame", 401),
        (WIDE, "box:8765", None, basic("open sesame"), None),
        (WIDE, "box:8765", "http://box:8765", basic("open sesame"), None),
        (WIDE, "box:8765", "https://evil.example", basic("open sesame"), 403),
    ],
)
def test_who_is_let_in(
    where: Listen, host: str | None, origin: str | None, authorization: str | None, status: int | None
) -> None:
    assert refusal(where, host, origin, authorization) == status


def test_beyond_loopback_there_is_a_password() -> None:
    assert listen("127.0.0.1", 1, None).password is None
    assert listen("::1", 1, "").password is None
    for host in ("0.0.0.0", "::", "192.168.1.5", "box"):
        made = listen(host, 1, None).password
        assert made is not None and len(made) >= 12 and made != listen(host, 1, None).password
    assert listen("127.0.0.1", 1, "x").password == "x"


@pytest.fixture
def page(yard18: Yard, tmp_path: Path) -> Iterator[str]:
    """The address of a page that asks for a password."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path / "web.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "taskyard.runner.cli",
                "--dsn",
                yard18.dsn,
                "tui",
                "--web",
                "--port",
                str(port),
                "--password",
                "open sesame",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: re.search(r"The yard is at http://127\.0\.0\.1:\d+/ until", log.read_text()))
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        assert "Traceback" not in log.read_text()


@pytest.mark.skipif(CHROMIUM is None and "CI" not in os.environ, reason="chromium is not installed")
def test_a_browser_sees_a_task_finish_and_approves_one(yard18: Yard, page: str) -> None:
    """The picture is kept in build/browser.png."""
    sql = yard18.connect()
    runner = register(sql, "mill")
    sql.execute("update scopes set may_network = false where name = 'default'")
    asking = insert(sql, "asks for the network", priority=5)
    attempt = claim(sql, runner)[0]["attempt_id"]
    sql.execute("select request_permission(%s, '{network}', p_why => 'to fetch the spec')", [attempt])
    end(sql, attempt, "waiting")
    live = insert(sql, "a task that ends live")
    attempt = claim(sql, runner)[0]["attempt_id"]

    async def story() -> None:
        received: list[str] = []

        news = asyncio.Event()

        async def until_received(*texts: str) -> None:
            async with asyncio.timeout(20):
                # Escape sequences stand between the words of a line.
                while not all(text in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(received)) for text in texts):
                    await news.wait()
                    news.clear()

        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = await browser.new_context(
                http_credentials={"username": USER, "password": "open sesame"}, viewport={"width": 1000, "height": 620}
            )
            tab = await context.new_page()

            def heard(frame: bytes | str) -> None:
                received.append(frame.decode(errors="replace") if isinstance(frame, bytes) else frame)
                news.set()

            tab.on("websocket", lambda socket_: socket_.on("framereceived", heard))
            response = None
            for _ in range(100):
                with contextlib.suppress(PlaywrightError):
                    response = await tab.goto(page)
                    break
                await asyncio.sleep(0.1)
            assert response is not None and response.status == 200
            await until_received("a task that ends live", "1 need")
            await tab.mouse.click(400, 300)
            received.clear()
            end(sql, attempt, "completed", result=Jsonb("fine"))
            await until_received("✓")
            await tab.keyboard.press("2")
            await until_received("to fetch the spec")
            await tab.keyboard.press("a")
            until(lambda: value(sql, "select decision from approvals") == "approved")
            assert status(sql, asking) == "queued" and status(sql, live) == "completed"
            await until_received("Nothing waits for you")
            await tab.keyboard.press("1")
            await asyncio.sleep(1)
            picture = Path(__file__).parent.parent / "build" / "browser.png"
            picture.parent.mkdir(exist_ok=True)
            await tab.screenshot(path=picture)
            await browser.close()
        assert picture.stat().st_size > 10_000

    asyncio.run(story())


def test_the_screens_come_through_the_browsers_socket(yard18: Yard, page: str) -> None:
    insert(yard18.connect(), "seen from afar")

    async def story() -> None:
        async with aiohttp.ClientSession(headers={"Authorization": basic("open sesame")}) as session:
            for _ in range(100):
                try:
                    async with session.get(page) as answer:
                        assert answer.status == 200
                        text = await answer.text()
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.1)
            else:
                raise AssertionError("nobody listens")
            assert f"{page.replace('http', 'ws', 1)}ws" in text
            async with session.ws_connect(f"{page}ws?width=80&height=24") as socket_:
                shown = b""
                async with asyncio.timeout(30):
                    async for message in socket_:
                        shown += message.data if isinstance(message.data, bytes) else json.dumps(message.data).encode()
                        if b"seen from afar" in shown:
                            break
        async with aiohttp.ClientSession() as stranger, stranger.get(page) as answer:
            assert answer.status == 401 and "Basic" in answer.headers["WWW-Authenticate"]

    asyncio.run(story())
