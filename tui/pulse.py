"""When to draw: soon after something was heard, at most so often, and now and then in any case."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from .store.models import Change

SHORTEST = 0.25  # seconds between two rounds: with two questions each, and the summary, under ten queries a second
SLOW = 2.0  # seconds: the slow poll, for what no notification tells of
CALM = 10.0  # seconds: the slow poll where nothing runs and nothing was heard


class Pulse:
    """Calls `beat` with what changed since the last time; None where nothing was heard, and it is only time."""

    def __init__(self, beat: Callable[[Change | None], Awaitable[None]]) -> None:
        self._beat = beat
        self._due = asyncio.Event()
        self._ids: set[int] = set()
        self._any = False
        self._heard = False
        self.slow = SLOW

    def heard(self, change: Change) -> None:
        """Something changed."""
        self._ids |= change.ids
        self._any = self._any or not change.ids
        self._heard = True
        self._due.set()

    def now(self) -> None:
        """A person did something that wants to be seen."""
        self.heard(Change(frozenset()))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self.slow):
                    await self._due.wait()
            except TimeoutError:
                pass
            change = Change(frozenset() if self._any else frozenset(self._ids)) if self._heard else None
            self._due.clear()
            self._ids.clear()
            self._any = self._heard = False
            began = time.monotonic()
            await self._beat(change)
            took = time.monotonic() - began
            # A database that is slow to answer is asked less often. After a round that only time has caused, what is
            # heard next is drawn at once.
            await asyncio.sleep(max(0.0 if change is None else SHORTEST - took, 3 * took, 0.02))
