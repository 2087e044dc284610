"""The servers of a jail without a jail: on listeners of this machine, in a thread with an event loop of its own."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Generator, Iterator
from typing import Protocol


class Server(Protocol):
    async def serve(self, listener: socket.socket) -> None: ...


@contextlib.contextmanager
def serving(server: Server) -> Generator[int]:
    """The port it serves on; on leaving it is cancelled, and must have ended within 5 seconds. Fails if it fell over."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        loop = asyncio.new_event_loop()
        task = loop.create_task(server.serve(listener))
        failed: list[BaseException] = []

        def run() -> None:
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    loop.run_until_complete(task)
                loop.run_until_complete(asyncio.sleep(0))  # lets closed transports close their sockets
            except BaseException as error:
                failed.append(error)
            finally:
                loop.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(task.cancel)
            thread.join(5)
        assert not thread.is_alive(), "serve() does not end when it is cancelled"
        assert not failed, failed


class Line:
    """A connection to a port of this machine, raw."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> "Line":
        self.socket.sendall(data)
        return self

    def until(self, end: bytes) -> bytes:
        """What comes, up to `end`; all of it where the other side closes first."""
        got = b""
        while not got.endswith(end) and (byte := self.socket.recv(1)):
            got += byte
        return got

    def rest(self) -> bytes:
        """All that comes until the other side closes or resets the connection."""
        return b"".join(self._chunks())

    def _chunks(self) -> Iterator[bytes]:
        with contextlib.suppress(ConnectionError):
            while chunk := self.socket.recv(65536):
                yield chunk
