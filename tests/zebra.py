"""A yard with two neighbours, `home` and `zebra`: whatever is of zebra says so, in each table and view that can."""

import re
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, value
from .yardwork import claim, end, insert, register, say

FIRST_TASK = 777000001


@dataclass
class Neighbours:
    yard: Yard
    admin: Connection[DictRow]
    runner: int
    tasks: dict[str, int]
    attempts: dict[str, int]
    approvals: dict[str, int]
    handoff: int
    marks: re.Pattern[str]

    def login(self, name: str, role: str, *scopes: str) -> Connection[DictRow]:
        """A connection under a login of its own that was granted a role and scopes."""
        dsn = self.yard.login(name, role, *scopes)
        connection = Connection[DictRow].connect(dsn, autocommit=True, row_factory=self.admin.row_factory)
        self.yard.stack.callback(connection.close)
        return connection

    def relations(self) -> list[str]:
        """All tables and views of the schema, the partitions included."""
        return column(
            self.admin,
            "select relname::text from pg_class where relnamespace = 'taskyard'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f') order by 1",
        )

    def shown(self, db: Connection[DictRow]) -> dict[str, list[str]]:
        """By relation, the rows of it that tell of zebra; only those that the connection may read at all."""
        found: dict[str, list[str]] = {}
        for name in self.relations():
            readable = value(
                db,
                "select string_agg(quote_ident(attname), ', ') from pg_attribute where attrelid = %s::regclass and attnum > 0"
                " and not attisdropped and has_column_privilege(attrelid, attnum, 'select')",
                f"taskyard.{name}",
            )
            if readable:
                texts = column(db, f"select t::text from (select {readable} from taskyard.{name}) t")  # type: ignore[arg-type]
                found[name] = [text for text in texts if self.marks.search(text)]
        return found


