"""Files below a folder that hostile code writes to: opened by the kernel's own rules, never by a path checked before.

A path that was resolved and found good can be exchanged for a link before it is opened (`pathlib.resolve` lost that
race 210 times in 2.5 seconds). So no path is resolved here at all: one openat2 call refuses links, magic links, `..`
and other mounts on every component (openat2(2), Linux 5.6), and where the kernel or a seccomp filter has no openat2,
each component is opened from the one before it.

Every refusal is a `Refused`, and its message says nothing of what a link points to or a file holds.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

# linux/openat2.h. The number of the system call is the same on every architecture but alpha.
_OPENAT2 = 437
_NO_XDEV = 0x01
_NO_MAGICLINKS = 0x02
_NO_SYMLINKS = 0x04
_BENEATH = 0x08

# EAGAIN means a rename elsewhere, which passes at once, or a lease (fcntl F_SETLEASE) that its holder, who may be
# hostile, need not give up for 45 seconds: so the retries are counted.
_TRIES = 32

# The flags that open a folder as a place to start from, whatever its permissions. Linux alone has O_PATH; elsewhere the
# runner must at least be able to remove its folders.
_PATH: int = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)
FOLDER = _PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LONGEST_COMPONENT = 255
_LONGEST_PATH = 4095
_SHOWN = 300

# Control characters, the separators of lines and paragraphs, and what turns the direction of text.
_UNSEEMLY = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_DRIVE = re.compile("[A-Za-z]:")

_REASONS = {
    errno.ELOOP: "a link is in the way",
    errno.ENOTDIR: "a part of it is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EXDEV: "it leads to another file system",
    errno.ENXIO: "it is not a regular file",
    errno.EAGAIN: "another process keeps it from being opened",
}


class Refused(Exception):
    """A path that is not opened, read or written; the message is one sentence."""


class Opener(Protocol):
    """Opens what `parts` lead to from the folder `directory`, following no link; never creates.

    `crossing`: other mounts may be crossed. Returns a descriptor, raises OSError. Each of `parts` is one component, not
    `..`; none at all means the folder itself.
    """

    def __call__(self, directory: int, parts: Sequence[str], flags: int, *, crossing: bool = False) -> int: ...


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def by_openat2(directory: int, parts: Sequence[str], flags: int, *, crossing: bool = False) -> int:
    """One system call for the whole path; see Opener."""
    resolve = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS | (0 if crossing else _NO_XDEV)
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    path = os.fsencode("/".join(parts) or ".")
    failure = errno.EAGAIN
    for _ in range(_TRIES):
        descriptor: int = _syscall(_OPENAT2, directory, path, ctypes.byref(how), ctypes.sizeof(how))
        if descriptor >= 0:
            return descriptor
        failure = ctypes.get_errno()
        if failure not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(failure, os.strerror(failure))


def by_walking(directory: int, parts: Sequence[str], flags: int, *, crossing: bool = False) -> int:
    """One open per component, each from the one before it; see Opener.

    Mounts are known by the device of their folders, so a mount of the same file system is not noticed. (The device of a
    file says nothing: on overlayfs it differs from that of the folder it is in.)
    """
    device = os.fstat(directory).st_dev
    here = directory
    try:
        for count, part in enumerate(parts or ["."], start=1):
            last = count >= len(parts)
            opened = os.open(part, (flags if last else FOLDER) | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            if here != directory:
                os.close(here)
            here = opened
            found = os.fstat(here)
            # O_PATH with O_NOFOLLOW opens the link itself.
            if stat.S_ISLNK(found.st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if stat.S_ISDIR(found.st_mode) and found.st_dev != device and not crossing:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    except OSError:
        if here != directory:
            os.close(here)
        raise
    return here


def _has_openat2() -> bool:
    """ENOSYS before Linux 5.6; EPERM from the seccomp filters of older container engines."""
    if sys.platform != "linux":
        return False
    try:
        os.close(by_openat2(-100, (), FOLDER))  # AT_FDCWD
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    return True


# Which of the two everything here opens with.
opener: Opener = by_openat2 if _has_openat2() else by_walking


def components(name: str) -> list[str]:
    """The components of a relative path, or Refused.

    Names are taken literally: nothing is decoded, normalised or expanded, so `..%2f` and `~` are names of files. What
    other systems or people would read as something else is refused: backslashes, drive letters, control characters and
    what turns the direction of text.
    """
    if why := fault(name):
        raise Refused(f"'{shown(name)}' is refused: {why}.")
    return name.split("/")


def fault(name: str) -> str | None:
    """Why `components` refuses a path, as a clause; None where it does not."""
    if not name:
        return "it is empty"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "it is not valid text"
    if len(encoded) > _LONGEST_PATH:
        return "it is too long"
    if _UNSEEMLY.search(name):
        return "it has control characters"
    if "\\" in name:
        return "it has a backslash"
    if name.startswith("/"):
        return "it is absolute"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "it has an empty component, '.' or '..'"
        if _DRIVE.match(part):
            return "it has a drive letter"
        if len(part) > _LONGEST_COMPONENT // 4 and len(part.encode("utf-8")) > _LONGEST_COMPONENT:
            return "one of its components is too long"
    return None


def shown(name: str) -> str:
    """`name` in printable characters; only its beginning where it is long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name[:_SHOWN])
    return text if len(name) <= _SHOWN else text + "…"


