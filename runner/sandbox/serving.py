"""Connections from inside a jail, accepted outside of it on a listener that its shim opened."""

import asyncio
import contextlib
import errno
import logging
import socket
import traceback
from collections.abc import Awaitable, Callable

log = logging.getLogger("taskyard.runner")

CHUNK = 64 * 1024
LINGER = 2.0  # seconds
PAUSE = 1.0  # seconds until accepting is tried again where this process has no descriptor left
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def serve(listener: socket.socket, most: int, handle: Handler) -> None:
    """Accept and handle connections until cancelled; then all of them are closed at once.

    At most `most` connections are open at a time: the next ones wait in the kernel's queue until one ends. A handler's
    OSError (TimeoutError is one) ends its connection; any other exception too, and is logged without its message, which
    may quote a request. Raises OSError if the listener fails.
    """
    listener.setblocking(False)
    slots = asyncio.Semaphore(most)
    async with asyncio.TaskGroup() as group:
        while True:
            await slots.acquire()
            connection = await _accept(listener)
            group.create_task(_one(connection, handle)).add_done_callback(lambda _: slots.release())


async def farewell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say that nothing more comes, and let the other side close first, for LINGER seconds.

    Closed while there are unread bytes, a socket is reset, and what was sent last may be lost on its way.
    """
    with contextlib.suppress(OSError):
        async with asyncio.timeout(LINGER):
            writer.write_eof()
            while await reader.read(CHUNK):
                pass


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        try:
            return listener.accept()[0]
        except BlockingIOError:
            await _readable(listener)
        except ConnectionError:
            pass  # it was gone before it was accepted
        except OSError as failed:
            if failed.errno not in SHORTAGES:
                raise
            log.warning("no connection can be accepted from a sandbox now: %s", failed.strerror)
            await asyncio.sleep(PAUSE)


async def _readable(listener: socket.socket) -> None:
    """loop.sock_accept() is not used: cancelled while a connection comes in, it fails in a callback, and logs that."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listener, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(listener)


async def _one(connection: socket.socket, handle: Handler) -> None:
    with connection:
        # asyncio sets this by itself only where the listener was made with the protocol's number. Without it a short
        # answer in two pieces takes 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK)
        # Nothing stays in this process: a drain returns when all was handed to the kernel.
        writer.transport.set_write_buffer_limits(0)
        try:
            await handle(reader, writer)
        except OSError:
            pass
        except Exception as failed:
            where = "".join(traceback.format_tb(failed.__traceback__))
            log.error("a connection from a sandbox failed: %s\n%s", type(failed).__name__, where)
        finally:
            writer.transport.abort()
