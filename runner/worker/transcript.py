"""From what a child says to rows of transcript, in batches, with bounded memory."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..verbs import Event

FLUSH_EVERY = 0.3  # seconds; what an agent says is readable within a second
BATCH = 256 * 1024  # characters sent in one call
BUFFER = 1 << 20  # characters held before the child has to wait
ROW = 16 * 1024  # characters of one row
TRANSCRIPT = 16 << 20  # characters kept of one attempt; the rest is counted and left out
OUTAGE = 20.0  # seconds that a child waits for the database before its output is left out instead

Send = Callable[[list[Event]], Awaitable[None]]


@dataclass(slots=True)
class _Part:
    at: datetime
    kind: str
    text: str
    data: dict[str, Any] | None
    joins: bool  # raw output, cut anywhere; an event is a row of its own
    size: int


class Transcript:
    """Collects the output of one attempt and sends it on; run() does the sending."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._parts: list[_Part] = []
        self._held = 0
        self._taken = 0
        self._left_out = 0
        self._seq = 0
        self._filled = asyncio.Event()
        self._sent = asyncio.Event()
        self._ended = False
        self.progress_at: datetime | None = None

    async def add(self, kind: str, text: str) -> None:
        """Take raw output; returns when there is room for more."""
        await self._take(_Part(datetime.now(UTC), kind, text, None, True, len(text)))

    async def say(self, kind: str, body: str, data: dict[str, Any] | None) -> None:
        """Take one event, a row of its own; what is too long for a row is cut. Returns when there is room for more."""
        if len(body) > ROW:
            body = f"{body[: ROW - 100]}\n... ({len(body):,} characters)"
        size = len(body)
        if data is not None:
            length = len(json.dumps(data))
            if length > ROW:
                data = {
                    **{k: v for k, v in data.items() if isinstance(v, bool | int) or k in ("id", "name")},
                    "cut": True,
                }
                length = len(json.dumps(data))
            size += length
        await self._take(_Part(datetime.now(UTC), kind, body, data, False, size))

    async def _take(self, part: _Part) -> None:
        self.progress_at = part.at
        if self._taken >= TRANSCRIPT or (self._held >= BUFFER and not await self._room()):
            self._left_out += part.size
            return
        self._parts.append(part)
        self._held += part.size
        self._taken += part.size
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
            await self._send([self._event(_Part(datetime.now(UTC), "note", note, None, False, 0))])

    def close(self) -> None:
        """No more output will come."""
        self._ended = True
        self._filled.set()

    async def _flush(self) -> None:
        while self._parts:
            count, size = 0, 0
            while count < len(self._parts) and size < BATCH:
                size += self._parts[count].size
                count += 1
            await self._send([self._event(row) for row in _rows(self._parts[:count])])
            # Removed only now: a batch that did not arrive is sent again, under the same numbers.
            del self._parts[:count]
            self._held -= size
            self._sent.set()

    def _event(self, row: _Part) -> Event:
        self._seq += 1
        return Event(self._seq, row.at, row.kind, row.text, row.data)


def _rows(parts: list[_Part]) -> list[_Part]:
    """Join what came in a row from one stream, and cut it into rows of readable size."""
    joined: list[_Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and last.joins and part.joins and last.kind == part.kind and len(last.text) < ROW:
            joined[-1] = _Part(last.at, last.kind, last.text + part.text, None, True, 0)
        else:
            joined.append(part)
    return [
        _Part(part.at, part.kind, part.text[start : start + ROW], part.data, part.joins, 0)
        for part in joined
        for start in range(0, max(len(part.text), 1), ROW)
    ]
