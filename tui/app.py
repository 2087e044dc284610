"""The application: panes, keys, and the pulse that brings them up to date."""

import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar

from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import ContentSwitcher, Footer, HelpPanel, Static, Tab, Tabs

from .detail import DetailScreen
from .new_task import NewTask
from .pane import Pane
from .panes.fleet import FleetPane
from .panes.inbox import InboxPane
from .panes.scopes import ScopesPane
from .panes.spend import SpendPane
from .panes.tasks import TasksPane
from .pulse import Pulse
from .store import Away, Link, Refused, tasks
from .store.models import Change, Filter, Summary
from .top import Top
from .widgets.ask import Ask, Confirm

PANES = {"tasks": "Tasks", "inbox": "Inbox", "fleet": "Fleet", "scopes": "Scopes", "spend": "Spend"}
SUMMARY = 1.0  # seconds between two summaries


class Taskyard(App[None]):
    """The yard, live. `dsn` as psycopg reads it."""

    TITLE = "Taskyard"
    ENABLE_COMMAND_PALETTE = True

    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"pane('{name}')", label, show=False)
            for number, (name, label) in enumerate(PANES.items(), 1)
        ),
        Binding("n", "new", "New"),
        Binding("question_mark,f1", "help", "Help"),
        Binding("ctrl+p", "command_palette", "Commands", show=False),
        Binding("q", "quit", "Quit"),
    ]

    CSS = """
    #panes { height: 2; }
    #panes Tab { padding: 0 1; }
    #away { display: none; background: $error; color: $text; padding: 0 1; height: auto; }
    #away.-away { display: block; }
    ContentSwitcher { height: 1fr; }
    HelpPanel { max-width: 50%; }
    """

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self.link = Link(dsn, self._heard, self._state)
        self.pulse = Pulse(self._beat)
        self._summarised = 0.0
        self._summary_due = False
        self._asked_for = SUMMARY
        self._skew = 0.0
        self._away: str | None = "Connecting …"
        self.summary: Summary | None = None

    def compose(self) -> ComposeResult:
        yield Top()
        yield Static(id="away", markup=False)
        yield Tabs(*(Tab(label, id=f"pane-{name}") for name, label in PANES.items()), id="panes")
        with ContentSwitcher(initial="tasks"):
            yield TasksPane()
            yield InboxPane()
            yield FleetPane()
            yield ScopesPane()
            yield SpendPane()
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one(TasksPane).list.focus()
        self.run_worker(self.link.run(), exit_on_error=True)
        self.run_worker(self.pulse.run(), exit_on_error=True)
        self.set_interval(1.0, self._second)

    # The clock of the database, which all times are told by.

    def time(self) -> float:
        """Seconds since the epoch on the database's clock."""
        return time.time() + self._skew

    def clock(self) -> datetime:
        """Now on the database's clock."""
        return datetime.fromtimestamp(self.time(), UTC)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the command palette offers, next to themes and the like."""
        yield from super().get_system_commands(screen)  # pyright: ignore[reportUnknownMemberType]
        for name, label in PANES.items():
            yield SystemCommand(label, f"Go to {label.lower()}", partial(self.action_pane, name))
        if self.link.rights.submit:
            yield SystemCommand("New task", "Put a task into the yard", self.action_new)
        for node, binding, enabled, _ in screen.active_bindings.values():
            if enabled and binding.show and node is not self:
                does = partial(self.run_action, binding.action, node)
                yield SystemCommand(binding.description, f"Key {self.get_key_display(binding)}", does)

    # What comes from the link.

    def _heard(self, change: Change) -> None:
        self.pulse.heard(change)

    def _state(self, away: str | None) -> None:
        self._away = away
        bar = self.screen_stack[0].query_one("#away", Static)
        bar.set_class(away is not None, "-away")
        bar.update("" if away is None else f"{away} Trying again; what you see is from before.")
        self.refresh_bindings()

    async def _beat(self, change: Change | None) -> None:
        if self._away is not None:
            return
        try:
            due = self._summarised + self._asked_for - time.monotonic()
            if due <= 0:
                await self._summarise()
            elif change is not None and not self._summary_due:
                self._summary_due = True
                self.set_timer(due, self.pulse.now)
            if (pane := self.current) is not None:
                await pane.update(change)
        except (Away, NoMatches):  # or what was to be drawn is not on the screen yet, or any more
            return
        except Refused as refused:
            self.notify(str(refused), title="The database refused", severity="error", markup=False)

    async def _summarise(self) -> None:
        began = time.monotonic()
        self.summary = found = await tasks.summary(self.link)
        self._summarised = time.monotonic()
        self._summary_due = False
        # Where counting takes long it is done less often.
        self._asked_for = max(SUMMARY, 20 * (self._summarised - began))
        self._skew = found.now.timestamp() - time.time()
        self.screen_stack[0].query_one(Top).show(found)
        inbox = self.screen_stack[0].query_one("#pane-inbox", Tab)
        inbox.label = f"Inbox ({found.questions})" if found.questions else "Inbox"

    def _second(self) -> None:
        pane = self.current
        if isinstance(pane, FleetPane):
            with suppress(NoMatches):
                pane.tick()

    # Which pane is seen.

    @property
    def current(self) -> Pane | DetailScreen | None:
        """The pane in sight; None behind a window that asks something, and where there is none any more."""
        if isinstance(self.screen, DetailScreen):
            return self.screen
        if len(self.screen_stack) > 1:
            return None
        # While the app ends, what it consists of goes piece by piece.
        switcher = self.screen.query_one_optional(ContentSwitcher)
        return self.screen.query_one_optional(f"#{switcher.current}", Pane) if switcher is not None else None

    def on_tabs_tab_activated(self, message: Tabs.TabActivated) -> None:
        if message.tabs.id == "panes":
            self.action_pane((message.tab.id or "").removeprefix("pane-"))

    def action_pane(self, name: str) -> None:
        """Show a pane."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        switcher = self.query_one(ContentSwitcher)
        if switcher.current != name:
            switcher.current = name
            self.query_one("#panes", Tabs).active = f"pane-{name}"
        pane = self.query_one(f"#{name}", Pane)
        focusable = [widget for widget in pane.query("TaskList, Facts, VerticalScroll") if widget.can_focus]
        if focusable:
            focusable[0].focus()
        self.pulse.now()

    def show_tasks(self, wanted: Filter) -> None:
        """The list of tasks, with this filter."""
        self.action_pane("tasks")
        self.query_one(TasksPane).show(wanted)

    def open_task(self, task: int) -> None:
        """One task on a screen of its own."""
        self.push_screen(DetailScreen(task))
        self.pulse.now()

    # What a person does.

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "new":
            return True if self.link.rights.submit else None
        return True

    def action_new(self) -> None:
        """The form for a new task."""
        self.new_task(None)

    def new_task(self, like: dict[str, Any] | None) -> None:
        """The form for a new task, filled from another."""

        def done(task: int | None) -> None:
            if task is not None:
                self.notify(f"Task {task} is in the yard.", timeout=3)
            self.pulse.now()

        self.push_screen(NewTask(like), done)

    def action_help(self) -> None:
        """All keys of what has the focus."""
        if self.screen.query(HelpPanel):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def do(self, action: Callable[[Link], Awaitable[object]]) -> None:
        """Carry out an action, say what came of it, and draw anew."""

        async def carried_out() -> None:
            try:
                said = await action(self.link)
                self.notify(str(said), timeout=4, markup=False)
            except Refused as refused:
                self.notify(f"{refused} {refused.hint or ''}".strip(), severity="error", timeout=8, markup=False)
            except Away:
                self.notify("The database does not answer: nothing was done.", severity="error", markup=False)
            self.pulse.now()

        self.run_worker(carried_out())

    def ask(self, window: Ask, then: Callable[[str], None]) -> None:
        """Ask for a line of text; nothing happens where the window is left."""
        self.push_screen(window, lambda text: None if text is None else then(text))

    def confirm(self, window: Confirm, then: Callable[[], None]) -> None:
        """Ask for a yes."""
        self.push_screen(window, lambda yes: then() if yes else None)

    async def guarded(self, asking: Awaitable[None]) -> None:
        """A question of a pane outside of the pulse."""
        try:
            await asking
        except (Away, Refused):
            return
