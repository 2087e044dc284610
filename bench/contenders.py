"""Who is compared: the raw floor, Taskyard, and pgmq.

Each makes its tables, fills them, and has a pgbench script per kind of work.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, LiteralString

from psycopg import Connection

from .pgbench import Variables
from .server import Row

BATCH = 50
PER_STATEMENT = 100_000

REGISTER = "select register_runner('bench-' || gen_random_uuid(), 16, p_lease => '1 day')"


class Contender(ABC):
    """A queue. The scripts are pgbench's; each line that ends in a semicolon is a transaction of its own."""

    name: ClassVar[str]
    insert: ClassVar[str]
    cycle: ClassVar[str]

    @abstractmethod
    def prepare(self, connection: Connection[Row]) -> Variables:
        """Make what it needs in a fresh database; returns the variables of its scripts."""

    @abstractmethod
    def load(self, connection: Connection[Row], count: int) -> None:
        """Queue `count` jobs in one statement."""


class Raw(Contender):
    """The least that PostgreSQL can do for a queue: one table, one partial index, a row set running, then done."""

    name = "raw"
    insert = "insert into raw (prompt) values ('do the thing');\n"
    cycle = (
        "update raw set status = 'running' where id = (select id from raw where status = 'queued'"
        " order by priority desc, id for update skip locked limit 1) returning id, prompt \\gset\n"
        "update raw set status = 'completed', finished_at = now() where id = :id;\n"
    )

    def prepare(self, connection: Connection[Row]) -> Variables:
        connection.execute(
            "create table raw (id bigint generated always as identity primary key, prompt text not null,"
            " status text not null default 'queued', priority integer not null default 0, finished_at timestamptz)"
        )
        connection.execute("create index raw_ready on raw (priority desc, id) where status = 'queued'")
        return {}

    def load(self, connection: Connection[Row], count: int) -> None:
        connection.execute(
            "insert into raw (prompt) select 'do thing number ' || g from generate_series(1, %s::integer) g",
            (count,),
        )


@dataclass
class Taskyard(Contender):
    """Tasks as a plain client inserts them, claimed by one registered runner. `scope` is an SQL expression of g."""

    scope: LiteralString = "'default'"

    name = "taskyard"
    insert = "insert into tasks (prompt, agent) values ('do the thing', 'shell');\n"
    cycle = "select attempt_id from claim_task(:runner, 1) \\gset\nselect complete_task(:attempt_id);\n"
    batch = (
        f"select array_agg(attempt_id) as attempts from claim_task(:runner, {BATCH}) \\gset\n"
        "select count(*) from complete_tasks(:attempts);\n"
    )

    def prepare(self, connection: Connection[Row]) -> Variables:
        return {"runner": register(connection)}

    def load(self, connection: Connection[Row], count: int) -> None:
        connection.execute(
            "insert into tasks (prompt, agent, scope) select 'do thing number ' || g, 'shell', "
            + self.scope
            + " from generate_series(1, %s::integer) g",
            (count,),
        )


class Pgmq(Contender):
    """The closest plain peer: read hides a message for 30 seconds, archive moves it away."""

    name = "pgmq"
    insert = """select pgmq.send('q', '{"prompt": "do the thing"}');\n"""
    cycle = "select msg_id from pgmq.read('q', 30, 1) \\gset\nselect pgmq.archive('q', :msg_id::bigint);\n"

    def prepare(self, connection: Connection[Row]) -> Variables:
        connection.execute("select pgmq.create('q')")
        return {}

    def load(self, connection: Connection[Row], count: int) -> None:
        connection.execute(
            "select count(*) from pgmq.send_batch('q', (select array_agg("
            "jsonb_build_object('prompt', 'do thing number ' || g)) from generate_series(1, %s::integer) g))",
            (count,),
        )


def add_scopes(connection: Connection[Row], count: int) -> None:
    """Make the scopes s0, s1, and so on. The connection is the superuser's."""
    connection.execute(
        "insert into taskyard.scopes (name, parent) select 's' || g, 'default' from generate_series(0, %s::integer) g",
        (count - 1,),
    )


def register(connection: Connection[Row]) -> int:
    """Register a runner that outlives the benchmark without a heartbeat; returns its id."""
    row = connection.execute(REGISTER).fetchone()
    assert row is not None
    assert isinstance(row[0], int)
    return row[0]
