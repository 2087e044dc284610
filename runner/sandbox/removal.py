"""Removes a tree that hostile code filled: links, pipes, folders without permissions, thousands of levels.

The tree is walked with a single descriptor: down by name, up by `..`, where the folder above must be the one that was
left (by device and inode). So neither recursion nor open files limit the depth, and a folder that is moved away
meanwhile leads nowhere. Links are removed, never followed; other mounts are not entered.
"""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from . import beneath

# A file system may leave out names when others are removed during a listing, and a dying child may still add some.
_PASSES = 3

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    """A folder on the way down: its name in the one above, which folder it is, and the names in it still to remove."""

    name: str
    identity: tuple[int, int]
    pending: list[str]


class _Moved(Exception):
    """The folder above is not the one that was left."""


def remove_tree(root: Path) -> bool:
    """Remove `root`, an absolute path, and all below it; whether it is gone. Absent is gone.

    Works as root or as the owner of the tree, who need not have any permission on the folders in it. What cannot be
    removed stays, and the rest goes. Where `root` is a link or a file, that alone is removed.
    """
    try:
        above = beneath.open_directory(root.parent)
    except beneath.Refused:
        return not os.path.lexists(root)
    try:
        for _ in range(_PASSES):
            if _removed(above, root.name):
                return True
            # Gone only in part, or not a single folder could be opened: the next pass tells which.
            with contextlib.suppress(OSError, _Moved):
                _empty(above, root.name)
        return _removed(above, root.name)
    finally:
        os.close(above)


def _removed(directory: int, name: str) -> bool:
    """Whether the name is gone now: a folder only if it was empty."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except OSError:
        # EISDIR for a folder; POSIX also allows EPERM.
        try:
            os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            return True
        except OSError:
            return False
    return True


def _empty(above: int, name: str) -> None:
    """Remove all that can be removed from the folder. Raises OSError if it cannot be entered, _Moved."""
    here = _entered(above, name)
    try:
        levels = [_level(here, name)]
        while True:
            level = levels[-1]
            if level.pending:
                child = level.pending.pop()
                try:
                    entered = _entered(here, child)
                except OSError:
                    continue
                os.close(here)
                here = entered
                levels.append(_level(here, child))
            elif len(levels) > 1:
                levels.pop()
                left = os.open("..", _FOLDER, dir_fd=here)
                os.close(here)
                here = left
                if _identity(here) != levels[-1].identity:
                    raise _Moved
                _removed(here, level.name)
            else:
                return
    finally:
        os.close(here)


def _entered(directory: int, name: str) -> int:
    """The folder opened, with all permissions for its owner. Raises OSError, also where it is on another mount."""
    try:
        opened = beneath.opener(directory, [name], _FOLDER)
    except PermissionError:
        _grant(directory, name)
        return beneath.opener(directory, [name], _FOLDER)
    if os.fstat(opened).st_mode & stat.S_IRWXU != stat.S_IRWXU:
        with contextlib.suppress(PermissionError):
            os.fchmod(opened, stat.S_IRWXU)
    return opened


def _grant(directory: int, name: str) -> None:
    """Give the owner all permissions on a folder that cannot even be opened.

    A chmod by name could be led elsewhere by a link; this one goes to the folder that a descriptor holds.
    """
    held = beneath.opener(directory, [name], beneath.FOLDER)
    try:
        os.chmod(f"/proc/self/fd/{held}", stat.S_IRWXU)
    finally:
        os.close(held)


def _level(directory: int, name: str) -> _Level:
    """Remove the files and the empty folders of an open folder; the other folders are pending."""
    pending: list[str] = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        pending.extend(entry.name for entry in entries if not _removed(directory, entry.name))
    return _Level(name, _identity(directory), pending)


def _identity(directory: int) -> tuple[int, int]:
    found = os.fstat(directory)
    return found.st_dev, found.st_ino
