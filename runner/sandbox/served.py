"""The gateway's side of one connection of the child: HTTP/1.1 by h11 on asyncio's streams."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence

import h11

from .serving import CHUNK

HEADER_LIMIT = 64 * 1024  # bytes
IDLE_TIMEOUT = 300.0  # seconds: between two requests, two pieces of a request, and for the child to take a piece
AHEAD = 64 * 1024  # bytes that a child may send after a request, before it has the answer


class NotServed(Exception):
    """A request that is answered here, with a JSON body as the vendors' APIs have it; the connection ends with it."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class Gone(ConnectionError):
    """Nobody is there any more to be answered, or there is no answer to be had."""


class Client:
    """Requests of one connection, one after the other: request(), then body() or skip(), then answer(), more(), end().

    Counted are the bytes `sent` and `received` in bodies; `requests` is for the caller to count. What waits for the
    child raises TimeoutError where that takes more than IDLE_TIMEOUT, and OSError where it has gone.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests = self.sent = self.received = 0
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        self._begun = False
        self._complete = asyncio.Event()

    async def request(self) -> h11.Request | None:
        """The next one; None where there is none to come. Raises NotServed for what is no HTTP."""
        if self._begun:
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return None
            self._http.start_next_cycle()
            self._complete.clear()
        event = await self._event()
        self._begun = True
        return event if isinstance(event, h11.Request) else None

    async def body(self) -> AsyncGenerator[bytes]:
        """What the request brings, piece by piece. Raises NotServed for what is no HTTP."""
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        while isinstance(event := await self._event(), h11.Data):
            self.sent += len(event.data)
            yield bytes(event.data)
        self._complete.set()

    async def skip(self) -> None:
        """For a request without a body."""
        await self._event()
        self._complete.set()

    async def gone(self) -> None:
        """Return when the child has closed the connection, or sends without waiting for answers."""
        await self._complete.wait()
        ahead = 0
        while ahead <= AHEAD and (data := await self._reader.read(CHUNK)):
            self._http.receive_data(data)
            ahead += len(data)

    async def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], reason: bytes) -> None:
        """Send status and headers."""
        await self._send(h11.Response(status_code=status, headers=list(headers), reason=reason))

    async def more(self, chunk: bytes) -> None:
        """Send a piece of the answer, at once."""
        self.received += len(chunk)
        await self._send(h11.Data(data=chunk))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def refuse(self, refused: NotServed) -> None:
        """Answer so, unless an answer has begun already."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = json.dumps({"error": {"message": refused.message}}).encode()
        own = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        await self._send(h11.Response(status_code=refused.status, headers=[*own, *refused.headers]))
        await self._send(h11.Data(data=body))
        await self.end()

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(IDLE_TIMEOUT):
                    self._http.receive_data(await self._reader.read(CHUNK))
        except h11.RemoteProtocolError as error:
            raise NotServed(error.error_status_hint, "This is no HTTP request.") from None
        return event

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            async with asyncio.timeout(IDLE_TIMEOUT):
                await self._writer.drain()
