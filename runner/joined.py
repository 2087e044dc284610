"""The yard that this host has joined, as it is kept here.

In the user's folder: `joined` is a connection string without a password, `secrets/joined.pgpass` the password, for this
user's eyes only.
"""

import os
import re
from pathlib import Path

from .postgres import default_home
from .postgres.files import write_file


def joined_dsn(home: Path | None = None) -> str | None:
    """The connection string, without its password; None where this host has joined nothing."""
    try:
        return (home or default_home()).joinpath("joined").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def passfile(home: Path) -> Path:
    """The file with the password, in libpq's format."""
    return home / "secrets" / "joined.pgpass"


def forget(home: Path | None = None) -> str | None:
    """Remove what is kept; returns the connection string. Raises OSError."""
    home = home or default_home()
    dsn = joined_dsn(home)
    for path in (home / "joined", passfile(home)):
        path.unlink(missing_ok=True)
    return dsn


def keep(home: Path, dsn: str, parts: dict[str, str], password: str | None) -> None:
    """Keep the string, and the password for each host that it names; `parts` are its parts. Raises OSError."""
    home.mkdir(parents=True, exist_ok=True, mode=0o755 if os.geteuid() == 0 else 0o700)
    (home / "secrets").mkdir(exist_ok=True, mode=0o700)
    write_file(home / "joined", dsn + "\n")
    if not password:
        return  # the server asks for none, or the string names a file with it
    hosts = parts.get("host", parts.get("hostaddr", "localhost")).split(",")
    ports = parts.get("port", "5432").split(",")
    ports *= len(hosts) if len(ports) == 1 else 1
    lines = [
        ":".join(re.sub(r"([:\\])", r"\\\1", part) for part in (host, port, "*", parts["user"], password)) + "\n"
        for host, port in zip(hosts, ports, strict=True)
    ]
    write_file(passfile(home), "".join(lines))
