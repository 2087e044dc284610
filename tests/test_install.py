"""The installer: from nothing, again, two at once, upwards, and out again."""

import contextlib
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row

from taskyard.runner.errors import TaskyardError
from taskyard.runner.install import Installed, install, schema_number, uninstall
from taskyard.runner.postgres import Cluster, find_binaries

from .conftest import POSTGRES_15, Yard, column, rows, server_versions, value
from .test_refusals import contents
from .yardwork import claim, insert, misfiled, register

SQL = Path(__file__).parent.parent / "sql"
_numbers = itertools.count(1)


@pytest.fixture(params=server_versions())
def empty(request: pytest.FixtureRequest, servers: Callable[[str], Cluster]) -> Iterator[Yard]:
    """A database with nothing in it."""
    with another(servers(request.param)) as made:
        yield made


@contextlib.contextmanager
def another(cluster: Cluster) -> Generator[Yard]:
    name = f"empty_{next(_numbers)}"
    with psycopg.connect(cluster.url("postgres", admin=True), autocommit=True) as admin:
        admin.execute(sql.SQL("create database {} owner yard").format(sql.Identifier(name)))
        with contextlib.ExitStack() as stack:
            yield Yard(cluster, name, stack)
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def login(yard: Yard, *granted: str, create: bool = False) -> Connection[DictRow]:
    """A connection of a login of its own that has been granted roles, and CREATE on the database."""
    name = f"guest_{next(_numbers)}"
    admin = yard.connect(superuser=True)
    admin.execute(sql.SQL("create role {} login password 'secret'").format(sql.Identifier(name)))
    for role in granted:
        admin.execute(sql.SQL("grant {} to {}").format(sql.Identifier(role), sql.Identifier(name)))
    if create:
        admin.execute(
            sql.SQL("grant create on database {} to {}").format(sql.Identifier(yard.name), sql.Identifier(name))
        )
    connection = Connection[DictRow].connect(
        make_conninfo(yard.dsn, user=name, password="secret"), autocommit=True, row_factory=dict_row
    )
    yard.stack.callback(connection.close)
    return connection


