"""A list of tasks of any length: only what is seen is fetched and drawn."""

from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ..store.models import Row
from ..words import SIGNS, ago, line

CHUNK = 100  # rows of a chunk, which are fetched together
KEPT = 8  # chunks
NARROW = 60  # columns; below, the agent and the scope are left out


class TaskList(ScrollView, can_focus=True):
    """Shows `count` tasks. It posts Wanted for rows that it lacks; show() gives them to it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "move_page(-1)", "Page up", show=False),
        Binding("pagedown", "move_page(1)", "Page down", show=False),
        Binding("home,g", "move_to(0)", "First", show=False),
        Binding("end,G", "move_to(-1)", "Last", show=False),
        Binding("enter", "open", "Open"),
    ]

    COMPONENT_CLASSES: ClassVar[set[str]] = {"task-list--cursor", "task-list--dim"}

    DEFAULT_CSS = """
    TaskList { height: 1fr; overflow-x: hidden; }
    TaskList > .task-list--cursor { background: $block-cursor-blurred-background; }
    TaskList:focus > .task-list--cursor {
        background: $block-cursor-background;
        color: $block-cursor-foreground;
        text-style: $block-cursor-text-style;
    }
    TaskList > .task-list--dim { color: $text-muted; }
    """

    count: reactive[int] = reactive(0)
    cursor: reactive[int] = reactive(0)

    class Wanted(Message):
        """Rows that are to be seen are not there: the chunks that hold them."""

        def __init__(self, chunks: Sequence[int]) -> None:
            super().__init__()
            self.chunks = chunks

    class Opened(Message):
        """A task was chosen."""

        def __init__(self, row: Row) -> None:
            super().__init__()
            self.row = row

    class Highlighted(Message):
        """The cursor stands on another task."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._chunks: OrderedDict[int, Sequence[Row]] = OrderedDict()
        self._now = 0.0
        self.empty = "No tasks."

    @property
    def current(self) -> Row | None:
        """The task under the cursor."""
        return self._row(self.cursor)

    def visible_chunks(self) -> list[int]:
        """The chunks of the rows in sight."""
        top, height = self.scroll_offset.y, max(1, self.size.height)
        last = min(self.count - 1, top + height - 1)
        return [] if last < 0 else list(range(top // CHUNK, last // CHUNK + 1))

    def forget(self) -> None:
        """Another list begins."""
        self._chunks.clear()
        self.cursor = 0
        self.scroll_to(y=0, animate=False)

    def show(self, chunk: int, rows: Sequence[Row], now: float) -> None:
        """The rows of a chunk, as they are now. `now`: seconds since the epoch on the database's clock."""
        before = self.current
        self._now = now
        self._chunks[chunk] = rows
        self._chunks.move_to_end(chunk)
        while len(self._chunks) > KEPT:
            self._chunks.popitem(last=False)
        if before is not None:
            self._stay_on(before)
        self.refresh()

    def _stay_on(self, before: Row) -> None:
        """Stay on the task, which new ones above it have pushed down; but on the first row stay on the first row."""
        if self.cursor == 0 or ((now := self.current) is not None and now.id == before.id):
            return
        for chunk, rows in self._chunks.items():
            for place, row in enumerate(rows):
                if row.id == before.id:
                    moved = chunk * CHUNK + place - self.cursor
                    self.cursor += moved
                    self.scroll_to(y=self.scroll_offset.y + moved, animate=False)
                    return

    def _row(self, index: int) -> Row | None:
        rows = self._chunks.get(index // CHUNK, [])
        place = index % CHUNK
        return rows[place] if 0 <= place < len(rows) else None

    def watch_count(self, count: int) -> None:
        self.virtual_size = Size(self.size.width, count)
        self.cursor = max(0, min(self.cursor, count - 1))
        self.refresh()

    def watch_cursor(self, before: int, cursor: int) -> None:
        top, height = self.scroll_offset.y, max(1, self.size.height)
        if cursor < top:
            self.scroll_to(y=cursor, animate=False)
        elif cursor >= top + height:
            self.scroll_to(y=cursor - height + 1, animate=False)
        for index in (before, cursor):
            self.refresh_line(index)
        self.post_message(self.Highlighted())

    def refresh_line(self, y: int) -> None:
        self.refresh(Region(0, y - self.scroll_offset.y, self.size.width, 1))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        missing = [chunk for chunk in self.visible_chunks() if chunk not in self._chunks]
        if missing:
            self.post_message(self.Wanted(missing))

    def on_resize(self) -> None:
        self.virtual_size = Size(self.size.width, self.count)

    def validate_cursor(self, cursor: int) -> int:
        return max(0, min(cursor, self.count - 1))

    def action_move(self, rows: int) -> None:
        self.cursor += rows

    def action_move_page(self, pages: int) -> None:
        self.cursor += pages * max(1, self.size.height - 1)

    def action_move_to(self, index: int) -> None:
        self.cursor = index if index >= 0 else self.count - 1

    def action_open(self) -> None:
        if (row := self.current) is not None:
            self.post_message(self.Opened(row))

    def on_click(self, event: events.Click) -> None:
        index = self.scroll_offset.y + event.y
        if index >= self.count:
            return
        again = index == self.cursor
        self.cursor = index
        if again or event.chain > 1:
            self.action_open()

    def render_line(self, y: int) -> Strip:
        width, index = self.size.width, self.scroll_offset.y + y
        if index >= self.count:
            text = self.empty if y == 0 and self.count == 0 else ""
            return Strip([Segment(line(text, width), self._part("dim"))], width).apply_style(self.rich_style)
        row = self._row(index)
        if row is None:
            return Strip([Segment(line("…", width), self._part("dim"))], width).apply_style(self.rich_style)
        segments = _drawn(row, width, self._now)
        if index == self.cursor:
            over = self._part("cursor")
            segments = [Segment(text, (style or Style()) + over) for text, style, _ in segments]
        return Strip(segments, width).apply_style(self.rich_style if index != self.cursor else Style())

    def _part(self, name: str) -> Style:
        return self.get_component_rich_style(f"task-list--{name}", partial=True)


def _drawn(row: Row, width: int, now: float) -> list[Segment]:
    """One task on one line: id, sign, since when, who, and what it is about."""
    sign, style = SIGNS[row.status]
    wide = width >= NARROW
    since = _since(row, now)
    head = f"{row.id:>6} "
    middle = f" {since:>4} "
    who = line(row.agent, 8) + " " if wide else ""
    where = line(row.scope, 10) + " " if wide and width >= 100 else ""
    about = "  " * min(row.depth, 8) + _about(row)
    extra = f" +{row.children}" if row.children else ""
    room = max(0, width - len(head) - 1 - len(middle) - len(who) - len(where) - len(extra))
    mark = "?" if row.asks else sign
    return [
        Segment(head, Style(dim=True)),
        Segment(mark, Style.parse("bold yellow" if row.asks else style or "none")),
        Segment(middle, Style(dim=True)),
        Segment(who, Style(color="cyan")),
        Segment(where, Style(dim=True)),
        Segment(line(about, room), Style.parse("red" if row.status == "failed" else "none")),
        Segment(extra, Style(dim=True)),
    ]


def _since(row: Row, now: float) -> str:
    seconds = now - row.since.timestamp()
    return ago(timedelta(seconds=-seconds if row.status == "scheduled" else seconds))


def _about(row: Row) -> str:
    if row.status == "failed" and row.error:
        return f"{row.prompt[:60]}: {row.error}" if len(row.prompt) < 40 else row.error
    if row.status == "running" and row.doing:
        return f"{row.doing} · {row.prompt}"
    return row.prompt