def neighbours(yard: Yard) -> Neighbours:
    """Work of zebra in every state and place, with a little of home beside it."""
    admin = yard.connect()
    admin.execute(
        "insert into scopes (name, parent) values ('home', 'default'), ('home/kid', 'home'), ('zebra', 'default'), ('zebra/foal', 'zebra')"
    )
    admin.execute(
        "insert into budgets (scope, measure, period, amount) values ('zebra', 'usd', 'day', 1), ('home', 'usd', 'day', 100)"
    )
    admin.execute("insert into routing_rules (pattern, scope, agent) values ('zebra', 'zebra', 'shell')")
    yard.login("zebra", "submitter", "zebra")
    admin.execute('insert into templates (name, task) values (\'zebra\', \'{"prompt": "x", "scope": "zebra"}\')')
    admin.execute(
        "insert into push_targets (name, kind, url, scope) values ('zebra', 'webhook', 'http://127.0.0.1:9/zebra', 'zebra')"
    )
    admin.execute(
        "insert into schedules (name, at, scope, task) values ('zebra', '2999-01-01', 'zebra', '{\"prompt\": \"zebra\"}')"
    )
    admin.execute(
        "insert into archived_tasks (archived_at, id, prompt, agent, scope, status, priority, created_by, created_at, finished_at, attempts)"
        " values (now(), 1, 'zebra', 'shell', 'zebra', 'completed', 0, 'zebra', now(), now(), '[]')"
    )
    insert(admin, "of home", scope="home")
    admin.execute("set role taskyard_owner")
    admin.execute(f"alter table tasks alter id restart with {FIRST_TASK}".encode())
    admin.execute("insert into counters values ('attempts', '{\"scope\": \"zebra\"}', 1)")
    admin.execute("reset role")
    runner = register(admin, "mill", slots=50)

    def zebra(what: str, **columns: Any) -> int:
        return insert(admin, f"zebra {what}", **{"scope": "zebra", "priority": 9, **columns})

    def running(what: str, **columns: Any) -> tuple[int, int]:
        task = zebra(what, **columns)
        (row,) = claim(admin, runner)
        assert row["task_id"] == task
        return task, row["attempt_id"]

    tasks: dict[str, int] = {}
    attempts: dict[str, int] = {}
    tasks["failed"], attempts["failed"] = running("failed", priority=100)
    end(admin, attempts["failed"], "permission_denied", error="zebra error", evidence="zebra evidence")
    tasks["completed"], attempts["completed"] = running("completed", priority=100)
    say(admin, attempts["completed"], "zebra transcript")
    admin.execute(
        "select add_artifact(%s, 'zebra.txt', 5, encode(sha256('zebra'), 'hex'), 'zebra')", [attempts["completed"]]
    )
    end(admin, attempts["completed"], result=Jsonb("zebra result"), usage=Jsonb({"cost_usd": 0.9}))
    admin.execute("select tick()")  # usage_daily, and the warning of the budget
    tasks["asking"], attempts["asking"] = running("asking", priority=100)
    permission = value(
        admin, "select request_permission(%s, '{read}', '{/srv/zebra}', '{}', 'zebra reason')", attempts["asking"]
    )
    question = value(admin, "select ask_human(%s, 'zebra question')", attempts["asking"])
    end(admin, attempts["asking"], "waiting")
    tasks["running"], attempts["running"] = running("running", priority=100, workspace="/srv/zebra", dedupe_key="zebra")
    tasks["later"] = zebra("later", run_at="2999-01-01")
    tasks["blocked"] = zebra("blocked", depends_on=[tasks["later"]])
    tasks["held"] = zebra("held", priority=100, workspace="/srv/zebra")
    assert claim(admin, runner, 1)[0]["scope"] == "home"  # and the one that has no directory stepped aside
    tasks["cancelled"] = zebra("cancelled")
    admin.execute("select cancel_task(%s, 'zebra why')", [tasks["cancelled"]])
    tasks["waiting"], attempts["waiting"] = running("waiting", priority=100)
    tasks["child"] = value(
        admin, "select (spawn_task(%s, %s) ->> 'task')::bigint", attempts["waiting"], Jsonb({"prompt": "zebra child", "run_at": "2999-01-01"})
    )  # fmt: skip
    admin.execute("select wait_for(%s, array[%s::bigint])", [attempts["waiting"], tasks["child"]])
    end(admin, attempts["waiting"], "waiting")
    tasks["handed"], attempts["handed"] = running("handed", priority=100, verify="zebra verify")
    admin.execute(
        "select save_checkpoint(%s, %s)", [attempts["handed"], Jsonb({"status": "zebra state", "progress": 0.5})]
    )
    admin.execute("select report_verification(%s, false, 1, 'zebra output', '1 s')", [attempts["handed"]])
    packet = {"target": "gemini", "reason": "limit", "context_summary": "zebra summary"}
    handoff = value(admin, "select handoff_task(%s, %s)", attempts["handed"], Jsonb(packet))
    end(admin, attempts["handed"], "handed_off")
    tasks["successor"] = value(admin, "select to_task from handoffs where id = %s", handoff)
    admin.execute("select say(%s, 'zebra mail')", [tasks["child"]])
    admin.execute("select pgmq.send('inbox', %s)", [Jsonb({"zebra": "no task"})])
    tasks["spender"], attempts["spender"] = running("spender", priority=100)
    tasks["last"], attempts["last"] = running("last", priority=100)
    end(admin, attempts["spender"], usage=Jsonb({"cost_usd": 0.5}))
    tasks["queued"] = zebra("queued")
    admin.execute("select tick()")  # the budget is used up: asked
    end(admin, attempts["last"])  # in usage_charges until the next tick
    budget = value(admin, "select id from approvals where kind = 'budget'")
    admin.execute("select pause_scope('zebra/foal', 'zebra tired')")
    admin.execute("select next_pushes()")
    marks = re.compile(
        "|".join(["zebra", b"zebra".hex(), r"\b7770000\d\d\b", *map(str, attempts.values())]), re.IGNORECASE
    )
    return Neighbours(
        yard, admin, runner, tasks, attempts, {"permission": permission, "question": question, "budget": budget},
        handoff, marks,
    )  # fmt: skip
