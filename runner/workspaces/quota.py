"""How much of the disk a task's folders use. What is in them was written by an agent."""

import asyncio
import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..sandbox import beneath

EVERY = 60.0  # seconds
DEFAULT = 20 << 30  # bytes
BLOCK = 512  # bytes; the unit of st_blocks (inode(7))

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    """A folder on the way down: which it is, and those in it that are still to be looked into."""

    identity: tuple[int, int]
    pending: list[str]


async def over_quota(folders: Sequence[Path], limit: int, every: float = EVERY) -> str:
    """Returns, with a sentence, once these folders together use more than `limit` bytes. `every` is in seconds."""
    while True:
        taken = sum([await asyncio.to_thread(used, folder) for folder in folders])
        if taken > limit:
            return f"Its files took {_size(taken)} of this host's disk; {_size(limit)} are allowed."
        await asyncio.sleep(every)


def used(root: Path) -> int:
    """Bytes on the disk below a folder: holes in files count nothing, and files of several names once.

    Links are not followed, other mounts not entered; what cannot be read counts nothing. One descriptor walks the tree,
    so it may be as deep as it likes (see sandbox/removal.py).
    """
    try:
        held = beneath.open_directory(root)
    except beneath.Refused:
        return 0
    try:
        here = os.open(".", _FOLDER, dir_fd=held)
    except OSError:
        return 0
    finally:
        os.close(held)
    seen: set[tuple[int, int]] = set()
    level, total = _level(here, seen)
    levels = [level]
    try:
        while True:
            level = levels[-1]
            if level.pending:
                with contextlib.suppress(OSError):
                    below = beneath.opener(here, [level.pending.pop()], _FOLDER)
                    os.close(here)
                    here = below
                    level, size = _level(here, seen)
                    levels.append(level)
                    total += size
            elif len(levels) > 1:
                levels.pop()
                above = os.open("..", _FOLDER, dir_fd=here)
                os.close(here)
                here = above
                if _identity(os.fstat(here)) != levels[-1].identity:
                    return total  # moved meanwhile: the next look is soon
            else:
                return total
    except OSError:
        return total
    finally:
        os.close(here)


def _level(directory: int, seen: set[tuple[int, int]]) -> tuple[_Level, int]:
    """A folder, and what is directly in it."""
    own = os.fstat(directory)
    pending: list[str] = []
    total = own.st_blocks * BLOCK
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    pending.append(entry.name)
                    continue
                if found.st_nlink > 1:
                    if _identity(found) in seen:
                        continue
                    seen.add(_identity(found))
                total += found.st_blocks * BLOCK
    return _Level(_identity(own), pending), total


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _size(number: int) -> str:
    return f"{number / (1 << 30):.1f} GiB" if number >= 1 << 29 else f"{number / (1 << 20):.1f} MiB"
