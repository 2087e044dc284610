"""Two hosts with a network between them, as users set them up; and what becomes of work when that network fails.

The hosts are network namespaces: one has the database and a runner (`taskyard up --lan`), the other has joined it.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from .conftest import POSTGRES_15, column, rows, value
from .fleet import until
from .netspaces import RANGE, Host, Wire, possible, two_hosts

pytestmark = pytest.mark.skipif(not possible(), reason="needs root, iproute2 and network namespaces")

LEASE = 8  # seconds


@dataclass
class Hosts:
    """The host with the database, the other one, what is between them, and an administrator's eye on the database."""

    near: Host
    far: Host
    wire: Wire
    db: Connection[DictRow]
    folder: Path

    def put(self, count: int, script: str) -> list[int]:
        return column(
            self.db,
            "insert into tasks (prompt, agent) select %s, 'shell' from generate_series(1, %s) returning id",
            script,
            count,
        )

    def ended(self, tasks: list[int]) -> bool:
        return value(self.db, "select bool_and(finished_at is not null) from tasks where id = any(%s)", tasks)

    def once_each(self, tasks: list[int]) -> None:
        """Every task completed, by exactly one attempt, and has that one's result."""
        told = rows(
            self.db,
            """
            select t.id, t.status::text, count(*) filter (where a.outcome = 'completed') as accepted
            from tasks t join attempts a on a.task_id = t.id
            where t.id = any(%s)
            group by t.id
            having t.status <> 'completed' or count(*) filter (where a.outcome = 'completed') <> 1
            """,
            tasks,
        )
        assert told == []
        assert value(self.db, "select count(*) from tasks where id = any(%s)", tasks) == len(tasks)

    def at(self, runner: str) -> int:
        """How many attempts run there."""
        return value(
            self.db,
            "select count(*) from attempts a join runners r on r.id = a.runner_id where r.name = %s and a.outcome is null",
            runner,
        )


@pytest.fixture
def hosts(temporary_home: Callable[..., Path], tmp_path: Path) -> Iterator[Hosts]:
    """A yard on two hosts, by the commands of docs/hosts.md; each has a runner with two slots."""
    with two_hosts(temporary_home()) as (near, far, wire):
        log = tmp_path / "near.log"
        near.start(log, "up", "--lan", RANGE, "--name", "near", "--lease", f"{LEASE}s")
        try:
            until(lambda: "runner near is up" in log.read_text(), 60)
            said = log.read_text()
            assert re.search(rf"Hosts in {re.escape(RANGE)} reach the database at 10\.77\.0\.1, port \d+\.\n", said), (
                said
            )
            printed = near.run("invite", "far")
            join = re.search(r"^taskyard (join) '([^']*)'$", printed, re.MULTILINE)
            assert join is not None, printed
            joined = far.run(*join.groups())
            assert "No problems." in joined and "remark   way: not encrypted" in joined, joined
            far.start(tmp_path / "far.log", "runner", "--name", "far", "--lease", f"{LEASE}s")
            with Connection[DictRow].connect(
                near.json("db", "url")["url"], autocommit=True, row_factory=dict_row
            ) as db:
                yield Hosts(near, far, wire, db, tmp_path)
        finally:
            for host in (near, far):
                host.end()
            near.run("db", "stop", check=False)
            print(log.read_text(), (tmp_path / "far.log").read_text() if (tmp_path / "far.log").exists() else "")


def in_mid_task(hosts: Hosts, seconds: int) -> list[int]:
    """Tasks of which both hosts have two under way."""
    until(lambda: value(hosts.db, "select count(*) from runners where gone_at is null") == 2, 30)
    tasks = hosts.put(8, f"sleep {seconds}; echo done")
    until(lambda: hosts.at("near") == 2 and hosts.at("far") == 2, 20)
    return tasks


def goes_on(hosts: Hosts) -> None:
    """Both hosts claim again."""
    until(lambda: value(hosts.db, "select count(*) from runners where gone_at is null") == 2, 60)
    tasks = hosts.put(6, "sleep 1; echo after")
    until(lambda: hosts.at("far") > 0 and hosts.at("near") > 0, 30)
    until(lambda: hosts.ended(tasks), 60)
    hosts.once_each(tasks)


def cut(hosts: Hosts, senders: set[int], seconds: float) -> None:
    hosts.wire.cut = senders
    time.sleep(seconds)
    hosts.wire.cut = set()


def test_a_link_that_is_cut_loses_no_task_and_none_is_accepted_twice(hosts: Hosts) -> None:
    tasks = in_mid_task(hosts, 6)
    cut(hosts, {0, 1}, 20)
    until(lambda: hosts.ended(tasks), 90)
    hosts.once_each(tasks)
    # What the far host had was taken from it when its lease was over, and done by the near one.
    assert value(hosts.db, "select count(*) from attempts where outcome = 'crashed'") >= 2
    goes_on(hosts)


