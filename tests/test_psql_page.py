"""docs/psql.md: its own SQL, run by psql as the login of a phone; and the login itself."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow

from taskyard.runner.postgres.binaries import find_binaries

from .command_line import taskyard
from .conftest import Yard, column, value
from .yardwork import claim, end, insert, refusal, register

DOCS = Path(__file__).parent.parent / "docs"
PSQLRC = Path(__file__).parent.parent / "sql" / "psqlrc"


@pytest.fixture
def phone(yard18: Yard) -> Iterator[tuple[Yard, str]]:
    """A yard, and the connection string of a phone in scope home."""
    admin = yard18.connect(superuser=True)
    admin.execute("insert into taskyard.scopes (name, parent) values ('home', 'default'), ('work', 'default')")
    name = f"phone_{yard18.name}"
    made = taskyard(yard18.superuser_dsn, "phone-role", name, "--scope", "home", "--json")
    assert made.exit_code == 0, made.output
    told = json.loads(made.output)
    yield yard18, make_conninfo(yard18.dsn, user=told["user"], password=told["password"])
    admin.execute(f"drop owned by {name}".encode())
    admin.execute(f"drop role {name}".encode())


def psql(dsn: str, text: str) -> subprocess.CompletedProcess[str]:
    program = find_binaries().folder / "psql"
    return subprocess.run(
        [program, "-v", "ON_ERROR_STOP=1", dsn],
        input=text,
        text=True,
        capture_output=True,
        env={**os.environ, "PSQLRC": str(PSQLRC), "COLUMNS": "40"},
        timeout=60,
    )


def test_the_ten_things_of_the_page_work_as_they_stand(phone: tuple[Yard, str]) -> None:
    yard, dsn = phone
    admin = yard.connect()
    page = (DOCS / "psql.md").read_text()
    (template,) = re.findall(r"`(insert into templates [^`]*)`", page)
    admin.execute(template)
    admin.execute("insert into scopes (name, parent, may_network) values ('home/offline', 'home', false)")
    runner = register(admin, "mill", command="", claude="me")
    # What the page speaks of: tasks 1 to 4, with questions 1 to 3.
    asking, other, talking, waiting = (
        insert(admin, f"task {n}", scope="home/offline", run_at="2999-01-01" if n == 4 else None) for n in range(1, 5)
    )
    attempts = {row["task_id"]: row["attempt_id"] for row in claim(admin, runner, 3)}
    for task in (asking, other):
        admin.execute("select request_permission(%s, '{network}', p_why => 'to fetch')", [attempts[task]])
    admin.execute("select ask_human(%s, 'Which version?')", [attempts[talking]])
    for attempt in attempts.values():
        end(admin, attempt, "waiting")
    assert (asking, other, talking, waiting) == (1, 2, 3, 4)
    blocks = re.findall(r"```sql\n(.*?)```", page, re.S)
    headings = re.findall(r"^\*\*(\d+)\. ", page, re.M)
    assert headings == [str(n) for n in range(1, 11)] and len(blocks) == 10
    for block in blocks:
        ran = psql(dsn, block)
        assert ran.returncode == 0, (block, ran.stderr)
        for line in ran.stdout.splitlines():
            # What an answer says may be long; a table may not.
            assert len(line) <= 40 or "|" not in line, line
    assert column(admin, "select decision from approvals order by id") == ["approved", "denied", "answered"]
    prompts = column(admin, "select prompt from tasks where created_by ~ '^phone_' order by id")
    assert prompts == ["fix the flaky login test", "tidy the changelog", "Review the branch main."]
    assert column(admin, "select distinct scope from tasks where created_by ~ '^phone_'") == ["home"]
    assert value(admin, "select priority from tasks where id = 4") == 50


def test_every_short_name_of_the_psqlrc_works(phone: tuple[Yard, str]) -> None:
    _, dsn = phone
    names = re.findall(r"^\\set (\w) 'select", PSQLRC.read_text(), re.M)
    assert set("irdqlfbs") == set(names)
    ran = psql(dsn, "".join(f":{name}\n" for name in names) + ":help\n")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert ":i inbox" in ran.stdout and "approve(17)" in ran.stdout
    assert [line for line in ran.stdout.splitlines() if len(line.rstrip()) > 40] == []


def test_everything_explains_itself(phone: tuple[Yard, str]) -> None:
    _, dsn = phone
    told = psql(dsn, "\\d+ tasks\n\\dv+ inbox\n\\df+ cancel_task\n")
    assert told.returncode == 0, told.stderr
    assert "Higher runs first" in told.stdout
    assert "What waits for you" in told.stdout and "Cancels" in told.stdout


def test_a_phone_does_what_it_may_in_its_scope_and_nothing_else(phone: tuple[Yard, str]) -> None:
    yard, dsn = phone
    admin = yard.connect()
    theirs = insert(admin, "of work", scope="work")
    with Connection[DictRow].connect(dsn, autocommit=True) as db:
        assert db.execute("select count(*) from tasks").fetchone() == (0,)
        for statement in (
            f"select cancel_task({theirs})",
            "insert into tasks (prompt, scope) values ('x', 'work')",
            "update scopes set may_network = true",
            "select grant_scope(session_user::text, 'default')",
            "create table mine (x int)",
            "create role other",
            "select * from pg_authid",
            "select * from taskyard.push_secret",
        ):
            assert refusal(db, statement) is not None, statement
        settings = db.execute("select current_setting('statement_timeout'), current_setting('search_path')").fetchone()
        assert settings == ("30s", "taskyard")


def test_what_phone_role_prints_sets_up_termux(yard18: Yard) -> None:
    admin = yard18.connect(superuser=True)
    name = f"tel_{yard18.name}"
    try:
        told = taskyard(yard18.superuser_dsn, "phone-role", name, "--scope", "default")
        assert told.exit_code == 0
        password = re.search(rf"{name}:([\w-]{{20,}})' >> ~/.pgpass", told.output)
        assert password is not None
        assert PSQLRC.read_text().rstrip() in told.output and "[yard]" in told.output and "ssh -f -N -L" in told.output
        assert taskyard(yard18.superuser_dsn, "phone-role", name, "--scope", "default").exit_code == 3
        again = taskyard(yard18.superuser_dsn, "phone-role", name, "--scope", "default", "--new-password")
        assert again.output.splitlines()[-1] != password[1]
        dsn = make_conninfo(yard18.dsn, user=name, password=again.output.splitlines()[-1])
        Connection[DictRow].connect(dsn).close()
        assert password[1] not in str(column(admin, "select rolpassword from pg_authid where rolname = %s", name))
    finally:
        admin.execute(f"drop owned by {name}".encode())
        admin.execute(f"drop role {name}".encode())
    for wrong in ("Bad Name", "x'; drop", ""):
        assert taskyard(yard18.superuser_dsn, "phone-role", wrong, "--scope", "default").exit_code != 0
    assert taskyard(yard18.superuser_dsn, "phone-role", "tel_none", "--scope", "nowhere").exit_code == 3
    assert column(admin, "select 1 from pg_roles where rolname = 'tel_none'") == []
