"""A transcript as it grows: what was said is rendered, what tools did is folded."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from ..store.models import Entry
from ..words import clean, one_line

MOST = 400  # entries that are kept on the screen
FOLDED = ("thinking", "tool_call", "tool_result")
SIGNS = {"thinking": "…", "tool_call": "→", "tool_result": "←", "note": "·", "error": "!", "message": "✉"}
STYLES = {
    "note": "dim",
    "error": "red",
    "tool_call": "cyan",
    "tool_result": "dim cyan",
    "thinking": "dim italic",
    "message": "yellow",
}
LONGEST = 20_000  # characters of one entry that are drawn


class Line(Static, can_focus=False):
    """One entry. A folded one shows its first line; a click, or Enter on the transcript, unfolds it."""

    DEFAULT_CSS = """
    Line { height: auto; padding: 0 1; }
    Line.-text { margin: 1 0; }
    Line.-chosen { background: $boost; }
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.folded = entry.kind in FOLDED
        super().__init__(self._drawn(), markup=False, classes="-text" if entry.kind == "text" else "")

    def toggle(self) -> None:
        """Fold it, or unfold it."""
        if self.entry.kind in FOLDED:
            self.folded = not self.folded
            self.update(self._drawn())

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.toggle()

    def _drawn(self) -> RenderableType:
        entry = self.entry
        body = clean(entry.body)[:LONGEST]
        if entry.kind == "text":
            return Markdown(body)
        style = STYLES.get(entry.kind, "")
        sign = SIGNS.get(entry.kind, "")
        if not self.folded:
            parts: list[RenderableType] = [Text(f"{sign} {body}".strip(), style=style)]
            if entry.data:
                parts.append(Text(clean(_data(entry.data))[:LONGEST], style="dim"))
            return Group(*parts) if entry.kind in FOLDED else parts[0]
        return Text(f"{sign} {one_line(body[:500])}", style=style, no_wrap=True, overflow="ellipsis")


class TranscriptView(VerticalScroll, can_focus=True):
    """The last entries of a transcript. It follows the end while the end is in sight."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "choose(1)", "Next", show=False),
        Binding("k,up", "choose(-1)", "Previous", show=False),
        Binding("enter,space", "fold", "Fold"),
        Binding("f", "fold_all", "Fold all"),
        Binding("g,home", "scroll_home", "Top", show=False),
        Binding("G,end", "follow", "End", show=False),
    ]

    DEFAULT_CSS = "TranscriptView { height: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._chosen: Line | None = None
        self._open = False
        self.last = 0

    def forget(self) -> None:
        """Another transcript begins."""
        self.last = 0
        self._chosen = None
        self.remove_children()

    async def add(self, entries: Sequence[Entry]) -> None:
        """Entries that follow those that are there."""
        new = [entry for entry in entries if entry.seq > self.last]
        if not new:
            return
        self.last = new[-1].seq
        following = self.is_vertical_scroll_end
        lines = [Line(entry) for entry in new[-MOST:]]
        if self._open:
            for one in lines:
                one.toggle()
        await self.mount_all(lines)
        surplus = len(self.children) - MOST
        if surplus > 0:
            await self.remove_children(list(self.children)[:surplus])
        if following:
            self.scroll_end(animate=False)

    def action_choose(self, step: int) -> None:
        """Move the mark to the next entry."""
        lines = list(self.query(Line))
        if not lines:
            return
        if self._chosen in lines:
            place = max(0, min(len(lines) - 1, lines.index(self._chosen) + step))
        else:
            place = len(lines) - 1
        if self._chosen is not None:
            self._chosen.remove_class("-chosen")
        self._chosen = lines[place]
        self._chosen.add_class("-chosen")
        self._chosen.scroll_visible(animate=False)

    def action_fold(self) -> None:
        """Fold or unfold the marked entry."""
        if self._chosen is not None:
            self._chosen.toggle()

    def action_fold_all(self) -> None:
        """Unfold all, or fold all again."""
        self._open = not self._open
        for one in self.query(Line):
            if one.folded == self._open:
                one.toggle()

    def action_follow(self) -> None:
        """To the end, and stay there."""
        self.scroll_end(animate=False)


def joined(entries: Iterable[Entry]) -> list[Entry]:
    """Entries of one kind that follow each other closely as one, where a tool streams its output in pieces."""
    found: list[Entry] = []
    for entry in entries:
        if found and entry.kind == found[-1].kind == "output":
            before = found[-1]
            found[-1] = Entry(entry.seq, before.at, "output", before.body + entry.body, None)
        else:
            found.append(entry)
    return found


def _data(data: Any) -> str:
    return data if isinstance(data, str) else json.dumps(data, indent=2, ensure_ascii=False)
