"""The database's host dies, and a standby takes over: runners follow, and what was acknowledged is there."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from taskyard.runner.connection import connect, conninfo
from taskyard.runner.install import install

from .conftest import rows, value
from .fleet import fleet_on, until
from .replicas import replicated
from .yardwork import register

COUNT = 400


class Worker(threading.Thread):
    """Claims and completes as fast as it can, wherever writes are taken; keeps which completions were acknowledged."""

    def __init__(self, dsn: str, name: str) -> None:
        super().__init__(daemon=True)
        self._dsn = dsn
        self._name = name
        self.acknowledged: list[int] = []
        self.stopped = False

    def run(self) -> None:
        while not self.stopped:
            try:
                with Connection[DictRow].connect(
                    conninfo(self._dsn, self._name), autocommit=True, row_factory=dict_row
                ) as db:
                    db.execute("set search_path = taskyard, public")
                    runner = register(db, f"{self._name}-{time.time_ns()}", slots=2)
                    self._work(db, runner)
            except psycopg.Error:
                time.sleep(0.2)

    def _work(self, db: Connection[DictRow], runner: int) -> None:
        while not self.stopped:
            claimed = rows(db, "select task_id, attempt_id from claim_task(%s)", runner)
            if not claimed:
                db.execute("select tick(%s)", [runner])
                time.sleep(0.05)
            for claim in claimed:
                db.execute("select complete_task(%s)", [claim["attempt_id"]])
                self.acknowledged.append(claim["task_id"])


def test_a_standby_takes_over_and_no_acknowledged_completion_is_lost(
    temporary_home: Callable[..., Path], tmp_path: Path
) -> None:
    with replicated(temporary_home(), temporary_home()) as pair, fleet_on(pair.dsn, tmp_path) as fleet:
        with connect(pair.dsn) as owner:
            install(owner)
            owner.execute(
                "insert into tasks (prompt, agent) select 'true', 'shell' from generate_series(1, %s)", [COUNT]
            )
            owner.execute(
                "insert into tasks (prompt, agent, requires, priority) select 'sleep 3; echo ' || n, 'shell', '{real}', 9 from generate_series(1, 6) n"
            )
        fleet.start("real", "--label", "real", "--lease", "60s")
        until(lambda: "starts (shell)" in fleet.logs(), 30)
        workers = [Worker(pair.dsn, f"w{n}") for n in range(3)]
        for worker in workers:
            worker.start()
        until(lambda: sum(len(worker.acknowledged) for worker in workers) > 60, 30)
        pair.kill_primary()
        acknowledged = {task for worker in workers for task in list(worker.acknowledged)}
        assert len(acknowledged) < COUNT  # in the middle of it
        pair.promote()
        with Connection[DictRow].connect(pair.admin(), autocommit=True, row_factory=dict_row) as admin:
            # The one that is left must not wait for a standby that nobody has made yet.
            admin.execute("alter system set synchronous_standby_names = ''")
            admin.execute("select pg_reload_conf()")
            admin.execute("set search_path = taskyard, public")
            lost = value(
                admin, "select count(*) from tasks where id = any(%s) and status <> 'completed'", list(acknowledged)
            )
            assert lost == 0
            until(lambda: value(admin, "select bool_and(finished_at is not null) from tasks"), 90)
            for worker in workers:
                worker.stopped = True
            wrong = rows(
                admin,
                """
                select t.id, t.status::text, count(*) filter (where a.outcome = 'completed') as accepted
                from tasks t join attempts a on a.task_id = t.id
                group by t.id having t.status <> 'completed' or count(*) filter (where a.outcome = 'completed') <> 1
                """,
            )
            assert wrong == []
            # The real runner was in the middle of a task when the server died, and reported it to the other one.
            assert value(admin, "select max(attempt_count) from tasks where requires = '{real}'") == 1
            assert value(admin, "select restored_at from incarnation") is None
        for worker in workers:
            worker.join(20)
        assert "going on without it" in fleet.logs()
