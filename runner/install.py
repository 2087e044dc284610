"""Bring a database to the current schema, or take it out again.

A fresh database gets sql/schema/ and sql/functions/; one that has an earlier schema gets the pending files of
sql/migrations/ and then sql/functions/ again. Everything happens in one transaction, under one lock.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable

import pgmq
import psycopg
from psycopg import Connection, sql
from psycopg.rows import DictRow

from .errors import TaskyardError

OLDEST_SERVER = 150000
BASELINE = 1  # the number of the schema that sql/schema/ had when the first migration was yet to be written


@dataclass(frozen=True)
class Installed:
    """What install() did: schema numbers before (None: nothing there) and after, and how pgmq got there."""

    before: int | None
    after: int
    pgmq: str
    search_path_set: bool


def sql_folder() -> Traversable:
    """The sql/ folder of this installation."""
    return files("taskyard.sql")


def _scripts(folder: Traversable, part: str) -> list[tuple[str, str]]:
    found = [entry for entry in folder.joinpath(part).iterdir() if entry.name.endswith(".sql")]
    return [(entry.name, entry.read_text(encoding="utf-8")) for entry in sorted(found, key=lambda entry: entry.name)]


def _migrations(folder: Traversable) -> list[tuple[int, str, str]]:
    if not folder.joinpath("migrations").is_dir():
        return []
    pending: list[tuple[int, str, str]] = []
    for name, text in _scripts(folder, "migrations"):
        match = re.fullmatch(r"(\d{4})_(\w+)\.sql", name)
        if match is None:
            raise TaskyardError(f"The migration {name} is not named NNNN_what_changes.sql.")
        pending.append((int(match[1]), match[2], text))
    return pending


def newest_schema(folder: Traversable | None = None) -> int:
    """The number of the schema that this version of Taskyard installs."""
    return _newest(_migrations(folder or sql_folder()))


def _newest(migrations: list[tuple[int, str, str]]) -> int:
    return max([BASELINE, *(number for number, _, _ in migrations)])


def schema_number(connection: Connection[DictRow]) -> int | None:
    """The number of the schema in this database; None where there is none."""
    row = connection.execute("select to_regclass('taskyard.schema_migrations') is not null as present").fetchone()
    if not (row and row["present"]):
        return None
    row = connection.execute("select max(number) as number from taskyard.schema_migrations").fetchone()
    return row["number"] if row else None


def install(
    connection: Connection[DictRow],
    progress: Callable[[str], None] = lambda _: None,
    folder: Traversable | None = None,
) -> Installed:
    """Install or upgrade. Repeating it changes nothing; two at once take turns.

    `connection` is in autocommit mode and belongs to a login that may create schemas in this database and roles in
    this server (CREATEROLE), or finds the taskyard roles there and is a member of taskyard_owner.
    Raises TaskyardError.
    """
    folder = folder or sql_folder()
    try:
        with connection.transaction():
            return _install(connection, progress, folder)
    except psycopg.errors.InsufficientPrivilege as error:
        raise TaskyardError(
            f"This login may not install Taskyard here: {error.diag.message_primary}.",
            "It needs CREATE on the database and CREATEROLE (or membership in taskyard_owner), not superuser.",
            error.sqlstate,
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise TaskyardError(
            "Somebody holds a table of Taskyard for longer than 30 seconds.",
            "End the long transaction (see pg_stat_activity) and run this again; nothing was changed.",
            error.sqlstate,
        ) from error


def _install(connection: Connection[DictRow], progress: Callable[[str], None], folder: Traversable) -> Installed:
    if connection.info.server_version < OLDEST_SERVER:
        raise TaskyardError(
            f"This server is PostgreSQL {connection.info.server_version // 10000}.",
            "Taskyard needs 15 or newer.",
            "TY009",
        )
    connection.execute("set local lock_timeout = '30s'")
    connection.execute("set local client_min_messages = warning")
    connection.execute("select pg_advisory_xact_lock(742199, 0)")
    migrations = _migrations(folder)
    newest = _newest(migrations)
    before = schema_number(connection)
    if before is not None and before > newest:
        raise TaskyardError(
            f"This database has schema {before} of a newer Taskyard; this one knows up to {newest}.",
            "Upgrade taskyard on this host: pip install --upgrade taskyard",
            "TY009",
        )
    progress("installing pgmq")
    pgmq_from = _install_pgmq(connection)

    if before is None:
        progress("creating roles and tables")
        (roles_name, roles), *schema = _scripts(folder, "schema")
        if not roles_name.endswith("_roles.sql"):
            raise TaskyardError("sql/schema/ does not begin with the roles.")
        _run(connection, roles)
        connection.execute("create schema taskyard authorization taskyard_owner")
        _become_owner(connection)
        for _, script in schema:
            _run(connection, script)
        _record(connection, newest, "fresh_install")
    else:
        _become_owner(connection)
        for number, name, script in migrations:
            if number > before:
                progress(f"migrating to schema {number}")
                _run(connection, script)
                _record(connection, number, name)
    connection.execute("reset role")
    _grant_pgmq(connection)
    _grant_statistics(connection)
    _become_owner(connection)
    progress("installing functions")
    for _, script in _scripts(folder, "functions"):
        _run(connection, script)
    connection.execute("select taskyard._ensure_partitions()")
    connection.execute("reset role")
    return Installed(before, newest, pgmq_from, _set_search_path(connection))


def _grant_statistics(connection: Connection[DictRow]) -> None:
    # For the view database_health, which says so where this is not allowed.
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():
        connection.execute("grant pg_read_all_stats to taskyard_owner")


def _become_owner(connection: Connection[DictRow]) -> None:
    connection.execute("set local role taskyard_owner")
    connection.execute("set local search_path = taskyard, pg_catalog, pg_temp")
    # Functions name tables and functions of later files.
    connection.execute("set local check_function_bodies = off")


def _run(connection: Connection[DictRow], script: str) -> None:
    connection.execute(script.encode())


def _record(connection: Connection[DictRow], number: int, name: str) -> None:
    connection.execute(
        "insert into taskyard.schema_migrations (number, name, taskyard_version) values (%s, %s, %s)",
        (number, name, version("taskyard")),
    )


def _install_pgmq(connection: Connection[DictRow]) -> str:
    # From the catalog: to_regclass() looks into no schema that is closed to us.
    present = connection.execute(
        """
        select from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'pgmq' and c.relname = 'meta'
        """
    ).fetchone()
    source = "already there"
    if present is None:
        source = "as an extension" if _create_extension(connection) else "from the SQL of the pgmq package"
        if source.startswith("from"):
            connection.execute(pgmq.get_embedded_install_sql().encode())
    return source


def _create_extension(connection: Connection[DictRow]) -> bool:
    row = connection.execute("select from pg_available_extensions where name = 'pgmq'").fetchone()
    if row is None:
        return False
    try:
        with connection.transaction():
            connection.execute("create extension pgmq")
    except psycopg.errors.InsufficientPrivilege:
        return False  # only a superuser may, on this server
    return True


def _grant_pgmq(connection: Connection[DictRow]) -> None:
    """What mailboxes, events and the queue inbox need, where it is ours to grant.

    taskyard_owner makes queues of its own, and sends to those of others that are bound to its topics: all that are
    there and all that this login makes later. Submitters get into the schema; each table says what they may do there.
    """
    row = connection.execute(
        """
        select n.nspowner::regrole::text as owner, pg_has_role(n.nspowner, 'usage') as ours,
            has_schema_privilege('taskyard_owner', n.oid, 'usage')
                and has_schema_privilege('taskyard_owner', n.oid, 'create')
                and has_table_privilege('taskyard_owner', c.oid, 'select')
                and has_table_privilege('taskyard_owner', c.oid, 'insert')
                and has_table_privilege('taskyard_owner', c.oid, 'delete') as usable
        from pg_namespace n join pg_class c on c.relnamespace = n.oid and c.relname = 'meta'
        where n.nspname = 'pgmq'
        """
    ).fetchone()
    assert row is not None
    if not row["ours"]:
        if not row["usable"]:
            raise TaskyardError(
                f"pgmq belongs to {row['owner']} here, and Taskyard may not use it.",
                f"Install it once as {row['owner']} or as a superuser; upgrades need neither.",
            )
        return
    connection.execute("grant usage, create on schema pgmq to taskyard_owner")
    connection.execute("grant usage on schema pgmq to taskyard_submitter, taskyard_admin")
    connection.execute("alter default privileges in schema pgmq grant select, insert on tables to taskyard_owner")
    for table in connection.execute(
        """
        select c.relname as name from pg_class c
        where c.relnamespace = 'pgmq'::regnamespace and c.relkind in ('r', 'p') and pg_has_role(c.relowner, 'usage')
            and c.relowner <> 'taskyard_owner'::regrole
            and (c.relname in ('meta', 'topic_bindings', 'notify_insert_throttle') or c.relname like 'q\\_%')
        """
    ).fetchall():
        rights = "select, insert" if table["name"].startswith("q_") else "select, insert, update, delete"
        connection.execute(
            sql.SQL("grant {} on {} to taskyard_owner").format(sql.SQL(rights), sql.Identifier("pgmq", table["name"]))
        )


DEFAULT_PATH = '"$user", public'


def _search_path(connection: Connection[DictRow]) -> tuple[str, bool, str]:
    """The database's name, whether it is ours to alter, and the search path set for it (or PostgreSQL's default)."""
    row = connection.execute(
        """
        select d.datname as name, pg_has_role(d.datdba, 'usage') as ours, x.path
        from pg_database d
        left join lateral (
            select substr(c, 13) as path
            from pg_db_role_setting s cross join lateral unnest(s.setconfig) c
            where s.setdatabase = d.oid and s.setrole = 0 and c like 'search_path=%'
        ) x on true
        where d.datname = current_database()
        """
    ).fetchone()
    assert row is not None
    return row["name"], row["ours"], row["path"] or DEFAULT_PATH


def _alter_search_path(connection: Connection[DictRow], database: str, path: str) -> None:
    # The path is a list of names as PostgreSQL itself gave it to us.
    statement = sql.SQL("alter database {} set search_path = " + path)  # pyright: ignore[reportArgumentType]
    connection.execute(statement.format(sql.Identifier(database)))


def _set_search_path(connection: Connection[DictRow]) -> bool:
    """So that people write tasks, not taskyard.tasks. Returns False where the database is not ours to set."""
    database, ours, path = _search_path(connection)
    if "taskyard" in re.split(r"[\s,]+", path):
        return True
    if ours:
        # Last: a table that people already have there keeps its name, and what they create goes where it went.
        _alter_search_path(connection, database, f"{path}, taskyard")
    return ours


def _reset_search_path(connection: Connection[DictRow]) -> None:
    database, ours, path = _search_path(connection)
    before = re.sub(r",\s*taskyard\b", "", path)
    if ours and before == DEFAULT_PATH:
        connection.execute(sql.SQL("alter database {} reset search_path").format(sql.Identifier(database)))
    elif ours and before != path:
        _alter_search_path(connection, database, before)


def uninstall(connection: Connection[DictRow]) -> None:
    """Drop the schema with all tasks and their queues. pgmq and the roles stay: others may use them.

    Raises TaskyardError where nothing is installed.
    """
    if schema_number(connection) is None:
        raise TaskyardError("This database has no Taskyard.")
    _drop_queues(connection)
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(742199, 0)")
        connection.execute("set local role taskyard_owner")
        connection.execute("drop schema taskyard cascade")
        connection.execute("alter default privileges grant execute on functions to public")
        connection.execute("reset role")
        _reset_search_path(connection)


def _drop_queues(connection: Connection[DictRow]) -> None:
    """The queues and the mailboxes. A transaction each: all their tables would be more locks than one can hold."""
    for queue in connection.execute(
        """
        select substr(c.relname, 3) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'pgmq' and c.relowner = 'taskyard_owner'::regrole
            and c.relname ~ '^q_(inbox|push|mail_[0-9]+)$'
        """
    ).fetchall():
        with connection.transaction():
            connection.execute("set local role taskyard_owner")
            connection.execute("select pgmq.drop_queue(%s)", (queue["name"],))
