"""A server that stands for a model's API at the level of HTTP: it notes all that it is asked, byte for byte."""

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Asked:
    """A request as the server saw it."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


Say = Callable[["Handler"], None]


@dataclass
class Api:
    """A server that notes what it is asked, and answers as `say` does: with "ok" unless a test puts another in place."""

    url: str
    asked: list[Asked] = field(default_factory=list[Asked])
    connections: int = 0
    say: Say = lambda handler: handler.tell(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def api(self) -> Api:
        assert isinstance(self.server, ApiServer)
        return self.server.api

    def setup(self) -> None:
        self.api.connections += 1
        super().setup()

    def do_POST(self) -> None:
        body = b""
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.api.asked.append(Asked(self.requestline, self.headers.items(), body))
        self.api.say(self)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_TRACE = do_POST

    def tell(self, data: bytes) -> None:
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class ApiServer(ThreadingHTTPServer):
    """Serves in a thread from its making on, with TLS where it has a certificate; close() it."""

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.port: int = self.server_address[1]
        self.api = Api(f"http://127.0.0.1:{self.port}")
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to report."""
