"""The channel as an MCP server over HTTP, on a listener of the attempt's own: https://modelcontextprotocol.io.

HTTP and not standard input and output, since a server that a tool starts as its child would need a program to be run
and Python with the SDK to be seen, inside the jail; so it works in a scope without execute too. Without sessions:
what a tool asks stands for itself, and a call may come with no handshake before it (client.py).
"""

import asyncio
import contextlib
import hmac
import importlib
import secrets
import socket
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from . import PATH, Address
from .tools import Channel

if TYPE_CHECKING:
    from types import ModuleType


class Server:
    """Serves a channel; `token` is what callers have to bring."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.token = secrets.token_urlsafe(24)

    async def prepare(self) -> None:
        """Load what serving takes: some tools wait for no more than 5 seconds when they connect."""
        await asyncio.to_thread(_transport)

    async def serve(self, listener: socket.socket) -> None:
        """Accept and answer until cancelled. Raises OSError if the listener fails."""
        await _asked(listener)
        transport: ModuleType = await asyncio.to_thread(_transport)
        await transport.serve(self._channel, self._knows, listener)

    def _knows(self, authorization: bytes) -> bool:
        return hmac.compare_digest(authorization, b"Bearer " + self.token.encode())


def _transport() -> "ModuleType":
    # The SDK takes 1.4 s, 5 s on a busy host, and 45 MB: not for a runner whose children never ask for anything.
    return importlib.import_module("taskyard.runner.channel.transport")


async def _asked(listener: socket.socket) -> None:
    """Until somebody connects."""
    loop, first = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listener, first.set)
    try:
        await first.wait()
    finally:
        loop.remove_reader(listener)


@contextlib.asynccontextmanager
async def on_loopback(server: Server) -> AsyncGenerator[Address]:
    """Serve on a free port of this host: for children that no jail gives a loopback of their own."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    serving = asyncio.create_task(server.serve(listener))
    try:
        yield Address(f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}", server.token)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()
