"""What hostile code does to folders, and being an ordinary user while it is dealt with."""

import contextlib
import errno
import fcntl
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar, cast

Result = TypeVar("Result")

SECRET = b"the secret outside"
NOBODY = 65534

# renameat2(2): AT_FDCWD is -100, RENAME_EXCHANGE is 2.
_EXCHANGE = """
import ctypes, os, sys
renameat2 = ctypes.CDLL(None).renameat2
first, second = map(os.fsencode, sys.argv[1:])
while True:
    renameat2(-100, first, -100, second, 2)
"""


@contextlib.contextmanager
def exchanging(first: Path, second: Path) -> Generator[None]:
    """Another process exchanges the two names, as fast as it can; entered once it does."""
    before = first.is_symlink()
    process = subprocess.Popen([sys.executable, "-c", _EXCHANGE, str(first), str(second)])
    try:
        while first.is_symlink() == before:
            assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()


def planted(folder: Path) -> Path:
    """A folder of an agent, `work` below `folder`, with everything in it that could lead a reader or writer astray.

    Beside it is `outside`, with a secret.
    """
    outside, work = folder / "outside", folder / "work"
    outside.mkdir(parents=True)
    (outside / "secret").write_bytes(SECRET)
    (work / "sub").mkdir(parents=True)
    for name in ("ok.txt", "sub/ok.txt", "café.txt"):
        (work / name).write_bytes(b"inside")
    for name, target in {
        "absolute": outside / "secret",
        "relative": "../outside/secret",
        "inward": "ok.txt",
        "loop": "loop",
        "outward": outside,
        "up": "..",
        "inner": "sub",
        "cwd": "/proc/self/cwd",
        "root": "/proc/self/root",
        "environ": "/proc/self/environ",
        "descriptor": "/proc/self/fd/0",
        "zero": "/dev/zero",
        "nowhere": outside / "new",
    }.items():
        (work / name).symlink_to(target)
    os.mkfifo(work / "pipe")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener, _inside(work):
        listener.bind("socket")  # by a short name: paths of sockets have at most 108 bytes
    os.link(outside / "secret", work / "hard")
    with open(work / "sparse", "wb") as sparse:
        _stretch(sparse.fileno())
    if os.geteuid() == 0:
        os.mknod(work / "device", 0o20666, os.makedev(1, 5))  # /dev/zero
    return work


def deep(folder: Path, levels: int, mode: int) -> None:
    """Make `levels` folders below each other in `folder`, each with a name of one file, and set their mode."""
    here = os.open(folder, os.O_RDONLY)
    os.mknod("f", dir_fd=here)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.link("f", "f", src_dir_fd=here, dst_dir_fd=below)
        os.fchmod(here, mode)
        os.close(here)
        here = below
    os.fchmod(here, mode)
    os.close(here)


def as_ordinary_user(action: Callable[[], Result]) -> Result:
    """The result of `action` in a child process of an account without rights; in this one if we are no root."""
    return in_child(action, NOBODY) if os.geteuid() == 0 else action()


def in_child(action: Callable[[], Result], account: int | None = None) -> Result:
    """The result of `action` in a forked process, which first becomes `account`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if account is not None:
                os.setgroups([])
                os.setresgid(account, account, account)
                os.setresuid(account, account, account)
            os.write(writer, pickle.dumps(action()))
            os._exit(0)
        except BaseException as error:
            os.write(writer, pickle.dumps(repr(error)))
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as results:
        result = pickle.load(results)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, result
    return cast(Result, result)


@contextlib.contextmanager
def leased(file: Path) -> Generator[None]:
    """Hold a write lease on a file: whoever opens it without O_NONBLOCK waits 45 seconds for us."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


@contextlib.contextmanager
def _inside(folder: Path) -> Generator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _stretch(descriptor: int) -> None:
    """To a petabyte, or what the file system can do (ext4: 16 TiB)."""
    try:
        os.truncate(descriptor, 1 << 50)
    except OSError as error:
        assert error.errno == errno.EFBIG
        os.truncate(descriptor, 1 << 43)
