"""Folders kept on this host for tasks: scratch workspaces, and the tools' own state, so that sessions can be resumed.

<root>/<yard>/<task>/files      the working directory of a task that names none
<root>/<yard>/<task>/<provider> the tool's configuration and sessions for that task
<root>/<yard>/<task>/user       what the task's children see as their home directory
<root>/<yard>/<task>/artifacts  what they leave to be kept, a folder per attempt
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from ..postgres import default_home
from ..postgres.account import Account
from ..sandbox.removal import remove_tree
from ..verbs import Claim

log = logging.getLogger("taskyard.runner")


@dataclass(frozen=True, slots=True)
class Rooms:
    """The folders of one attempt: working directory (`given`: the task names it), tool's state, home, artifacts."""

    workspace: Path
    given: bool
    tool: Path
    user: Path
    artifacts: Path


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

        `lasting`: kept for a later attempt on this host, so that a session can be resumed; else they go with this one.
        """
        if lasting:
            # Links above our own folders are the user's, and followed here: a jail follows none.
            folder = Path(os.path.realpath(self._made(self.folder / str(claim.task_id))))
            yield self._rooms(folder, claim, workspace)
            await asyncio.to_thread(_removed, folder / "artifacts" / str(claim.number))
            return
        folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=f"taskyard-{claim.task_id}-")))
        try:
            yield self._rooms(folder, claim, workspace)
        finally:
            await asyncio.to_thread(_removed, folder)

    def forget(self, task: int) -> None:
        """Remove all that is kept for a task."""
        _removed(Path(os.path.realpath(self.folder)) / str(task))

    def tasks(self) -> list[int]:
        """Tasks that something is kept for."""
        try:
            return [int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal()]
        except FileNotFoundError:
            return []

    def _rooms(self, folder: Path, claim: Claim, workspace: Path | None) -> Rooms:
        self._made(folder / "artifacts")
        return Rooms(
            workspace or self._owned(folder / "files"),
            workspace is not None,
            self._owned(folder / claim.provider),
            self._owned(folder / "user"),
            self._owned(folder / "artifacts" / str(claim.number)),
        )

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
