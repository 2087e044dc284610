"""Making a new cluster: whole, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from .account import Account, run
from .binaries import Binaries
from .errors import PostgresError
from .files import sync_folder, write_file
from .passfile import ADMIN, DATABASE, ROLE, new_passwords, write_passwords
from .places import Address
from .settings import write_access_rules

TIMEOUT = 300.0
STAGING = ".creating-"


def remove_half_made(home: Path) -> None:
    """Remove what attempts that were cut short have left. Call only under the lock."""
    for leftover in home.glob(f"{STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def create_cluster(
    home: Path, binaries: Binaries, account: Account, address: Address, progress: Callable[[str], None]
) -> None:
    """Make `data` and `secrets/pgpass` in the home folder. Call only under the lock.

    All is made in a folder beside it, which is renamed at the very end, so a crash or power loss leaves
    either no cluster or a complete one.
    Raises PostgresError if PostgreSQL's programs fail, OSError if files cannot be written.
    """
    progress("creating the database cluster")
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=home))
    try:
        staging.chmod(0o755 if account.switch else 0o700)
        data = staging / "data"
        data.mkdir(0o700)
        account.own(data, 0o700)
        passwords = new_passwords()
        _initdb(data, staging / "password", passwords[ADMIN], binaries, account)
        _make_role_and_database(data, passwords[ROLE], binaries, account)
        write_access_rules(data, account)
        write_passwords(home / "secrets" / "pgpass", passwords, address)
        os.rename(data, home / "data")
        sync_folder(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _initdb(data: Path, password_file: Path, password: str, binaries: Binaries, account: Account) -> None:
    options = [
        f"--pgdata={data}",
        f"--username={ADMIN}",
        f"--pwfile={password_file}",
        "--auth-local=scram-sha-256",
        "--auth-host=scram-sha-256",
        "--data-checksums",
        "--encoding=UTF8",
        "--locale=C",
        "--no-instructions",
    ]
    if binaries.major >= 17:
        # Sorts as C does, but upper(), lower() and ilike know all of Unicode, on every platform alike.
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    write_file(password_file, password + "\n", account)
    try:
        done = run([binaries.program("initdb"), *options], account, timeout=TIMEOUT)
    finally:
        password_file.unlink()
    if done.returncode != 0:
        raise PostgresError(
            f"The database cluster could not be created: {_last_line(done.stderr)}",
            f"See that {data.parents[1]} has free space and that the account '{account.name}' can use it.",
        )


def _make_role_and_database(data: Path, password: str, binaries: Binaries, account: Account) -> None:
    # Single-user mode: nobody can connect to a half-made cluster, and no process is left behind by a crash.
    # The password goes through a pipe, and no statement is logged, not even a failing one.
    settings = ("exit_on_error=on", "log_statement=none", "log_min_error_statement=panic")
    options = [item for setting in settings for item in ("-c", setting)]
    statements = (
        f"create role {ROLE} login createrole password '{password}'",
        f"grant pg_read_all_stats to {ROLE} with admin option",
        f"create database {DATABASE} owner {ROLE}",
    )
    done = run(
        [binaries.program("postgres"), "--single", "-D", str(data), *options, ADMIN],
        account,
        timeout=TIMEOUT,
        stdin="".join(f"{statement};\n" for statement in statements),
    )
    if done.returncode != 0:
        raise PostgresError(
            f"The database of the new cluster could not be created: {_last_line(done.stderr)}",
            "Try again; the half-made cluster has been removed.",
        )


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "(it said nothing)")
