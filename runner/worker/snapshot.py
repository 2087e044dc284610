"""The work so far of an attempt that did not complete, as a commit: for whoever takes over, and for the user.

Neither branch nor index nor working tree of the user is touched: the commit is built with an index of its own and held
by a ref of ours, refs/taskyard/<task>/<attempt number>.
"""

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 60.0  # seconds; a large repository takes a while to add


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit and the ref that holds it; `files` is how many differ from the commit below it."""

    commit: str
    ref: str
    files: int


async def take(workspace: Path, task: int, number: int, message: str) -> Snapshot | None:
    """Commit what differs from HEAD. None where the workspace is no git work tree, or nothing differs."""
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _take(workspace, f"refs/taskyard/{task}/{number}", message)
    except (OSError, TimeoutError, _GitError):
        return None


async def _take(workspace: Path, ref: str, message: str) -> Snapshot | None:
    if await _git(workspace, "rev-parse", "--is-inside-work-tree") != "true":
        return None
    with tempfile.TemporaryDirectory(prefix="taskyard-index-") as folder:
        index = {"GIT_INDEX_FILE": f"{folder}/index"}
        parent = await _git(workspace, "rev-parse", "--quiet", "--verify", "HEAD", fails="")
        if parent:
            await _git(workspace, "read-tree", "HEAD", env=index)
        await _git(workspace, "add", "--all", ".", env=index)
        changed = await _git(workspace, "diff", "--cached", "--name-only", *([parent] if parent else []), env=index)
        if not changed:
            return None
        tree = await _git(workspace, "write-tree", env=index)
    identity = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "Taskyard"), ("EMAIL", "taskyard@localhost"))
    }
    commit = await _git(
        workspace, "commit-tree", tree, *(["-p", parent] if parent else []), "-m", message, env=identity
    )
    await _git(workspace, "update-ref", ref, commit)
    return Snapshot(commit, ref, len(changed.split("\n")))


class _GitError(Exception):
    """git ended with another status than 0."""


async def _git(workspace: Path, *arguments: str, env: dict[str, str] | None = None, fails: str | None = None) -> str:
    # Neither hooks nor a file-system monitor of the repository are started: an agent may have written them.
    process = await asyncio.create_subprocess_exec(
        "git",
        *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"),
        *arguments,
        cwd=workspace,
        env={**os.environ, **(env or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    if process.returncode != 0:
        if fails is not None:
            return fails
        raise _GitError(arguments[0])
    return output.decode(errors="replace").strip()
