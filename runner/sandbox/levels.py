"""How the children of a runner are confined: what its operator chose, and whether this host can do it.

strict     each child in a jail of its own (bubblewrap), which enforces its scope; the default
container  the runner itself is in a container made for it, which is the sandbox; enforces no scope
none       nothing: each child can do what the runner's user can; only for who says so twice

Tasks and agents have no say in it. There is no falling back: a host that cannot do what was chosen claims nothing.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..postgres.account import Account
from .account import agent_account
from .errors import SandboxError
from .probe import probe

Level = Literal["strict", "container", "none"]
LEVELS: tuple[Level, ...] = get_args(Level)

# What container engines leave in their containers: Docker, Podman and CRI-O, systemd-nspawn and LXC (container=...).
MARKS = (".dockerenv", "run/.containerenv")
PR_SET_DUMPABLE = 4  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Confinement:
    """A level, tried out. `trouble` says why it cannot be had here and what to do; `account` runs jailed children."""

    level: Level
    account: Account | None = None
    trouble: str | None = None
    version: str | None = None

    def told(self) -> dict[str, str]:
        """As register_runner() takes it."""
        told: dict[str, str] = {"level": self.level}
        return told if self.trouble is None else {**told, "trouble": self.trouble}


def examine(level: Level, environ: Mapping[str, str], root: Path = Path("/")) -> Confinement:
    """Try it out, which takes some 0.2 s; not from within a running event loop. `root`: where the host's files are."""
    if level == "none":
        return Confinement(level)
    if level == "container":
        if in_container(environ, root):
            return Confinement(level)
        cause = "This is no container, so nothing is around the runner that could be its sandbox."
        return Confinement(level, trouble=f"{cause}\nUse --sandbox strict.")
    try:
        account = agent_account()
        usable = probe(account)
    except SandboxError as error:
        return Confinement(level, trouble=str(error))
    return Confinement(level, account, version=usable.version)


def in_container(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether a container engine says that we are in one of its containers."""
    return (
        any((root / mark).exists() for mark in MARKS)
        or "KUBERNETES_SERVICE_HOST" in environ
        or bool(environ.get("container"))
    )


def close_own_memory() -> None:
    """Keep other processes of our user from reading our memory and environment, which hold the way into the database.

    A jailed child sees no such process at all; this is for the levels without a jail.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
