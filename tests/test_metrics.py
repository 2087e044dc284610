"""The numbers for Prometheus: right, readable by its own parser, counted once each, and told to nobody who may not see all."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families,  # pyright: ignore[reportUnknownVariableType]
)
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from taskyard.runner.connection import open_yard
from taskyard.runner.errors import TaskyardError
from taskyard.runner.metrics import application

from .command_line import taskyard
from .conftest import Yard, column, rows, value
from .test_plans import Explained, check
from .yardwork import advance, claim, end, insert, refusal, refuse, register, stop_clock

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def db(yard: Yard) -> Connection[DictRow]:
    made = yard.connect()
    stop_clock(made)
    return made


def samples(text: str) -> Samples:
    """Every sample of an OpenMetrics text, as Prometheus' own parser reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def found(db: Connection[DictRow], name: str, **labels: str) -> float | None:
    return samples(value(db, "select metrics_text()")).get((f"taskyard_{name}", frozenset(labels.items())))


def minute(db: Connection[DictRow]) -> None:
    """Time for tick() to count what has ended."""
    advance(db, minutes=2)
    db.execute("select tick()")


def test_what_waits_and_runs(db: Connection[DictRow]) -> None:
    runner = register(db, "mill", slots=3)
    for n in range(4):
        insert(db, f"task {n}", agent="shell")
    insert(db, "later", agent="shell", run_at="2999-01-01")
    insert(db, "after", agent="shell", depends_on=[1])
    claim(db, runner)
    advance(db, seconds=30)
    assert found(db, "tasks_queued", scope="default", agent="shell") == 3
    assert found(db, "queue_age_seconds", scope="default", agent="shell") == pytest.approx(30, abs=1)
    assert found(db, "tasks_scheduled") == 1
    assert found(db, "tasks_blocked") == 1
    assert found(db, "tasks_running", scope="default", agent="shell", provider="command") == 1
    assert found(db, "runner_slots", runner="mill") == 3
    assert found(db, "runner_busy_slots", runner="mill") == 1
    assert found(db, "runner_silent_seconds", runner="mill") == pytest.approx(30, abs=1)
    assert found(db, "runner_healthy", runner="mill") == 1
    db.execute("select drain_runner('mill')")
    assert found(db, "runner_healthy", runner="mill") == 0


def test_what_ended_is_counted_once(db: Connection[DictRow]) -> None:
    runner = register(db, slots=10)
    for n in range(3):
        insert(db, f"task {n}", agent="shell", max_attempts=1)
    first, second, third = (row["attempt_id"] for row in claim(db, runner, 3))
    advance(db, seconds=20)
    end(db, first, usage=Jsonb({"input_tokens": 100, "output_tokens": 7, "cost_usd": 0.25}))
    end(db, second, "failed")
    advance(db, seconds=10)
    end(db, third)
    labels = {"scope": "default", "agent": "shell", "provider": "command"}
    assert found(db, "attempts_total", outcome="completed", **labels) is None  # not settled yet
    for _ in range(3):
        minute(db)
    assert found(db, "attempts_total", outcome="completed", **labels) == 2
    assert found(db, "attempts_total", outcome="failed", **labels) == 1
    assert found(db, "attempt_seconds_total", **labels) == 20 + 20 + 30
    assert found(db, "tokens_total", provider="command", direction="input") == 100
    assert found(db, "tokens_total", provider="command", direction="output") == 7
    assert found(db, "cost_dollars_total", scope="default", provider="command") == 0.25


def test_a_lease_that_ran_out_is_counted(db: Connection[DictRow]) -> None:
    runner = register(db)
    insert(db, "x", agent="shell")
    claim(db, runner)
    advance(db, minutes=10)
    db.execute("select tick()")
    for _ in range(2):
        minute(db)
    assert found(db, "lost_attempts_total") == 1


def test_what_is_deleted_stays_counted(db: Connection[DictRow]) -> None:
    runner = register(db)
    insert(db, "x", agent="shell")
    end(db, claim(db, runner)[0]["attempt_id"])
    minute(db)
    db.execute("delete from tasks")
    minute(db)
    assert found(db, "attempts_total", scope="default", agent="shell", provider="command", outcome="completed") == 1


