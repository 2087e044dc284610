"""Where the cases happen: folders, a victim, and the two ways to run the attacker.

inside() is what a runner does with a real attempt (worker/confined.py, worker/process.py); outside() is a bare child of
the same account. Every run has a World of its own.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from taskyard.runner.adapters import Exit, Launch
from taskyard.runner.postgres.account import Account
from taskyard.runner.sandbox.host import find_python
from taskyard.runner.sandbox.levels import Confinement
from taskyard.runner.sandbox.policy import Limits, Policy
from taskyard.runner.sandbox.removal import remove_tree
from taskyard.runner.verbs import Claim
from taskyard.runner.worker import confined
from taskyard.runner.worker.places import Places, Rooms
from taskyard.runner.worker.process import STDOUT_TAIL, Child, Reaper

HERE = Path(__file__).parent
SCRIPTS = ("attacker.py", "reaching.py", "calls.py", "trying.py")
PATIENCE = 40.0  # seconds that one run may take
ALL = ("read", "write", "execute")
CGROUPS = ("/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/pids/cgroup.procs")
MADE_UP = "the secret, "


# What attempt() sets: several jails may start at once.
_limits: ContextVar[Limits | None] = ContextVar("limits", default=None)
_usual_policy = confined.policy


def _policy(claim: Claim, launch: Launch, rooms: Rooms, channel: bool = False) -> Policy:
    found, limits = _usual_policy(claim, launch, rooms, channel), _limits.get()
    return found if limits is None else replace(found, limits=limits)


@dataclass(frozen=True, slots=True)
class World:
    """What one run of the attacker finds on this host.

    <folder>/space    the workspace, with the attacker's scripts      <folder>/granted  a folder that scopes can name
    <folder>/outside  what nobody granted: home/.ssh/id_rsa, home/.env, data/one to four
    """

    folder: Path
    told: dict[str, Any]

    @property
    def space(self) -> Path:
        return self.folder / "space"

    @property
    def outside(self) -> Path:
        return self.folder / "outside"

    @property
    def granted(self) -> Path:
        return self.folder / "granted"

    def attack(self, *numbers: int) -> list[str]:
        """The command that runs these of the attacker's cases."""
        python = str(find_python().executable)
        script = str(self.space / SCRIPTS[0])
        return [python, "-E", "-s", "-B", script, str(self.space / "world.json"), *map(str, numbers)]

    def fingerprint(self) -> str:
        """Of all that an attacker in a jail must leave as it is."""
        digest = hashlib.sha256()
        for path in (self.outside, self.space / ".git/config", self.space / ".git/hooks", self.space / ".mcp.json"):
            for found in (path, *sorted(path.rglob("*"))):
                if found.exists():
                    about = found.lstat()
                    digest.update(f"{found} {about.st_mode} {about.st_uid} {about.st_mtime_ns} {about.st_ino}".encode())
                    if found.is_file():
                        digest.update(found.read_bytes())
        return digest.hexdigest()