def dump(yard: Yard, *options: str) -> str:
    """The schema of the database, as the server's own pg_dump writes it."""
    # A newer one also writes what Debian's 15.20 notes for itself at each column (pg_attver), and its own does not.
    with pytest.MonkeyPatch.context() as patch:
        if yard.connect().info.server_version < 160000:
            patch.setenv("TASKYARD_PG_BIN", str(POSTGRES_15))
        program = find_binaries().program("pg_dump")
    command = [program, "--schema-only", *options, yard.superuser_dsn]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.sub(r"^\\(un)?restrict .*\n", "", written, flags=re.MULTILINE)  # a random key in each dump


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A copy of sql/ with one more migration, what it does in schema/ too, and a changed function."""
    folder = tmp_path / "sql"
    shutil.copytree(SQL, folder)
    (folder / "migrations").mkdir(exist_ok=True)
    (folder / "migrations" / f"{newest() + 1:04}_notes.sql").write_text(
        "alter table providers add column note text;\n"
        "comment on column providers.note is 'For people.';\n"
        "create table notes (id bigint primary key, provider text references providers (name));\n"
        "create index notes_provider on notes (provider);\n"
        "grant select on notes to taskyard_viewer;\n"
        "update providers set note = adapter;\n"
    )
    tables = folder / "schema" / "04_agents_providers_runners.sql"
    text = tables.read_text()
    last = "    paused_reason text,\n    constraint providers_name_is_a_word"
    assert text.count(last) == 1
    tables.write_text(
        text.replace(last, last.replace("    constraint", "    note text,\n    constraint"))
        + "\ncomment on column providers.note is 'For people.';\n"
        "create table notes (id bigint primary key, provider text references providers (name));\n"
        "create index notes_provider on notes (provider);\n"
        "grant select on notes to taskyard_viewer;\n"
    )
    helper = folder / "functions" / "_require_role.sql"
    helper.write_text(helper.read_text().replace("%s may not %s.", "No, %s may not %s."))
    return folder


def newest() -> int:
    return max([1, *(int(path.name[:4]) for path in (SQL / "migrations").glob("*.sql"))])


def test_it_installs_without_a_superuser(empty: Yard) -> None:
    db = empty.connect()
    assert not value(db, "select rolsuper from pg_roles where rolname = current_user")
    done = install(db)
    assert (done.before, done.after, done.search_path_set) == (None, newest(), True)
    people = empty.connect()  # the search_path holds from the next connection on
    insert(people)
    assert [task["prompt"] for task in claim(people, register(people))] == ["x"]
    assert column(people, "select name from schema_migrations") == ["fresh_install"]


def test_installing_again_changes_nothing_and_keeps_the_data(empty: Yard) -> None:
    install(empty.connect())
    db = empty.connect()
    runner = register(db)
    for n in range(4):
        insert(db, str(n), run_at="2999-01-01" if n == 3 else None)
    db.execute("select complete_task(%s)", [claim(db, runner, 2)[0]["attempt_id"]])
    schema, data = dump(empty), contents(db)
    for _ in range(2):
        done = install(empty.connect())
        assert (done.before, done.after) == (newest(), newest())
        assert (dump(empty), contents(db)) == (schema, data)
    assert misfiled(db) == []
    db.execute("select complete_task(%s)", [value(db, "select attempt_id from tasks where status = 'running'")])


def test_two_installs_at_once_take_turns(empty: Yard) -> None:
    connections = [empty.connect() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        done: list[Installed] = list(pool.map(install, connections))
    assert {one.before for one in done} == {None, newest()}
    assert column(empty.connect(), "select count(*) from taskyard.schema_migrations") == [1]


def test_two_databases_of_one_server_are_installed_at_once(empty: Yard) -> None:
    with another(empty.cluster) as other:
        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(install, [empty.connect(), other.connect()]))
        assert [one.before for one in done] == [None, None]
        insert(other.connect())
        assert value(empty.connect(), "select count(*) from tasks") == 0
        assert dump(empty) == dump(other)


def test_a_schema_of_a_newer_taskyard_is_refused_and_left_alone(yard: Yard) -> None:
    db = yard.connect()
    db.execute("set role taskyard_owner")
    db.execute("insert into taskyard.schema_migrations (number, name, taskyard_version) values (9999, 'later', '99')")
    db.execute("reset role")
    schema, data = dump(yard), contents(db)
    with pytest.raises(TaskyardError, match="schema 9999 of a newer Taskyard") as refused:
        install(yard.connect())
    assert refused.value.code == "TY009"
    assert "pip install --upgrade taskyard" in refused.value.hint
    assert (dump(yard), contents(db)) == (schema, data)


def test_a_login_without_rights_is_told_what_it_lacks(empty: Yard) -> None:
    before = dump(empty)
    with pytest.raises(TaskyardError, match=r"^This login may not install Taskyard here: .+\.") as refused:
        install(login(empty))
    assert "CREATE on the database" in refused.value.hint
    assert refused.value.code == "42501"
    assert dump(empty) == before


@pytest.mark.parametrize("granted", [(), ("taskyard_viewer",), ("taskyard_submitter",), ("taskyard_admin",)])
def test_nobody_but_the_owners_of_a_yard_can_upgrade_it(yard: Yard, granted: tuple[str, ...]) -> None:
    before = dump(yard)
    with pytest.raises(TaskyardError, match="may not install"):
        install(login(yard, *granted))
    assert dump(yard) == before


def test_membership_in_the_owner_is_enough_where_the_roles_exist(empty: Yard) -> None:
    done = install(login(empty, "taskyard_owner", create=True))
    assert (done.before, done.search_path_set) == (None, False)  # the database belongs to another


def test_both_roads_lead_to_the_same_schema(yard: Yard, next_version: Path) -> None:
    db = yard.connect()
    insert(db)
    upgraded = install(db, folder=next_version)
    assert (upgraded.before, upgraded.after) == (newest(), newest() + 1)
    with another(yard.cluster) as fresh:
        assert install(fresh.connect(), folder=next_version).after == newest() + 1
        assert dump(yard) == dump(fresh)
        assert column(fresh.connect(), "select number from schema_migrations") == [newest() + 1]
    assert column(db, "select number from taskyard.schema_migrations order by 1")[-2:] == [newest(), newest() + 1]
    assert column(db, "select note is not distinct from adapter from providers group by 1") == [True]
    assert value(db, "select count(*) from tasks") == 1
    with pytest.raises(psycopg.Error, match="No, taskyard_viewer may not"):
        yard.connect("viewer").execute("select cancel_task(1)")
    assert install(db, folder=next_version).before == newest() + 1  # each migration runs once
    with pytest.raises(TaskyardError, match="newer Taskyard"):
        install(db)


@pytest.mark.parametrize("where", ["migrations", "functions"])
def test_a_failing_upgrade_leaves_everything_as_it_was(yard: Yard, next_version: Path, where: str) -> None:
    db = yard.connect()
    insert(db)
    schema, data = dump(yard), contents(db)
    broken = sorted((next_version / where).iterdir())[-1]
    broken.write_text(broken.read_text() + "\nselect 1 / 0;\n")
    with pytest.raises(psycopg.errors.DivisionByZero):
        install(yard.connect(), folder=next_version)
    assert (dump(yard), contents(db)) == (schema, data)
    assert schema_number(db) == newest()
    assert install(db).before == newest()  # the lock is free, too


def test_a_migration_with_an_unreadable_name_is_refused(yard: Yard, next_version: Path) -> None:
    (next_version / "migrations" / "later.sql").write_text("select 1;")
    with pytest.raises(TaskyardError, match=r"later\.sql is not named NNNN_what_changes"):
        install(yard.connect(), folder=next_version)


def test_uninstalling_removes_the_schema_and_nothing_else(empty: Yard) -> None:
    db = empty.connect()
    db.execute("create schema app")
    db.execute("create table app.kept (id integer)")
    db.execute("create table kept_too (id integer)")
    db.execute("insert into app.kept values (7)")
    before = dump(empty, "--exclude-schema=pgmq")
    install(db)
    db.execute("select pgmq.create('letters')")
    uninstall(db)
    assert value(db, "select id from app.kept") == 7
    assert value(db, "select count(*) from pgmq.q_letters") == 0
    assert value(db, r"select count(*) from pg_roles where rolname like 'taskyard\_%'") == 5
    assert dump(empty, "--exclude-schema=pgmq") == before


def test_uninstalling_gives_the_search_path_back(empty: Yard) -> None:
    db = empty.connect()
    db.execute(sql.SQL("alter database {} set search_path = app, public").format(sql.Identifier(empty.name)))
    install(db)
    assert value(empty.connect(), "show search_path") == "app, public, taskyard"
    uninstall(db)
    assert value(empty.connect(), "show search_path") == "app, public"


def test_after_uninstalling_one_can_install_again(empty: Yard) -> None:
    db = empty.connect()
    install(db)
    uninstall(db)
    with pytest.raises(TaskyardError, match="This database has no Taskyard"):
        uninstall(db)
    assert install(db).before is None
    insert(empty.connect())


@pytest.fixture(params=["the login that installs", "another login"])
def person(request: pytest.FixtureRequest, empty: Yard) -> Callable[[], Connection[DictRow]]:
    """Makes connections of somebody who may do everything in the database, by the kind of login."""
    if request.param == "the login that installs":
        return empty.connect
    kept = login(empty, "yard", create=True).info.dsn
    return lambda: empty.stack.enter_context(
        Connection[DictRow].connect(kept, password="secret", autocommit=True, row_factory=dict_row)
    )


def test_a_table_that_is_called_tasks_already_keeps_its_name(
    empty: Yard, person: Callable[[], Connection[DictRow]]
) -> None:
    db = empty.connect()
    db.execute("create table public.tasks (chore text)")
    db.execute("insert into tasks values ('dishes')")
    install(db)
    people = person()
    task = value(people, "select submit_task('x', 'shell')")
    assert [row["task_id"] for row in claim(people, register(people))] == [task]
    assert value(people, "select id from now_running") == task
    assert rows(people, "select * from tasks") == [{"chore": "dishes"}]


def test_what_people_create_still_goes_to_public(empty: Yard, person: Callable[[], Connection[DictRow]]) -> None:
    empty.connect(superuser=True).execute("grant create on schema public to public")
    install(empty.connect())
    people = person()
    people.execute("create table mine (id integer)")
    assert value(people, "select relnamespace::regnamespace::text from pg_class where relname = 'mine'") == "public"


def test_pgmq_comes_along_and_works(empty: Yard) -> None:
    done = install(empty.connect())
    assert done.pgmq == "from the SQL of the pgmq package"
    db = empty.connect()
    db.execute("select pgmq.create('letters')")
    sent = value(db, "select pgmq.send('letters', %s::jsonb)", '{"a": 1}')
    (letter,) = rows(db, "select msg_id, message from pgmq.read('letters', 30, 5)")
    assert letter == {"msg_id": sent, "message": {"a": 1}}
    assert rows(db, "select * from pgmq.read('letters', 30, 5)") == []  # invisible for 30 seconds
    assert value(db, "select pgmq.archive('letters', %s::bigint)", sent) is True
    assert install(db).pgmq == "already there"
    assert value(db, "select count(*) from pgmq.a_letters") == 1
