"""Real runner processes for tests, and waiting for conditions with a deadline."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

from taskyard.runner.sandbox.account import agent_account

TASKYARD = str(Path(sys.executable).with_name("taskyard"))


def until(condition: Callable[[], object], seconds: float = 20.0, what: str = "") -> float:
    """Wait for a condition; returns after how many seconds it held. Fails after `seconds`."""
    started = time.monotonic()
    while not condition():
        elapsed = time.monotonic() - started
        assert elapsed < seconds, f"waited {seconds:.0f} s in vain {what}"
        time.sleep(0.02)
    return time.monotonic() - started


def at_work(*words: str) -> list[int]:
    """Processes of this host, jailed ones too, whose command line is these words at its end."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if (
                    tuple((entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1][-len(words) :])
                    == words
                ):
                    found.append(int(entry.name))
    return found


def open_to_agents(folder: Path) -> Path:
    """Make the folder; where tests run as root, agents are an account of their own and get it, with all that is in it."""
    folder.mkdir(exist_ok=True)
    account = agent_account()
    if account.switch:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account.uid, account.gid)
    return folder


class Runner:
    """A `taskyard runner` process. `env` is added to our environment, or is the whole of it where it is `bare`."""

    def __init__(
        self, dsn: str, name: str, log: Path, *options: str, env: dict[str, str] | None = None, bare: bool = False
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [TASKYARD, "runner", "--name", name, *options],
                env={**({} if bare else os.environ), "TASKYARD_DSN": dsn, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def memory(self) -> int:
        """Resident memory of the runner process in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)


class Fleet:
    """Starts runners on one database and ends them all after the test."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._folder = folder
        self.runners: list[Runner] = []

    def start(self, name: str, *options: str, env: dict[str, str] | None = None, bare: bool = False) -> Runner:
        runner = Runner(self._dsn, name, self._folder / f"{name}.log", *options, env=env, bare=bare)
        self.runners.append(runner)
        return runner

    def logs(self) -> str:
        return "\n".join(f"{r.name}: {r.log.read_text()}" for r in self.runners)


@contextlib.contextmanager
def fleet_on(dsn: str, folder: Path) -> Generator[Fleet]:
    """A fleet on a database; prints the runners' logs for a failing test."""
    fleet = Fleet(dsn, folder)
    try:
        yield fleet
    finally:
        for runner in fleet.runners:
            runner.end()
        print(fleet.logs())
