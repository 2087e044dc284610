"""How to start a tool in a jail: by one execve, and with no more of the host to be seen than the tool itself.

A child that may not execute starts a single program: a script that `env` would start (npm's launchers begin with
`#!/usr/bin/env node`) is therefore given to its interpreter here. What is below /usr is in every jail.
"""

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from .base import Run

SYSTEM = tuple(Path(name) for name in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"))
STORES = ("/nix/store",)  # folders of nothing but programs, which need each other
FIRST_LINE = 4096  # bytes


def start(run: Run, executable: str) -> tuple[list[str], tuple[Path, ...]]:
    """The first words of Launch.argv, and Launch.programs. Without a sandbox the tool is started as it is."""
    if run.gateway is None:
        return [executable], ()
    words = command(executable, run.environ)
    return words, needed(words)


def find(name: str, run: Run) -> tuple[list[str], tuple[Path, ...]]:
    """The same for a jailed command by its name or path, where this host has it outside of the workspace."""
    found = shutil.which(name, path=run.environ.get("PATH")) if os.path.isabs(name) or "/" not in name else None
    if found is None or Path(found).is_relative_to(run.workspace):
        return [name], ()
    words = command(found, run.environ)
    return words, needed(words)


def command(executable: str, environ: Mapping[str, str]) -> list[str]:
    """What the kernel and `env` would make of this program: its real path, after its interpreter if it is a script.

    A binary keeps its name where that is seen too, since some go by it: the system's (busybox is many), and a Python
    environment's, which looks for its packages beside it.
    """
    program = os.path.realpath(executable)
    if interpreter := _interpreter(program, environ):
        return [*interpreter, program]
    given = Path(os.path.realpath(os.path.dirname(executable)), os.path.basename(executable))
    if (given.parent.parent / "pyvenv.cfg").is_file():
        return [str(given)]
    return [executable if _of_system(Path(executable)) else program]


def needed(words: list[str]) -> tuple[Path, ...]:
    """All that is outside of the system's folders and needed by these programs, each an absolute path."""
    found = dict.fromkeys(place for word in words if word.startswith("/") for place in installation(word))
    return tuple(place for place in found if not any(parent in found for parent in place.parents))


def installation(executable: str) -> tuple[Path, ...]:
    """Directories and files that a program needs besides the system's: empty for one that came with it.

    For npm's packages the outermost node_modules, for an interpreter of Node.js or Python its own prefix, for a Python
    environment that as well; for any other program the file alone. Never the user's home, nor a hidden folder of it
    (such as ~/.local): more than programs is in there.
    """
    given, real = Path(os.path.abspath(executable)), Path(os.path.realpath(executable))
    environment = given.parent.parent
    if (environment / "pyvenv.cfg").is_file() and _dedicated(environment):
        return _outside(environment.resolve(), *installation(str(real)))
    if "node_modules" in real.parts:
        outermost = real.parts.index("node_modules")
        return _outside(Path(*real.parts[: outermost + 1]))
    store = next((Path(store) for store in STORES if real.is_relative_to(store)), None)
    if store is not None:
        return (store,)
    prefix = real.parent.parent
    libraries = ("include/node", f"lib/{real.name}")  # the latter as in lib/python3.11
    if real.parent.name == "bin" and _dedicated(prefix) and any((prefix / name).is_dir() for name in libraries):
        return _outside(prefix)
    return _outside(real)


def _interpreter(program: str, environ: Mapping[str, str]) -> list[str]:
    """The interpreter of a script with its arguments; empty for a binary, and where it is not to be found."""
    try:
        with open(program, "rb") as file:
            line = file.readline(FIRST_LINE)
        if not line.startswith(b"#!"):
            return []
        path, _, rest = line[2:].decode().strip().partition(" ")
        if os.path.basename(path) != "env":
            return [path, *([rest.strip()] if rest.strip() else [])]
        words = shlex.split(rest)
    except (OSError, ValueError):
        return []
    if words and words[0] in ("-S", "--split-string"):
        words = words[1:]
    found = shutil.which(words[0], path=environ.get("PATH")) if words else None
    return [os.path.realpath(found), *words[1:]] if found else []


def _dedicated(prefix: Path) -> bool:
    """Whether a folder is a program's alone. ~/.local is not; nor is the user's home, nor what that is in."""
    home = Path.home()
    hidden_in_home = prefix.parent == home and prefix.name.startswith(".") and not (prefix / "pyvenv.cfg").is_file()
    return len(prefix.parts) > 2 and not home.is_relative_to(prefix) and not hidden_in_home


def _outside(*places: Path) -> tuple[Path, ...]:
    return tuple(place for place in places if not _of_system(place))


def _of_system(path: Path) -> bool:
    return any(path.is_relative_to(system) for system in SYSTEM)
