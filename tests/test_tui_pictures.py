"""The pictures of the README: `make pictures` draws them anew into the folder that PICTURES names."""

import asyncio
import os
import re
from pathlib import Path

import pytest
from textual.widgets import TabbedContent

from .conftest import Yard
from .sample_yard import sample
from .tui import screens, settled

SIZES = {
    "tasks": (110, 26),
    "inbox": (110, 18),
    "fleet": (110, 26),
    "scopes": (110, 20),
    "spend": (110, 34),
    "task": (110, 26),
    "phone": (40, 30),
}
KEYS = {"inbox": "2", "fleet": "3", "scopes": "4", "spend": "5"}


@pytest.mark.slow
def test_the_pictures_of_the_readme(yard18: Yard, tmp_path: Path) -> None:
    folder = Path(os.environ.get("PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    dsn, task = sample(yard18)

    async def story() -> None:
        for name, (width, height) in SIZES.items():
            async with screens(dsn, width, height) as (app, pilot):
                if name in KEYS:
                    await pilot.press(KEYS[name])
                elif name == "task":
                    app.open_task(task)
                    await settled(pilot)
                    app.screen.query_one(TabbedContent).active = "tab-transcript"
                await settled(pilot)
                drawn = app.export_screenshot(title="taskyard tui")
            # Without the fonts that it would fetch from elsewhere.
            (folder / f"{name}.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))

    asyncio.run(story())
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    for name in SIZES:
        assert (folder / f"{name}.svg").read_text().startswith("<svg") and f"docs/pictures/{name}.svg" in readme
    assert not re.search(r"url\(.?https?:", (folder / "tasks.svg").read_text())
