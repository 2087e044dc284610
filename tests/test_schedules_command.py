"""taskyard schedule and taskyard schedules: written, changed, looked at, run out of turn, removed."""

import json

from psycopg import Connection
from psycopg.rows import DictRow

from .command_line import taskyard
from .conftest import Yard, column, rows, value


def written(yard: Yard, *arguments: str) -> dict[str, str]:
    done = taskyard(yard, "schedule", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_one_is_written_and_changed_in_what_is_given(yard18: Yard) -> None:
    db: Connection[DictRow] = yard18.connect()
    found = written(
        yard18,
        "nightly",
        "tidy up",
        "--cron",
        "0 3 * * *",
        "--timezone",
        "Europe/Berlin",
        "--agent",
        "shell",
        "--set",
        "who=Ann",
    )
    assert (found["cron"], found["timezone"], found["overlap"]) == ("0 3 * * *", "Europe/Berlin", "skip")
    written(yard18, "nightly", "--priority", "3", "--overlap", "allow", "--set", "whom=Bob")
    (row,) = rows(db, "select task, variables, cron, overlap from schedules")
    assert row == {
        "task": {"prompt": "tidy up", "agent": "shell", "priority": 3},
        "variables": {"who": "Ann", "whom": "Bob"},
        "cron": "0 3 * * *",
        "overlap": "allow",
    }
    written(yard18, "nightly", "--every", "6h", "--at", "10m")
    assert rows(db, "select cron, every::text, next_at - now() < '11 minutes' as soon from schedules") == [
        {"cron": None, "every": "06:00:00", "soon": True}
    ]
    written(yard18, "nightly", "--off")
    assert column(db, "select next_at from schedules") == [None]
    written(yard18, "nightly", "--on", "--cron", "@daily")
    assert column(db, "select next_at is null from schedules") == [False]


def test_people_read_it(yard18: Yard) -> None:
    assert "Nothing comes by itself" in taskyard(yard18, "schedules").output
    said = taskyard(yard18, "schedule", "nightly", "tidy up", "--cron", "0 3 * * *", "--agent", "shell").output
    assert "0 3 * * *" in said and "tidy up" in said
    assert taskyard(yard18, "schedule", "nightly", "--run").output == "Task 1\n"
    for columns in (40, 80):
        lines = taskyard(yard18, "schedules", columns=columns).output.splitlines()
        assert lines[0].split() == ["schedule", "next", "when", "last"]
        assert lines[1].startswith("nightly") and "1 queued" in lines[1]
        assert all(len(line) <= columns for line in lines)
    assert json.loads(taskyard(yard18, "schedules", "--json").output)[0]["last_task_id"] == 1
    assert "gone" in taskyard(yard18, "schedule", "nightly", "--remove").output
    assert value(yard18.connect(), "select count(*) from schedules") == 0


def test_what_is_wrong_is_said_with_an_exit_code(yard18: Yard) -> None:
    for arguments, words in (
        (("x", "y"), "needs a cron line"),
        (("x", "y", "--cron", "0 25 * * *"), "no hour of a cron line"),
        (("x", "--run"), 'no schedule "x"'),
        (("x", "--remove"), 'no schedule "x"'),
        (("x", "--run", "--remove"), "at a time"),
        (("x", "--run", "--cron", "@daily"), "nothing else"),
        (("x", "y", "--cron", "@daily", "--every", "6h"), "--cron says it all"),
        (("x", "y", "--set", "who"), "is not NAME=VALUE"),
    ):
        done = taskyard(yard18, "schedule", *arguments)
        assert done.exit_code != 0 and words in done.output, (arguments, done.output)