def test_one_that_runs_for_days_is_counted_when_it_ends(db: Connection[DictRow]) -> None:
    runner = register(db)
    insert(db, "x", agent="shell")
    attempt = claim(db, runner)[0]["attempt_id"]
    for _ in range(3):
        advance(db, days=1)
        db.execute("update runners set last_seen = _now()")
        db.execute("update attempts set lease_until = _now() + interval '2 days'")
        db.execute("select tick()")
    assert column(db, "select pending from counted") == [[attempt]]
    end(db, attempt)
    minute(db)
    assert found(db, "attempts_total", scope="default", agent="shell", provider="command", outcome="completed") == 1
    assert column(db, "select pending from counted") == [[]]


def test_counting_reads_what_is_new(yard: Yard) -> None:
    db = yard.connect(superuser=True)
    stop_clock(db)
    runner = register(db, slots=1000)
    db.execute("insert into tasks (prompt, agent) select 'x', 'shell' from generate_series(1, 3010)")
    for _ in range(4):
        db.execute("select complete_tasks(array(select attempt_id from claim_task(%s, 500)))", (runner,))
    advance(db, minutes=2)
    db.execute("select _count_ended()")
    db.execute("update attempts set id = id - 3600000000")  # an hour ago
    for row in claim(db, runner, 5):
        end(db, row["attempt_id"])
    plans = Explained(db)
    advance(db, minutes=2)
    check(plans.nodes("select _count_ended()"), most=10)
    labels = {"scope": "default", "agent": "shell", "provider": "command"}
    assert found(db, "attempts_total", outcome="completed", **labels) == 2005


def test_limits_are_told_by_account(db: Connection[DictRow]) -> None:
    runner = register(db, "host", claude="me@mail.example")
    insert(db, "x", agent="claude")
    refuse(db, claim(db, runner)[0]["attempt_id"], window="five_hour", used_percent=100)
    told = rows(db, "select labels, value from metrics() where name = 'taskyard_limit_seconds'")
    assert [(row["labels"]["provider"], row["labels"]["account"]) for row in told] == [("claude", "me@mail.example")]
    assert 0 < told[0]["value"] < 9 * 86400
    assert found(db, "limit_used_ratio", **told[0]["labels"]) == 1


def test_labels_with_quotes_and_line_breaks_are_read_back(db: Connection[DictRow]) -> None:
    odd = 'a "quoted" back\\slash\nand a line'
    db.execute("insert into counters values ('tokens', %s, 5)", [Jsonb({"provider": odd, "direction": "input"})])
    assert found(db, "tokens_total", provider=odd, direction="input") == 5


def test_who_sees_a_part_only_gets_no_sums_of_the_whole(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('ours', 'default')")
    with Connection[DictRow].connect(yard.login("ann", "submitter", "ours"), autocommit=True) as ann:
        error = refusal(ann, "select metrics_text()")
    assert error is not None and error.sqlstate == "TY006"
    assert "taskyard_table_bytes" in value(yard.connect("viewer"), "select metrics_text()")


def test_the_command_prints_them_once(yard18: Yard) -> None:
    done = taskyard(yard18, "metrics", "--once")
    assert done.exit_code == 0, done.output
    assert done.output.endswith("# EOF\n")
    assert ("taskyard_tasks_scheduled", frozenset[tuple[str, str]]()) in samples(done.output)


@pytest.fixture
def served(yard18: Yard) -> Iterator[tuple[str, list[bool]]]:
    """The address of a server, and whether its database is away."""
    away = [False]

    def connect() -> Connection[DictRow]:
        if away[0]:
            raise TaskyardError("The database does not answer.")
        return open_yard(yard18.dsn)

    server = uvicorn.Server(uvicorn.Config(application(connect), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", away
    server.should_exit = True
    thread.join()


def test_they_are_served_and_their_absence_too(served: tuple[str, list[bool]]) -> None:
    address, away = served
    answer = httpx.get(f"{address}/metrics")
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "application/openmetrics-text")
    assert samples(answer.text)
    away[0] = True
    answer = httpx.get(f"{address}/metrics")
    assert (answer.status_code, answer.text) == (503, "No metrics: The database does not answer.\n")
    away[0] = False
    assert httpx.get(f"{address}/metrics").status_code == 200
