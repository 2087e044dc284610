"""What it costs, and how much gets done: charts by day and by hour."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static
from textual_plotext import PlotextPlot

from ..pane import Pane
from ..store import fleet
from ..store.models import Change, Day
from ..widgets.facts import Facts, plain
from ..words import count, money

EVERY = 10.0  # seconds between two looks: sums over all attempts of a month
DAYS = 14
HOURS = 24
COLORS = ("green", "cyan", "magenta", "yellow", "blue", "red")


class SpendPane(Pane):
    """Dollars by day and provider, endings by hour, and the table behind them."""

    DEFAULT_CSS = """
    SpendPane VerticalScroll { height: 1fr; }
    SpendPane PlotextPlot { height: 12; }
    SpendPane Facts { margin: 1 0; }
    SpendPane #total { padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__(id="spend")
        self._asked = 0.0

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="total")
            yield PlotextPlot(id="dollars")
            yield PlotextPlot(id="throughput")
            yield Facts("day", "provider", "usd", "tokens", "done", "failed", id="days")

    async def update(self, change: Change | None) -> None:
        now = self.yard.time()
        if now - self._asked < EVERY:
            return
        self._asked = now
        days = await fleet.spent_by_day(self.yard.link, DAYS)
        hours = await fleet.ended_by_hour(self.yard.link, HOURS)
        self._total(days)
        self._dollars(days)
        self._throughput(hours)
        self.query_one("#days", Facts).fill(
            {
                f"{day.start:%Y-%m-%d} {day.provider}": (
                    plain(f"{day.start:%m-%d}"),
                    plain(day.provider),
                    plain(money(day.cost)),
                    plain(count(day.tokens)),
                    plain(day.completed),
                    plain(day.failed or ""),
                )
                for day in reversed(days)
            }
        )

    def _total(self, days: Sequence[Day]) -> None:
        cost, tokens, done = (sum(getattr(day, name) for day in days) for name in ("cost", "tokens", "completed"))
        text = f"{DAYS} days: {money(cost)}, {count(tokens)} tokens, {count(done)} completed attempts"
        self.query_one("#total", Static).update(Text(text, style="bold"))

    def _dollars(self, days: Sequence[Day]) -> None:
        by_provider: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for day in days:
            if day.cost:
                by_provider[day.provider][f"{day.start:%m-%d}"] += day.cost
        today = self.yard.clock()
        names = [f"{today - timedelta(days=ago):%m-%d}" for ago in reversed(range(DAYS))]
        widget = self.query_one("#dollars", PlotextPlot)
        widget.plt.clear_figure()
        widget.plt.title("dollars a day")
        rows = [[found[name] for name in names] for found in by_provider.values()] or [[0.0] * DAYS]
        _stacked(widget, names, rows, list(by_provider) or ["nothing yet"])
        widget.refresh()

    def _throughput(self, hours: Sequence[Day]) -> None:
        found = {hour.start.astimezone().replace(minute=0, second=0, microsecond=0): hour for hour in hours}
        now = self.yard.clock().astimezone().replace(minute=0, second=0, microsecond=0)
        times: list[datetime] = [now - timedelta(hours=ago) for ago in reversed(range(HOURS))]
        widget = self.query_one("#throughput", PlotextPlot)
        widget.plt.clear_figure()
        widget.plt.title("tasks that ended, by the hour")
        rows = [[float(getattr(found.get(time), name, 0)) for time in times] for name in ("completed", "failed")]
        _stacked(widget, [f"{time:%H}" for time in times], rows, ["completed", "failed"], ("green", "red"))
        widget.refresh()


def _stacked(
    widget: PlotextPlot, names: list[str], rows: list[list[float]], labels: list[str], colors: Sequence[str] = COLORS
) -> None:
    """Bars on top of each other, with as many names below them as there is room for."""
    every = -(-len(names) * (len(names[0]) + 3) // max(1, widget.size.width - 8))
    places = list(range(len(names), 0, -every))
    plot = cast(Any, widget.plt)  # the stubs of the library do not know of its labels
    chosen = [colors[place % len(colors)] for place in range(len(rows))]
    plot.stacked_bar(list(range(1, len(names) + 1)), rows, labels=labels, color=chosen)
    plot.xticks(places, [names[place - 1] for place in places])
