"""Which database, and how to connect to it.

In this order: the --dsn option, TASKYARD_DSN, the usual libpq variables and service file, the yard that this host has
joined, the embedded server.
"""

import os
import re
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

from .errors import TaskyardError
from .joined import joined_dsn
from .postgres import Cluster

LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")

Yard = Connection[DictRow]

# The kernel's defaults notice a vanished host after two hours; these after about half a minute.
KEEPALIVES: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "connect_timeout": 10,
}


@dataclass(frozen=True)
class Database:
    """Where to connect: a libpq connection string, what named it, and the embedded server if it is that one."""

    dsn: str
    source: str
    cluster: Cluster | None = None


def find_database(dsn: str | None = None) -> Database:
    """Decide which database is meant. Raises TaskyardError where nothing names one."""
    if dsn:
        return Database(dsn, "--dsn")
    if from_environment := os.environ.get("TASKYARD_DSN"):
        return Database(from_environment, "TASKYARD_DSN")
    if any(os.environ.get(name) for name in LIBPQ_VARIABLES):
        return Database("", "the libpq environment variables")
    if joined := joined_dsn():
        return Database(joined, "taskyard join")
    cluster = Cluster()
    if cluster.data.exists():
        return Database(cluster.url(), "the embedded server", cluster)
    raise TaskyardError(
        "No database is named.",
        "Run `taskyard up` to start one here, or give --dsn, TASKYARD_DSN, PGHOST or PGSERVICE.",
    )


def conninfo(dsn: str, application: str) -> str:
    """The connection string with our keepalives and application name, where it does not set its own.

    Raises TaskyardError where the string cannot be read; the message never quotes it.
    """
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.Error as error:
        raise TaskyardError(
            "The connection string cannot be read.", "It looks like postgresql://user@host:5432/database."
        ) from error
    defaults: dict[str, Any] = {**KEEPALIVES, "application_name": application}
    if "," in str(given.get("host") or given.get("hostaddr") or ""):
        # Several servers, of which one takes writes: the others are its standbys.
        defaults |= {"target_session_attrs": "read-write", "connect_timeout": 3}
    return make_conninfo(dsn, **{key: value for key, value in defaults.items() if key not in given})


def redacted(dsn: str) -> str:
    """The connection string without its password, for logs and screens."""
    hidden = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", dsn)
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", r"\1***", hidden)


def connect(dsn: str, application: str = "taskyard") -> Yard:
    """A connection in autocommit mode whose rows are dicts. Raises TaskyardError where the server cannot be reached."""
    try:
        connection = Connection[DictRow].connect(conninfo(dsn, application), autocommit=True, row_factory=dict_row)
    except psycopg.OperationalError as error:
        raise unreachable(dsn, error) from error
    _use_our_schema(connection)
    return connection


def open_yard(dsn: str) -> Yard:
    """A connection that prepares no statements: it may lead through a transaction pooler."""
    connection = connect(dsn)
    connection.prepare_threshold = None
    return connection


def value(connection: Yard, query: LiteralString, *parameters: Any) -> Any:
    """The only column of the only row that a query returns. Raises psycopg.Error."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return next(iter(row.values()))


def is_pooled(connection: Yard) -> bool:
    """Whether a pooler is in between: it makes up process numbers, for itself to cancel by. Raises psycopg.Error."""
    return value(connection, "select pg_backend_pid()") != connection.info.backend_pid


async def is_pooled_async(connection: AsyncConnection[DictRow]) -> bool:
    """The same, for an asynchronous connection. Raises psycopg.Error."""
    row = await (await connection.execute("select pg_backend_pid() as number")).fetchone()
    return row is not None and row["number"] != connection.info.backend_pid


async def connect_async(dsn: str, application: str, prepare: bool = True) -> AsyncConnection[DictRow]:
    """Like connect(), for the runner. `prepare` is off behind a transaction pooler. Raises psycopg.OperationalError."""
    connection = await AsyncConnection[DictRow].connect(
        conninfo(dsn, application),
        autocommit=True,
        row_factory=dict_row,
        prepare_threshold=2 if prepare else None,
    )
    if prepare:
        await connection.execute(
            "select set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),"
            " set_config('tcp_keepalives_count', '3', false)"
        )
    return connection


def _use_our_schema(connection: Connection[DictRow]) -> None:
    # Once: behind a pooler the session may be one that had it set before.
    connection.execute(
        "select set_config('search_path', p.path || ', taskyard', false)"
        " from current_setting('search_path') p (path) where p.path !~ '\\mtaskyard\\M'"
    )


def unreachable(dsn: str, error: psycopg.OperationalError) -> TaskyardError:
    """What to tell a person whose database does not answer."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    reason = next((line.split("failed: ", 1)[1] for line in lines if "failed: " in line), lines[-1])
    hint = "Is it running? The embedded one starts with: taskyard db start"
    if "password" in reason or "authentication" in reason:
        hint = "Check the user and the password (a passfile keeps it out of the command line)."
    where = redacted(dsn) or "the libpq environment variables"
    return TaskyardError(f"The database does not answer ({where}): {redacted(reason)}", hint, error.sqlstate)
