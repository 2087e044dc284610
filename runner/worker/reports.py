"""What a running attempt lets the database know besides its transcript: session, usage so far, limit windows."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from .. import verbs
from ..verbs import Usage, Window

PAUSE = 2.0  # seconds between two reports

Call = Callable[..., Awaitable[Any]]


class Reports:
    """Collects the latest of each; run() sends what changed, at most once in PAUSE."""

    def __init__(self, attempt: int, call: Call) -> None:
        self._attempt = attempt
        self._call = call
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._windows: dict[tuple[str, str | None], Window] = {}
        self._dirty = False
        self.session: str | None = None
        self.usage: Usage | None = None

    def note(self, seen: str | Usage | Window) -> None:
        """A session id, the usage of the attempt so far, or a window."""
        if isinstance(seen, Window):
            self._windows[seen.name, seen.model] = seen
        elif isinstance(seen, Usage):
            self._dirty |= seen != self.usage
            self.usage = seen
        else:
            self._dirty |= seen != self.session
            self.session = seen
        self._changed.set()

    def close(self) -> None:
        """The attempt has ended; its ending tells the rest. A report under way is brought to its end."""
        self._ended.set()
        self._changed.set()

    async def run(self) -> None:
        """Send until closed. Raises psycopg.Error, where the attempt is lost for example."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._ended.is_set():
                return
            if self._dirty:
                self._dirty = False
                await self._call(verbs.report_session, self._attempt, self.session, self.usage)
            if self._windows:
                windows, self._windows = list(self._windows.values()), {}
                await self._call(verbs.report_limit, self._attempt, windows)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE):
                    await self._ended.wait()
