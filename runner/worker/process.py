"""Child processes: each in a group of its own, which is ended as a whole, with bounded memory whatever it prints."""

import asyncio
import codecs
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ..adapters import Exit
from ..sandbox.jail import Entered
from .strays import MARK

PASSED_ON = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TERM",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
)
CHUNK = 64 * 1024
STDOUT_TAIL = 4 << 20
STRUCTURED_TAIL = 64 * 1024
STDERR_TAIL = 64 * 1024
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
AFTERMATH = 1.0  # seconds that output may keep coming after the child itself has ended

# A jail says 128 and the number for a program that a signal ended. Only those that end programs: tools have exit
# statuses above 128 of their own (Gemini CLI: the HTTP status modulo 256, so 144, 145, 147, 173, 244, 247).
FATAL = {
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGKILL,
    signal.SIGSEGV,
    signal.SIGTERM,
    signal.SIGXCPU,
    signal.SIGXFSZ,
    signal.SIGSYS,
}

Sink = Callable[[str, str], Awaitable[None]]


class Reaper:
    """The process that ends our children should we be killed (see reaper.py)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )

    def watch(self, group: int, mark: str) -> None:
        self._tell(f"+{group} {mark}\n")

    def forget(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """All children have ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=10)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()


def clean_environment(added: dict[str, str]) -> dict[str, str]:
    """What a child gets to see: nothing of ours, above all no way into the database."""
    passed = {name: text for name, text in os.environ.items() if name in PASSED_ON or name.startswith("LC_")}
    return {"PATH": os.defpath, **passed, **added}


class Tail:
    """The last so many bytes of a stream, as text."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: deque[str] = deque()
        self._size = 0
        self.cut = False

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._size += len(text)
        while self._size - len(self._parts[0]) >= self._limit:
            self._size -= len(self._parts.popleft())
            self.cut = True

    def text(self) -> str:
        whole = "".join(self._parts)
        return whole[-self._limit :]


class Child:
    """A running command. Use spawn() to get one."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        stdout: asyncio.StreamReader,
        pipe: asyncio.BaseTransport,
        reaper: Reaper,
    ) -> None:
        self._process = process
        self._stdout = stdout
        self._pipe = pipe
        self._reaper = reaper
        self.pid = process.pid
        self._stopping: asyncio.Task[None] | None = None
        self._entered: Entered | None = None

    def confined_by(self, entered: Entered) -> None:
        """The process is a jail, and this the program in it: that one is asked to end, and its status counts."""
        self._entered = entered

    async def discard(self) -> str:
        """End it before run(); returns what it printed on standard error."""
        self._signal(signal.SIGKILL)
        assert self._process.stderr is not None and self._process.stdin is not None
        said = await self._process.stderr.read(STDERR_TAIL)
        self._process.stdin.close()
        self._pipe.close()
        await self._exit()
        self._reaper.forget(self.pid)
        return said.decode(errors="replace")

    async def run(self, stdin: bytes, sink: Sink, tail: int = STDOUT_TAIL) -> Exit:
        """Feed it, pass its output to `sink(kind, text)` (kind: output or error), and wait for its end.

        `sink` is awaited before more is read: a slow database slows the child instead of filling our memory.
        Whatever happens, also when this is cancelled, the whole group is gone afterwards.
        """
        stdout, stderr = Tail(tail), Tail(STDERR_TAIL)
        assert self._process.stderr is not None
        streams = [
            asyncio.create_task(_read(self._stdout, "output", stdout, sink)),
            asyncio.create_task(_read(self._process.stderr, "error", stderr, sink)),
        ]
        feeding = asyncio.create_task(self._feed(stdin))
        try:
            code = await self._exit()
            # A grandchild may hold the pipes open; what the child itself wrote is in them already.
            done, late = await asyncio.wait(streams, timeout=AFTERMATH)
            self._signal(signal.SIGKILL)
            if late:
                await asyncio.wait(late, timeout=AFTERMATH)
            for stream in done:
                stream.result()
        finally:
            self._signal(signal.SIGKILL)
            for task in (feeding, *streams):
                task.cancel()
            await asyncio.gather(feeding, *streams, return_exceptions=True)
            self._pipe.close()
            await self._exit()
            if self._stopping:
                self._stopping.cancel()
            self._reaper.forget(self.pid)
        if self._entered is not None and code - 128 in FATAL:
            code = 128 - code
        return Exit(code, stdout.text(), stderr.text(), stdout.cut)

    async def _exit(self) -> int:
        """Wait for the child itself. Process.wait() of asyncio would wait for all who hold its pipes too."""
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(self.pid)
                loop, ended = asyncio.get_running_loop(), asyncio.Event()
                loop.add_reader(descriptor, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(descriptor)
                    os.close(descriptor)
        # asyncio has yet to reap it, and offers nothing to wait for
        while (code := self._process.returncode) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return code

    def stop(self) -> None:
        """End it: SIGTERM now, SIGKILL to the group after the grace. run() returns as usual."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())

    def kill(self) -> None:
        """End it at once: nobody waits for its last words."""
        self._signal(signal.SIGKILL)

    async def _stop(self) -> None:
        if self._entered is not None:
            self._entered.signal(signal.SIGTERM)
        else:
            self._signal(signal.SIGTERM)
        await asyncio.sleep(GRACE)
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # The group outlives its leader, and its number is not reused while a member lives.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def _feed(self, stdin: bytes) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.write(stdin)
            await pipe.drain()
            pipe.close()
            await pipe.wait_closed()


async def spawn(
    argv: Sequence[str],
    env: dict[str, str],
    cwd: Path,
    reaper: Reaper,
    mark: str,
    pass_fds: tuple[int, ...] = (),
) -> Child:
    """Start a command in a session of its own, with exactly these variables and its `mark` (see strays).

    Raises OSError.
    """
    ours, theirs = _wide_pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=theirs,
            stderr=asyncio.subprocess.PIPE,
            limit=CHUNK,
            cwd=cwd,
            env={**env, MARK: mark},
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    reaper.watch(process.pid, mark)
    stdout = asyncio.StreamReader(limit=CHUNK)
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stdout), os.fdopen(ours, "rb", buffering=0)
    )
    return Child(process, stdout, pipe, reaper)


def _wide_pipe() -> tuple[int, int]:
    """A pipe that holds a mebibyte, where the system allows it.

    Tools written for Node.js lose at their exit what the pipe does not hold: its writes to pipes are asynchronous
    (https://nodejs.org/api/process.html#a-note-on-process-io), and the last line is the result.
    """
    ours, theirs = os.pipe()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 1 << 20)
    return ours, theirs


async def _read(stream: asyncio.StreamReader, kind: str, tail: Tail, sink: Sink) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while chunk := await stream.read(CHUNK):
        await _pass_on(decoder.decode(chunk), kind, tail, sink)
    await _pass_on(decoder.decode(b"", final=True), kind, tail, sink)


async def _pass_on(text: str, kind: str, tail: Tail, sink: Sink) -> None:
    if text:
        text = text.replace("\x00", "�")  # PostgreSQL text holds no NUL
        tail.add(text)
        await sink(kind, text)
