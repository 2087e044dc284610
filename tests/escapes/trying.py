"""Trying something, and what came of it. Standard library alone, any Python since 3.9."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from typing import Any

World = dict[str, Any]
Answers = dict[str, str]


class Wanted:
    """What must not be seen; main() knows it from the world."""

    secret = b""


def tried(action: Callable[..., object], *arguments: object) -> str:
    try:
        result = action(*arguments)
    except OSError as failed:
        return errno.errorcode.get(failed.errno or 0, type(failed).__name__)
    except (MemoryError, ValueError, subprocess.SubprocessError) as failed:
        return type(failed).__name__
    return result if isinstance(result, str) else "done"


def holds(content: bytes) -> str:
    return "done" if Wanted.secret in content else "nothing"


def reads(path: str) -> str:
    def content() -> str:
        with open(path, "rb") as file:
            return holds(file.read(1 << 20))

    return tried(content)


def writes(path: str, flags: int = os.O_CREAT) -> str:
    def write() -> None:
        descriptor = os.open(path, os.O_WRONLY | flags, 0o600)
        with open(descriptor, "wb") as file:
            file.write(b"written by the attacker")

    return tried(write)


def opens(path: str, flags: int) -> str:
    return tried(lambda: os.close(os.open(path, flags, 0o600)))
