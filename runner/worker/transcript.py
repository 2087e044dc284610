"""From a child's output to rows of transcript, in batches, with bounded memory."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from ..verbs import Event

FLUSH_EVERY = 0.3  # seconds; what an agent says is readable within a second
BATCH = 256 * 1024  # characters sent in one call
BUFFER = 1 << 20  # characters held before the child has to wait
ROW = 16 * 1024  # characters of one row
TRANSCRIPT = 16 << 20  # characters kept of one attempt; the rest is counted and left out
OUTAGE = 20.0  # seconds that a child waits for the database before its output is left out instead

Send = Callable[[list[Event]], Awaitable[None]]


class Transcript:
    """Collects the output of one attempt and sends it on; run() does the sending."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._parts: list[tuple[datetime, str, str]] = []
        self._held = 0
        self._taken = 0
        self._left_out = 0
        self._seq = 0
        self._filled = asyncio.Event()
        self._sent = asyncio.Event()
        self._ended = False
        self.progress_at: datetime | None = None

    async def add(self, kind: str, text: str) -> None:
        """Take output; returns when there is room for more."""
        self.progress_at = datetime.now(UTC)
        if self._taken >= TRANSCRIPT:
            self._left_out += len(text)
            return
        if self._held >= BUFFER and not await self._room():
            self._left_out += len(text)
            return
        self._parts.append((self.progress_at, kind, text))
        self._held += len(text)
        self._taken += len(text)
        self._filled.set()

    async def _room(self) -> bool:
        try:
            async with asyncio.timeout(OUTAGE):
                while self._held >= BUFFER:
                    self._sent.clear()
                    await self._sent.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Send batches until close() was called and everything is out."""
        while not (self._ended and not self._parts):
            if not self._ended:
                await self._filled.wait()
                self._filled.clear()
                if self._held < BATCH and not self._ended:
                    await asyncio.sleep(FLUSH_EVERY)
            await self._flush()
        if self._left_out:
            note = f"{self._left_out:,} more characters of output were left out"
            await self._send([self._event(datetime.now(UTC), "note", note)])

    def close(self) -> None:
        """No more output will come."""
        self._ended = True
        self._filled.set()

    async def _flush(self) -> None:
        while self._parts:
            count, size = 0, 0
            while count < len(self._parts) and size < BATCH:
                size += len(self._parts[count][2])
                count += 1
            parts = self._parts[:count]
            await self._send([self._event(*row) for row in _rows(parts)])
            # Removed only now: a batch that did not arrive is sent again, under the same numbers.
            del self._parts[:count]
            self._held -= size
            self._sent.set()

    def _event(self, at: datetime, kind: str, body: str) -> Event:
        self._seq += 1
        return Event(self._seq, at, kind, body)


def _rows(parts: list[tuple[datetime, str, str]]) -> list[tuple[datetime, str, str]]:
    """Join what came in a row from one stream, and cut it into rows of readable size."""
    joined: list[tuple[datetime, str, str]] = []
    for at, kind, text in parts:
        if joined and joined[-1][1] == kind and len(joined[-1][2]) < ROW:
            joined[-1] = (joined[-1][0], kind, joined[-1][2] + text)
        else:
            joined.append((at, kind, text))
    return [(at, kind, text[start : start + ROW]) for at, kind, text in joined for start in range(0, len(text), ROW)]
