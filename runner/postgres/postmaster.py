"""The running server's main process: is it there, and what did it say last.

The truth is `postmaster.pid` in the data folder, whose lines are described in PostgreSQL's
src/include/utils/pidfile.h. After a crash it stays behind, and its number may belong to any process.
"""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import psutil

from .files import read_file

START_LOG = "start.log"


@dataclass(frozen=True)
class Postmaster:
    """A running server. `listens` is the first TCP address it got, or empty."""

    pid: int
    port: int
    socket_dir: Path
    listens: str


def find_postmaster(data: Path) -> Postmaster | None:
    """The server running on the data folder, or None. Raises OSError if the folder may not be read."""
    try:
        lines = read_file(data / "postmaster.pid").splitlines()
    except FileNotFoundError:
        return None
    lines += [""] * (6 - len(lines))
    if not lines[0].isdigit() or not _serves(int(lines[0]), data):
        return None
    # The first lines are written at once, those about sockets a moment later.
    return Postmaster(int(lines[0]), int(lines[3]) if lines[3].isdigit() else 0, Path(lines[4]), lines[5].strip())


def clear_remains(data: Path, *socket_dirs: Path) -> None:
    """Remove what a server that was killed left behind. Call only under the lock, with no server running.

    PostgreSQL would refuse to start over these files if their process numbers belong to somebody else by now.
    That no process of the old server still uses the data is checked by PostgreSQL itself, by means of the
    shared memory segment named after the data folder's inode.
    """
    (data / "postmaster.pid").unlink(missing_ok=True)
    for folder in socket_dirs:
        for path in folder.glob(".s.PGSQL.*"):
            path.unlink(missing_ok=True)


def last_log(folder: Path) -> Path:
    """The log file written to last; the one of the next start if there is none."""
    logs: dict[Path, int] = {}
    for path in folder.glob("*.log"):
        with contextlib.suppress(FileNotFoundError):  # the next start removes its own, perhaps at this moment
            told = path.lstat()
            if stat.S_ISREG(told.st_mode):
                logs[path] = told.st_mtime_ns
    return max(logs, key=lambda path: logs[path], default=folder / START_LOG)


def log_tail(path: Path, lines: int = 10) -> str:
    """The last lines of a log file, or a word on why there are none."""
    try:
        return "\n".join(read_file(path).splitlines()[-lines:]) or "(the log is empty)"
    except OSError as error:
        return f"(no log: {error.strerror})"


def _serves(pid: int, data: Path) -> bool:
    """Whether the process is a PostgreSQL server on this data folder."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE or process.uids().effective != data.stat().st_uid:
                return False
            command = process.cmdline()
    except psutil.Error:
        return False
    # Children of some other server are titled like "postgres: checkpointer".
    if not command or os.path.basename(command[0]) != "postgres":
        return False
    try:
        return Path(process.cwd()).resolve() == data.resolve()
    except psutil.AccessDenied:
        # Root in a container without CAP_SYS_PTRACE. Assume the worst unless it names another folder.
        named = command[command.index("-D") + 1 :][:1] if "-D" in command else []
        return not named or not os.path.isabs(named[0]) or Path(named[0]).resolve() == data.resolve()
    except psutil.Error:
        return False
