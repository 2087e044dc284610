"""A host with llama-swap: the shipped configuration, or one of the test's own, in front of servers that think of nothing."""

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from .config import load
from .server import Double

SHIPPED = Path(__file__).parents[2] / "llama-swap.yaml"
UPSTREAM = Path(__file__).with_name("upstream.py")
Program = Literal["double", "original"]


def programs() -> list[Program]:
    """The double; and the original, where LLAMA_SWAP_BIN names it."""
    return ["double", "original"] if os.environ.get("LLAMA_SWAP_BIN") else ["double"]


class Site:
    """One folder with model files, a configuration, and the program that serves it. close() ends everything.

    `upstream` is the shell's line for the server in place of llama-server, `weights` what all model files are links to.
    """

    def __init__(
        self,
        folder: Path,
        program: Program = "double",
        upstream: str = f'{sys.executable} -I {UPSTREAM} "$@"',
        weights: Path | None = None,
    ) -> None:
        self.folder = folder
        self._program: Program = program
        self._weights = weights
        self._stack = contextlib.ExitStack()
        self._models = folder / "models"
        self._models.mkdir()
        server = folder / "llama-server"
        server.write_text(f"#!/bin/sh\nexec {upstream}\n")
        server.chmod(server.stat().st_mode | stat.S_IXUSR)
        self.environ = {"PATH": os.defpath, "LLAMA_SERVER": str(server), "MODELS_DIR": str(self._models)}
        self._config = folder / "llama-swap.yaml"
        self._base_url = ""

    def start(self, config: str | None = None, **switches: Any) -> str:
        """Serve `config`, or the shipped one with ports that are free; returns the base URL. Switches are Double's."""
        text = SHIPPED.read_text() if config is None else config
        ports = _free_ports(10)
        text, changes = re.subn(r"(?m)^startPort: \d+", f"startPort: {ports}", text)
        self._config.write_text(text if changes else f"startPort: {ports}\n{text}")
        for model in load(self._config, self.environ).models.values():
            path = self._path(model.id)
            if self._weights:
                path.symlink_to(self._weights)
            elif not path.exists():
                path.write_text("{}")
        log = self._stack.enter_context((self.folder / "log").open("wb"))
        if self._program == "double":
            double = Double(self._config, self.environ, log, **switches)
            self._stack.callback(double.close)
            port = double.server_port
        else:
            port = ports + 9
            self._start_original(port, log)
        self._base_url = f"http://127.0.0.1:{port}/v1"
        return self._base_url

    def close(self) -> None:
        self._stack.close()

    def script(self, model: str, **script: Any) -> None:
        """Make the model's server behave like that from now on (see upstream.py)."""
        self._path(model).write_text(json.dumps(script))

    def weights(self, model: str) -> str:
        """The path of its model file, as its command has it."""
        return str(self._path(model))

    def requests(self, model: str) -> list[dict[str, Any]]:
        """The bodies of the requests that the model's server got."""
        return [json.loads(line) for line in _lines(self._path(model).with_suffix(".requests"))]

    def starts(self, model: str) -> int:
        """How often the model's server was started."""
        return len(_lines(self._path(model).with_suffix(".starts")))

    def running(self) -> dict[str, str]:
        """State by model."""
        status, body, _ = self.get("/running")
        assert status == 200, body
        return {entry["model"]: entry["state"] for entry in json.loads(body)["running"]}

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers."""
        return self._open(urllib.request.Request(self._base_url.removesuffix("/v1") + path, headers=headers or {}))

    def post(
        self, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers. JSON, unless the headers say otherwise."""
        request = urllib.request.Request(
            self._base_url.removesuffix("/v1") + path,
            data=b"" if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        return self._open(request)

    def ask(self, model: str) -> int:
        """A chat with the model; the status."""
        return self.post("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "Hi"}]})[0]

    def _open(self, request: urllib.request.Request) -> tuple[int, str, dict[str, str]]:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=60) as response:
                return response.status, response.read().decode(), dict(response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)

    def _path(self, model: str) -> Path:
        argv = load(self._config, self.environ).models[model].argv
        return Path(argv[argv.index("--model") + 1])

    def _start_original(self, port: int, log: Any) -> None:
        process = subprocess.Popen(
            [os.environ["LLAMA_SWAP_BIN"], "-config", str(self._config), "-listen", f"127.0.0.1:{port}"],
            env={**self.environ, "HOME": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

        def end() -> None:
            process.terminate()
            process.wait(60)

        self._stack.callback(end)
        self._base_url = f"http://127.0.0.1:{port}/v1"

        def healthy() -> bool:
            with contextlib.suppress(OSError):
                return self.get("/health")[0] == 200
            return False

        wait_until(healthy)


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.01)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that are free. Away from those that the kernel gives out by itself."""
    for first in range(20000 + os.getpid() % 1000 * 10, 32000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise OSError("no free ports")
