"""Children that end while their parent begins to wait: nobody waits for ever, and nothing but the ending itself wakes it (no tick)."""

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .family import begin, claim_of, host, spawn
from .fleet import until
from .yardwork import claim, end, in_background, misfiled, refusal, status, waits_for_a_lock

ENDINGS = {
    "completes": "select complete_task({attempt})",
    "completes with others": "select * from complete_tasks('{{{attempt}}}')",
    "fails": "select complete_task({attempt}, 'permission_denied')",
    "is cancelled": "select complete_task({attempt}, 'cancelled')",
    "is cancelled before it runs": "select cancel_task({queued})",
    "is cancelled by hand": "update tasks set status = 'cancelled' where id = {queued}",
}


def carry_out(db: Connection[DictRow], statement: str) -> None:
    """As a runner does: whoever is refused because of a deadlock tries again."""
    while True:
        try:
            db.execute(statement.encode())
            return
        except psycopg.errors.DeadlockDetected:
            pass


def family(db: Connection[DictRow], priority: int) -> dict[str, int]:
    """A parent that runs, one child that runs, one that is queued."""
    runner = host(db)
    task, parent = begin(db, runner, priority=priority)
    child = claim_of(db, runner, spawn(db, parent, "runs", priority=0))
    return {"task": task, "parent": parent, "child": child["task_id"], "attempt": child["attempt_id"], "queued": spawn(db, parent, "queued", priority=0)}  # fmt: skip


