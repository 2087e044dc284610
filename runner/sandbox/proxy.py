"""The way out of a jail: an HTTP CONNECT proxy (RFC 9110, 9.3.6) that admits what the task's scope admits.

A name is resolved here, once, and every address it has must be public; the connection goes to what was checked, so that
a second answer of the name's server changes nothing. What is said inside a tunnel is not seen: a host that is admitted
can be used to send data to whoever else is served there. Connections are direct: where a company lets nothing out but
through its own proxy, the gateway still reaches the model, and tunnels fail.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from .network import LONGEST_NAME, Verdict, host_name, permitted, public
from .serving import CHUNK, farewell, serve

PORT = 443
CONNECTIONS = 100
HEADER_LIMIT = 16 * 1024  # bytes
HEADER_TIMEOUT = 10.0  # seconds
CONNECT_TIMEOUT = 15.0  # seconds, for resolving, and again for connecting
IDLE_TIMEOUT = 600.0  # seconds without a byte in either direction
LOOKUPS = 4  # names that are resolved at a time

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str], Awaitable[list[str]]]
Dial = Callable[[str, int], Awaitable[Streams]]


class _Refused(Exception):
    """An answer other than 200. `reason` is a clause about `host`; without a host there is nothing to note."""

    def __init__(self, status: int, reason: str, host: str = "", port: int = PORT, *, by_policy: bool = True) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.host = host
        self.port = port
        self.by_policy = by_policy


@dataclass(slots=True)
class _Traffic:
    sent: int = 0
    received: int = 0


async def dial(address: str, port: int) -> Streams:
    """A connection to an address. Raises OSError."""
    return await asyncio.open_connection(address, port, limit=CHUNK)


class Proxy:
    """One jail's proxy; serve() it once.

    `allow` are the scope's patterns, None for any public host; `always` those that are admitted whatever it says.
    `note` is told of each connection when it was refused or has ended. Tests may put their own `resolve` (the addresses
    of a name) and `dial` in place; whatever these do, every address is checked.
    """

    def __init__(
        self,
        allow: tuple[str, ...] | None,
        always: tuple[str, ...],
        note: Callable[[Verdict], None],
        *,
        resolve: Resolve | None = None,
        dial: Dial = dial,
    ) -> None:
        self._allow = allow
        self._always = always
        self._note = note
        self._resolve = resolve or self._look_up
        self._dial = dial
        # Not the loop's own threads: names that are never answered would keep them from all other work of the runner.
        self._threads = ThreadPoolExecutor(LOOKUPS, "taskyard-proxy")

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled; then all tunnels are closed at once."""
        try:
            await serve(listener, CONNECTIONS, self._handle)
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            host, early = await self._asked(reader)
            far_reader, far_writer = await self._connect(host)
        except _Refused as refused:
            if refused.host:
                host = refused.host[:LONGEST_NAME]
                self._note(Verdict(host, refused.port, not refused.by_policy, refused.reason))
            await _answer(writer, refused)
            await farewell(reader, writer)
            return
        far_writer.transport.set_write_buffer_limits(0)
        traffic = _Traffic()
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            far_writer.write(early)
            traffic.sent += len(early)
            await _tunnel((reader, writer), (far_reader, far_writer), traffic)
        finally:
            far_writer.transport.abort()
            reason = "the scope admits it" if permitted(self._allow, host) else "the tool's login needs it"
            self._note(Verdict(host, PORT, True, reason, traffic.sent, traffic.received))

    async def _asked(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        """The host that a CONNECT asks for, if that may be reached, and what the child sent after it."""
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        try:
            async with asyncio.timeout(HEADER_TIMEOUT):
                while (event := connection.next_event()) is h11.NEED_DATA:
                    connection.receive_data(await reader.read(HEADER_LIMIT))
        except TimeoutError:
            raise _Refused(408, "The request did not come to its end.") from None
        except h11.RemoteProtocolError as error:
            raise _Refused(error.error_status_hint, "This is no HTTP request.") from None
        if not isinstance(event, h11.Request):
            raise ConnectionResetError("closed without a request")
        target = event.target.decode("ascii")
        if event.method != b"CONNECT":
            host, port = _place(target)
            raise _Refused(403, "only HTTPS can be used, by CONNECT", host, port)
        name, _, number = target.rpartition(":")
        if not name or not number.isdecimal() or len(number) > 5:
            raise _Refused(400, "CONNECT takes a name and a port.")
        return self._admitted(name, int(number)), connection.trailing_data[0]

    def _admitted(self, name: str, port: int) -> str:
        host = host_name(name)
        if host is None:
            raise _Refused(403, "hosts are reached by their full names, not by addresses", name, port)
        if not permitted(self._allow, host) and not permitted(self._always, host):
            raise _Refused(403, "network_allow of the task's scope does not admit it", host, port)
        if port != PORT:
            raise _Refused(403, f"hosts are reached at port {PORT} only", host, port)
        return host

    async def _connect(self, host: str) -> Streams:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                addresses = await self._resolve(host)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise _Refused(502, "its name could not be resolved", host, by_policy=False)
        if not all(map(public, addresses)):
            raise _Refused(403, "its name leads to an address that is not public", host)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                for address in addresses[:-1]:
                    try:
                        return await self._dial(address, PORT)
                    except OSError:
                        continue
                return await self._dial(addresses[-1], PORT)
        except OSError:
            raise _Refused(502, "it could not be reached", host, by_policy=False) from None

    async def _look_up(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        )
        return list(dict.fromkeys(str(place[0]) for *_, place in found))


def _place(target: str) -> tuple[str, int]:
    """Host and port of an absolute-form target, as far as there are any."""
    try:
        split = urlsplit(target)
        return split.hostname or "", split.port or 80
    except ValueError:
        return "", 80


async def _answer(writer: asyncio.StreamWriter, refused: _Refused) -> None:
    said = f"Refused to reach {refused.host[:LONGEST_NAME]}: {refused.reason}." if refused.host else refused.reason
    body = f"{said}\n".encode()
    head = f"HTTP/1.1 {refused.status} Refused\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    async with asyncio.timeout(HEADER_TIMEOUT):
        await writer.drain()


async def _tunnel(near: Streams, far: Streams, traffic: _Traffic) -> None:
    """Pass bytes on in both directions until both have ended, or one failed, or nothing moved for IDLE_TIMEOUT."""
    loop = asyncio.get_running_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outwards: bool) -> None:
        while chunk := await reader.read(CHUNK):
            if outwards:
                traffic.sent += len(chunk)
            else:
                traffic.received += len(chunk)
            writer.write(chunk)
            await writer.drain()
            if not idle.expired():
                idle.reschedule(loop.time() + IDLE_TIMEOUT)
        writer.write_eof()

    try:
        async with asyncio.timeout(IDLE_TIMEOUT) as idle, asyncio.TaskGroup() as directions:
            directions.create_task(pump(near[0], far[1], True))
            directions.create_task(pump(far[0], near[1], False))
    except* OSError:
        pass
