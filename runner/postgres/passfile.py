"""The passwords of the cluster, kept in a libpq password file that URLs point to.

Format: https://www.postgresql.org/docs/current/libpq-pgpass.html
"""

import re
import secrets
from pathlib import Path
from urllib.parse import quote

from .files import write_file
from .places import Address

ADMIN = "postgres"
# Not "taskyard": the schema of that name would be this login's own ("$user") and come first in its search path.
ROLE = "yard"
DATABASE = "taskyard"


def new_passwords() -> dict[str, str]:
    """A fresh password per role. They need no quoting in SQL or in a password file."""
    return {role: secrets.token_urlsafe(32) for role in (ADMIN, ROLE)}


def read_passwords(path: Path) -> dict[str, str]:
    """The password per role; lacks those that are not in the file. Raises OSError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r".*:\*:(\w+):([\w-]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def write_passwords(path: Path, passwords: dict[str, str], address: Address) -> None:
    """Write the file anew for the server's address, if that changes it."""
    hosts = (str(address.socket_dir), "127.0.0.1", "::1", "localhost")
    escaped = [re.sub(r"([:\\])", r"\\\1", host) for host in hosts]
    lines = [f"{host}:{address.port}:*:{role}:{password}\n" for host in escaped for role, password in passwords.items()]
    if not path.exists() or path.read_text(encoding="utf-8") != "".join(lines):
        write_file(path, "".join(lines))


def libpq_url(address: Address, passfile: Path, role: str, database: str) -> str:
    """A URL for the Unix socket, without a password in it."""
    options = {"host": str(address.socket_dir), "port": str(address.port), "passfile": str(passfile)}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    return f"postgresql://{quote(role, safe='')}@/{quote(database, safe='')}?{query}"
