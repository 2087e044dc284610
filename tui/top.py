"""The line at the top: what needs you, what runs, what is limited, what it costs."""

from datetime import timedelta

from rich.text import Text
from textual.widgets import Static

from .store.models import Summary
from .words import SIGNS, ago, count, money

SHOWN = ("running", "queued", "waiting", "failed", "completed")


class Top(Static):
    """The most important first: a narrow screen cuts the end off."""

    DEFAULT_CSS = (
        "Top { height: 1; padding: 0 1; background: $primary-background; text-wrap: nowrap; text-overflow: ellipsis; }"
    )

    def show(self, found: Summary) -> None:
        """Draw the summary."""
        parts: list[tuple[str, str]] = []
        if found.questions:
            parts.append((f"{found.questions} need you", "bold yellow"))
        queued = sum(found.counts.get(status, 0) for status in ("queued", "scheduled", "blocked"))
        for status in SHOWN:
            number = queued if status == "queued" else found.counts.get(status, 0)
            if number:
                sign, style = SIGNS[status]
                parts.append((f"{sign}{count(number)}", style))
        for provider, seconds in found.hot[:3]:
            parts.append((f"{provider} back in {ago(timedelta(seconds=float(seconds)))}", "bold red"))
        if not found.runners:
            parts.append(("no runner", "bold red"))
        elif found.silent:
            parts.append((f"{found.silent} of {found.runners} runners silent", "bold red"))
        if found.spent:
            parts.append((f"{money(found.spent)} today", ""))
        text = Text("  ").join(Text(words, style=style) for words, style in parts)
        self.update(text if parts else Text("Nothing has happened yet."))
