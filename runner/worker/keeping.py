"""What an attempt leaves: commits in its task's repository, artifacts, and a snapshot of what was not finished."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import agent_verbs, verbs
from ..channel.tools import Refused
from ..sandbox import beneath
from ..sandbox.artifacts import collect
from ..sandbox.levels import Confinement
from ..verbs import Claim, Ending
from ..workspaces import GitWork
from . import confined, snapshot
from .places import Places, Rooms

LARGEST = 4 << 20  # bytes of an artifact that an agent adds by name

Note = Callable[[str, dict[str, Any] | None], Awaitable[None]]


class Keeping:
    """Keeps the work of one attempt. `call` carries a verb out (Link.call); `note` puts a line into the transcript."""

    def __init__(
        self, claim: Claim, call: Callable[..., Awaitable[Any]], places: Places, confinement: Confinement, note: Note
    ) -> None:
        self._claim = claim
        self._call = call
        self._places = places
        self._confinement = confinement
        self._note = note
        self._rooms: Rooms | None = None
        self.work: GitWork | None = None

    @contextlib.asynccontextmanager
    async def rooms(self, rooms: Rooms) -> AsyncGenerator[Rooms]:
        """The same folders, with a clone of the task's repository as the working directory, if it names one.

        Raises CannotRun, SandboxError, OSError.
        """
        self._rooms = rooms
        if self._claim.repository is None:
            yield rooms
            return
        self.work = work = GitWork(self._claim, self._places, self._confinement)
        try:
            workspace = await work.prepare(self._claim.branch)
            self._rooms = replace(rooms, workspace=workspace, given=True, mounts=work.mounts, protected=work.protected)
            yield self._rooms
        finally:
            work.close()

    def folders(self, home: Path) -> list[Path]:
        """What the task fills on this host's disk: all but a directory that it was given."""
        assert self._rooms is not None
        own = [home, self._rooms.user, self._rooms.artifacts]
        return own if self._rooms.given and self.work is None else [*own, self._rooms.workspace]

    async def checkpoint(self, status: str) -> None:
        """Commit what there is; the agent is at work."""
        if self.work is not None:
            await self.work.commit(f"Task {self._claim.task_id}, attempt {self._claim.number}: {status}")

    async def file(self, path: str) -> tuple[int, str, bytes | None]:
        """Size, sha256 and content of a file that the agent names, by its path in the working directory.

        Raises Refused.
        """
        assert self._rooms is not None
        try:
            content = await asyncio.to_thread(beneath.read_bytes, self._rooms.workspace, path, LARGEST)
        except FileNotFoundError:
            raise Refused(f"There is no file {path} in the working directory.") from None
        except (beneath.Refused, OSError) as refused:
            why = str(refused).rstrip(".")
            raise Refused(f"It cannot be kept: {why}. Larger files go into $TASKYARD_ARTIFACTS.") from refused
        return len(content), hashlib.sha256(content).hexdigest(), content

    async def deliver(self, outcome: str) -> str | None:
        """Bring what was done into the task's repository; returns the commit. Nothing of it is at work any more."""
        work, claim = self.work, self._claim
        if work is None:
            return None
        await work.commit(f"Task {claim.task_id}, attempt {claim.number}: {outcome}", end=True)
        delivered = await work.deliver()
        if delivered.branch is not None and delivered.commit is not None:
            await self._call(agent_verbs.report_work, claim.attempt_id, delivered.branch, delivered.commit)
        for proof in delivered.proofs:
            sha256 = hashlib.sha256(proof.content).hexdigest()
            size, content, kind = len(proof.content), proof.content, proof.kind
            await self._call(verbs.add_artifact, claim.attempt_id, proof.path, size, sha256, content, kind)
        if delivered.note is not None:
            await self._note(delivered.note, None)
        return delivered.commit

    async def push(self) -> None:
        """Push what was delivered, if the task names a remote."""
        if self.work is not None and (why := await self.work.push()) is not None:
            await self._note(why, None)

    async def collect(self) -> None:
        """What the child left to be kept: nothing of it is at work any more."""
        assert self._rooms is not None
        rooms, attempt = self._rooms, self._claim.attempt_id
        jailed = self._confinement.level == "strict" and "write" in self._claim.permissions
        if rooms.given and jailed and confined.put_aside(rooms.workspace):
            await self._note(".git/commondir was put aside: git would have obeyed it.", None)
        found = await asyncio.to_thread(collect, rooms.artifacts)
        for a in found.artifacts:
            await self._call(verbs.add_artifact, attempt, a.path, a.size, a.sha256, a.content)
        for path, why in found.refused[:20]:
            await self._note(f"The artifact {path} was not kept: {why}", None)
        if not found.complete:
            await self._note("There were more artifacts than are kept of one attempt.", None)

    async def unfinished(self, ending: Ending) -> None:
        """Whoever takes over finds the work so far as a commit, where the workspace is a git repository of its own."""
        assert self._rooms is not None
        claim = self._claim
        if self.work is not None:
            return
        message = f"Task {claim.task_id}, attempt {claim.number}: work so far\n\n{ending.error or ending.outcome}"
        kept = await snapshot.take(self._rooms, claim.task_id, claim.number, message, self._confinement)
        if kept is not None:
            told = f"The work so far is commit {kept.commit[:12]} ({kept.ref}), {kept.files} files."
            await self._note(told, {"commit": kept.commit, "ref": kept.ref, "files": kept.files})
