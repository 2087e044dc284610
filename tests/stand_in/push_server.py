"""A stand-in for an ntfy server and for a webhook: it takes, fails, hangs, and loses answers, as a test says."""

import contextlib
import json
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Mood = Literal["takes", "fails", "hangs", "loses", "busy"]


@dataclass
class PushServer:
    """`got`: every message that was accepted, as (path, headers, body); `tried` also those that were not."""

    address: str
    moods: list[Mood] = field(default_factory=list[Mood])
    got: list[tuple[str, dict[str, str], Any]] = field(default_factory=list[tuple[str, dict[str, str], Any]])
    tried: int = 0
    topics: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def press(self, button: dict[str, Any]) -> None:
        """What the app on the phone does."""
        assert (button["action"], button["method"]) == ("http", "POST")
        self.post(button["url"].removeprefix(self.address + "/"), button["body"])

    def post(self, topic: str, text: str) -> None:
        with self.lock:
            messages = self.topics.setdefault(topic, [])
            messages.append({"id": f"m{len(messages) + 1}", "event": "message", "topic": topic, "message": text})


@contextlib.contextmanager
def push_server() -> Generator[PushServer]:
    """The server, on loopback. `moods` are used up one by one by what is posted; afterwards it takes everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stand_in.lock:
                stand_in.tried += 1
                mood: Mood = stand_in.moods.pop(0) if stand_in.moods else "takes"
                if mood in ("takes", "loses"):
                    stand_in.got.append((self.path, dict(self.headers), body))
                number = len(stand_in.got)
            if mood == "hangs":
                stand_in.over.wait()
            if mood in ("loses", "hangs"):
                self.close_connection = True
            elif mood == "fails":
                self.answer(500, {"error": "internal"})
            elif mood == "busy":
                self.answer(429, {"error": "limit"}, {"Retry-After": "3600"})
            else:
                self.answer(200, {"id": f"receipt-{number}"})

        def do_GET(self) -> None:
            where = urlsplit(self.path)
            since = parse_qs(where.query).get("since", ["all"])[0]
            with stand_in.lock:
                messages = list(stand_in.topics.get(where.path.strip("/").removesuffix("/json"), []))
            ids = [message["id"] for message in messages]
            new = messages[ids.index(since) + 1 :] if since in ids else messages
            self.answer(200, "".join(json.dumps(message) + "\n" for message in new))

        def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in = PushServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield stand_in
    finally:
        stand_in.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