@dataclass
class Arena:
    """One situation: whoever we are, and the account that attackers run as.

    `tools` are the vendors' by name; `thorough` takes longer, and tries more.
    """

    confinement: Confinement
    tools: dict[str, str] = field(default_factory=dict[str, str])
    thorough: bool = False
    root: Path = field(default_factory=lambda: Path(os.path.realpath(tempfile.mkdtemp(prefix="ty-escape-"))))
    secret: str = field(default_factory=lambda: MADE_UP + secrets.token_hex(8))
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    _count: int = 0

    def __post_init__(self) -> None:
        self.root.chmod(0o755)
        confined.policy = _policy
        self.reaper = Reaper()
        self._victim: subprocess.Popen[str] | None = None
        self._told: dict[str, Any] | None = None
        # As it would be with a runner that gets its way into the database by a variable.
        os.environ["SECRETDB"] = self.secret

    @property
    def account(self) -> Account:
        assert self.confinement.account is not None
        return self.confinement.account

    def close(self) -> None:
        if self._victim is not None:
            self._victim.communicate(timeout=10)
        self.reaper.close()
        remove_tree(self.root)

    def victim(self) -> dict[str, Any]:
        """What the victim said of itself; started when it is first asked for."""
        if self._told is None:
            folder = self.root / "victim"
            self._furnish(folder)
            process = subprocess.Popen(
                [
                    str(find_python().executable),
                    "-E",
                    "-s",
                    "-B",
                    "-c",
                    (HERE / "victim.py").read_text(),
                    folder,
                    self.secret,
                ],
                cwd=folder,
                env={"PATH": os.defpath, "SECRETDB": self.secret},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                **self.switch(),
            )
            self._victim = process
            assert process.stdout is not None
            self._told = told = json.loads(process.stdout.readline())
            return told
        return self._told

    def switch(self) -> dict[str, Any]:
        """Arguments of Popen with which a child becomes the attackers' account."""
        account = self.account
        return {"user": account.uid, "group": account.gid, "extra_groups": []} if account.switch else {}

    def own(self, path: Path, mode: int = 0o755) -> Path:
        self.account.own(path, mode)
        return path

    def folder(self, path: Path) -> Path:
        """A new folder of the attackers' account."""
        path.mkdir(parents=True)
        return self.own(path)

    def file(self, path: Path, content: str, mode: int = 0o644) -> Path:
        path.write_text(content)
        return self.own(path, mode)

    def world(self, *, carved: bool = False, **more: Any) -> World:
        """A fresh one; `carved`: the workspace has what stays read-only. `more` is told to the attacker as well."""
        self._count += 1
        folder = self.folder(self.root / f"world-{self._count}")
        self._furnish(self.folder(folder / "outside"))
        space, granted = self.folder(folder / "space"), self.folder(folder / "granted")
        self.file(granted / "file", "as it was")
        self.file(granted / "one", "as it was")
        if carved:
            self.folder(space / ".git")
            self.folder(space / ".git/hooks")
            self.file(space / ".git/config", "[core]\n")
            self.file(space / ".mcp.json", "{}\n")
        for name in SCRIPTS:
            self.file(space / name, (HERE / name).read_text())
        told = {
            "secret": self.secret,
            "outside": str(folder / "outside"),
            "space": str(space),
            "granted": str(granted),
            "victim": self.victim(),
            "tmp": str(self.folder(folder / "tmp")),
            "shm": "/dev/shm",
            "disk": next(
                (str(path) for path in map(Path, ("/dev/vda", "/dev/sda", "/dev/nvme0n1")) if path.exists()), "/dev/vda"
            ),
            "cgroup": next((path for path in CGROUPS if os.path.exists(path)), CGROUPS[0]),
            **more,
        }
        self.file(space / "world.json", json.dumps(told))
        return World(folder, told)

    def claim(self, world: World, permissions: Sequence[str] = ALL, **changes: Any) -> Claim:
        """As claim_task() would return it, for a task that names its workspace."""
        self._count += 1
        claim = Claim(
            attempt_id=self._count,
            task_id=self._count,
            number=1,
            prompt="",
            payload=None,
            agent="attacker",
            scope="escapes",
            provider="command",
            account="",
            model=None,
            adapter="command",
            settings={},
            command=None,
            result_format="text",
            system_prompt=None,
            tools=None,
            max_turns=None,
            output_schema=None,
            permissions=list(permissions),
            workspace=str(world.space),
            verify=None,
            timeout=timedelta(seconds=PATIENCE),
            first_output_timeout=None,
            idle_timeout=None,
            session_id=None,
            session_usage=None,
            note=None,
            lease_until=datetime.now(UTC) + timedelta(minutes=1),
        )
        return replace(claim, **changes)

    def places(self, world: World) -> Places:
        return Places("localhost", 5432, "yard", world.folder / "work", self.account)

    @contextlib.asynccontextmanager
    async def attempt(
        self,
        world: World,
        claim: Claim,
        launch: Launch,
        *,
        rooms: Rooms | None = None,
        limits: Limits | None = None,
        network: confined.Network | None = None,
    ) -> AsyncGenerator[tuple[Child, Rooms]]:
        """A child as a runner starts it; `limits` in place of the usual ones. All of it is gone on leaving."""
        async with contextlib.AsyncExitStack() as stack:
            if rooms is None:
                rooms = await stack.enter_async_context(self.places(world).rooms(claim, world.space, lasting=True))
            token = _limits.set(limits)
            try:
                started = confined.started(
                    claim, launch, rooms, self.confinement, self.reaper, network or confined.Network()
                )
                child = await stack.enter_async_context(started)
            finally:
                _limits.reset(token)
            yield child, rooms

    async def inside(
        self,
        world: World,
        argv: Sequence[str],
        permissions: Sequence[str] = ALL,
        *,
        launch: Launch | None = None,
        limits: Limits | None = None,
        network: confined.Network | None = None,
        after: Callable[[Rooms], None] | None = None,
        **changes: Any,
    ) -> Exit:
        """Run a command in a jail to its end; `after` sees what it left. `changes` are the claim's."""
        claim = self.claim(world, permissions, **changes)
        given = replace(launch or Launch([], b""), argv=list(argv))
        async with self.places(world).rooms(claim, world.space, lasting=True) as rooms:
            async with (
                asyncio.timeout(PATIENCE),
                self.attempt(world, claim, given, rooms=rooms, limits=limits, network=network) as (child, _),
            ):
                ended = await child.run(given.stdin, _ignored, STDOUT_TAIL)
            if after is not None:
                after(rooms)
        return ended

    async def outside(
        self,
        argv: Sequence[str],
        cwd: Path,
        *,
        as_root: bool = False,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Exit:
        """Run a command as a careless runner would: with our environment and our open files, as the attackers' account."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            close_fds=False,
            start_new_session=True,
            **({} if as_root else self.switch()),
        )
        try:
            async with asyncio.timeout(PATIENCE):
                stdout, stderr = await process.communicate(stdin)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        assert process.returncode is not None
        return Exit(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))

    def _furnish(self, folder: Path) -> None:
        """Put the secrets there that a user has."""
        if not folder.exists():
            self.folder(folder)
        for name in ("home", "home/.ssh", "data"):
            self.folder(folder / name)
        self.file(folder / "home/.ssh/id_rsa", self.secret, 0o600)
        self.file(folder / "home/.env", f"SECRETDB={self.secret}\n", 0o600)
        for name in ("one", "two", "three", "four"):
            self.file(folder / "data" / name, self.secret)


def answers(ended: Exit) -> dict[str, dict[str, str]]:
    """What the attacker printed: {number: {attempt: answer}}. Raises AssertionError where it did not come to its end."""
    lines = ended.stdout.strip().splitlines()
    assert lines and lines[-1].startswith("{"), f"the attacker failed: {ended.code} {ended.stderr.strip()[-600:]}"
    return json.loads(lines[-1])


async def _ignored(_kind: str, _text: str) -> None:
    return
