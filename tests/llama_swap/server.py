"""The HTTP side of the double: routes requests by their model, and answers in the words of llama-swap.

The error style `text` is that of version 250 and before, `object` that of the versions since August 2026.
"""

import contextlib
import http.client
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from .config import Config, ModelConfig, load
from .fleet import CannotStart, Fleet, TooMany

ErrorStyle = Literal["object", "text"]


class Double(ThreadingHTTPServer):
    """Serves from its construction on; close() ends it and all its models.

    `health_check_timeout`: seconds, in place of the file's, which cannot be less than 15.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        log: IO[bytes],
        address: tuple[str, int] = ("127.0.0.1", 0),
        error_style: ErrorStyle = "object",
        health_check_timeout: float | None = None,
    ) -> None:
        self.config: Config = load(path, environ)
        if health_check_timeout is not None:
            self.config = replace(self.config, health_check_timeout=health_check_timeout)
        self.fleet = Fleet(self.config, environ, log)
        self.error_style: ErrorStyle = error_style
        super().__init__(address, Handler)
        self._workers = [threading.Thread(target=self.serve_forever, args=[0.05])]
        for name in self.config.preload:
            self._workers.append(threading.Thread(target=self._preload, args=[name]))
        for thread in self._workers:
            thread.start()

    def close(self) -> None:
        self.fleet.close()
        self.shutdown()
        for thread in self._workers:
            thread.join()
        self.server_close()

    def _preload(self, name: str) -> None:
        model = self.config.find(name)
        assert model is not None  # load() made sure
        with contextlib.suppress(CannotStart, TooMany), self.fleet.request(model.id):
            pass


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    server: Double  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._admitted():
            return
        match self.path.split("?")[0].strip("/").split("/", 2):
            case ["v1", "models"] | ["models"]:
                self._json(200, {"object": "list", "data": self._models()})
            case ["running"]:
                self._json(200, {"running": self._running()})
            case ["health"]:
                self._text(200, "OK")
            case ["unload"]:
                self._unload(list(self.server.config.models))
            case ["upstream", name, *rest]:
                self._to_upstream(name, "/".join(rest))
            case _:
                self._text(404, "404 page not found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._admitted():
            return
        match self.path.split("?")[0].strip("/").split("/"):
            case ["v1", *_]:
                self._route(body)
            case ["api", "models", "unload"]:
                self._unload(list(self.server.config.models))
            case ["api", "models", "unload", name]:
                model = self.server.config.find(name)
                if model is None:
                    self._error(404, "no router for requested model")
                else:
                    self._unload([model.id])
            case ["upstream", name, *rest]:
                self._to_upstream(name, "/".join(rest), body)
            case _:
                self._text(404, "404 page not found")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _admitted(self) -> bool:
        keys = self.server.config.api_keys
        given = self.headers.get("x-api-key") or self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not keys or given in keys or self.path == "/health":
            return True
        self._error(401, "unauthorized: invalid or missing API key", {"WWW-Authenticate": "Bearer"})
        return False

    def _route(self, body: bytes) -> None:
        document: dict[str, Any] = {}
        if self.headers.get_content_type() == "application/json":
            with contextlib.suppress(ValueError):
                document = json.loads(body)
        wanted = document.get("model")
        if not wanted:
            self._error(404, "no model id could be identified")
            return
        model = self.server.config.find(wanted)
        if model is None:
            self._error(404, "no router for requested model")
            return
        streamed = bool(document.get("stream")) and self.path.split("?")[0] == "/v1/chat/completions"
        self._lend(model, self.path, body, tell_loading=self.server.config.send_loading_state and streamed)

    def _to_upstream(self, name: str, path: str, body: bytes | None = None) -> None:
        model = self.server.config.find(name)
        if model is None:
            self._error(404, "no router for requested model")
        else:
            self._lend(model, "/" + path, body, tell_loading=False)

    def _lend(self, model: ModelConfig, path: str, body: bytes | None, tell_loading: bool) -> None:
        tell_loading = tell_loading and self.server.fleet.models[model.id].state != "ready"
        if tell_loading:
            self._begin_stream(200, [("Content-Type", "text/event-stream")])
            for word in ("llama-swap ", "loading model: ", model.id, "\n"):
                delta = {"choices": [{"delta": {"reasoning_content": word}}]}
                self._chunk(f"data: {json.dumps(delta)}\n\n".encode())
        try:
            with self.server.fleet.request(model.id):
                self._forward(model, path, body, begun=tell_loading)
        except CannotStart as error:
            if tell_loading:  # the status is sent already
                self._chunk(self._error_body(500, str(error)) + b"\n")
                self._chunk(b"")
            else:
                self._error(500, str(error))
        except TooMany as error:
            self._error(429, str(error), {"Retry-After": "1"}, code="concurrency_limit")

    def _forward(self, model: ModelConfig, path: str, body: bytes | None, begun: bool) -> None:
        where = urlsplit(model.proxy)
        upstream = http.client.HTTPConnection(where.hostname or "", where.port)
        headers = {name: text for name, text in self.headers.items() if name.lower() not in ("host", "connection")}
        with contextlib.closing(upstream):
            try:
                upstream.request(self.command, path, body, headers)
                response = upstream.getresponse()
            except (OSError, http.client.HTTPException):
                self._send(502, "text/plain", b"")
                return
            if not begun:
                kept = [item for item in response.getheaders() if item[0].lower() in ("content-type", "retry-after")]
                self._begin_stream(response.status, kept)
            # What breaks off there ends here like any stream: the client has to notice by itself.
            with contextlib.suppress(http.client.HTTPException, ConnectionError):
                while data := response.read1(65536):
                    self._chunk(data)
            self._chunk(b"")

    def _unload(self, names: list[str]) -> None:
        for name in names:
            self.server.fleet.unload(name)
        self._text(200, "OK")

    def _models(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for model in self.server.config.models.values():
            state = self.server.fleet.models[model.id].state
            about: dict[str, Any] = {"type": "model", **model.metadata}
            if model.aliases:
                about["aliases"] = list(model.aliases)
            entry = {
                "id": model.id,
                "object": "model",
                "created": 0,
                "owned_by": "llama-swap",
                "name": model.name,
                "description": model.description,
                "meta": {"llamaswap": about},
                "status": {"value": "loaded" if state in ("starting", "ready") else "unloaded"},
            }
            entries.append({key: value for key, value in entry.items() if value != ""})
            if self.server.config.include_aliases:
                entries += [{**entries[-1], "id": alias} for alias in model.aliases]
        return entries

    def _running(self) -> list[dict[str, Any]]:
        return [
            {
                "model": model.config.id,
                "state": model.state,
                "cmd": " ".join(model.config.argv),
                "proxy": model.config.proxy,
                "ttl": model.config.ttl,
                "name": model.config.name,
                "description": model.config.description,
            }
            for model in self.server.fleet.models.values()
            if model.state != "stopped"
        ]

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None, code: str = "") -> None:
        self._send(status, "application/json", self._error_body(status, message, code), headers)

    def _error_body(self, status: int, message: str, code: str = "") -> bytes:
        error: Any = message
        if self.server.error_style == "object":
            kind = "invalid_request_error" if status < 500 else "server_error"
            error = {"message": message, "type": kind, "param": None, "code": code}
        return json.dumps({"src": "llama-swap", "error": error}).encode()

    def _json(self, status: int, document: Any) -> None:
        self._send(status, "application/json", json.dumps(document).encode())

    def _text(self, status: int, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", text.encode())

    def _send(self, status: int, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, text in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def _begin_stream(self, status: int, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, text in [*headers, ("Transfer-Encoding", "chunked")]:
            self.send_header(name, text)
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        """One chunk; an empty one ends the stream."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
