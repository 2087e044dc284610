"""Copies of a login's files that all jails of a host share, and keeping them and the user's own files the same.

A tool with a subscription refreshes its tokens as it works, and most refresh tokens are good for one use: so all runs
of a login need one file between them, which they may write. The user's own is never shown to a child; what the
children make of the copy goes back only as long as it looks like the same login.

    <home>/logins/<key>/        the copies, writable for agents; <key>: the first 8 hex
                                digits of the SHA-256 of the path of the login's first file
    <home>/logins/<key>.json    digests of what was the same on both sides last; out of the agents' reach
    <home>/logins/<key>.lock    held while files are compared
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import beneath

log = logging.getLogger("taskyard.runner")

LIMIT = 64 << 10  # bytes of a file

State = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class LoginFile:
    """One file of a login.

    `returns`: what the tools write there goes back to the user's own file, if it is a JSON object with the keys that
    one has, and with the same values at `fixed` (keys from the outside in): whose login it is must stay.
    """

    name: str
    returns: bool = True
    fixed: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """What one side has; `changed` in seconds since the epoch."""

    content: bytes
    changed: float

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def share(source: Path, files: Sequence[LoginFile], home: Path, owner: tuple[int, int] | None = None) -> Path:
    """Bring both sides up to date; returns the folder with the copies, which jails may mount writable.

    `source` is the folder with the user's own files, `home` the runner's folder, `owner` user and group of the agents
    where they are not ours. Where both sides have changed the newer one stays. Files that the user does not have any
    more are taken from the agents too. Raises OSError, beneath.Refused.
    """
    source = source.resolve()
    root = home.resolve() / "logins"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    stage = root / hashlib.sha256(os.fsencode(source / files[0].name)).hexdigest()[:8]
    with _locked(stage.with_suffix(".lock")):
        stage.mkdir(mode=0o700, exist_ok=True)
        if owner is not None:
            os.chown(stage, *owner, follow_symlinks=False)
        states = _states(stage.with_suffix(".json"))
        now = {file.name: _settle(source, stage, file, states.get(file.name, {}), owner) for file in files}
        if states | now != states:
            _write(stage.with_suffix(".json"), json.dumps(states | now).encode())
    return stage


def _settle(
    source: Path, stage: Path, file: LoginFile, state: dict[str, str], owner: tuple[int, int] | None
) -> dict[str, str]:
    """One file on both sides; returns its state: the digest last in sync, and that of a copy that was refused."""
    own, copy = _own(source / file.name), _copy(stage, file.name)
    if own is None:
        beneath.remove(stage, file.name)
        return {}
    if copy is not None and copy.content == own.content:
        return {"synced": own.digest}
    synced = state.get("synced")
    if copy is not None and copy.digest != synced and (own.digest == synced or copy.changed > own.changed):
        reason = _objection(own.content, copy.content, file)
        if reason is None:
            if _give_back(source / file.name, own, copy.content):
                return {"synced": copy.digest}
            return state
        if state.get("refused") != copy.digest:
            # Tools that write in place may be at it right now: it is replaced only if it is the same next time.
            return {**state, "refused": copy.digest}
        log.warning("the copy of %s that agents share was put back: %s", source / file.name, reason)
    _place(stage, file.name, own.content, owner)
    return {"synced": own.digest}


def _own(path: Path) -> Copy | None:
    """The user's file; None if there is none."""
    try:
        with path.open("rb") as opened:
            content = opened.read(LIMIT + 1)
            changed = os.fstat(opened.fileno()).st_mtime
    except FileNotFoundError:
        return None
    if len(content) > LIMIT:
        raise OSError(f"{path} has more than {LIMIT} bytes")
    return Copy(content, changed)


def _copy(stage: Path, name: str) -> Copy | None:
    """The agents' file; None if there is none, or something else in its place. Its time is never in the future."""
    folder = beneath.open_directory(stage)
    try:
        content = beneath.read_bytes(stage, name, LIMIT)
        changed = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
    except (FileNotFoundError, beneath.Refused):
        return None
    finally:
        os.close(folder)
    return Copy(content, min(changed, time.time()))


def _objection(own: bytes, copy: bytes, file: LoginFile) -> str | None:
    """Why the user's file must not become like this; None if it may."""
    if not file.returns:
        return "it is not for agents to change"
    before, after = _object(own), _object(copy)
    if before is None or after is None:
        return "it is not a JSON object"
    if before.keys() != after.keys():
        return "it has other keys"
    for path in file.fixed:
        if _at(before, path) != _at(after, path):
            return f"its {'.'.join(path)} differs"
    return None


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType]


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return value  # pyright: ignore[reportUnknownVariableType]


def _place(stage: Path, name: str, content: bytes, owner: tuple[int, int] | None) -> None:
    """Write the agents' copy, whatever is in its place."""
    try:
        beneath.write_bytes(stage, name, content, 0o600, owner)
    except beneath.Refused:
        folder = beneath.open_directory(stage)
        try:
            os.rename(name, f"{name}.damaged-{time.time_ns()}", src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)
        beneath.write_bytes(stage, name, content, 0o600, owner)


def _give_back(path: Path, before: Copy, content: bytes) -> bool:
    """Replace the user's file, unless the user's own tools have changed it since it was read: then the next look tells.

    It stays its owner's, and where it is a link, that stays too.
    """
    path = path.resolve()
    stat = path.stat()
    draft = path.with_name(f".{path.name}.taskyard")
    draft.unlink(missing_ok=True)
    _write(draft, content, rename=False)
    try:
        if os.geteuid() == 0:
            os.chown(draft, stat.st_uid, stat.st_gid, follow_symlinks=False)
        now = _own(path)
        if now is None or now.content != before.content:
            return False
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _write(path: Path, content: bytes, rename: bool = True) -> None:
    """A new file of this user alone, in the place of an old one if `rename`."""
    draft = path.with_name(f"{path.name}.new") if rename else path
    if rename:
        draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
    if rename:
        os.replace(draft, path)


def _states(path: Path) -> State:
    try:
        found = _object(path.read_bytes())
    except FileNotFoundError:
        found = None
    return {name: state for name, state in (found or {}).items() if isinstance(state, dict)}


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