@pytest.mark.slow
@pytest.mark.parametrize("senders", [{0, 1}, {0}, {1}], ids=["both ways", "to the far host", "to the near host"])
def test_a_link_that_is_cut_for_a_minute(hosts: Hosts, senders: set[int]) -> None:
    tasks = in_mid_task(hosts, 20)
    cut(hosts, senders, 60)
    until(lambda: hosts.ended(tasks), 180)
    hosts.once_each(tasks)
    goes_on(hosts)


@pytest.mark.slow
def test_a_link_that_is_cut_for_less_than_a_lease_costs_nothing(hosts: Hosts) -> None:
    tasks = in_mid_task(hosts, 5)
    cut(hosts, {0, 1}, LEASE - 6)
    until(lambda: hosts.ended(tasks), 60)
    hosts.once_each(tasks)
    assert value(hosts.db, "select count(*) from attempts where outcome <> 'completed'") == 0


def test_a_slow_link_that_loses_packets(hosts: Hosts) -> None:
    """A tenth of a second each way and one packet in twenty lost: slower, and nothing else."""
    until(lambda: value(hosts.db, "select count(*) from runners where gone_at is null") == 2, 30)
    hosts.wire.delay, hosts.wire.loss = 0.1, 0.05
    tasks = hosts.put(12, "sleep 0.5; echo done")
    until(lambda: hosts.at("far") > 0, 30)
    until(lambda: hosts.ended(tasks), 90)
    hosts.once_each(tasks)
    assert value(hosts.db, "select count(*) from attempts where outcome <> 'completed'") == 0
    assert value(hosts.db, "select count(*) from attempts a join runners r on r.id = a.runner_id where r.name = 'far'")


@pytest.mark.slow
def test_a_bad_link_that_is_cut_for_a_minute(hosts: Hosts) -> None:
    hosts.wire.delay, hosts.wire.loss = 0.15, 0.05
    tasks = in_mid_task(hosts, 20)
    cut(hosts, {0, 1}, 60)
    until(lambda: hosts.ended(tasks), 240)
    hosts.once_each(tasks)
    hosts.wire.delay, hosts.wire.loss = 0.0, 0.0
    goes_on(hosts)


@pytest.mark.skipif(not POSTGRES_15.is_dir(), reason="needs Debian's postgresql-15, which has TLS")
def test_where_the_server_has_tls_others_come_by_it_alone(
    temporary_home: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_hosts(temporary_home()) as (near, far, _):
        monkeypatch.setenv("TASKYARD_PG_BIN", str(POSTGRES_15))
        try:
            assert "Not encrypted" not in near.run("db", "start", "--lan", RANGE)
            near.run("install")
            dsn = near.json("invite", "far", "--submit", "default")["dsn"]
            joined = far.run("join", dsn)
            assert "ok       way: encrypted by TLS" in joined, joined
            kept = (far.home / "joined").read_text()
            assert "sslmode=require" in kept and "channel_binding=require" in kept
            assert json.loads(far.run("submit", "--agent", "shell", "--json", "true"))["id"] == 1
            refused = far.run("--dsn", f"{dsn}?sslmode=disable", "list", check=False)
            assert "no pg_hba.conf entry" in refused and "no encryption" in refused
            assert "authentication failed" in far.run("--dsn", dsn, "list", check=False)  # join replaced the password
        finally:
            near.run("db", "stop", check=False)


def test_what_another_host_may_do_and_what_it_keeps(hosts: Hosts) -> None:
    kept = (hosts.far.home / "joined").read_text()
    passfile = hosts.far.home / "secrets" / "joined.pgpass"
    assert "password" not in kept.replace("passfile", "")
    assert passfile.stat().st_mode & 0o777 == 0o600
    password = passfile.read_text().strip().rsplit(":", 1)[1]
    assert password not in (hosts.folder / "near.log").read_text()
    # The login of the invitation is a runner's: it reads no table, and its password has been replaced.
    assert "may not" in hosts.far.run("list", check=False) or "denied" in hosts.far.run("list", check=False)
    refused = hosts.far.run("join", "postgresql://x@10.77.0.1/y", check=False)
    assert "joined a yard already" in refused and "taskyard leave" in refused
    assert "has left" in hosts.far.run("leave")
    assert not passfile.exists()
    # The superuser comes from the server's own host only, whatever password it has.
    port = hosts.near.json("db", "status")["port"]
    refused = hosts.far.run("--dsn", f"postgresql://postgres:x@10.77.0.1:{port}/taskyard", "list", check=False)
    assert "pg_hba.conf rejects connection" in refused
    assert f"10.77.0.1:{port}" in hosts.near.listening()
    # Off: nobody listens there any more.
    hosts.near.run("db", "start", "--lan", "off")
    assert hosts.near.listening() == {f"127.0.0.1:{port}", f"[::1]:{port}"}
