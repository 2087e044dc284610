"""Folders kept on this host for tasks: scratch workspaces, and the tools' own state, so that sessions can be resumed.

<root>/<yard>/<task>/files      the working directory of a task that names none
<root>/<yard>/<task>/clone      that of a task that names a repository (see runner/workspaces)
<root>/<yard>/<task>/goes_on    names the task whose files and clone this one goes on with instead
<root>/<yard>/<task>/<provider> the tool's configuration and sessions for that task
<root>/<yard>/<task>/user       what the task's children see as their home directory
<root>/<yard>/<task>/artifacts  what they leave to be kept, a folder per attempt
<root>/<yard>/<task>-<random>   all of these, for one attempt only
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from ..postgres import default_home
from ..postgres.account import Account
from ..sandbox.policy import Mount
from ..sandbox.removal import remove_tree
from ..verbs import Claim

log = logging.getLogger("taskyard.runner")

GOES_ON = "goes_on"


@dataclass(frozen=True, slots=True)
class Rooms:
    """The folders of one attempt: working directory (`given`: the task names it), tool's state, home, artifacts.

    `mounts` are seen besides; `protected` are names below the working directory that stay as they are.
    """

    workspace: Path
    given: bool
    tool: Path
    user: Path
    artifacts: Path
    mounts: tuple[Mount, ...] = ()
    protected: tuple[str, ...] | None = None


class Places:
    """The folders of one database: task ids mean nothing in another. Raises OSError where the disk does.

    As root they belong to `account`, which children run as.
    """

    def __init__(
        self, host: str, port: int, database: str, root: Path | None = None, account: Account | None = None
    ) -> None:
        key = hashlib.sha256(f"{host}:{port}/{database}".encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9_-]", "_", database)[:40]
        self.folder = (root or default_home() / "work") / f"{name}-{key}"
        self.account = account

    @contextlib.asynccontextmanager
    async def rooms(self, claim: Claim, workspace: Path | None, lasting: bool) -> AsyncGenerator[Rooms]:
        """The folders of an attempt.

        `lasting`: kept for a later attempt on this host, so that a session can be resumed; else they go with this one,
        but for the files of a task that this one goes on with.
        """
        files = workspace
        if claim.files_of is not None and workspace is None:
            files = self._owned(self.lasting(claim) / "files")
        given = workspace is not None
        if lasting:
            folder = self._real(self._made(self.folder_of(claim.task_id)))
            try:
                yield self._rooms(folder, claim, files, given)
                await asyncio.to_thread(_removed, folder / "artifacts" / str(claim.number))
            finally:
                self._touch(claim)
            return
        self._made(self.folder)
        folder = self._real(Path(tempfile.mkdtemp(prefix=f"{claim.task_id}-", dir=self.folder)))
        try:
            yield self._rooms(folder, claim, files, given)
        finally:
            await asyncio.to_thread(_removed, folder)
            self._touch(claim)

    def lasting(self, claim: Claim) -> Path:
        """The folder that holds the files and the clone of the claim's task: its own, or that of the task which handed
        over, kept from then on for as long as this one."""
        own = self._real(self._made(self.folder_of(claim.task_id)))
        if claim.files_of is None or claim.files_of == claim.task_id:
            return own
        (own / GOES_ON).write_text(str(claim.files_of))
        return self._real(self._made(self.folder_of(claim.files_of)))

    def keep_files(self, claim: Claim, rooms: Rooms) -> None:
        """Keep the scratch folder of an attempt whose folders go with it: another task goes on with the files."""
        if rooms.given or rooms.workspace.parent.parent != self._real(self.folder):
            return
        kept = self._real(self._made(self.folder_of(claim.task_id))) / "files"
        if rooms.workspace != kept and not kept.exists():
            rooms.workspace.rename(kept)

    def folder_of(self, task: int) -> Path:
        """Where all that lasts is kept for a task."""
        return self.folder / str(task)

    def going_on(self) -> dict[int, int]:
        """Kept tasks that go on with another's files: {task: the other}."""
        found: dict[int, int] = {}
        for task in self.tasks():
            with contextlib.suppress(OSError, ValueError):
                found[task] = int((self.folder_of(task) / GOES_ON).read_text())
        return found

    def age(self, task: int) -> float:
        """Seconds since the last attempt of the task, or of one that goes on with its files, ended on this host."""
        try:
            return time.time() - self.folder_of(task).stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def forget(self, task: int) -> None:
        """Remove all that is kept for a task."""
        root = self._real(self.folder)
        _removed(root / str(task))
        for left in root.glob(f"{task}-*"):
            _removed(left)

    def tasks(self) -> list[int]:
        """Tasks that something is kept for."""
        try:
            names = [entry.name.partition("-")[0] for entry in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        return sorted({int(name) for name in names if name.isdecimal()})

    def _rooms(self, folder: Path, claim: Claim, files: Path | None, given: bool) -> Rooms:
        self._made(folder / "artifacts")
        return Rooms(
            files or self._owned(folder / "files"),
            given,
            self._owned(folder / claim.provider),
            self._owned(folder / "user"),
            self._owned(folder / "artifacts" / str(claim.number)),
        )

    def _touch(self, claim: Claim) -> None:
        for task in {claim.task_id, claim.files_of or claim.task_id}:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.folder_of(task))

    @staticmethod
    def _real(folder: Path) -> Path:
        """Links above our own folders are the user's, and followed here: a jail follows none."""
        return Path(os.path.realpath(folder))

    def _made(self, folder: Path) -> Path:
        for parent in (self.folder.parent, self.folder, folder):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _owned(self, folder: Path) -> Path:
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.account is not None and self.account.switch:
            self.account.own(folder, 0o700)
        return folder


def _removed(folder: Path) -> None:
    if not remove_tree(folder):
        log.warning("%s could not be removed as a whole", folder)
