"""The work so far of an attempt that did not complete, as a commit: for whoever takes over, and for the user.

Neither branch nor index nor working tree of the user is touched: the commit is built with an index of its own and held
by a ref of ours, refs/taskyard/<task>/<attempt number>. git runs programs that the repository's configuration names
(filters, a file-system monitor), and an agent may have written that: so it runs in a jail too, where there is one.
"""

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..sandbox.beneath import Refused
from ..sandbox.errors import SandboxError
from ..sandbox.levels import Confinement
from ..sandbox.policy import HOME, Mount, Policy
from ..sandbox.run import run
from .confined import protected
from .places import Rooms
from .process import clean_environment

TIMEOUT = 60.0  # seconds; a large repository takes a while to add
OUTPUT = 16 << 20  # bytes; the names of the files that differ


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit and the ref that holds it; `files` is how many differ from the commit below it."""

    commit: str
    ref: str
    files: int


async def take(rooms: Rooms, task: int, number: int, message: str, confinement: Confinement) -> Snapshot | None:
    """Commit what differs from HEAD. None where the workspace is no git work tree, or nothing differs."""
    if not (rooms.workspace / ".git").exists():
        return None
    with tempfile.TemporaryDirectory(prefix="taskyard-git-") as folder:
        home = Path(os.path.realpath(folder))
        if confinement.account is not None:
            confinement.account.own(home, 0o700)
        try:
            async with asyncio.timeout(TIMEOUT):
                return await _take(_Git(rooms.workspace, home, confinement), f"refs/taskyard/{task}/{number}", message)
        except (OSError, TimeoutError, ValueError, SandboxError, Refused, _GitError):
            return None


class _GitError(Exception):
    """git ended with another status than 0."""


class _Git:
    """git in a workspace; `index` is an index file of our own."""

    def __init__(self, workspace: Path, home: Path, confinement: Confinement) -> None:
        self._confinement = confinement
        self._workspace = workspace
        self._home = home
        self._jailed = confinement.level == "strict"
        self.index = {"GIT_INDEX_FILE": str((HOME if self._jailed else home) / "index")}

    async def __call__(self, *arguments: str, env: dict[str, str] | None = None, fails: str | None = None) -> str:
        """What it prints. Raises _GitError where it fails and `fails` does not say what that means."""
        # Where there is no jail, at least neither hooks nor a file-system monitor are started.
        argv = ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "safe.directory=*"]
        code, output = await (self._in_jail if self._jailed else self._bare)([*argv, *arguments], env or {})
        if code != 0:
            if fails is not None:
                return fails
            raise _GitError(arguments[0])
        return output.decode(errors="replace").strip()

    async def _in_jail(self, argv: list[str], env: dict[str, str]) -> tuple[int, bytes]:
        assert self._confinement.account is not None
        policy = Policy(
            self._workspace, self._home, (Mount(self._workspace, writable=True),), protected(self._workspace)
        )
        environment = clean_environment(
            {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*", **env}
        )
        done = await run(policy, argv, environment, self._confinement.account, timeout=TIMEOUT, output_limit=OUTPUT)
        return done.code, done.stdout

    async def _bare(self, argv: list[str], env: dict[str, str]) -> tuple[int, bytes]:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=self._workspace,
            env=clean_environment(env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            output, _ = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            raise
        assert process.returncode is not None
        return process.returncode, output


async def _take(git: _Git, ref: str, message: str) -> Snapshot | None:
    if await git("rev-parse", "--is-inside-work-tree") != "true":
        return None
    parent = await git("rev-parse", "--quiet", "--verify", "HEAD", fails="")
    if parent:
        await git("read-tree", "HEAD", env=git.index)
    await git("add", "--all", ".", env=git.index)
    changed = await git("diff", "--cached", "--name-only", *([parent] if parent else []), env=git.index)
    if not changed:
        return None
    tree = await git("write-tree", env=git.index)
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Taskyard"), ("EMAIL", "taskyard@localhost"))
    }
    commit = await git("commit-tree", tree, *(["-p", parent] if parent else []), "-m", message, env=identity)
    await git("update-ref", ref, commit)
    return Snapshot(commit, ref, len(changed.split("\n")))
