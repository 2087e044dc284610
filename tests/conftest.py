"""Real servers and real databases: PostgreSQL 18 from the wheel and, where installed, Debian's 15."""

import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row

from taskyard.runner.connection import connect
from taskyard.runner.install import install
from taskyard.runner.postgres import Cluster

if TYPE_CHECKING:
    from .agents import Agents

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
ROLES = ("viewer", "submitter", "runner", "admin")
_numbers = itertools.count(1)


def server_versions() -> list[str]:
    """15 is left out where it is not installed, except in CI, where that is a failure."""
    return ["18", "15"] if POSTGRES_15.exists() or os.environ.get("CI") else ["18"]


# What hardly depends on the server's version: on the older one in the slow suite.
ANY_VERSION = {
    f"test_{name}.py"
    for name in (
        *("plans", "scope_trees", "state_machine", "limits_at_random", "budget_races", "approval_races"),
        *("limits", "canaries", "caps", "fallback", "pick_up", "routing", "usage", "screens"),
        *("approvals", "budgets", "scope_rules", "artifact_rows", "reach_of_functions"),
        *("children", "children_cancelled", "children_scale", "waits", "wait_circles", "wait_races"),
        *("handoffs", "handoff_chains", "handoff_summaries", "checkpoints", "proofs", "host_affinity"),
        *("mail", "mail_reach", "mail_kept", "event_topics", "inbox_queue", "pushes", "refusals", "reach", "upgrade"),
        *("cron", "schedules", "retention", "verbs", "races", "install"),
    )
}
EVERY_VERSION = {
    "test_an_upgraded_database_has_the_schema_of_a_fresh_one",
    "test_it_installs_without_a_superuser",
    "test_membership_in_the_owner_is_enough_where_the_roles_exist",
    "test_pgmq_comes_along_and_works",
}
# What git does for a runner hardly depends on whether that is root.
ANY_USER = {"test_git_work.py", "test_git_hostile.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        older = re.search(r"[\[-]15[\]-]", item.name) and item.name.partition("[")[0] not in EVERY_VERSION
        if older and item.path.name in ANY_VERSION:
            item.add_marker(pytest.mark.slow)
        if item.path.name in ANY_USER and os.geteuid() == 0 and "ordinary" in item.name:
            item.add_marker(pytest.mark.slow)


# Each test gets a database of its own: a copy of 300 files, which takes 0.03 s in memory and 0.2 s on a disk.
IN_MEMORY = Path("/dev/shm")
ROOM = 8 << 30  # bytes


def fastest() -> str | None:
    """Where databases that nobody misses are made; None: the usual place for temporary files."""
    try:
        return str(IN_MEMORY) if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ROOM else None
    except OSError:
        return None


@pytest.fixture(scope="session")
def temporary_home() -> Iterator[Callable[..., Path]]:
    """Makes folders that the server's account can enter (pytest's own are closed to it when tests run as root)."""
    made: list[Path] = []

    def make(folder: str | None = None) -> Path:
        home = Path(tempfile.mkdtemp(prefix="ty-", dir=folder))
        home.chmod(0o755)
        made.append(home)
        return home

    yield make
    for home in made:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def servers(temporary_home: Callable[..., Path]) -> Iterator[Callable[[str], Cluster]]:
    """Starts the server of a major version once per session."""
    started: dict[str, Cluster] = {}

    def get(version: str) -> Cluster:
        if version not in started:
            with pytest.MonkeyPatch.context() as patch:
                if version == "15":
                    patch.setenv("TASKYARD_PG_BIN", str(POSTGRES_15))
                cluster = Cluster(temporary_home(fastest()))
                cluster.start()
            started[version] = cluster
            with psycopg.connect(cluster.url("postgres", admin=True), autocommit=True) as admin:
                admin.execute("alter system set fsync = off")
                admin.execute("select pg_reload_conf()")
                admin.execute("create database yard_template owner yard")
            with connect(cluster.url("yard_template")) as owner:
                install(owner)
        return started[version]

    yield get
    for version, cluster in started.items():
        with pytest.MonkeyPatch.context() as patch:
            if version == "15":
                patch.setenv("TASKYARD_PG_BIN", str(POSTGRES_15))
            cluster.stop("immediate")


@dataclass
class Yard:
    """A fresh database with Taskyard in it."""

    cluster: Cluster
    name: str
    stack: contextlib.ExitStack

    @property
    def dsn(self) -> str:
        """As the login that installed it (a taskyard_admin, not a superuser)."""
        return self.cluster.url(self.name)

    @property
    def superuser_dsn(self) -> str:
        return self.cluster.url(self.name, admin=True)

    def connect(self, role: str | None = None, superuser: bool = False) -> Connection[DictRow]:
        """A connection of its own, closed after the test; `role` is one of ROLES, taken with SET ROLE.

        The group of submitters is granted all scopes for that; a login of its own (see login()) tells another story.
        """
        connection = Connection[DictRow].connect(
            self.superuser_dsn if superuser or role else self.dsn, autocommit=True, row_factory=dict_row
        )
        self.stack.callback(connection.close)
        if role == "submitter":
            connection.execute("select taskyard.grant_scope('taskyard_submitter', 'default')")
        if role:
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(f"taskyard_{role}")))
        return connection

    def login(self, name: str, role: str, *scopes: str) -> str:
        """Make a login role that is granted one of ROLES, and these scopes; returns its connection string."""
        with psycopg.connect(self.superuser_dsn, autocommit=True) as admin:
            login = f"{name}_{self.name}"
            admin.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(login)))
            admin.execute(sql.SQL("grant {} to {}").format(sql.Identifier(f"taskyard_{role}"), sql.Identifier(login)))
            for scope in scopes:
                admin.execute("select taskyard.grant_scope(%s, %s)", (login, scope))
        return make_conninfo(self.dsn, user=login, password="secret")


