"""Tasks of an older orchestrator: what comes over, what is told of the rest, and that nothing comes by half or twice."""

import json
import sqlite3
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from taskyard.runner.importing.mapping import plan, understand
from taskyard.runner.importing.transfer import find_pgloader

from .command_line import taskyard
from .conftest import Yard, column, rows, value
from .yardwork import claim, register

AGENTS = ("default", "claude", "codex", "shell")

OLD = """
create table tasks (
    id integer primary key autoincrement,
    title text not null,
    prompt text,
    agent_type text default 'claude',
    status text not null default 'pending',
    priority integer default 0,
    created_at datetime default current_timestamp,
    completed_at datetime,
    depends_on text,
    parent_id integer references tasks (id),
    result text,
    error text,
    metadata json,
    is_archived boolean default 0,
    retry_count integer default 0
);
"""


def make(path: Path, *told: dict[str, Any], schema: str = OLD) -> Path:
    """A file with a table of tasks."""
    with sqlite3.connect(path) as file:
        file.executescript(schema)
        for row in told:
            names = ", ".join(f'"{name}"' for name in row)
            file.execute(f"insert into tasks ({names}) values ({', '.join('?' * len(row))})", list(row.values()))
    file.close()
    return path


def bring(yard: Yard, path: Path, *options: str, code: int = 0) -> Any:
    done = taskyard(yard, "import-sqlite", str(path), "--json", *options)
    assert done.exit_code == code, done.output
    return json.loads(done.output)


def read(*told: dict[str, Any], **options: Any) -> tuple[list[Any], Any]:
    """What the mapping makes of rows with these columns."""
    columns = list(dict.fromkeys(name for row in told for name in row))
    return understand(told, plan(columns, agents=AGENTS, **options))


@pytest.fixture
def db(yard18: Yard) -> Connection[DictRow]:
    return yard18.connect()


def test_a_whole_life_comes_over(yard18: Yard, db: Connection[DictRow], tmp_path: Path) -> None:
    path = make(
        tmp_path / "orchestra.db",
        {"title": "a", "prompt": "build it", "status": "done", "created_at": "2026-01-02 03:04:05", "completed_at": "2026-01-02 04:00:00",
         "result": '{"files": ["ä.py"]}', "metadata": '{"branch": "main", "n": 12345678901234567890}', "is_archived": 1},
        {"title": "b", "prompt": "test it", "status": "error", "error": "no compiler", "depends_on": "[1]"},
        {"title": "c", "prompt": "ship it", "status": "pending", "priority": 7, "depends_on": "1", "parent_id": 1},
        {"title": "d", "prompt": "tell them", "status": "in progress", "depends_on": "[3]", "agent_type": "claude-code"},
        {"title": "e", "prompt": "for whom?", "status": "todo", "agent_type": "gpt4", "retry_count": 3},
    )  # fmt: skip
    told = bring(yard18, path)
    assert (told["rows"], told["new"], told["left_out"]) == (5, 5, [])
    assert told["statuses"] == {"completed": 1, "failed": 1, "queued": 3}
    assert told["columns"]["agent"] == "agent_type" and told["columns"]["finished_at"] == "completed_at"
    assert told["kept_in_payload"] == ["title", "is_archived", "retry_count"]
    assert told["understood_otherwise"] == {
        "were running there, and are queued here": 1,
        "for an agent 'gpt4', which is not here, given to default": 1,
    }
    found = {row["prompt"]: row for row in rows(db, "select * from tasks")}
    built = found["build it"]
    assert (built["status"], built["result"]) == ("completed", {"files": ["ä.py"]})
    assert built["created_at"] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert built["finished_at"] == datetime(2026, 1, 2, 4, tzinfo=UTC)
    assert built["payload"]["n"] == 12345678901234567890 and built["payload"]["branch"] == "main"
    assert built["payload"]["imported"] == {
        "key": "sqlite orchestra.db 1",
        "title": "a",
        "is_archived": 1,
        "retry_count": 0,
    }
    assert (found["test it"]["status"], found["test it"]["error"]) == ("failed", "no compiler")
    shipped = found["ship it"]
    assert (shipped["status"], shipped["priority"], shipped["parent_id"]) == ("queued", 7, built["id"])
    assert (found["tell them"]["status"], found["tell them"]["depends_on"]) == ("blocked", [shipped["id"]])
    assert (found["tell them"]["agent"], found["for whom?"]["agent"]) == ("claude", "default")
    assert found["for whom?"]["payload"]["imported"]["agent"] == "gpt4"
    assert value(db, "select to_regnamespace('taskyard_import')") is None