@pytest.mark.parametrize("priority", [0, 5])
@pytest.mark.parametrize("first", ["the end", "the wait"])
@pytest.mark.parametrize("how", ENDINGS)
def test_a_child_that_ends_while_its_parent_begins_to_wait_wakes_it(
    yard: Yard, how: str, first: str, priority: int
) -> None:
    """priority: also where the parent lends its child some."""
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    known = family(db, priority)
    awaited = known["queued" if "{queued}" in ENDINGS[how] else "child"]
    calls = {
        "the end": ENDINGS[how].format(**known),
        "the wait": f"select wait_for({known['parent']}, '{{{awaited}}}')",
    }
    one.execute("begin")
    one.execute(calls.pop(first).encode())
    through: list[bool] = []

    def follow() -> None:
        carry_out(two, calls.popitem()[1])
        through.append(True)

    following = in_background(follow)
    until(lambda: bool(through) or waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(20)
    assert through == [True]
    assert end(db, known["parent"], "waiting") == "queued"
    assert misfiled(db) == []


@pytest.mark.parametrize("first", ["the end", "the stop"])
@pytest.mark.parametrize("how", ENDINGS)
def test_a_child_that_ends_while_its_parent_stops_wakes_it(yard: Yard, how: str, first: str) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    known = family(db, 5)
    awaited = known["queued" if "{queued}" in ENDINGS[how] else "child"]
    db.execute("select wait_for(%s, array[%s::bigint])", [known["parent"], awaited])
    calls = {"the end": ENDINGS[how].format(**known), "the stop": f"select complete_task({known['parent']}, 'waiting')"}
    one.execute("begin")
    one.execute(calls.pop(first).encode())
    through: list[bool] = []

    def follow() -> None:
        carry_out(two, calls.popitem()[1])
        through.append(True)

    following = in_background(follow)
    until(lambda: bool(through) or waits_for_a_lock(db, two))
    one.execute("commit")
    following.join(20)
    assert through == [True]
    assert (status(db, known["task"]), misfiled(db)) == ("queued", [])


def test_a_child_of_very_many_that_ends_while_its_parent_begins_to_wait_wakes_it(yard: Yard) -> None:
    """Its end is not to be seen when the wait begins, and the wait not when it ends."""
    db, one = yard.connect(), yard.connect()
    runner = host(db)
    task, parent = begin(db, runner)
    child = claim_of(db, runner, spawn(db, parent))
    others = column(
        db, "insert into tasks (prompt, agent, parent_id, run_at) select 'x', 'shell', %s, '2999-01-01' from generate_series(1, 1500) returning id", task
    )  # fmt: skip
    db.execute("select cancel_task(x) from unnest(%s::bigint[]) x", [others])
    late = claim_of(db, runner, spawn(db, parent, "late"))
    one.execute("begin")
    one.execute("select complete_task(%s)", [child["attempt_id"]])
    waiting: list[bool] = []

    def wait() -> None:
        with yard.connect() as two:
            two.execute("select wait_for(%s, %s)", [parent, [child["task_id"], late["task_id"], *others]])
            end(two, parent, "waiting")
        waiting.append(True)

    following = in_background(wait)
    until(lambda: bool(waiting) or value(db, "select count(*) from pg_locks where not granted") > 0)
    one.execute("commit")
    following.join(20)
    assert waiting == [True]
    assert status(db, task) == "waiting"
    end(db, late["attempt_id"])
    assert (status(db, task), misfiled(db)) == ("queued", [])


@pytest.mark.parametrize("stop", ["complete_task({}, 'waiting')", "complete_task({}, 'crashed')", "release_task({})"])
def test_a_parent_that_stops_and_a_child_that_ends_do_not_wait_for_each_other(yard: Yard, stop: str) -> None:
    """The child's end is held up between its own lock and its parent's row, by somebody else's row."""
    db, one, two, three = (yard.connect() for _ in range(4))
    known = family(db, 0)
    # Locked before the parent's row: dependents are locked in the order of their ids.
    before = value(
        db,
        "insert into tasks (id, prompt, agent, run_at) overriding system value values (-1, 'x', 'shell', '2999-01-01') returning id",
    )
    db.execute("update tasks set depends_on = array[%s::bigint] where id = %s", [known["child"], before])
    db.execute("select wait_for(%s, array[%s::bigint])", [known["parent"], known["child"]])
    one.execute("begin")
    one.execute("set role taskyard_owner")
    one.execute("select 1 from tasks where id = %s for no key update", [before])
    refused: list[str | None] = []

    def call(connection: Connection[DictRow], statement: str) -> None:
        error = refusal(connection, f"select {statement}")
        refused.append(error.sqlstate if error else None)

    ending = in_background(lambda: call(two, f"complete_task({known['attempt']})"))
    until(lambda: waits_for_a_lock(db, two))
    stopping = in_background(lambda: call(three, stop.format(known["parent"])))
    until(lambda: waits_for_a_lock(db, three) or bool(refused))
    one.execute("commit")
    ending.join(20)
    stopping.join(20)
    assert refused == [None, None]
    assert (status(db, known["task"]), misfiled(db)) == ("queued", [])


def test_the_last_two_of_a_family_that_end_at_once_wake_the_parent(yard: Yard) -> None:
    db, one, two = yard.connect(), yard.connect(), yard.connect()
    runner = host(db)
    for ways in (("completed", "completed"), ("completed", "permission_denied"), ("permission_denied", "completed")):
        task, parent = begin(db, runner)
        children = [spawn(db, parent, f"part {n}") for n in range(2)]
        attempts = [row["attempt_id"] for row in claim(db, runner, 2)]
        db.execute("select wait_for(%s, %s)", [parent, children])
        end(db, parent, "waiting")
        one.execute("begin")
        end(one, attempts[0], ways[0])

        def follow(attempt: int = attempts[1], way: str = ways[1]) -> None:
            carry_out(two, f"select complete_task({attempt}, '{way}')")

        following = in_background(follow)
        until(lambda last=children[1]: waits_for_a_lock(db, two) or status(db, last) != "running")
        one.execute("commit")
        following.join(20)
        assert (status(db, task), misfiled(db)) == ("queued", []), ways
        end(db, claim_of(db, runner, task)["attempt_id"])


@dataclass
class Crowd:
    """Runners that work on whatever comes, each on a connection of its own, in an order that chance decides."""

    yard: Yard
    seed: int
    depth: int
    failures: list[BaseException] = field(default_factory=list[BaseException])

    def ask(self, db: Connection[DictRow], call: Callable[[], object]) -> bool:
        """Carry a call out as runners do; whether it was accepted. Refused are lost attempts, circles, and what is too deep."""
        while True:
            try:
                call()
                return True
            except psycopg.errors.DeadlockDetected:
                continue
            except psycopg.Error as error:
                if error.sqlstate not in ("TY003", "TY004", "TY005", "TY006"):
                    raise
                return False

    def attempt(self, db: Connection[DictRow], chance: random.Random, row: DictRow) -> None:
        token = row["attempt_id"]
        level = int(row["prompt"].split()[1])
        if level < self.depth and row["number"] < 4:
            known: list[int] = []
            for n in range(chance.randint(0, 3)):
                self.ask(
                    db,
                    lambda n=n: known.append(
                        spawn(db, token, f"level {level + 1} of {row['task_id']} {n}", priority=-level)
                    ),
                )
            if known and chance.random() < 0.9:
                if chance.random() < 0.3:
                    known += column(db, "select id from tasks where parent_id = %s limit 3", value(db, "select parent_id from tasks where id = %s", row["task_id"]))  # fmt: skip
                self.ask(db, lambda: db.execute("select wait_for(%s, %s, false, '1 hour')", [token, known]))
                self.ask(db, lambda: end(db, token, chance.choice(["waiting", "waiting", "waiting", "crashed"])))
                return
        kind = chance.random()
        if kind < 0.1:
            self.ask(
                db, lambda: db.execute("select cancel_task(%s, 'enough', %s)", [row["task_id"], chance.random() < 0.7])
            )
        if kind < 0.2:
            self.ask(db, lambda: db.execute("select * from complete_tasks(array[%s::bigint])", [token]))
        elif kind < 0.3:
            self.ask(db, lambda: end(db, token, "permission_denied"))
        elif kind < 0.4:
            self.ask(db, lambda: db.execute("select release_task(%s)", [token]))
        else:
            self.ask(db, lambda: end(db, token))

    def work(self, number: int) -> None:
        try:
            chance = random.Random(self.seed * 100 + number)
            with self.yard.connect() as db:
                runner = host(db, f"host-{number}", "mill", slots=5)
                idle = 0
                while idle < 40:
                    found = claim(db, runner, chance.randint(1, 3))
                    for row in found:
                        self.attempt(db, chance, row)
                    idle = 0 if found else idle + 1
                    if not found and not rows(db, "select from tasks where status in ('queued', 'running') limit 1"):
                        return
        except BaseException as error:
            self.failures.append(error)


@pytest.mark.parametrize("seed", range(int(os.environ.get("TASKYARD_INTERLEAVINGS", "4"))))
def test_whatever_the_order_every_family_comes_to_its_end(yard: Yard, seed: int) -> None:
    db = yard.connect()
    db.execute("update scopes set max_spawns_per_minute = null")
    db.execute(
        "insert into tasks (prompt, agent, priority) select 'level 0 of nobody ' || g, 'shell', 5 from generate_series(1, 8) g"
    )
    crowd = Crowd(yard, seed, depth=3)
    threads = [threading.Thread(target=crowd.work, args=[n], daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert crowd.failures == []
    assert not any(thread.is_alive() for thread in threads)
    assert misfiled(db) == []
    # What is left over, if a thread went home early, any runner ends: but nobody waits for what has ended.
    last = host(db, "last", "mill", slots=1000)
    for _ in range(50):
        found = claim(db, last, 100)
        for row in found:
            end(db, row["attempt_id"])
        if not found:
            break
    left = rows(db, "select id, status::text, error from tasks where finished_at is null")
    assert left == [], [(row, column(db, "select explain_task(%s)", row["id"])) for row in left]
    assert value(db, "select count(*) from task_dependencies") == 0
    assert value(db, "select count(*) from waits") >= 10, "it would tell nothing"
