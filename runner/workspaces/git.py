"""Running git where a repository's configuration may have been written by an agent.

Each call is a small shell script in a jail of its own, where there is one: without network, with only the folders that
it needs. In any case the configuration that can start programs is overridden (git-config(1); GIT_CONFIG_COUNT is as
strong as -c), and neither the user's nor the system's is read. What configuration alone can name, filters and
diff drivers, is up to the callers: they never check out or compare in a repository whose configuration is not theirs.
"""

import asyncio
import contextlib
import os
import re
import signal
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..sandbox.levels import Confinement
from ..sandbox.policy import Limits, Mount, Policy
from ..sandbox.removal import remove_tree
from ..sandbox.run import Done, run
from ..worker.process import clean_environment

SHORT = 60.0  # seconds
LONG = 900.0  # seconds; a large repository takes a while to check out or to pack
OUTPUT = 1 << 20  # bytes
LOCK_TIMEOUT = "1000"  # milliseconds that git itself waits for a lock on refs

OVERRIDES = {
    "safe.directory": "*",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.sshCommand": "false",
    "core.editor": "false",
    "core.pager": "cat",
    "core.alternateRefsCommand": "true",
    "core.logAllRefUpdates": "false",
    "core.filesRefLockTimeout": LOCK_TIMEOUT,
    "core.packedRefsTimeout": LOCK_TIMEOUT,
    "core.quotePath": "false",
    "credential.helper": "",
    "protocol.allow": "never",
    "submodule.recurse": "false",
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.addEmbeddedRepo": "false",
}
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Taskyard"), ("EMAIL", "taskyard@localhost"))
    },
}

# Messages of git's lockfile.c and refs, when another git is at work in the same repository.
_BUSY = re.compile(r"\.lock': File exists")
_GRAVE = re.compile(r"(fatal|error): ")


class GitError(Exception):
    """git failed; `said` is the gist of what it said. `busy`: something else holds a lock, so it may work later."""

    def __init__(self, stderr: str, code: int) -> None:
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        grave = [line for line in lines if _GRAVE.match(line)]
        self.said = (*grave[:1], *lines[-1:], f"exit status {code}")[0][:300]
        self.busy = bool(_BUSY.search(stderr))
        self.stderr = stderr
        super().__init__(self.said)


@dataclass(frozen=True, slots=True)
class Git:
    """Runs scripts that call git, as `confinement` says."""

    confinement: Confinement

    @property
    def jailed(self) -> bool:
        return self.confinement.level == "strict"

    @contextlib.asynccontextmanager
    async def home(self) -> AsyncGenerator[Path]:
        """A folder for what scripts leave, their home; gone afterwards."""
        folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="taskyard-git-")))
        try:
            if self.confinement.account is not None:
                self.confinement.account.own(folder, 0o700)
            yield folder
        finally:
            await asyncio.to_thread(remove_tree, folder)

    async def run(
        self,
        script: str,
        *arguments: str,
        workspace: Path,
        mounts: Sequence[Mount],
        env: Mapping[str, str],
        home: Path | None = None,
        protected: Sequence[str] = (),
        stdin: bytes = b"",
        timeout: float = SHORT,
    ) -> str:
        """Run a script for sh in `workspace`, which is at or below one of `mounts`; returns what it printed.

        `protected` are names below it that stay read-only. `arguments` are the script's $1 and so on. `home` is $HOME,
        an empty folder of its own if not given. Raises GitError, and what sandbox.run.run() raises.
        """
        if home is None:
            async with self.home() as own:
                return await self.run(
                    script,
                    *arguments,
                    workspace=workspace,
                    mounts=mounts,
                    env=env,
                    home=own,
                    protected=protected,
                    stdin=stdin,
                    timeout=timeout,
                )
        argv = ["sh", "-c", script, "sh", *arguments]
        environment = clean_environment({**ENVIRONMENT, **overriding(OVERRIDES), **env})
        if self.jailed:
            assert self.confinement.account is not None
            policy = Policy(workspace, home, tuple(mounts), tuple(protected), limits=Limits(file_size=64 << 30))
            done = await run(
                policy,
                argv,
                environment,
                self.confinement.account,
                stdin=stdin,
                timeout=timeout,
                output_limit=OUTPUT,
            )
        else:
            done = await bare(argv, {**environment, "HOME": str(home)}, workspace, stdin=stdin, timeout=timeout)
        if done.code != 0:
            raise GitError(done.stderr.decode(errors="replace"), done.code)
        return done.stdout.decode(errors="surrogateescape")


def overriding(options: Mapping[str, str]) -> dict[str, str]:
    """The variables that make git take these options before those of any file."""
    told = {"GIT_CONFIG_COUNT": str(len(options))}
    for number, (name, value) in enumerate(options.items()):
        told |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return told


async def bare(argv: Sequence[str], env: Mapping[str, str], cwd: Path, *, stdin: bytes = b"", timeout: float) -> Done:
    """Run a command without a jail, in a session of its own that is killed afterwards. Raises OSError, TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env=dict(env),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(stdin)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    assert process.returncode is not None
    return Done(process.returncode, out[:OUTPUT], err[:OUTPUT], len(out) > OUTPUT)