def test_what_came_runs_in_the_order_of_its_dependencies(yard18: Yard, db: Connection[DictRow], tmp_path: Path) -> None:
    path = make(
        tmp_path / "t.db",
        {"id": 10, "title": "x", "prompt": "second", "depends_on": "[20]", "agent_type": "shell"},
        {"id": 20, "title": "x", "prompt": "first", "agent_type": "shell"},
    )
    bring(yard18, path)
    runner = register(db, slots=4)
    (first,) = claim(db, runner, 4)
    assert first["prompt"] == "first"
    db.execute("select complete_task(%s, 'completed')", [first["attempt_id"]])
    (second,) = claim(db, runner, 4)
    assert second["prompt"] == "second"


def test_repeating_it_brings_what_is_new(yard18: Yard, db: Connection[DictRow], tmp_path: Path) -> None:
    path = make(
        tmp_path / "t.db",
        {"title": "x", "prompt": "one"},
        {"title": "x", "prompt": "two", "status": "done", "completed_at": "2020-01-01"},
    )
    assert bring(yard18, path)["new"] == 2
    assert bring(yard18, path)["new"] == 0
    with sqlite3.connect(path) as file:
        file.execute("insert into tasks (title, prompt, depends_on) values ('x', 'three', '[1]')")
    file.close()
    assert bring(yard18, path)["new"] == 1
    assert value(db, "select depends_on from tasks where prompt = 'three'") == column(
        db, "select id from tasks where prompt = 'one'"
    )
    db.execute("select tick()")
    db.execute("update retention set looked_at = '-infinity'")
    db.execute("select tick()")
    assert column(db, "select prompt from archived_tasks") == ["two"]  # it ended years ago
    assert bring(yard18, path)["new"] == 0
    assert bring(yard18, path, "--source", "another")["new"] == 3


def test_a_dry_run_changes_nothing(yard18: Yard, db: Connection[DictRow], tmp_path: Path) -> None:
    path = make(tmp_path / "t.db", {"title": "x", "prompt": "one"})
    before = path.read_bytes()
    done = taskyard(yard18, "import-sqlite", str(path), "--dry-run")
    assert (
        done.exit_code == 0 and "1 rows: 1 queued" in done.output and "Nothing was imported: --dry-run." in done.output
    )
    assert value(db, "select count(*) from tasks") == 0
    assert path.read_bytes() == before


def test_bad_rows_are_left_out_and_told(yard18: Yard, db: Connection[DictRow], tmp_path: Path) -> None:
    path = make(
        tmp_path / "t.db",
        {"title": "x", "prompt": "good"},
        {"title": "x", "prompt": None},
        {"title": "x", "prompt": " \u200b "},
        {"title": "x", "prompt": "x" * (4 * 2**20 + 1)},
        {"title": "x", "prompt": "on hold", "status": "paused"},
        {"title": "x", "prompt": "after nothing", "depends_on": "[99]"},
        {"title": "x", "prompt": "after that", "depends_on": "[6]"},
        {"title": "x", "prompt": "a circle", "depends_on": "[9]"},
        {"title": "x", "prompt": "closed", "depends_on": "[8]"},
        {"title": "x", "prompt": "behind the circle", "depends_on": "[9]"},
        {"title": "x", "prompt": "dead", "status": "failed"},
        {"title": "x", "prompt": "after the dead", "depends_on": "[11]"},
    )
    told = bring(yard18, path)
    assert {row["id"]: row["reason"] for row in told["left_out"]} == {
        "2": "it has no prompt",
        "3": "it has no prompt",
        "4": "its prompt is longer than 4 MB",
        "5": "its status 'paused' is not known here (--status paused=queued, say)",
        "6": "it depends on 99, which is not there or left out",
        "7": "it depends on 6, which is not there or left out",
        "8": "it waits for itself, by way of others",
        "9": "it waits for itself, by way of others",
        "10": "it depends on a task that is left out",
        "12": "it depends on 11, which failed there",
    }
    assert set(column(db, "select prompt from tasks")) == {"good", "dead"}
    assert bring(yard18, path, "--status", "paused=cancelled")["new"] == 1
    assert value(db, "select status::text from tasks where prompt = 'on hold'") == "cancelled"


