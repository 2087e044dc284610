"""Scopes as a tree, with what holds in each and what it has spent."""

from typing import ClassVar

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import DataTable, Static

from ..pane import Pane
from ..store import actions, fleet
from ..store.models import Budget, Change, Filter, Scope
from ..widgets.ask import Ask
from ..widgets.facts import Cell, Facts, plain
from ..words import count, money

FLAGS = {"read": "r", "write": "w", "execute": "x", "network": "n", "create_child": "c"}


class ScopesPane(Pane):
    """The tree, and below it the scope under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "Pause"),
        Binding("u", "resume", "Resume"),
        Binding("enter", "tasks", "Its tasks", priority=True),
    ]

    DEFAULT_CSS = """
    ScopesPane { layout: vertical; }
    ScopesPane Facts { max-height: 60%; }
    ScopesPane VerticalScroll { height: 1fr; border-top: solid $panel; padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__(id="scopes")
        self._scopes: dict[str, Scope] = {}

    def compose(self) -> ComposeResult:
        yield Facts("scope", "may", "busy", "spent")
        with VerticalScroll(can_focus=False):
            yield Static(id="scope", markup=False)

    async def update(self, change: Change | None) -> None:
        self._scopes = {found.name: found for found in await fleet.scopes(self.yard.link)}
        self.query_one(Facts).fill({name: _row(found) for name, found in self._scopes.items()})
        self._show()

    @on(DataTable.RowHighlighted)
    def _show(self) -> None:
        if (scope := self.current) is not None:
            self.query_one("#scope", Static).update(_drawn(scope))
            self.screen.refresh_bindings()

    @property
    def current(self) -> Scope | None:
        """The scope under the cursor."""
        return self._scopes.get(self.query_one(Facts).key or "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("pause", "resume"):
            scope = self.current
            if scope is None or not self.yard.link.rights.administer:
                return None
            return True if (scope.paused is not None) == (action == "resume") else None
        return True

    def action_pause(self) -> None:
        if (scope := self.current) is not None:
            ask = Ask(
                "Pause", f"Nothing of {scope.name}, and below it, is claimed until you resume it. Why?", required=False
            )
            self.yard.ask(
                ask, lambda why: self.yard.do(lambda link: actions.pause(link, "scope", scope.name, why or None))
            )

    def action_resume(self) -> None:
        if (scope := self.current) is not None:
            self.yard.do(lambda link: actions.resume(link, "scope", scope.name))

    def action_tasks(self) -> None:
        if (scope := self.current) is not None:
            self.yard.show_tasks(Filter(scope=scope.name))


def _row(scope: Scope) -> tuple[Cell, ...]:
    depth = len(scope.path) - 1
    may = "".join(letter if flag in scope.permissions else "-" for flag, letter in FLAGS.items())
    fullest = max((_share(budget) for budget in scope.budgets), default=None)
    spent = Text("" if fullest is None else f"{fullest:.0%}", style="bold red" if (fullest or 0) >= 1 else "")
    if scope.paused is not None:
        spent = Text("paused", style="yellow")
    name = Text("  " * min(depth, 6) + scope.name.rsplit("/", 1)[-1])
    return name, plain(may), plain(f"{scope.busy}" + (f"/{scope.most}" if scope.most else "")), spent


def _drawn(scope: Scope) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("scope", Text(" > ".join(scope.path), style="bold"))
    table.add_row("may", ", ".join(flag.replace("_", " ") for flag in FLAGS if flag in scope.permissions) or "nothing")
    table.add_row("paths", "any" if scope.paths is None else "\n".join(scope.paths) or "none")
    table.add_row("hosts", "any" if scope.hosts is None else "\n".join(scope.hosts) or "none")
    table.add_row("agents", "any" if scope.agents is None else ", ".join(scope.agents) or "none")
    table.add_row("providers", "any" if scope.providers is None else ", ".join(scope.providers) or "none")
    parts: list[RenderableType] = [table]
    for budget in scope.budgets:
        share = _share(budget)
        parts.append(
            Text(f"\n{_amount(budget, budget.used)} of {_amount(budget, budget.amount)} {PERIODS[budget.period]}")
        )
        parts.append(ProgressBar(total=1, completed=min(share, 1.0), width=30))
    return Group(*parts)


PERIODS = {"day": "today", "month": "this month", "total": "in all"}


def _share(budget: Budget) -> float:
    return float(budget.used / budget.amount) if budget.amount else 1.0


def _amount(budget: Budget, amount: object) -> str:
    number = float(str(amount))
    if budget.measure == "usd":
        return money(number)
    return f"{count(int(number))} {'tokens' if budget.measure == 'tokens' else 's'}"
