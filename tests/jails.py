"""A jail to try out: what a task may see, what it may not, and a runner that is root or is not."""

import asyncio
import contextlib
import importlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from taskyard.runner.sandbox.account import agent_account
from taskyard.runner.sandbox.host import find_python
from taskyard.runner.sandbox.jail import Jail
from taskyard.runner.sandbox.policy import Mount, Policy
from taskyard.runner.sandbox.run import Done, run

Result = TypeVar("Result")
Runner = Literal["root", "ordinary"]

AS_ROOT = os.geteuid() == 0
RUNNERS: list[Runner] = ["root", "ordinary"] if AS_ROOT else ["ordinary"]
OUTPUT = 1 << 20

# What every script inside starts with: attempt() tells the name of the error, None if there was none.
INSIDE = """
import errno, json, os, socket, sys
def attempt(action):
    try:
        action()
    except OSError as failed:
        return errno.errorcode.get(failed.errno, str(failed))
    return None
def write(path):
    with open(path, "w") as file:
        file.write("written inside")
"""

# Forks away from its parents once a millisecond, in sessions of its own, and writes the time into a file.
HOPPING = """
import signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
if os.fork():
    while not os.path.exists(sys.argv[1]) or not os.path.getsize(sys.argv[1]):
        time.sleep(0.001)
    print("started", flush=True)
    os._exit(0) if sys.argv[2] == "leave" else signal.pause()
os.close(1); os.close(2)
while True:
    os.setsid()
    with open(sys.argv[1], "a") as file:
        file.write("x")
    time.sleep(0.001)
    if os.fork():
        os._exit(0)
"""


@dataclass(frozen=True)
class Host:
    """A folder of this host with what a task may see, and what it may not.

    <folder>/space   the workspace        <folder>/home    the task's home
    <folder>/secret  a file of others, and <folder>/other, a folder with one
    """

    folder: Path
    runner: Runner

    @property
    def space(self) -> Path:
        return self.folder / "space"

    def policy(self, *mounts: Mount, **changes: Any) -> Policy:
        policy = Policy(self.space, self.folder / "home", (Mount(self.space, writable=True), *mounts))
        return replace(policy, **changes)

    def become(self) -> None:
        """Be the runner from here on."""
        if AS_ROOT and self.runner == "ordinary":
            account = agent_account()
            os.setgroups([])
            os.setgid(account.gid)
            os.setuid(account.uid)

    def call(self, action: Callable[[], Result]) -> Result:
        """Do this as the runner: in this process, or in a child of it that is no longer root."""
        if not AS_ROOT or self.runner == "root":
            return action()
        # What asyncio imports late, the child may not be allowed to read: Python may be in root's home.
        importlib.import_module("concurrent.futures.thread")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                self.become()
                with os.fdopen(writing, "wb") as pipe:
                    pipe.write(_outcome(action))
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        result, failed = pickle.loads(told)
        if failed is not None:
            raise failed
        return result

    def run(self, policy: Policy, *argv: str, **options: Any) -> Done:
        """Run a command inside; `options` are run()'s, and `env`."""
        given: dict[str, Any] = {"timeout": 30.0, "output_limit": OUTPUT, **options}
        env: dict[str, str] = given.pop("env", {})
        return self.call(lambda: asyncio.run(run(policy, argv, env, agent_account(), **given)))

    def python(self, policy: Policy, code: str, *arguments: object) -> Any:
        """Run this code inside; returns what it printed, which is JSON."""
        done = self.run(policy, *python_command(), INSIDE + code, *map(str, arguments))
        assert done.code == 0, done.stderr.decode()
        return json.loads(done.stdout)


@contextlib.contextmanager
def a_host(runner: Runner) -> Generator[Host, None, None]:
    # Not tmp_path: as root that is in a folder which the agents' account cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="ty-jail-")).resolve()
    try:
        folder.chmod(0o755)
        account = agent_account()
        for name in ("space", "home", "other"):
            (folder / name).mkdir()
            account.own(folder / name, 0o700)
        for secret in (folder / "secret", folder / "other" / "secret"):
            secret.write_text("secret")
            account.own(secret, 0o600)
        yield Host(folder, runner)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def python_command() -> list[str]:
    """What code to run inside is put behind, as one argument."""
    return [str(find_python().executable), "-I", "-c"]


async def spawn(jail: Jail) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *jail.argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=jail.env,
        cwd="/",
        pass_fds=jail.pass_fds,
        start_new_session=True,
    )


async def grown(trace: Path) -> None:
    async with asyncio.timeout(20):
        while not trace.exists() or trace.stat().st_size == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # a file tells nobody


def _outcome(action: Callable[[], Any]) -> bytes:
    """What it returned and what it raised, one of them None."""
    try:
        return pickle.dumps((action(), None))
    except Exception as failed:
        return pickle.dumps((None, failed))
