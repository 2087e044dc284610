"""What Codex writes about a turn into its session's file, CODEX_HOME/sessions/YYYY/MM/DD/rollout-<time>-<thread>.jsonl.

An undocumented format, read for what the printed events leave out: why a turn failed, when limits end, what failed or
killed turns used. Whatever is missing or different counts as not told. Shapes as of 0.169.0. The folder was the agent's
to write: nothing in it is followed or waited for.
"""

import contextlib
import itertools
import os
import re
import stat
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..verbs import Window
from .fields import number, obj, string
from .resets import at_epoch
from .tools import count, json_line

TAIL = 1 << 20  # bytes; a turn's last records are at the end
MOST_ENTRIES = 10_000  # of one folder that are looked at
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
DATE = (r"\d{4}", r"\d{2}", r"\d{2}")
WINDOWS = {300: "five_hour", 10_080: "weekly"}  # by minutes


@dataclass(frozen=True, slots=True)
class Turn:
    """The thread's last turn.

    `error`: codex_error_info, a text or an object {kind: {http_status_code}}. `limits`: rate_limits of its last
    token_count, which tell the account's windows. `tokens`: total_token_usage of the whole thread.
    """

    error: Any = None
    limits: dict[str, Any] = field(default_factory=dict[str, Any])
    tokens: dict[str, Any] = field(default_factory=dict[str, Any])
    model: str | None = None

    @property
    def windows(self) -> list[Window]:
        """The account's limit windows, named by their length."""
        found: list[Window] = []
        for place in ("primary", "secondary"):
            state = obj(self.limits.get(place))
            minutes, used = count(state.get("window_minutes")), number(state.get("used_percent"))
            if minutes and used is not None:
                name = WINDOWS.get(minutes, f"{minutes}_minutes")
                found.append(Window(name, at_epoch(state.get("resets_at")), used))
        return found


def last_turn(home: Path, thread: str) -> Turn:
    """Of that thread below CODEX_HOME; an empty one where there is no such file."""
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", thread):
        return Turn()
    try:
        top = os.open(home, FOLDER)
    except OSError:
        return Turn()
    tails = _tails(top, ["sessions", *DATE, rf"rollout-.*-{re.escape(thread)}\.jsonl"])
    with contextlib.closing(tails):
        return turn_in(next(tails, b"").decode(errors="replace").splitlines())


def _tails(folder: int, patterns: list[str]) -> Generator[bytes]:
    """The ends of the files whose paths fit, component by component, the last names first. Closes `folder`."""
    pattern, *rest = patterns
    try:
        with os.scandir(folder) as entries:
            some = itertools.islice(entries, MOST_ENTRIES)
            names = sorted((entry.name for entry in some if re.fullmatch(pattern, entry.name)), reverse=True)
        for name in names:
            try:
                opened = os.open(name, FOLDER if rest else FILE, dir_fd=folder)
            except OSError:
                continue
            if rest:
                yield from _tails(opened, rest)
            elif (tail := _tail(opened)) is not None:
                yield tail
    finally:
        os.close(folder)


def _tail(descriptor: int) -> bytes | None:
    """The last TAIL bytes of a regular file; closes it."""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return None
        return os.pread(descriptor, TAIL, max(0, found.st_size - TAIL))
    finally:
        os.close(descriptor)


def turn_in(lines: list[str]) -> Turn:
    """The last turn of these records; those of the turns before it say nothing about it."""
    error: Any = None
    limits: dict[str, Any] = {}
    tokens: dict[str, Any] = {}
    model: str | None = None
    for line in lines:
        record = obj(json_line(line))
        payload = obj(record.get("payload"))
        match record.get("type"), payload.get("type"):
            case "turn_context", _:
                model = string(payload.get("model")) or None
            case "event_msg", "task_started":
                error, limits, tokens = None, {}, {}
            case "event_msg", "token_count":
                limits = obj(payload.get("rate_limits")) or limits
                tokens = obj(obj(payload.get("info")).get("total_token_usage")) or tokens
            case "event_msg", "task_complete":
                error = obj(payload.get("error")).get("codex_error_info")
            case _:
                pass
    return Turn(error, limits, tokens, model)
