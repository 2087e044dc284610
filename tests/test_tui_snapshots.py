"""Each screen as text, at the sizes of a small terminal, a large one and a phone, compared with what is in snapshots/.

After a change that is meant: UPDATE_SNAPSHOTS=1 pytest tests/test_tui_snapshots.py, and read the difference in git.
"""

import asyncio
import os
import re
import time
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import TabbedContent

from .conftest import Yard
from .sample_yard import sample
from .tui import screens, seen, settled, shows, text_of

SNAPSHOTS = Path(__file__).with_name("snapshots")
# Each with something that is there once it is filled.
PANES = {"tasks": "Write tests", "inbox": "Cookies", "fleet": "gpu-box", "scopes": "2/4", "spend": "14 days"}
DETAIL = ("transcript", "result", "attempts", "diff", "verify", "handoffs", "checkpoint", "explain")
PATIENCE = 10.0  # seconds for a screen to become what it was


def masked(text: str) -> str:
    """Without the dates: days pass, and are not what is looked at here."""
    return re.sub(r"\b(\d{4}-)?\d\d-\d\d\b", lambda day: re.sub(r"\d", "#", day[0]), text) + "\n"


class Album:
    """Compares screens with their snapshots, or takes them anew."""

    def __init__(self, pilot: Pilot[None], width: int, height: int) -> None:
        self._pilot = pilot
        self._size = (width, height)
        self.different: list[str] = []

    async def look(self, name: str) -> None:
        """The screen is, or soon becomes, what the snapshot of this name shows."""
        width, height = self._size
        file = SNAPSHOTS / f"{name}-{width}x{height}.txt"
        if os.environ.get("UPDATE_SNAPSHOTS"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(masked(await settled(self._pilot)))
        expected = file.read_text() if file.exists() else ""
        assert all(len(line) <= width for line in expected.splitlines()) and expected.count("\n") <= height, name
        try:
            await seen(self._pilot, lambda: masked(text_of(self._pilot.app.screen)) == expected, PATIENCE)
        except AssertionError as shown:
            self.different.append(f"{file.name}:\n{shown}")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 30)])
def test_every_screen_is_as_it_was_last_seen(
    yard18: Yard, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    dsn, task = sample(yard18)

    async def story() -> list[str]:
        async with screens(dsn, width, height) as (app, pilot):
            album = Album(pilot, width, height)
            for key, (name, text) in enumerate(PANES.items(), 1):
                await pilot.press(str(key))
                await seen(pilot, shows(pilot, text))
                await album.look(name)
            await pilot.press("1")
            app.open_task(task)
            await seen(pilot, shows(pilot, f"task {task}", "I will look"))
            for tab in DETAIL:
                app.screen.query_one(TabbedContent).active = f"tab-{tab}"
                await album.look(f"task-{tab}")
            await pilot.press("question_mark")
            await album.look("help")
            await pilot.press("question_mark", "escape", "n")
            await seen(pilot, shows(pilot, "Submit", "template"))
            await album.look("new")
            await pilot.press("escape", "ctrl+p")
            await album.look("commands")
            return album.different

    different = asyncio.run(story())
    assert not different, "\n\n".join(different)
