"""How things are written on narrow screens: lengths of time, amounts, one line of a text; the signs of statuses."""

from datetime import datetime
from decimal import Decimal

from taskyard.runner.cli.output import ago, clean, fit, one_line, width_of

__all__ = ["SIGNS", "ago", "clean", "count", "countdown", "line", "money", "one_line"]

# A sign of one column and a style for each status: what is wrong or waits for somebody stands out.
SIGNS = {
    "blocked": ("◌", "dim"),
    "scheduled": ("◷", "dim"),
    "queued": ("○", ""),
    "running": ("▶", "bold green"),
    "waiting": ("◆", "bold yellow"),
    "completed": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "cancelled": ("∅", "dim"),
}


def countdown(until: datetime | None, now: datetime) -> str:
    """How long until then, to the second within the hour: 4:59, 3h 12m, 2d 4h; empty where it is over."""
    if until is None or until <= now:
        return ""
    seconds = int((until - now).total_seconds())
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02}"
    if seconds < 86400:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02}m"
    return f"{seconds // 86400}d {seconds % 86400 // 3600}h"


def count(number: int | None) -> str:
    """A count in at most five columns: 950, 12k, 3.4M."""
    if number is None:
        return ""
    if number < 1000:
        return str(number)
    if number < 999_500:
        return f"{number / 1000:.0f}k"
    return f"{number / 1e6:.1f}M" if number < 99_950_000 else f"{number / 1e6:.0f}M"


def money(amount: Decimal | float | None) -> str:
    """Dollars: $0.04, $12.30, $12k."""
    if amount is None:
        return ""
    return f"${amount:.2f}" if amount < 10_000 else f"${count(int(amount))}"


def line(text: str, width: int) -> str:
    """The beginning of a text on one line of exactly so many columns."""
    flat = fit(one_line(text[: 4 * width + 400]), width) if width > 0 else ""
    return flat + " " * (width - width_of(flat))