@pytest.fixture(params=server_versions())
def yard(request: pytest.FixtureRequest, servers: Callable[[str], Cluster]) -> Iterator[Yard]:
    """A fresh database on each server version."""
    yield from _fresh(servers(request.param))


@pytest.fixture
def yard18(servers: Callable[[str], Cluster]) -> Iterator[Yard]:
    """A fresh database on the embedded server, for tests of what is not SQL."""
    yield from _fresh(servers("18"))


def _fresh(cluster: Cluster) -> Iterator[Yard]:
    name = f"yard_{next(_numbers)}"
    with psycopg.connect(cluster.url("postgres", admin=True), autocommit=True) as admin:
        admin.execute(
            sql.SQL("create database {} template yard_template owner yard strategy file_copy").format(
                sql.Identifier(name)
            )
        )
        admin.execute(
            sql.SQL('alter database {} set search_path = "$user", public, taskyard').format(sql.Identifier(name))
        )
        with contextlib.ExitStack() as stack:
            yield Yard(cluster, name, stack)
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def agents(yard18: Yard, tmp_path: Path) -> Iterator["Agents"]:
    """A fresh database with the vendors' tools, in front of a stand-in for their APIs."""
    from .agents import agents_on  # needs this module

    with agents_on(yard18, tmp_path) as agents:
        yield agents


@pytest.fixture
def db(yard: Yard) -> Connection[DictRow]:
    """A connection to the fresh database as its owner."""
    return yard.connect()


def value(connection: Connection[DictRow], query: LiteralString, *parameters: Any) -> Any:
    """The first column of the first row."""
    row = connection.execute(query, parameters or None).fetchone()
    return next(iter(row.values())) if row else None


def column(connection: Connection[DictRow], query: LiteralString, *parameters: Any) -> list[Any]:
    """The first column of all rows."""
    return [next(iter(row.values())) for row in connection.execute(query, parameters or None)]


def rows(connection: Connection[DictRow], query: LiteralString, *parameters: Any) -> list[DictRow]:
    return list(connection.execute(query, parameters or None))
