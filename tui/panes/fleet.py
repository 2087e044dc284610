"""Runners, providers, and limits with their countdowns."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Label

from ..pane import Pane
from ..store import actions, fleet
from ..store.models import Change, Fleet, Limit, Provider, Runner
from ..widgets.ask import Ask
from ..widgets.facts import Cell, Facts, plain
from ..words import ago, countdown

SILENT = 15  # seconds after which a runner that says nothing is shown as such


class FleetPane(Pane):
    """Three tables below each other; the keys act on the row under the cursor of the one that has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "Pause"),
        Binding("u", "resume", "Resume"),
        Binding("d", "drain", "Drain"),
    ]

    DEFAULT_CSS = """
    FleetPane VerticalScroll { height: 1fr; }
    FleetPane Label { text-style: bold; padding: 0 1; }
    FleetPane Facts { margin-bottom: 1; max-height: 60%; }
    """

    def __init__(self) -> None:
        super().__init__(id="fleet")
        self._fleet: Fleet | None = None

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False):
            yield Label("Limits")
            yield Facts("provider", "back in", "used", "what", "account", id="limits")
            yield Label("Runners")
            yield Facts("runner", "busy", "state", "providers", "labels", id="runners")
            yield Label("Providers")
            yield Facts("provider", "state", "runs", "ready on", id="providers")

    async def update(self, change: Change | None) -> None:
        self._fleet = found = await fleet.fleet(self.yard.link)
        self.draw(found)

    def draw(self, found: Fleet) -> None:
        """Show the fleet as it was found, with countdowns to the clock of the moment."""
        self.query_one("#limits", Facts).fill(
            {f"{one.provider} {one.account} {one.what}": self._limit(one) for one in found.limits}
            or {"": (Text("none", style="dim"), plain(""), plain(""), plain(""), plain(""))}
        )
        self.query_one("#runners", Facts).fill(
            {one.name: self._runner(one) for one in found.runners}
            or {"": (Text("none", style="bold red"), plain(""), Text("taskyard runner"), plain(""), plain(""))}
        )
        self.query_one("#providers", Facts).fill({one.name: _provider(one) for one in found.providers})

    def tick(self) -> None:
        """A second has passed."""
        if self._fleet is not None:
            self.draw(self._fleet)

    def _limit(self, limit: Limit) -> tuple[Cell, ...]:
        now = self.yard.clock()
        left = countdown(limit.until, now)
        if limit.tried:
            back = Text("being tried", style="yellow")
        elif limit.hot:
            back = Text((left or "to be tried") + (" ?" if limit.guess and left else ""), style="bold red")
        else:
            back = Text(f"resets {left}" if left else "", style="dim")
        used = Text("" if limit.used is None else f"{limit.used:.0f}%", style="red" if (limit.used or 0) >= 90 else "")
        return plain(limit.provider), back, used, plain(limit.what or "all"), plain(limit.account)

    def _runner(self, runner: Runner) -> tuple[Cell, ...]:
        silent = self.yard.clock() - runner.last_seen
        if silent.total_seconds() > SILENT:
            state = Text(f"silent {ago(silent)}", style="bold red")
        elif runner.trouble is not None:
            state = Text("no sandbox", style="bold red")
        elif runner.draining:
            state = Text("drains", style="yellow")
        else:
            state = Text(
                "up" if runner.sandbox == "strict" else f"up, {runner.sandbox or 'sandbox unknown'}", style="green"
            )
        return (
            plain(runner.name),
            plain(f"{runner.busy}/{runner.slots}"),
            state,
            plain(", ".join(runner.providers)),
            plain(", ".join(runner.labels)),
        )

    def _focused(self) -> tuple[str, str] | None:
        table = self.screen.focused
        if isinstance(table, Facts) and table.key:
            return table.id or "", table.key
        return None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("pause", "resume", "drain"):
            focused = self._focused()
            wanted = "runners" if action == "drain" else "providers"
            return True if self.yard.link.rights.administer and focused is not None and focused[0] == wanted else None
        return True

    def action_pause(self) -> None:
        if (focused := self._focused()) is not None:
            name = focused[1]
            ask = Ask("Pause", f"Nothing is claimed for {name} until you resume it. Why?", required=False)
            self.yard.ask(
                ask, lambda why: self.yard.do(lambda link: actions.pause(link, "provider", name, why or None))
            )

    def action_resume(self) -> None:
        if (focused := self._focused()) is not None:
            name = focused[1]
            self.yard.do(lambda link: actions.resume(link, "provider", name))

    def action_drain(self) -> None:
        if (focused := self._focused()) is not None and self._fleet is not None:
            runner = next(one for one in self._fleet.runners if one.name == focused[1])
            self.yard.do(lambda link: actions.drain(link, runner.name, not runner.draining))


def _provider(provider: Provider) -> tuple[Cell, ...]:
    if provider.paused is not None:
        state = Text(f"paused: {provider.paused}", style="yellow")
    elif provider.ready:
        state = Text("ready", style="green")
    elif provider.troubled:
        state = Text("no login", style="bold red")
    else:
        state = Text("nowhere", style="dim")
    return (
        plain(provider.name),
        state,
        plain(provider.running or ""),
        plain(", ".join(provider.ready) or "; ".join(provider.troubled)),
    )
