"""The log of a runner: one line for each event, JSON where wanted, and nothing secret in it."""

import json
import logging
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from taskyard.runner import logs

from .conftest import Yard, value
from .fleet import fleet_on, until


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("postgresql://yard:hunter2@host/db is away", "postgresql://yard:***@host/db is away"),
        ("host=db password='hun ter2' user=x", "host=db password=*** user=x"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer ***"),
        ("key sk-ant-api03-abcdefghijklmnopqrstuvwxyz refused", "key *** refused"),
        ("two\nlines", "two | lines"),
        ("nothing of the kind: task-17 is done", "nothing of the kind: task-17 is done"),
    ],
)
@pytest.mark.parametrize("form", logs.FORMATS)
def test_secrets_stay_out_and_an_event_is_one_line(
    written: str, said: str, form: logs.Format, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(form)
    logging.getLogger("taskyard.test").info("%s", written, extra={"why": written})
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    if form == "json":
        told = json.loads(line)
        assert (told["event"], told["why"], told["level"], told["logger"]) == (said, said, "info", "taskyard.test")
        assert told["time"].endswith("+00:00")
    else:
        assert line[9:-1] == said


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_traceback_has_no_secrets_either(form: logs.Format, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(form)
    try:
        raise ValueError("postgresql://yard:hunter2@host/db")
    except ValueError:
        logging.getLogger("taskyard.test").exception("it broke")
    said = capsys.readouterr().err
    assert "hunter2" not in said and "ValueError: postgresql://yard:***@host/db" in said
    assert form == "text" or "Traceback" in json.loads(said)["trace"][0]


def test_a_runner_writes_json_that_names_task_and_attempt(yard18: Yard, tmp_path: Path) -> None:
    sql: Connection[DictRow] = yard18.connect()
    task = value(sql, "insert into tasks (prompt, agent) values ('true', 'shell') returning id")
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        runner = fleet.start("a", "--log-format", "json")
        until(lambda: value(sql, "select status::text from tasks where id = %s", task) == "completed", 30)
        until(lambda: "completed" in runner.log.read_text())
    told = [json.loads(line) for line in runner.log.read_text().splitlines()]
    begun, ended = [event for event in told if event.get("task") == task]
    attempt = value(sql, "select id from attempts where task_id = %s", task)
    assert (begun["attempt"], begun["agent"], begun["provider"], begun["number"]) == (attempt, "shell", "command", 1)
    assert (ended["attempt"], ended["outcome"], ended["status"]) == (attempt, "completed", "completed")
