"""A user's repository to work in, by a runner that is root or is not, and what an agent does in its clone."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from taskyard.runner.sandbox.account import agent_account
from taskyard.runner.sandbox.levels import Confinement, Level
from taskyard.runner.sandbox.policy import Mount
from taskyard.runner.sandbox.run import run
from taskyard.runner.verbs import Claim
from taskyard.runner.worker.places import Places
from taskyard.runner.workspaces import Cleaning, GitWork

from .jails import Host, Runner, a_host
from .recorded import a_claim

Result = TypeVar("Result")

IDENTITY = {f"GIT_{who}_{what}": "user" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@dataclass(frozen=True)
class Ground:
    """The folder of a host with a repository `app`, whose owner the agents' account is.

    Methods that take an action call it as the runner, in a process of its own where that is not us.
    """

    host: Host
    level: Level = "strict"

    @property
    def repository(self) -> Path:
        return self.host.folder / "app"

    @property
    def root(self) -> Path:
        return self.host.folder / "work"

    def confinement(self) -> Confinement:
        return Confinement(self.level, agent_account() if self.level == "strict" else None)

    def places(self) -> Places:
        return Places("db", 5432, "yard", self.root, self.confinement().account)

    def git(self, *words: str, cwd: Path | None = None, fails: bool = False, **env: str) -> str:
        """git as the owner of the repository, without any jail."""
        done = self.user(["git", *words], cwd or self.repository, **env)
        assert fails or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def user(self, argv: list[str], cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
        account, switch = agent_account(), os.geteuid() == 0
        return subprocess.run(
            argv,
            cwd=cwd,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(self.host.folder / "home"), **IDENTITY, **env},
            user=account.uid if switch else None,
            group=account.gid if switch else None,
            extra_groups=[] if switch else None,
        )

    def write(self, path: Path, content: str, mode: int = 0o644) -> None:
        """A file of the user's; folders on the way are made."""
        account = agent_account()
        for folder in reversed([above for above in path.parents if not above.exists()]):
            folder.mkdir()
            account.own(folder, 0o755)
        path.write_text(content)
        account.own(path, mode)

    def claim(self, task: int = 3, number: int = 1, **changes: Any) -> Claim:
        return a_claim(task_id=task, number=number, **{"repository": str(self.repository), **changes})

    def do(self, action: Callable[[], Awaitable[Result]]) -> Result:
        """Do it as the runner."""

        async def whole() -> Result:
            return await action()

        return self.host.call(lambda: asyncio.run(whole()))

    def attempt(
        self, agent: str = "", *, task: int = 3, number: int = 1, before: str | None = None, **changes: Any
    ) -> "Left":
        """A whole attempt: `agent` is the script that works in the clone."""

        async def whole() -> Left:
            async with self.working(task, number, before, **changes) as (work, path):
                said = await self.agent(work, path, agent) if agent else ""
                commit = await work.commit("The work.", end=True)
                return await left(work, path, said, commit is not None)

        return self.do(whole)

    @contextlib.asynccontextmanager
    async def working(
        self, task: int = 3, number: int = 1, before: str | None = None, **changes: Any
    ) -> AsyncGenerator[tuple[GitWork, Path]]:
        """An attempt's work, prepared, and its clone."""
        work = GitWork(self.claim(task, number, **changes), self.places(), self.confinement())
        try:
            yield work, await work.prepare(before)
        finally:
            work.close()

    async def agent(self, work: GitWork, path: Path, script: str) -> str:
        """Run it as an agent is run: in a jail where there is one, with what the attempt may see and write."""
        argv = ["sh", "-c", script]
        if self.level != "strict":
            return self.user(argv, path).stdout
        account = agent_account()
        policy = self.host.policy(Mount(path, writable=True), *work.mounts, workspace=path, protected=work.protected)
        env = {**IDENTITY, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        done = await run(policy, argv, env, account, timeout=60, output_limit=1 << 20)
        return (done.stdout + done.stderr).decode()

    def clean(self, over: tuple[int, ...] = (), **options: Any) -> None:
        """A clean-up by the runner."""
        self.do(lambda: Cleaning(self.places(), self.confinement(), **options).clean(over, ()))

    def of_the_user(self) -> dict[str, object]:
        """All of the repository that is not ours to change."""
        git_dir = self.repository / ".git"
        refs = self.git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return {
            "refs": [ref for ref in refs if not ref.startswith(("refs/heads/taskyard/", "refs/taskyard/"))],
            "status": self.git("status", "--porcelain", GIT_OPTIONAL_LOCKS="0"),
            **{
                name: (git_dir / name).read_bytes() for name in ("HEAD", "config", "index") if (git_dir / name).exists()
            },
            "names": sorted(entry.name for entry in git_dir.iterdir()),
            "hooks": sorted(entry.name for entry in (git_dir / "hooks").iterdir()),
        }


@dataclass(frozen=True)
class Left:
    """What an attempt left: where its clone is, what the agent's script printed, and what was delivered and pushed."""

    path: Path
    said: str
    committed: bool
    branch: str | None
    commit: str | None
    note: str | None
    proofs: dict[str, bytes]
    push: str | None


async def left(work: GitWork, path: Path, said: str = "", committed: bool = False) -> Left:
    delivered = await work.deliver()
    proofs = {proof.path: proof.content for proof in delivered.proofs}
    pushed = await work.push()
    return Left(path, said, committed, delivered.branch, delivered.commit, delivered.note, proofs, pushed)


@contextlib.contextmanager
def a_ground(runner: Runner, level: Level = "strict", *init: str) -> Generator[Ground]:
    """A host with a repository that has one commit, on the branch main."""
    with a_host(runner) as host:
        agent_account().own(host.folder, 0o755)
        ground = Ground(host, level)
        ground.root.mkdir()
        if runner == "ordinary":
            agent_account().own(ground.root, 0o700)
        ground.repository.mkdir()
        agent_account().own(ground.repository, 0o755)
        ground.git("init", "--quiet", "--initial-branch=main", *init)
        ground.write(ground.repository / "read.me", "one\n")
        ground.git("add", ".")
        ground.git("commit", "--quiet", "-m", "one")
        yield ground
