"""Where the server lives: its folder, its socket folder and its TCP port."""

import contextlib
import hashlib
import json
import os
import random
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from .account import Account
from .errors import PostgresError
from .files import write_file

# sizeof(sockaddr_un.sun_path) less the closing zero byte: unix(7), and sys/un.h of macOS and the BSDs.
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
# Below the ephemeral ports of every system, so that outgoing connections do not take ours while it is down.
PORTS = range(20000, 32000)
# pg_ctl hands paths to a shell within double quotes; a newline would end a line of the configuration file.
UNUSABLE_CHARACTERS = set('"$`\\\n')


@dataclass(frozen=True)
class Address:
    """How to reach the server, as kept in server.json.

    `version` is that of the programs last started. `lan` is the range of addresses whose hosts may connect, or empty;
    `tls` whether they do so encrypted.
    """

    port: int
    socket_dir: Path
    version: str
    lan: str = ""
    tls: bool = False

    def save(self, path: Path) -> None:
        """Write it to a JSON file."""
        write_file(path, json.dumps(asdict(self), default=str, indent=2) + "\n", mode=0o644)

    @classmethod
    def load(cls, path: Path) -> "Address | None":
        """Read it back; None if the file is missing or damaged, since another can be chosen."""
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            lan, tls = str(kept.get("lan", "")), bool(kept.get("tls", False))
            return cls(int(kept["port"]), Path(kept["socket_dir"]), str(kept["version"]), lan, tls)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def default_home() -> Path:
    """TASKYARD_HOME; without it /var/lib/taskyard for root, and the user's data folder for others."""
    if named := os.environ.get("TASKYARD_HOME"):
        return Path(named)
    return Path("/var/lib/taskyard") if os.geteuid() == 0 else platformdirs.user_data_path("taskyard")


def prepare_home(home: Path, account: Account) -> None:
    """Make the folder and those in it that are missing; permissions of what exists stay as they are.

    Raises PostgresError if the folder cannot serve the account, OSError if it cannot be made.
    """
    if UNUSABLE_CHARACTERS & set(str(home)):
        raise PostgresError(
            f"The folder {str(home)!r} has a character in its name that PostgreSQL's programs cannot take.",
            "Set TASKYARD_HOME to a folder without quotes, dollar signs, backslashes and line breaks.",
        )
    for folder in reversed([home, *home.parents]):
        _make_folder(folder, 0o755 if account.switch else 0o700)
    if account.switch:
        found = home.stat()
        if found.st_uid != 0 or found.st_mode & 0o022:
            raise PostgresError(
                f"The folder {home} can be changed by others than root, so root cannot keep a server in it.",
                "Run taskyard as the folder's owner, or set TASKYARD_HOME to a folder of root's.",
            )
        if not account.can_enter(home):
            raise PostgresError(
                f"The account '{account.name}', which runs the server for root, cannot enter {home}.",
                "Set TASKYARD_HOME to a folder that every user can enter, such as /var/lib/taskyard.",
            )
    _make_folder(home / "secrets", 0o700)
    for name, mode in (("run", 0o755), ("log", 0o700)):
        if not (home / name).exists():
            (home / name).mkdir(0o700)
            account.own(home / name, mode)


def socket_folder(home: Path, account: Account) -> Path:
    """`run` in the home, or if that is too long for a socket's address, a short folder of the account's own.

    Raises PostgresError if such a folder exists and may be somebody else's.
    """
    folder = next((path for path in _socket_places(home, account) if _fits(path)), None)
    if folder is None:
        raise PostgresError(
            f"No folder is short enough for the server's Unix socket: {home}",
            "Set TASKYARD_HOME to a shorter path.",
        )
    if folder == home / "run":
        return folder
    # In a folder like /tmp anybody can make the name first. Then the owner gives them away.
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)
    found = folder.lstat()
    plain = folder.is_dir() and not folder.is_symlink() and not found.st_mode & 0o022
    if not plain or found.st_uid not in (account.uid, os.geteuid()):
        raise PostgresError(
            f"{folder} is meant for the server's socket, but somebody else made it.",
            "Remove it, or set TASKYARD_HOME to a shorter path.",
        )
    account.own(folder, 0o755 if account.switch else 0o700)
    return folder


def choose_port(kept: Address | None, others: Sequence[str] = ()) -> int:
    """The kept port if nobody else listens on it, else another that is free on loopback and the other addresses.

    Raises PostgresError where none is.
    """
    if kept is not None and port_is_free(kept.port, others):
        return kept.port
    for port in random.SystemRandom().sample(PORTS, 100):
        if port_is_free(port, others):
            return port
    raise PostgresError(
        f"None of a hundred TCP ports tried between {PORTS.start} and {PORTS.stop} is free.",
        "Look at what listens on this machine (ss -ltn), then try again.",
    )


def port_is_free(port: int, others: Sequence[str] = ()) -> bool:
    """Whether a server could listen on the port on every loopback address, and on the others."""
    return all(_can_bind(address, port) for address in (*loopback_addresses(), *others))


def loopback_addresses() -> list[str]:
    """127.0.0.1, and ::1 where IPv6 works."""
    return ["127.0.0.1", "::1"] if socket.has_ipv6 and _can_bind("::1", 0) else ["127.0.0.1"]


def _can_bind(address: str, port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            # As PostgreSQL does; otherwise connections closed a moment ago make our own port look taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError:
        return False
    return True


def _socket_places(home: Path, account: Account) -> Iterator[Path]:
    yield home / "run"
    name = f"taskyard-{account.uid}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}"
    runtime = Path("/run") if account.switch else Path(os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    if runtime.is_dir() and os.access(runtime, os.W_OK):
        yield runtime / name
    if not account.switch:
        yield Path(tempfile.gettempdir()) / name
    yield Path("/tmp") / name


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / ".s.PGSQL.65535")) <= SOCKET_PATH_BYTES


def _make_folder(folder: Path, mode: int) -> None:
    if folder.exists():
        return
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode)
        folder.chmod(mode)
