"""Folders kept on this host for tasks: scratch workspaces, and the tools' own state, so that sessions can be resumed.

<root>/<yard>/<task>/files      the working directory of a task that names none
<root>/<yard>/<task>/<provider> the tool's configuration and sessions for that task
"""

import hashlib
import re
import shutil
from pathlib import Path

from ..postgres import default_home


class Places:
    """The folders of one database: task ids mean nothing in another. Raises OSError where the disk does."""

    def __init__(self, host: str, port: int, database: str, root: Path | None = None) -> None:
        key = hashlib.sha256(f"{host}:{port}/{database}".encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9_-]", "_", database)[:40]
        self.folder = (root or default_home() / "work") / f"{name}-{key}"

    def scratch(self, task: int) -> Path:
        """The task's working directory, made if it is new; of this user alone."""
        return self._made(task, "files")

    def home(self, task: int, provider: str) -> Path:
        """Where a tool keeps its state for this task."""
        return self._made(task, provider)

    def forget(self, task: int) -> None:
        """Remove all that is kept for a task."""
        shutil.rmtree(self.folder / str(task), ignore_errors=True)

    def tasks(self) -> list[int]:
        """Tasks that something is kept for."""
        try:
            return [int(entry.name) for entry in self.folder.iterdir() if entry.name.isdecimal()]
        except FileNotFoundError:
            return []

    def _made(self, task: int, part: str) -> Path:
        folder = self.folder / str(task) / part
        for parent in (self.folder.parent, self.folder, folder.parent, folder):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
