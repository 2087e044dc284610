"""The HTTP server: one thread per connection, HTTP/1.1, streams in chunks."""

import contextlib
import json
import select
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from .account import Account
from .anthropic import Messages
from .chat import ChatCompletions
from .gemini import GenerateContent
from .openai_responses import Responses
from .protocol import Frame, Protocol
from .request import Asked, Request
from .script import Answer, HttpError, Refusal, Step

BODY_LIMIT = 1 << 20  # bytes of a request's body that the log keeps
LOOK_AGAIN = 0.05  # seconds between two looks whether a waiting client is still there
PROTOCOLS: tuple[Protocol, ...] = (Messages(), Responses(), ChatCompletions(), GenerateContent())


class HungUp(Exception):
    """The client closed the connection before the answer's end."""


class StandIn:
    """A server on a free port of 127.0.0.1, as a context manager.

    Leaving it ends all streams; it fails if a script's function raised, or a request could not be understood.
    """

    def __init__(self) -> None:
        self.closing = threading.Event()
        self.faults: list[str] = []
        self.strays: list[str] = []
        self._accounts: dict[str, Account] = {}
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.stand_in = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": LOOK_AGAIN})

    def account(self, name: str) -> Account:
        """The account of that name, made at the first call; the name is part of its address."""
        return self._accounts.setdefault(name, Account(name, f"{self.url}/{name}"))

    def known(self, name: str) -> Account | None:
        return self._accounts.get(name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        faults = "the stand-in failed:\n" + "\n".join(self.faults)
        if self.faults and error is None:
            raise AssertionError(faults)
        if self.faults and error is not None:
            error.add_note(faults)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    stand_in: StandIn

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed between two requests is nothing to report; nothing else gets here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def stand_in(self) -> StandIn:
        assert isinstance(self.server, _Server)
        return self.server.stand_in

    def do_POST(self) -> None:
        place = urlsplit(self.path)
        _, name, path = (*place.path.split("/", 2), "", "")[:3]
        account = self.stand_in.known(name)
        try:
            length = int(self.headers.get("content-length", 0))
            raw = self.rfile.read(length)
            if len(raw) < length:
                raise ConnectionResetError("killed while it asked")
            body = json.loads(raw) if raw else None
            found = _read(self.command, f"/{path}", parse_qs(place.query), body)
            if account is None or found is None:
                self.stand_in.strays.append(f"{self.command} {self.path}")
                self._json(404, {"error": {"type": "not_found_error", "message": "There is no such thing here."}})
                return
            protocol, asked = found
            if asked.aside is not None:
                account.count_aside()
                self._aside(protocol, asked)
                return
            headers = {key.lower(): value for key, value in self.headers.items()}
            request = Request(account.name, f"/{path}", headers, raw[:BODY_LIMIT], asked)
            self._answer(account, protocol, request)
        except ConnectionError:
            self.close_connection = True
        except Exception:  # a script's function, or a request that is not what the vendor would take
            self.stand_in.faults.append(f"{self.command} {self.path}\n{traceback.format_exc()}")
            self.close_connection = True

    do_GET = do_HEAD = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the log is the account's."""

    def _answer(self, account: Account, protocol: Protocol, request: Request) -> None:
        step, asked = account.step_for(request), request.asked
        answer = protocol.refuse(asked, step) if isinstance(step, Refusal) else step
        in_stream = isinstance(step, Refusal) and step.in_stream and asked.stream
        request.step = _gist(step)
        request.status = answer.status if isinstance(answer, HttpError) and not in_stream else 200
        account.begin(request)
        try:
            if isinstance(answer, Answer):
                self._say(account, protocol, asked, answer)
            elif in_stream:
                self._stream(account, protocol.fail(asked, answer), Answer())
            else:
                self._json(answer.status, answer.body, answer.headers)
        except (HungUp, ConnectionError):
            request.hung_up = True
            self.close_connection = True
        finally:
            account.end()

    def _say(self, account: Account, protocol: Protocol, asked: Asked, answer: Answer) -> None:
        if answer.held:
            self._wait(account)
        if asked.stream:
            self._stream(account, protocol.stream(asked, answer), answer)
        elif answer.ends == "cut":
            self._hang_up()
        else:
            if answer.ends == "stalled":
                self._wait(account)
            self._json(200, protocol.whole(asked, answer), answer.headers)

    def _aside(self, protocol: Protocol, asked: Asked) -> None:
        if not isinstance(asked.aside, Answer):
            self._json(200, asked.aside)
        elif asked.stream:
            self._stream(None, protocol.stream(asked, asked.aside), asked.aside)
        else:
            self._json(200, protocol.whole(asked, asked.aside))

    def _json(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _stream(self, account: Account | None, frames: Iterable[Frame], answer: Answer) -> None:
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream; charset=utf-8", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("cache-control", "no-cache")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        frames = list(frames)
        last_word = max((n for n, frame in enumerate(frames) if frame.word), default=0)
        for n, frame in enumerate(frames):
            data = frame.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            if frame.word and answer.pause:
                self._wait(None, answer.pause)
            if n == last_word and answer.ends == "cut":
                self._hang_up()
                return
            if n == last_word and answer.ends == "stalled":
                self._wait(account)
        self.wfile.write(b"0\r\n\r\n")

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _wait(self, account: Account | None, seconds: float = float("inf")) -> None:
        """Until the account is released, or for so long. Raises HungUp, also where the stand-in is closed meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not (account is not None and account.is_released()):
            if self.stand_in.closing.wait(min(LOOK_AGAIN, left)) or self._client_left():
                raise HungUp

    def _client_left(self) -> bool:
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except ConnectionError:
            return True


def _read(method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[Protocol, Asked] | None:
    for protocol in PROTOCOLS:
        asked = protocol.read(method, path, query, body)
        if asked is not None:
            return protocol, asked
    return None


def _gist(step: Step) -> str:
    """A step on one line of the log."""
    if isinstance(step, HttpError):
        return f"error {step.status}"
    if isinstance(step, Refusal):
        return step.why
    return f"{step.act}"[:80] if step.act is not None else f"{step.text!r}"[:80]