def test_odd_values_are_taken_as_far_as_they_make_sense(yard18: Yard, db: Connection[DictRow], tmp_path: Path) -> None:
    path = make(tmp_path / "t.db", {"title": "x", "prompt": "🦆 naïve\n\tБ"}, {"title": "x", "prompt": "with \0 a NUL"})
    with sqlite3.connect(path) as file:
        insert = "insert into tasks (title, prompt, status, priority, created_at, metadata, result) values ('x', ?, ?, ?, ?, ?, ?)"
        file.execute(insert.replace("values ('x', ?,", "values ('x', cast(x'62ff61' as text),").replace("?, ?, ?, ?, ?)", "?, ?, ?, ?, ?)"),
                     ["queued", "urgent", 1767323045, '{"nul": "a\\u0000b", "half": "\\ud800"}', None])  # fmt: skip
        file.execute(insert, ["broken payload", "done", "much", "yesterday", "{not json", "NaN"])
        file.execute(insert, ["big", "done", 10**9, 1767323045123, '{"n": 1e999}', "[1, 2"])
    file.close()
    told = bring(yard18, path)
    assert told["left_out"] == [] and told["new"] == 5
    assert told["understood_otherwise"] == {
        "payload that is no JSON, taken as text": 2,
        "created_at that is no time, left out": 1,
        "priorities that are no number, taken as 0": 1,
        "priorities beyond 1,000, cut to that": 1,
        "texts with NULs, which were removed": 1,
        "texts that are no UTF-8, mended": 1,
    }
    found = {row["prompt"]: row for row in rows(db, "select * from tasks")}
    assert set(found) == {"🦆 naïve\n\tБ", "with  a NUL", "b\ufffda", "broken payload", "big"}
    mended = found["b\ufffda"]
    assert mended["priority"] == 100
    assert {key: mended["payload"][key] for key in ("nul", "half")} == {"nul": "ab", "half": "\ufffd"}
    assert (found["broken payload"]["result"], found["broken payload"]["payload"]["payload"]) == ("NaN", "{not json")
    assert (found["big"]["result"], found["big"]["priority"]) == ("[1, 2", 1000)
    assert found["big"]["created_at"] == datetime(2026, 1, 2, 3, 4, 5, 123000, tzinfo=UTC)


def test_nothing_comes_where_one_row_is_refused_by_the_yard(
    yard18: Yard, db: Connection[DictRow], tmp_path: Path
) -> None:
    """What only the database knows, here a scope that allows no such workspace, stops all of it."""
    db.execute("insert into scopes (name, parent, allowed_paths) values ('home', 'default', '{/srv/home}')")
    schema = "create table tasks (id integer primary key, prompt text, status text, workspace text);"
    path = make(
        tmp_path / "t.db",
        {"prompt": "fine", "status": "new", "workspace": "/srv/home/x"},
        {"prompt": "elsewhere", "status": "new", "workspace": "/etc"},
        schema=schema,
    )
    told = bring(yard18, path, "--scope", "home", code=3)
    assert "/etc" in told["error"] + told["hint"]
    assert value(db, "select count(*) from tasks") == 0
    assert value(db, "select to_regnamespace('taskyard_import')") is None


def test_other_tables_columns_and_words(yard18: Yard, db: Connection[DictRow], tmp_path: Path) -> None:
    schema = 'create table "Job List" ("Job Id" text primary key, "ask" text, "done" boolean, "at" text) without rowid;'
    path = tmp_path / "t.db"
    with sqlite3.connect(path) as file:
        file.execute(schema)
        file.executemany(
            'insert into "Job List" values (?, ?, ?, ?)',
            [("a-1", "x", 0, None), ("b-2", "y", 1, "2026-07-01T12:00:00")],
        )
    file.close()
    assert "it has: Job List" in bring(yard18, path, code=3)["error"]
    done = taskyard(yard18, "import-sqlite", str(path), "--table", "job list")
    assert done.exit_code == 2 and "None of the columns looks like a prompt: job id, ask, done, at." in done.output
    options = [
        "--table",
        "job list",
        "--column",
        "prompt=ask",
        "--column",
        "id=Job Id",
        "--column",
        "finished_at=at",
        "--timezone",
        "Europe/Berlin",
    ]
    assert bring(yard18, path, *options)["statuses"] == {"completed": 1, "queued": 1}
    assert value(db, "select finished_at from tasks where prompt = 'y'") == datetime(2026, 7, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("wrong", [b"", b"hello", b"SQLite format 3\0" + b"\0" * 500])
def test_what_is_no_such_file_is_told_in_a_sentence(yard18: Yard, tmp_path: Path, wrong: bytes) -> None:
    (tmp_path / "x.db").write_bytes(wrong)
    told = bring(yard18, tmp_path / "x.db", code=3)
    assert "is no SQLite file" in told["error"] or "cannot be read" in told["error"] or "has no table" in told["error"]


def test_where_pgloader_is_missing_it_says_how_to_get_it(
    yard18: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    told = bring(yard18, make(tmp_path / "t.db", {"title": "x", "prompt": "one"}), code=3)
    assert told["error"] == "The program pgloader is not on this host." and "apt install pgloader" in told["hint"]


def test_only_administrators_bring_history(yard18: Yard, tmp_path: Path) -> None:
    with Connection[DictRow].connect(yard18.login("ann", "submitter", "default"), autocommit=True) as ann:
        ann.execute("set taskyard.importing = 'on'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ann.execute("insert into taskyard.tasks (prompt, status) values ('x', 'completed')")
    with pytest.raises(Exception, match="A new task cannot be completed"):
        yard18.connect().execute("insert into tasks (prompt, status) values ('x', 'completed')")
    with pytest.raises(Exception, match="A new task cannot be running"):
        yard18.connect().execute(
            "set taskyard.importing = 'on'; insert into tasks (prompt, status, attempt_id) values ('x', 'running', 1)"
        )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2026-03-01 09:00:00", "2026-03-01T08:00:00+00:00"),
        ("2026-03-01T09:00:00Z", "2026-03-01T09:00:00+00:00"),
        ("2026-03-01 09:00:00.25+02:00", "2026-03-01T07:00:00.250000+00:00"),
        ("2026-03-01 09:00:00 UTC", "2026-03-01T09:00:00+00:00"),
        ("2026-03-01", "2026-02-28T23:00:00+00:00"),
        (1772355600, "2026-03-01T09:00:00+00:00"),
        ("1772355600.5", "2026-03-01T09:00:00.500000+00:00"),
        (1772355600000, "2026-03-01T09:00:00+00:00"),
        (2026, None),
        ("soon", None),
        (1e300, None),
        ("", None),
    ],
)
def test_times(given: Any, expected: str | None) -> None:
    (task,), _ = read({"prompt": "x", "created_at": given}, zone=ZoneInfo("Europe/Berlin"))
    assert task.created_at == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("[1, 2]", ("1", "2")), ("1,2", ("1", "2")), ("1; 2", ("1", "2")), ('["a"]', ("a",)), ("[a,'b']", ("a", "b")), (3, ("3",)), ("[]", ()), ("", ()), (None, ())],
)  # fmt: skip
def test_dependencies_as_people_write_them(given: Any, expected: tuple[str, ...]) -> None:
    tasks, _ = read({"prompt": "x", "status": "done", "depends_on": given})
    assert tasks[0].depends_on == expected


