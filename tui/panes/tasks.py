"""Tasks by status, with a search, and as a tree."""

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Tab, Tabs

from ..pane import Pane
from ..store import tasks
from ..store.models import Change, Filter, Row
from ..widgets.task_list import CHUNK, TaskList

# What the tabs show. "open": all that is not over.
GROUPS: dict[str, tuple[str, ...]] = {
    "all": (),
    "open": ("blocked", "scheduled", "queued", "running", "waiting"),
    "running": ("running",),
    "waiting": ("waiting",),
    "queued": ("queued", "scheduled", "blocked"),
    "done": ("completed",),
    "failed": ("failed", "cancelled"),
}


class TasksPane(Pane):
    """The list, its tabs, and the search."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search"),
        Binding("t", "tree", "Tree"),
        Binding("left,h", "group(-1)", "Group", show=False),
        Binding("right,l", "group(1)", "Group", show=False),
        Binding("escape", "leave", "Back", show=False),
    ]

    DEFAULT_CSS = """
    TasksPane { layout: vertical; }
    TasksPane Tabs { height: 2; }
    TasksPane Tab { padding: 0 1; }
    TasksPane Input { display: none; height: 1; border: none; padding: 0 1; }
    TasksPane.-searching Input { display: block; }
    """

    def __init__(self) -> None:
        super().__init__(id="tasks")
        self.filter = Filter()
        self._family: Sequence[Row] = []

    def compose(self) -> ComposeResult:
        yield Tabs(*(Tab(name, id=f"group-{name}") for name in GROUPS))
        yield Input(placeholder="words of the prompt, or #id", id="search")
        yield TaskList(id="list")

    @property
    def list(self) -> TaskList:
        return self.query_one(TaskList)

    async def update(self, change: Change | None) -> None:
        link, shown, wanted = self.yard.link, self.list, self.filter
        if wanted.family is not None:
            self._family = await tasks.family(link, wanted.family)
            count = len(self._family)
        else:
            count = await tasks.count(link, wanted)
        if wanted != self.filter:
            return
        shown.empty = "No tasks. n: a new one." if wanted == Filter() else "Nothing like this."
        shown.count = count
        for chunk in shown.visible_chunks() or [0]:
            await self._fetch(chunk)

    async def _fetch(self, chunk: int) -> None:
        wanted = self.filter
        if wanted.family is not None:
            rows = self._family[chunk * CHUNK : (chunk + 1) * CHUNK]
        else:
            rows = await tasks.page(self.yard.link, wanted, chunk * CHUNK, CHUNK)
        if wanted == self.filter:
            self.list.show(chunk, rows, self.yard.time())

    def show(self, wanted: Filter) -> None:
        """Show other tasks."""
        if wanted != self.filter:
            self.filter = wanted
            self.list.forget()
            self.yard.pulse.now()

    @on(TaskList.Wanted)
    def fetch(self, message: TaskList.Wanted) -> None:
        async def fetch_all() -> None:
            for chunk in message.chunks:
                await self.yard.guarded(self._fetch(chunk))

        self.run_worker(fetch_all(), group="fetch", exclusive=True)

    @on(TaskList.Opened)
    def open(self, message: TaskList.Opened) -> None:
        self.yard.open_task(message.row.id)

    @on(Tabs.TabActivated)
    def choose(self, message: Tabs.TabActivated) -> None:
        name = (message.tab.id or "").removeprefix("group-")
        self.show(Filter(GROUPS[name], self.filter.text))

    @on(Input.Changed, "#search")
    def look(self, message: Input.Changed) -> None:
        self.show(Filter(self.filter.statuses, message.value))

    @on(Input.Submitted, "#search")
    def looked(self) -> None:
        self.list.focus()

    def action_search(self) -> None:
        self.add_class("-searching")
        self.query_one("#search").focus()

    def action_group(self, step: int) -> None:
        tabs = self.query_one(Tabs)
        (tabs.action_next_tab if step > 0 else tabs.action_previous_tab)()

    def action_tree(self) -> None:
        """The tree that the task under the cursor belongs to; once more: the list again."""
        row = self.list.current
        if self.filter.family is not None:
            self.action_leave()
        elif row is not None:
            self.show(Filter(family=row.id))

    def action_leave(self) -> None:
        """Back to the list, without a search."""
        name = (self.query_one(Tabs).active or "group-all").removeprefix("group-")
        self.remove_class("-searching")
        self.query_one("#search", Input).value = ""
        self.show(Filter(GROUPS[name]))
        self.list.focus()
