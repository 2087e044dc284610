"""Text for people and JSON for programs."""

import itertools
import json
import os
import re
import shutil
import sys
import textwrap
import threading
import unicodedata
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

# CSI and OSC sequences of ECMA-48, and other two-character escapes: what an agent printed does not steer our terminal.
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
# Directions and isolates (Unicode, annex 9) would let one cell of a table rearrange its neighbours.
DIRECTIONS = (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
CONTROLS = dict.fromkeys((*set(range(32)) - {9, 10}, *range(127, 160), *DIRECTIONS))
COLORS = {
    "ok": "green",
    "problem": "red",
    "remark": "yellow",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "waiting": "magenta",
}
UNTIL_SPINNER = 1.0  # seconds; what is faster needs no progress


def clean(text: str) -> str:
    """Text without anything that steers a terminal; a lone carriage return begins a new line."""
    return ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").translate(CONTROLS)


def one_line(text: str) -> str:
    """Text on one line."""
    return " ".join(clean(text).split())


def width_of(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, width: int) -> str:
    """The beginning of a text in at most so many columns, with an ellipsis where something is missing."""
    if width_of(text) <= width:
        return text
    taken, room = "", width - 1
    for character in text:
        room -= width_of(character)
        if room < 0:
            break
        taken += character
    return taken.rstrip() + "…" if width > 0 else ""


def terminal_width() -> int:
    """Columns of the terminal; 120 where the output goes elsewhere and COLUMNS does not say."""
    return shutil.get_terminal_size((120, 24)).columns


def ago(length: timedelta) -> str:
    """A length of time in one unit: 12s, 5m, 3h, 9d (as the database's own screens have it)."""
    seconds = max(0, int(length.total_seconds()))
    for size, unit, below in ((1, "s", 60), (60, "m", 3600), (3600, "h", 2 * 86400)):
        if seconds < below:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86400}d"


def relative(moment: datetime, now: datetime) -> str:
    """ "3m ago" or "in 3m"."""
    return f"in {ago(moment - now)}" if moment > now else f"{ago(now - moment)} ago"


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, the most it takes, and whether it holds numbers."""

    title: str
    most: int = 1000
    right: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of at most `width` columns. The last column gets what the others leave, eight columns at least."""
    gap = " " if width < 60 else "  "
    widths = [
        min(column.most, max(width_of(cell) for cell in (column.title, *(row[index] for row in rows))))
        for index, column in enumerate(columns)
    ]
    widths[-1] = max(8, width - sum(widths[:-1]) - len(gap) * (len(columns) - 1))
    lines: list[str] = []
    for row in ([column.title for column in columns], *rows):
        cells = [
            _pad(fit(cell, size), size, column.right) for cell, size, column in zip(row, widths, columns, strict=True)
        ]
        lines.append(gap.join(cells).rstrip())
    return lines


def _pad(cell: str, width: int, right: bool) -> str:
    space = " " * (width - width_of(cell))
    return space + cell if right else cell + space


def wrapped_lines(text: str, width: int) -> list[str]:
    """Text in lines of at most so many columns. A longer word, like a path, stays whole: the terminal wraps it."""
    return textwrap.wrap(text, max(width, 10), break_on_hyphens=False, break_long_words=False) or [""]


def pairs(items: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Names and values, values wrapped beside their names."""
    margin = max((len(name) for name, _ in items), default=0) + 2
    lines: list[str] = []
    for name, value in items:
        wrapped = wrapped_lines(value, width - margin)
        lines.append(f"{name:<{margin}}{wrapped[0]}".rstrip())
        lines.extend(" " * margin + line for line in wrapped[1:])
    return lines


def indented(text: str) -> str:
    """A block of text under its heading."""
    return textwrap.indent(clean(text).strip("\n"), "  ")


def colored(status: str) -> str:
    """A status in its colour."""
    return click.style(status, fg=COLORS[status]) if status in COLORS else status


def say(text: str = "", err: bool = False, newline: bool = True) -> None:
    """Print text for a person; colours only on a terminal, and not where NO_COLOR asks for none."""
    click.echo(text, err=err, nl=newline, color=False if os.environ.get("NO_COLOR") else None)


def plain(value: Any) -> Any:
    """What JSON cannot hold as it is: times as ISO 8601, lengths of time as seconds, numerics as numbers."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def say_json(value: Any, line: bool = False) -> None:
    """Print JSON: indented for whoever looks at a terminal, on one line otherwise and where lines are asked for."""
    indent = 2 if sys.stdout.isatty() and not line else None
    click.echo(json.dumps(value, default=plain, ensure_ascii=False, indent=indent))


@contextmanager
def waiting(text: str) -> Generator[Callable[[str], None]]:
    """Show on standard error what is being waited for, if that is a terminal and it takes longer than a second.

    Yields a function that changes the text.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    current = [text]
    done = threading.Event()

    def show(changed: str) -> None:
        current[0] = changed

    def spin() -> None:
        if done.wait(UNTIL_SPINNER):
            return
        for sign in itertools.cycle("|/-\\"):
            line = fit(f"{sign} {current[0]}", terminal_width() - 1)
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
            if done.wait(0.2):
                break
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()

    spinner = threading.Thread(target=spin, daemon=True)
    spinner.start()
    try:
        yield show
    finally:
        done.set()
        spinner.join()
