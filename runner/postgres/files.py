"""Files that are whole or absent, and a lock between processes."""

import fcntl
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .account import Account
from .errors import PostgresError

LOCK_WAIT = 60.0


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Hold an exclusive lock on the file, made if missing; it falls with the process, however that ends.

    Raises PostgresError if somebody else holds it for longer than LOCK_WAIT seconds.
    """
    deadline = time.monotonic() + LOCK_WAIT
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PostgresError(
                        f"Another process has kept the server locked for over {LOCK_WAIT:.0f} seconds.",
                        f"Wait for it or end it (it holds {path}), then try again.",
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def write_file(path: Path, text: str, account: Account | None = None, mode: int = 0o600) -> None:
    """Write a whole file, durably and at once or not at all, owned by `account` if given.

    It goes through a new file and a rename, so root never writes through a link planted by the account.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            if account is not None and account.switch:
                os.fchown(file.fileno(), account.uid, account.gid)
            file.flush()
            os.fsync(file.fileno())
        os.rename(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_file(path: Path) -> str:
    """The text of a file, refusing to follow a symbolic link. Raises OSError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8", errors="replace") as file:
        return file.read()


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
