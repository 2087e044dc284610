"""What the command line promises, asked within this process."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from taskyard.runner import cli
from taskyard.runner.cli import main
from taskyard.runner.cli.options import parse_duration
from taskyard.runner.cli.output import clean, fit, width_of
from taskyard.runner.cli.watch import Text
from taskyard.runner.queries import concerns

from .command_line import Worker, insert, taskyard
from .conftest import Yard, rows, value

EVERY_OPTION = [
    *("--agent", "shell", "--scope", "default", "--priority", "7", "--payload", '{"a": [1, null]}'),
    *("--workspace", "/srv/repo", "--requires", "gpu", "--requires", "docker", "--provider", "command"),
    *("--model", "m1", "--dedupe-key", "k", "--max-attempts", "4", "--timeout", "1h30m"),
    *("--on-dependency-failure", "run", "--on-limit", "switch after 2 hours", "--verify", "make test"),
]


def test_submit_passes_every_option_on(yard18: Yard) -> None:
    db = yard18.connect()
    first, second, third = insert(db), insert(db), insert(db)
    depends = ["--depends-on", f"{first},{second}", "-d", str(third)]
    found = taskyard(yard18, "submit", "do it", *EVERY_OPTION, *depends)
    assert found.exit_code == 0, found.output
    task = rows(db, "select * from tasks where id = %s", int(found.stdout))[0]
    expected = {
        "prompt": "do it",
        "agent": "shell",
        "priority": 7,
        "payload": {"a": [1, None]},
        "workspace": "/srv/repo",
        "requires": ["gpu", "docker"],
        "provider": "command",
        "model": "m1",
        "dedupe_key": "k",
        "max_attempts": 4,
        "timeout": timedelta(minutes=90),
        "on_dependency_failure": "run",
        "on_limit": "switch after 2 hours",
        "verify": "make test",
        "depends_on": [first, second, third],
    }
    assert {name: task[name] for name in expected} == expected


def test_submit_prints_only_the_id_where_nobody_looks(yard18: Yard) -> None:
    assert re.fullmatch(r"\d+\n", taskyard(yard18, "submit", "do it").stdout)
    assert json.loads(taskyard(yard18, "submit", "do it", "--json").stdout)["status"] == "queued"


def test_a_taken_dedupe_key_gives_the_first_id(yard18: Yard) -> None:
    first = taskyard(yard18, "submit", "one", "--dedupe-key", "nightly").stdout
    assert taskyard(yard18, "submit", "two", "--dedupe-key", "nightly").stdout == first


def test_a_prompt_comes_from_standard_input_or_a_file(yard18: Yard, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("für später\nzweite Zeile\n", encoding="utf-8")
    given = [
        taskyard(yard18, "submit", "-", stdin="aus der Röhre"),
        taskyard(yard18, "submit", "--file", str(file)),
    ]
    db = yard18.connect()
    prompts = [value(db, "select prompt from tasks where id = %s", int(found.stdout)) for found in given]
    assert prompts == ["aus der Röhre", "für später\nzweite Zeile\n"]


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (b"a\0b", "The prompt holds a NUL byte (at byte 1)."),
        (b"abc\xff", "The prompt is not valid UTF-8 (at byte 3)."),
        (b"x" * ((4 << 20) + 1), "The prompt is larger than 4 MB."),
    ],
    ids=["nul", "latin1", "large"],
)
def test_a_prompt_that_cannot_be_sent_is_refused_in_one_sentence(prompt: bytes, sentence: str) -> None:
    found = taskyard("host=/nonexistent", "submit", "-", "--json", stdin=prompt)
    assert found.exit_code == 3
    assert json.loads(found.stderr)["error"] == sentence


def test_a_prompt_of_4_mb_is_accepted(yard18: Yard) -> None:
    assert taskyard(yard18, "submit", "-", stdin=b"x" * (4 << 20)).exit_code == 0


def test_the_prompt_is_given_once(yard18: Yard, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.touch()
    assert taskyard(yard18, "submit").exit_code == 2
    assert taskyard(yard18, "submit", "x", "--file", str(file)).exit_code == 2
    # An empty one is the database's to refuse.
    assert taskyard(yard18, "submit", "--file", str(file)).exit_code == 3


def test_run_at_takes_a_time_or_a_delay(yard18: Yard) -> None:
    db = yard18.connect()
    for given, expected in [
        ("90m", datetime.now(UTC) + timedelta(minutes=90)),
        ("2100-01-02T03:04:05+02:00", datetime(2100, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2100-01-02T03:04", datetime(2100, 1, 2, 3, 4).astimezone()),
    ]:
        number = int(taskyard(yard18, "submit", "later", "--run-at", given).stdout)
        found = value(db, "select run_at from tasks where id = %s", number)
        assert abs(found - expected) < timedelta(minutes=1), given
    assert taskyard(yard18, "submit", "later", "--run-at", "tomorrow").exit_code == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172800), ("1w", 604800), ("0s", 0)]
    + [(text, None) for text in ("", "10", "m", "-5m", "1.5h", "10 m", "1h 30m", "10x")],
)
def test_durations_are_read_like_this(text: str, seconds: int | None) -> None:
    found = parse_duration(text)
    assert ((found and found.total_seconds()) or (0 if found == timedelta() else None)) == seconds


def test_bad_values_are_usage_errors(yard18: Yard) -> None:
    for arguments in (
        ["submit", "x", "--payload", "{"],
        ["submit", "x", "--payload", "[NaN]"],
        ["submit", "x", "--timeout", "99999999999d"],
        ["submit", "x", "-d", "3,"],
        ["submit", "x", "-d", "99999999999999999999"],
        ["show", "0"],
        ["show", "99999999999999999999"],
        ["list", "--status", "asleep"],
    ):
        found = taskyard(yard18, *arguments)
        assert found.exit_code == 2, arguments
        assert "Error: Invalid value for" in found.stderr, arguments
    assert json.loads(taskyard(yard18, "list", "--status", "asleep", "--json").stderr)["error"]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_list_fits_its_terminal(yard18: Yard, columns: int) -> None:
    db = yard18.connect()
    db.execute("insert into agents (name) values ('an-agent-with-a-name-longer-than-its-column')")
    insert(db, "日本語のプロンプト" * 30, "an-agent-with-a-name-longer-than-its-column")
    insert(db, "with\x1b[31m colours\x1b[0m and\nlines and \x07bells " * 20)
    insert(db, "short")
    lines = taskyard(yard18, "list", columns=columns).stdout.splitlines()
    assert len(lines) == 4
    assert all(width_of(line) <= columns for line in lines), lines
    assert "日本語" in lines[3]
    assert lines[3].endswith("…")
    assert "with colours and lines" in lines[2]
    assert lines[1].split()[0] == "3"
    assert lines[1].endswith("short")


def test_a_list_can_be_narrowed(yard18: Yard) -> None:
    db = yard18.connect()
    db.execute("insert into scopes (name, parent) values ('web', 'default')")
    mine = insert(db)
    default = insert(db, agent="default")
    scoped = value(db, "insert into tasks (prompt, agent, scope) values ('x', 'shell', 'web') returning id")
    other = int(taskyard(yard18.login("ann", "submitter", "default"), "submit", "hers", "--agent", "shell").stdout)
    Worker(db).claim()
    db.execute("select cancel_task(%s)", (default,))

    def ids(*arguments: str) -> list[int]:
        return [task["id"] for task in json.loads(taskyard(yard18, "list", "--json", *arguments).stdout)]

    assert ids() == [other, scoped, default, mine]
    assert ids("--limit", "2") == [other, scoped]
    assert ids("--agent", "default") == [default]
    assert ids("--scope", "web") == [scoped]
    assert ids("--mine") == [scoped, default, mine]
    assert ids("--status", "cancelled", "--status", "running") == [default, mine]
    empty = taskyard(yard18, "list", "--status", "failed")
    assert (empty.exit_code, empty.stdout) == (0, "")


def test_a_listed_task_says_its_time(yard18: Yard) -> None:
    taskyard(yard18, "submit", "later", "--run-at", "3h1m")
    assert re.search(r"scheduled +in 3h .* later", taskyard(yard18, "list").stdout)


def test_show_tells_all_of_a_task(yard18: Yard) -> None:
    db = yard18.connect()
    first = insert(db, "first")
    number = value(db, "insert into tasks (prompt, depends_on) values ('second', %s) returning id", [first])
    worker = Worker(db)
    attempt = worker.claim()
    worker.end(attempt, "crashed", error="it fell over")
    worker.end(worker.claim(), result="the answer")

    text = taskyard(yard18, "show", str(first), columns=40).stdout
    assert f"Task {first}: completed" in text
    assert re.search(r"result\n {2}the answer\n", text)
    assert re.search(r"1 crashed, 0s, host-a, command\n", text)
    assert "2 completed" in text
    assert all(width_of(line) <= 40 for line in text.splitlines())

    document = json.loads(taskyard(yard18, "show", str(first), "--json").stdout)
    assert document["result"] == "the answer"
    assert [(a["number"], a["outcome"]) for a in document["attempts"]] == [(1, "crashed"), (2, "completed")]
    assert document["attempts"][0]["id"] == attempt
    document = json.loads(taskyard(yard18, "show", str(number), "--json").stdout)
    assert document["dependencies"] == [{"id": first, "status": "completed", "prompt": "first"}]


def test_nothing_that_an_agent_printed_steers_the_terminal(yard18: Yard) -> None:
    db = yard18.connect()
    number = insert(db, "clear \x1b[2J\x9b2J")
    worker = Worker(db)
    attempt = worker.claim()
    worker.write(attempt, (1, "output", "a\x1b]0;title\x07b\x1b[2Jc\r\nd\x08"), (2, "no\x1bte", "\x1bc"))
    worker.end(attempt, result="\x1b[31mred")
    for command in ("show", "logs", "list"):
        arguments = [] if command == "list" else [str(number)]
        found = taskyard(yard18, command, *arguments).stdout
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", found), command
    assert taskyard(yard18, "logs", str(number)).stdout.startswith("abc\nd\n")


def test_streams_are_joined_and_other_kinds_marked() -> None:
    text = Text()
    given = [
        ("output", "on"),
        ("output", "e\ntwo"),
        ("error", "bad\nwor"),
        ("error", "se\n"),
        ("note", "n1"),
        ("note", "n2"),
    ]
    printed = "".join(text.add(kind, body) for kind, body in [*given, ("output", "end")]) + text.end()
    expected = "one\ntwo\n[error] bad\n[error] worse\n[note] n1\n[note] n2\nend\n"
    assert click.unstyle(printed) == expected


def test_logs_give_the_latest_attempt_or_the_one_asked_for(yard18: Yard) -> None:
    db = yard18.connect()
    number = str(insert(db))
    empty = taskyard(yard18, "logs", number)
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "explain" in empty.stderr
    worker = Worker(db)
    first = worker.claim()
    worker.write(first, (1, "output", "first\n"))
    worker.end(first, "crashed")
    second = worker.claim()
    worker.write(second, *[(seq, "output", f"line {seq}\n") for seq in range(1, 1201)])

    assert taskyard(yard18, "logs", number, "--attempt", "1").stdout == "first\n"
    assert taskyard(yard18, "logs", number).stdout.splitlines() == [f"line {n}" for n in range(1, 1201)]
    assert taskyard(yard18, "logs", number, "--tail", "2").stdout == "line 1199\nline 1200\n"
    assert taskyard(yard18, "logs", number, "--tail", "5000").stdout.count("\n") == 1200
    line = json.loads(taskyard(yard18, "logs", number, "--tail", "1", "--json").stdout)
    assert (line["attempt"], line["attempt_id"], line["seq"], line["body"]) == (2, second, 1200, "line 1200\n")
    assert taskyard(yard18, "logs", number, "--attempt", "3").exit_code == 3


def test_one_refusal_does_not_keep_other_tasks_from_being_cancelled(yard18: Yard) -> None:
    db = yard18.connect()
    running, waiting = insert(db), insert(db)
    Worker(db).claim()
    found = taskyard(yard18, "cancel", str(running), "999", str(waiting), "--why", "not needed", "--json")
    assert found.exit_code == 3
    assert json.loads(found.stdout) == [
        {"id": running, "status": "stopping"},
        {"id": waiting, "status": "cancelled"},
    ]
    assert json.loads(found.stderr)["code"] == "TY002"
    assert value(db, "select cancel_reason from tasks where id = %s", waiting) == "not needed"
    again = taskyard(yard18, "retry", str(waiting))
    assert (again.exit_code, again.stdout) == (0, f"{waiting} queued\n")


def test_pausing_and_draining_are_told_and_undone(yard18: Yard) -> None:
    db = yard18.connect()
    number = str(insert(db))
    Worker(db)
    assert "paused" in taskyard(yard18, "pause", "scope", "default", "--why", "lunch").stdout
    assert "lunch" in taskyard(yard18, "explain", number).stdout
    assert taskyard(yard18, "resume", "scope", "default").exit_code == 0
    assert taskyard(yard18, "pause", "provider", "command").exit_code == 0
    assert "Provider command is paused." in json.loads(taskyard(yard18, "explain", number, "-j").stdout)["reasons"]
    assert taskyard(yard18, "resume", "provider", "command").exit_code == 0
    assert taskyard(yard18, "drain", "host-a").exit_code == 0
    assert value(db, "select draining from runners")
    assert taskyard(yard18, "drain", "host-a", "--off").exit_code == 0
    assert not value(db, "select draining from runners")
    assert taskyard(yard18, "pause", "scope", "nowhere").exit_code == 3


@pytest.mark.parametrize("command", ["show", "logs", "explain", "cancel", "retry", "wait"])
def test_a_task_that_does_not_exist_is_refused(yard18: Yard, command: str) -> None:
    found = taskyard(yard18, command, "424242", "--json")
    assert found.exit_code == 3
    error = json.loads(found.stderr)
    assert error["error"] == "There is no task 424242."
    assert error["code"] == "TY002"
    assert error["hint"]


def test_a_refusal_names_what_to_do(yard18: Yard) -> None:
    viewer = yard18.login("bob", "viewer")
    found = taskyard(viewer, "submit", "x")
    assert found.exit_code == 3
    assert re.match(r"error: bob_\w+ may not submit tasks\.\nAn administrator can allow it: grant ", found.stderr)
    assert taskyard(viewer, "list").exit_code == 0
    runner = taskyard(yard18.login("box", "runner"), "list")
    assert runner.exit_code == 3
    assert "permission denied" in runner.stderr
    assert "taskyard_viewer" in runner.stderr


def test_an_unreachable_database_is_told_without_its_password() -> None:
    for dsn in ("postgresql://me:hunter2@127.0.0.1:1/yard", "host=127.0.0.1 port=1 password=hunter2", "port=x host"):
        found = taskyard(dsn, "list", "--json")
        assert found.exit_code == 4
        assert "hunter2" not in found.output
        assert set(json.loads(found.stderr)) == {"error", "hint", "code"}


def test_dsn_may_stand_after_the_command(yard18: Yard) -> None:
    assert taskyard("host=/nonexistent", "list", "--dsn", yard18.dsn).exit_code == 0


def commands(group: click.Group = main, *groups: str) -> list[tuple[list[str], click.Command]]:
    found: list[tuple[list[str], click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        words = [*groups, name]
        found += commands(command, *words) if isinstance(command, click.Group) else [(words, command)]
    return found


def test_every_command_that_prints_data_prints_json_and_every_one_explains_itself() -> None:
    for words, command in commands():
        name = words[-1]
        assert command.help, name
        assert command.short_help, name
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--json" in options) == (
            name not in ("up", "runner", "psql", "completion", "agent", "tui", "notify", "metrics")
        ), name
        assert taskyard("", *words, "--help").exit_code == 0


def test_the_help_lists_the_exit_codes() -> None:
    text = taskyard("", "--help").stdout
    assert all(re.search(rf"^ +{code} +\w", text, re.MULTILINE) for code in (0, 1, 2, 3, 4, 5, 6, 130))


def test_no_command_talks_to_the_database_but_through_queries_and_actions() -> None:
    for file in Path(cli.__file__).parent.glob("*.py"):
        assert not re.search(r"\.execute\(|\bcursor\(", file.read_text(encoding="utf-8")), file


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion_script(shell: str) -> None:
    found = taskyard("", "completion", shell)
    assert found.exit_code == 0
    assert "_TASKYARD_COMPLETE" in found.stdout


@pytest.mark.parametrize(
    ("payload", "ours"),
    [
        ('{"operation":"update","id":7,"status":"failed"}', True),
        ('{"operation":"update","id":8,"status":"failed"}', False),
        ('{"operation":"update","id":1,"status":"queued","ids":[1,7]}', True),
        ('{"operation":"insert","id":1,"status":"queued","ids":' + json.dumps(list(range(100, 400))) + "}", True),
        ('{"operation":"refresh","id":3,"status":null}', True),
        ("what is this", True),
        ("[]", True),
    ],
)
def test_a_notification_wakes_only_whom_it_may_concern(payload: str, ours: bool) -> None:
    assert concerns(payload, frozenset({7})) is ours


def test_text_is_cut_to_columns_and_not_to_characters() -> None:
    cases: list[tuple[str, int, Any]] = [
        ("abcdef", 4, "abc…"),
        ("abcd", 4, "abcd"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
    ]
    assert [fit(text, width) for text, width, _ in cases] == [expected for _, _, expected in cases]
    assert clean("a\rb\r\nc\td\u202e") == "a\nb\nc\td"