def open_directory(path: Path) -> int:
    """An O_PATH descriptor of a folder, by an absolute path in which no component is a link. Mounts may be crossed.

    Raises Refused, also where it is absent.
    """
    return _open_absolute(path, FOLDER)


def open_path(path: Path) -> int:
    """The same as `open_directory` for a folder or a regular file."""
    descriptor = _open_absolute(path, _PATH)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return descriptor
    os.close(descriptor)
    raise Refused(f"'{shown(str(path))}' is refused: it is neither a folder nor a regular file.")


def read_bytes(root: Path, name: str, limit: int, *, single_link: bool = True) -> bytes:
    """The content of a regular file of at most `limit` bytes; never blocks on a pipe, a device or a lease.

    `single_link`: a file with further hard links is refused, since another of its names may be outside. A child in the
    sandbox cannot make such a link, as each of its folders is a mount of its own.

    Raises FileNotFoundError where nothing has this name, Refused otherwise.
    """
    parts = components(name)
    directory = open_directory(root)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
        descriptor = opener(directory, parts, flags)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
    except OSError as error:
        raise _refused(name, error) from error
    finally:
        os.close(directory)
    try:
        return _content(descriptor, name, limit, single_link)
    except OSError as error:
        raise _refused(name, error) from error
    finally:
        os.close(descriptor)


def write_bytes(root: Path, name: str, content: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """Make a file, or put one in the place of whatever file, link or pipe has its name; readers see the old or the new.

    Missing folders on the way are made (mode 0700). `owner` is the (uid, gid) that the file and those folders are given
    to; only root can give. It is not synced to the disk. Raises Refused.
    """
    *above, last = components(name)
    directory = open_directory(root)
    try:
        directory = _made(directory, above, owner)
        _replace(directory, last, content, mode & 0o777, owner)
    except OSError as error:
        raise _refused(name, error) from error
    finally:
        os.close(directory)


def make_directory(root: Path, name: str, owner: tuple[int, int] | None = None) -> None:
    """Make a folder and those above it (mode 0700, given to `owner`); one that is there stays as it is.

    Raises Refused.
    """
    parts = components(name)
    directory = open_directory(root)
    try:
        directory = _made(directory, parts, owner)
    except OSError as error:
        raise _refused(name, error) from error
    finally:
        os.close(directory)


def remove(root: Path, name: str) -> None:
    """Remove a file, link or pipe; one that is absent is fine. Raises Refused, also for a folder."""
    *above, last = components(name)
    directory = open_directory(root)
    try:
        parent = opener(directory, above, FOLDER)
        try:
            os.unlink(last, dir_fd=parent)
        finally:
            os.close(parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refused(name, error) from error
    finally:
        os.close(directory)


def reason(error: OSError) -> str:
    """Why the kernel refused, as a clause."""
    code = error.errno or errno.EIO
    return _REASONS.get(code) or os.strerror(code).lower()


def _refused(name: str, error: OSError) -> Refused:
    return Refused(f"'{shown(name)}' is refused: {reason(error)}.")


def _open_absolute(path: Path, flags: int) -> int:
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise Refused(f"'{shown(str(path))}' is refused: it is not an absolute path without '..'.")
    try:
        base = os.open("/", FOLDER)
        try:
            return opener(base, path.parts[1:], flags, crossing=True)
        finally:
            os.close(base)
    except OSError as error:
        raise _refused(str(path), error) from error


def _content(descriptor: int, name: str, limit: int, single_link: bool) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"'{shown(name)}' is refused: it is not a regular file.")
    if single_link and found.st_nlink > 1:
        raise Refused(f"'{shown(name)}' is refused: it has further hard links.")
    pieces: list[bytes] = []
    size = 0
    # It may grow while it is read; one byte more than allowed is enough to know.
    wanted = min(found.st_size, limit) + 1
    while found.st_size <= limit and size <= limit:
        piece = os.read(descriptor, min(wanted, limit + 1 - size))
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
    raise Refused(f"'{shown(name)}' is refused: it is larger than {limit} bytes.")


def _made(directory: int, parts: Sequence[str], owner: tuple[int, int] | None) -> int:
    """The folder at `parts`, made where it is missing. Closes `directory`, unless it raises OSError."""
    here = directory
    try:
        for part in parts:
            try:
                opened = opener(here, [part], FOLDER)
            except FileNotFoundError:
                opened = _made_here(here, part, owner)
            if here != directory:
                os.close(here)
            here = opened
    except OSError:
        if here != directory:
            os.close(here)
        raise
    if here != directory:
        os.close(directory)
    return here


def _made_here(directory: int, part: str, owner: tuple[int, int] | None) -> int:
    try:
        os.mkdir(part, 0o700, dir_fd=directory)
    except FileExistsError:
        return opener(directory, [part], FOLDER)
    if owner is None:
        return opener(directory, [part], FOLDER)
    # Not by O_PATH, which cannot be chowned; and only what is still ours: it may have been exchanged since it was made.
    made = opener(directory, [part], os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(made).st_uid == os.geteuid():
            os.fchown(made, *owner)
    except OSError:
        os.close(made)
        raise
    return made


def _replace(directory: int, last: str, content: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    temporary = f".taskyard-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        os.rename(temporary, last, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
