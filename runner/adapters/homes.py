"""Writing and reading Run.home. An agent before may have filled it with links and pipes: none is ever followed.

What is written belongs to whom the folder belongs: as root, to the account that agents run as. A link or a file of its
own in the place of a folder is removed; whatever else stands in the way ends in CannotRun.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ..sandbox import beneath
from .base import CannotRun


def write(home: Path, name: str, text: str) -> None:
    """Replace home/name (a relative path; parents are made) by a file of this user alone. Raises CannotRun, OSError."""
    _do(home, name, lambda root: beneath.write_bytes(root, name, text.encode(), owner=_owner(home)))


def directory(home: Path, name: str) -> None:
    """Make home/name, if it is not there. Raises CannotRun, OSError."""
    _do(home, name, lambda root: beneath.make_directory(root, name, _owner(home)))


def read(home: Path, name: str, limit: int) -> str | None:
    """The text of home/name; None if it is not there, no plain file, or larger than `limit` bytes."""
    try:
        return beneath.read_bytes(_root(home), name, limit).decode(errors="replace")
    except (OSError, beneath.Refused):
        return None


def link(home: Path, name: str, target: Path | None) -> None:
    """Make home/name a link to `target`, or nothing at all. Raises CannotRun, OSError."""

    def place(root: Path) -> None:
        beneath.remove(root, name)
        if target is None:
            return
        parent = os.path.dirname(name)
        if parent:
            beneath.make_directory(root, parent, _owner(home))
        folder = beneath.open_directory(root / parent)
        try:
            os.symlink(target, os.path.basename(name), dir_fd=folder)
        finally:
            os.close(folder)

    _do(home, name, place)


def _owner(home: Path) -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    found = home.stat()
    return found.st_uid, found.st_gid


def _root(home: Path) -> Path:
    """What is above the folder is the runner's own, and may have links in it."""
    return home.parent.resolve() / home.name


def _do(home: Path, name: str, work: Callable[[Path], None]) -> None:
    home.mkdir(parents=True, exist_ok=True)
    root = _root(home)
    try:
        try:
            work(root)
        except beneath.Refused:
            beneath.remove(root, os.path.dirname(name) or name)
            work(root)
    except (beneath.Refused, FileExistsError) as error:
        raise CannotRun(f"The folder that the tool keeps for this task cannot be used: {error}") from None
