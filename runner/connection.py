"""Which database, and how to connect to it.

In this order: the --dsn option, TASKYARD_DSN, the usual libpq variables and service file, the embedded server.
"""

import os
import re
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

from .errors import TaskyardError
from .postgres import Cluster

LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE", "PGPORT", "PGUSER")

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
    return make_conninfo(dsn, **{key: value for key, value in defaults.items() if key not in given})


def redacted(dsn: str) -> str:
    """The connection string without its password, for logs and screens."""
    hidden = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", dsn)
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", r"\1***", hidden)


def connect(dsn: str, application: str = "taskyard") -> Connection[DictRow]:
    """A connection in autocommit mode whose rows are dicts. Raises TaskyardError where the server cannot be reached."""
    try:
        connection = Connection[DictRow].connect(conninfo(dsn, application), autocommit=True, row_factory=dict_row)
    except psycopg.OperationalError as error:
        raise unreachable(dsn, error) from error
    _use_our_schema(connection)
    return connection


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
    connection.execute("select set_config('search_path', current_setting('search_path') || ', taskyard', false)")


def unreachable(dsn: str, error: psycopg.OperationalError) -> TaskyardError:
    """What to tell a person whose database does not answer."""
    lines = [line.strip() for line in str(error).strip().split("\n")]
    reason = next((line.split("failed: ", 1)[1] for line in lines if "failed: " in line), lines[-1])
    hint = "Is it running? The embedded one starts with: taskyard db start"
    if "password" in reason or "authentication" in reason:
        hint = "Check the user and the password (a passfile keeps it out of the command line)."
    where = redacted(dsn) or "the libpq environment variables"
    return TaskyardError(f"The database does not answer ({where}): {redacted(reason)}", hint, error.sqlstate)