def test_a_column_that_is_named_twice_or_not_there() -> None:
    with pytest.raises(ValueError, match="There is no column ask"):
        plan(["prompt"], {"prompt": "ask"})
    with pytest.raises(ValueError, match="wish is nothing that a task has"):
        plan(["prompt"], {"wish": "prompt"})


def large(path: Path, count: int) -> Path:
    make(path)
    with sqlite3.connect(path) as file:
        file.executemany(
            "insert into tasks (title, prompt, agent_type, status, priority, completed_at, depends_on, metadata) values (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                ("x", f"Müll {n} wegräumen", "shell", "done" if n % 4 else "pending", n % 10, "2026-11-01 00:00:00" if n % 4 else None,
                 f"[{n - 3}]" if n % 4 == 0 else None, json.dumps({"n": n}))
                for n in range(1, count + 1)
            ),
        )  # fmt: skip
    file.close()
    return path


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many(yard18: Yard, db: Connection[DictRow], tmp_path: Path, count: int) -> None:
    path = large(tmp_path / "t.db", count)
    began = time.monotonic()
    assert bring(yard18, path)["new"] == count
    took = time.monotonic() - began
    print(f"{count} rows in {took:.1f} s")
    assert took < 10 + count / 1000
    assert value(db, "select count(*) from tasks where status = 'queued'") == count // 4
    assert value(db, "select count(*) from ready_tasks") == count // 4
    assert value(db, "select count(*) from tasks where depends_on <> '{}'") == count // 4
    runner = register(db, slots=10)
    assert len(claim(db, runner, 10)) == 10
    assert bring(yard18, path)["new"] == 0


def test_one_that_is_killed_leaves_nothing(yard18: Yard, db: Connection[DictRow], tmp_path: Path) -> None:
    from .command_line import PROGRAM, until

    path = large(tmp_path / "t.db", 6_000)
    process = subprocess.Popen(
        [PROGRAM, "--dsn", yard18.dsn, "import-sqlite", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(
        lambda: value(
            db,
            "select count(*) from pg_stat_activity where query like '%insert into taskyard.tasks%' and pid <> pg_backend_pid() and state = 'active'",
        )
    )
    process.kill()
    process.wait()
    until(
        lambda: (
            value(
                db,
                "select count(*) from pg_stat_activity where query like '%insert into taskyard.tasks%' and pid <> pg_backend_pid() and datname = current_database()",
            )
            == 0
        )
    )
    assert value(db, "select count(*) from tasks") == 0
    assert bring(yard18, path)["new"] == 6_000


def test_pgloader_is_there() -> None:
    """Else the tests above would have told nothing."""
    assert find_pgloader()
