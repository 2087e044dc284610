"""The TUI under a pilot, on a real database."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable

from textual.pilot import Pilot
from textual.widget import Widget

from taskyard.tui.app import Taskyard


@contextlib.asynccontextmanager
async def screens(dsn: str, width: int = 120, height: int = 40) -> AsyncGenerator[tuple[Taskyard, Pilot[None]]]:
    """The application, up and connected."""
    app = Taskyard(dsn)
    async with app.run_test(size=(width, height)) as pilot:
        await seen(pilot, lambda: app.summary is not None)
        yield app, pilot


async def seen(pilot: Pilot[None], condition: Callable[[], object], seconds: float = 15.0) -> float:
    """Wait until a condition holds; returns the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, text_of(pilot.app.screen)
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def text_of(widget: Widget) -> str:
    """What the screen shows, line by line."""
    lines = widget.screen._compositor.render_strips()  # pyright: ignore[reportPrivateUsage]
    return "\n".join(line.text.rstrip() for line in lines)


def shows(pilot: Pilot[None], *texts: str) -> Callable[[], bool]:
    """Whether all these are to be read on the screen."""
    return lambda: all(text in text_of(pilot.app.screen) for text in texts)


async def settled(pilot: Pilot[None], calm: float = 0.35) -> str:
    """What the screen shows once it has not changed for so many seconds."""
    text, since = "", time.monotonic()
    began = since
    while time.monotonic() - since < calm:
        await asyncio.sleep(0.05)
        now = text_of(pilot.app.screen)
        if now != text:
            text, since = now, time.monotonic()
        assert time.monotonic() - began < 20, text
    return text
