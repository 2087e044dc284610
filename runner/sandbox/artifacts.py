"""Collects the files that an attempt left in a folder. Whoever wrote them is hostile, and may still be writing.

Folders are walked by descriptors and files are read from the one descriptor that was checked, so what is reported is
what was read. Links are not followed, pipes and devices are not opened, and everything has a cap: depth, entries,
files, bytes kept and bytes hashed.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import beneath

MOST_LEVELS = 64
# In bytes, of one file and of all whose content is not kept: a sparse file costs its writer nothing, but the reader its
# full size.
STREAMED_LIMIT = 1 << 30
ALL_STREAMED_LIMIT = 4 << 30

_PIECE = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Artifact:
    """A regular file as it was read.

    `path` is relative, with `/`, and valid text for PostgreSQL; `size` is in bytes; `sha256` is hexadecimal; `content`
    is None where the file is larger than the limit for content.
    """

    path: str
    size: int
    sha256: str
    content: bytes | None


@dataclass
class Collected:
    """The artifacts in the order of their names, and what was not taken.

    `refused` holds (path in printable characters, reason in one sentence). `complete` is False where a cap ended the
    walk: then there is more that neither list names.
    """

    artifacts: list[Artifact] = field(default_factory=list[Artifact])
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    complete: bool = True


class _Unfit(Exception):
    """A file that is no artifact; the message is a sentence."""


class _CapReached(Exception):
    """The walk ends here."""


def collect(
    root: Path,
    *,
    content_limit: int = 4 << 20,
    total_limit: int = 64 << 20,
    most_files: int = 200,
    most_entries: int = 10_000,
) -> Collected:
    """The regular files below `root`.

    `content_limit` is in bytes per file: of larger ones only size and hash are taken, and those above STREAMED_LIMIT
    are refused. `total_limit` is in bytes of content in all, `most_files` counts artifacts, `most_entries` every name
    that is looked at: the walk ends at the first that is over one of these. Files with several hard links are taken, as
    tools make them and the sandbox lets none be made to a file outside.

    Raises beneath.Refused where `root` is not a folder that can be read.
    """
    path = beneath.open_directory(root)
    try:
        top = os.open(".", _FOLDER, dir_fd=path)
    except OSError as error:
        raise beneath.Refused(f"'{beneath.shown(str(root))}' is refused: {beneath.reason(error)}.") from error
    finally:
        os.close(path)
    collector = _Collector(content_limit, total_limit, most_files, most_entries)
    try:
        collector.folder(top, "", 1)
    except _CapReached:
        collector.found.complete = False
    finally:
        os.close(top)
    return collector.found


class _Collector:
    """The walk, and what is left of its caps."""

    def __init__(self, content_limit: int, total_limit: int, most_files: int, most_entries: int) -> None:
        self.found = Collected()
        self._content_limit = content_limit
        self._content_left = total_limit
        self._streamed_left = ALL_STREAMED_LIMIT
        self._files_left = most_files
        self._entries_left = most_entries

    def folder(self, directory: int, prefix: str, level: int) -> None:
        """Take all below an open folder, whose path with its closing slash is `prefix`. At most MOST_LEVELS deep."""
        names, all_named = self._names(directory)
        for name in names:
            try:
                self._entry(directory, name, prefix + name, level)
            except _Unfit as unfit:
                self.found.refused.append((beneath.shown(prefix + name), str(unfit)))
            except OSError as error:
                sentence = beneath.reason(error)
                self.found.refused.append((beneath.shown(prefix + name), f"{sentence[0].upper()}{sentence[1:]}."))
        if not all_named:
            raise _CapReached

    def _names(self, directory: int) -> tuple[list[str], bool]:
        """The names in a folder in order, as far as the cap on entries goes, and whether that is all of them."""
        names: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if not self._entries_left:
                    return sorted(names), False
                self._entries_left -= 1
                names.append(entry.name)
        return sorted(names), True

    def _entry(self, directory: int, name: str, path: str, level: int) -> None:
        # Only spares pipes and devices the opening; what counts is what was opened.
        kind = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if stat.S_ISLNK(kind):
            raise _Unfit("It is a link.")
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise _Unfit("It is neither a file nor a folder.")
        if fault := beneath.fault(path):
            raise _Unfit(f"Its path cannot be kept: {fault}.")
        if stat.S_ISDIR(kind):
            if level == MOST_LEVELS:
                raise _Unfit(f"It is more than {MOST_LEVELS} folders deep.")
            self._opened(directory, name, _FOLDER, lambda opened: self.folder(opened, path + "/", level + 1))
        else:
            self._opened(directory, name, _FILE, lambda opened: self._file(opened, path))

    def _opened(self, directory: int, name: str, flags: int, use: Callable[[int], None]) -> None:
        descriptor = beneath.opener(directory, [name], flags)
        try:
            use(descriptor)
        finally:
            os.close(descriptor)

    def _file(self, descriptor: int, path: str) -> None:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        if found.st_size > STREAMED_LIMIT:
            raise _Unfit(f"It is larger than {STREAMED_LIMIT} bytes.")
        if found.st_size > self._content_limit and found.st_size > self._streamed_left:
            raise _Unfit(f"The files too large to keep are more than {ALL_STREAMED_LIMIT} bytes together.")
        if not self._files_left:
            raise _CapReached
        artifact = self._read(descriptor, path, found.st_size)
        if artifact.content is not None:
            if artifact.size > self._content_left:
                raise _CapReached
            self._content_left -= artifact.size
        self._files_left -= 1
        self.found.artifacts.append(artifact)

    def _read(self, descriptor: int, path: str, expected: int) -> Artifact:
        digest = hashlib.sha256()
        kept: list[bytes] | None = []
        size = 0
        most = min(expected + self._content_limit, STREAMED_LIMIT)
        while piece := os.read(descriptor, min(_PIECE, most + 1 - size)):
            size += len(piece)
            if size > most:
                raise _Unfit("It grows while it is read.")
            digest.update(piece)
            if size > self._content_limit:
                kept = None
                self._streamed_left -= len(piece)
            elif kept is not None:
                kept.append(piece)
        return Artifact(path, size, digest.hexdigest(), None if kept is None else b"".join(kept))
