"""Backups of the embedded server's database: a dump with its logins beside it, and back from there.

A restored database is another one for Taskyard: what ran when the backup was made runs again, and whoever still works
on it is told that it is lost (see after_restore() in SQL).
"""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import sql

from .account import run
from .binaries import find_binaries
from .cluster import Cluster
from .errors import PostgresError
from .files import write_file
from .passfile import ADMIN, DATABASE, ROLE

TIMEOUT = 6 * 3600.0  # seconds
NAME = "taskyard-{:%Y-%m-%dT%H-%M-%S}"
RESTORING = "taskyard_restoring"
# Those are the server's own, and their passwords are in its folder.
_OWN = re.compile(rf"(?:CREATE|ALTER) ROLE (?:{ADMIN}|{ROLE})\b")


def backup(cluster: Cluster, folder: Path, keep: int | None = None) -> Path:
    """Write a dump into the folder, which is made if missing; returns its path. Beside it is `.roles.sql`, the logins.

    With `keep`, only so many stay, the newest. Both files can be read by their owner only: they hold all prompts, and
    the verifiers of passwords. Raises PostgresError, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / NAME.format(datetime.now(UTC))
    dump, roles = target.with_suffix(".dump"), target.with_suffix(".roles.sql")
    partial = dump.with_suffix(".partial")
    try:
        partial.touch(mode=0o600)
        _call("pg_dump", "--format=custom", f"--file={partial}", cluster.url(admin=True))
        globals_ = _call("pg_dumpall", "--roles-only", f"--dbname={cluster.url('postgres', admin=True)}")
        write_file(roles, "".join(f"{line}\n" for line in globals_.splitlines() if _wanted(line)))
        os.replace(partial, dump)
    finally:
        partial.unlink(missing_ok=True)
    if keep is not None:
        for old in sorted(folder.glob("taskyard-*.dump"))[:-keep]:
            old.unlink()
            old.with_suffix(".roles.sql").unlink(missing_ok=True)
    return dump


def restore(cluster: Cluster, dump: Path, finish: Callable[[str], None]) -> str:
    """Put the dump in the place of the database, which stays beside it under the name that is returned.

    `finish` gets the connection string of the restored database before anybody else sees it. Raises PostgresError,
    psycopg.Error, OSError; then the database is what it was.
    """
    with dump.open("rb") as file:
        if file.read(5) != b"PGDMP":
            raise PostgresError(
                f"{dump} is no backup of PostgreSQL.", "Name one that `taskyard db backup` has written."
            )
    before = f"{DATABASE}_before_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    with psycopg.connect(cluster.url("postgres", admin=True), autocommit=True) as admin:
        roles = dump.with_suffix(".roles.sql")
        if roles.exists():
            _make_roles(admin, roles)
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(RESTORING)))
        admin.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(RESTORING), sql.Identifier(ROLE)))
        try:
            _call("pg_restore", "--exit-on-error", f"--dbname={cluster.url(RESTORING, admin=True)}", str(dump))
            finish(cluster.url(RESTORING))
        except BaseException:
            admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(RESTORING)))
            raise
        # Nobody gets in between: connections are ended, and new ones find the one name or the other.
        for name, other in ((DATABASE, before), (RESTORING, DATABASE)):
            _rename(admin, name, other)
    return before


def _rename(admin: "psycopg.Connection[tuple[object, ...]]", name: str, other: str) -> None:
    admin.execute(sql.SQL("alter database {} with allow_connections false").format(sql.Identifier(name)))
    admin.execute("select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s", [name])
    admin.execute(sql.SQL("alter database {} rename to {}").format(sql.Identifier(name), sql.Identifier(other)))
    admin.execute(sql.SQL("alter database {} with allow_connections true").format(sql.Identifier(other)))


def _wanted(line: str) -> bool:
    return line.startswith(("CREATE ROLE", "ALTER ROLE", "GRANT")) and not _OWN.match(line)


def _make_roles(admin: "psycopg.Connection[tuple[object, ...]]", path: Path) -> None:
    """Logins that are missing here; those that exist stay as they are."""
    there = {str(row[0]) for row in admin.execute("select rolname from pg_roles")}
    for line in path.read_text(encoding="utf-8").splitlines():
        named = re.match(r'(?:CREATE|ALTER) ROLE "?([^";]+?)"?(?: WITH .*)?;$', line)
        grantee = re.search(r' TO "?([^";]+?)"?(?: WITH .*?)?(?: GRANTED BY .*)?;$', line)
        ours = grantee is not None and re.fullmatch(rf"{ROLE}|taskyard_\w+", grantee[1])
        name = named[1] if named else grantee[1] if grantee else None
        if ours or (name is not None and name not in there):
            try:
                admin.execute(line.encode())
            except psycopg.Error:
                # Who granted it there may not be here, or may not grant it; the superuser does.
                admin.execute(re.sub(r" GRANTED BY [^;]*;$", ";", line).encode())


def _call(program: str, *arguments: str) -> str:
    """Run one of PostgreSQL's programs as ourselves; returns what it printed. Raises PostgresError."""
    done = run([find_binaries().program(program), *arguments], timeout=TIMEOUT)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["(it said nothing)"]
        raise PostgresError(f"{program} failed: {said[0]}", "\n".join(said[1:4]) or "Cure that, then try again.")
    return done.stdout
