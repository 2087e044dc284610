"""From every earlier schema to the current one, with what was in it."""

import tarfile
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from taskyard.runner.install import install, newest_schema

from .conftest import Yard, column, rows, value
from .fleet import fleet_on, until
from .test_install import another, dump
from .yardwork import claims, misfiled

OLD = Path(__file__).with_name("old_schemas")
LAST_CHANGE_FOR_RUNNERS = 4  # runners of this schema and later ones go on while the database is upgraded


@pytest.fixture(params=sorted(path.name.removesuffix(".tar.gz") for path in OLD.glob("*.tar.gz")))
def old_sql(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    with tarfile.open(OLD / f"{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return int(request.param), tmp_path / "sql"


def test_an_upgraded_database_has_the_schema_of_a_fresh_one(yard: Yard, old_sql: tuple[int, Path]) -> None:
    number, folder = old_sql
    with another(yard.cluster) as old:
        db = old.connect()
        install(db, folder=folder)
        upgraded = install(db)
        assert (upgraded.before, upgraded.after) == (number, newest_schema())
        assert dump(old) == dump(yard)


def test_tasks_that_wait_survive_the_upgrade_where_they_were(yard: Yard, old_sql: tuple[int, Path]) -> None:
    with another(yard.cluster) as old:
        db = old.connect()
        install(db, folder=old_sql[1])
        db.execute("set search_path = taskyard, public")
        db.execute("insert into tasks (prompt, agent, priority) values ('first', 'shell', 2), ('third', 'shell', 0)")
        db.execute("insert into tasks (prompt, agent, priority, on_limit) values ('second', 'shell', 1, 'wait')")
        db.execute("insert into tasks (prompt, agent, run_at) values ('later', 'shell', now() + interval '1 day')")
        db.execute("insert into tasks (prompt, agent, depends_on, on_limit) values ('after', 'shell', '{1}', 'wait')")
        db.execute(
            "insert into provider_limits (provider, state, until) values ('command', 'hot', now() + interval '1 hour')"
        )
        before = rows(db, "select id, prompt, status from tasks order by id")
        install(db)
        assert rows(db, "select id, prompt, status from tasks order by id") == before
        assert misfiled(db) == []
        assert claims(db) == []  # the limit holds on
        db.execute("select clear_limit('command')")
        assert claims(db) == ["first", "second", "third"]
        task = value(db, "select attempt_id from tasks where id = 1")
        assert value(db, "select complete_task(%s)", task) == "completed"
        assert column(db, "select status from tasks where prompt = 'after'") == ["queued"]


def test_who_could_submit_before_the_upgrade_still_works_in_all_scopes(yard: Yard, old_sql: tuple[int, Path]) -> None:
    with another(yard.cluster) as old:
        db = old.connect()
        install(db, folder=old_sql[1])
        # Schema 3 brought the grants.
        scopes = ["default"] if old_sql[0] >= 3 else []
        with Connection[DictRow].connect(old.login("ann", "submitter", *scopes), autocommit=True) as ann:
            ann.execute("insert into taskyard.tasks (prompt) values ('before')")
            with Connection[DictRow].connect(old.login("vic", "viewer"), autocommit=True) as vic:
                install(db)
                ann.execute("insert into taskyard.tasks (prompt) values ('after')")
                for login in (ann, vic):
                    assert login.execute("select count(*) from taskyard.tasks").fetchone() == (2,)
        # Others share the server's roles, so only that nobody but submitters was granted anything is certain.
        granted = column(
            db,
            "select login || ' ' || scope || ' ' || granted_by from taskyard.scope_grants where login ~ %s",
            f"_{old.name}$",
        )
        by = "postgres" if scopes else "upgrade"
        assert granted == [f"ann_{old.name} default {by}"]


def test_what_runs_during_the_upgrade_ends_well_and_its_runner_goes_on_if_it_can(
    yard: Yard, old_sql: tuple[int, Path]
) -> None:
    with another(yard.cluster) as old:
        db = old.connect()
        install(db, folder=old_sql[1])
        db.execute("set search_path = taskyard, public")
        db.execute("insert into tasks (prompt, agent) values ('runs', 'shell'), ('waits', 'shell')")
        runner = value(db, "select register_runner('old')")
        (attempt,) = column(db, "select attempt_id from claim_task(%s)", runner)
        install(db)
        assert (
            column(db, "select directive from heartbeat(%s, %s) where attempt_id is not null", runner, [attempt]) == []
        )
        if old_sql[0] < LAST_CHANGE_FOR_RUNNERS:
            with pytest.raises(Exception, match="is not registered any more") as refused:
                db.execute("select claim_task(%s)", [runner])
            assert getattr(refused.value, "sqlstate", "") == "TY007"
        assert value(db, "select complete_task(%s)", attempt) == "completed"
        assert column(db, "select prompt from tasks where status = 'queued'") == ["waits"]
        if old_sql[0] >= LAST_CHANGE_FOR_RUNNERS:
            assert value(db, "select count(*) from claim_task(%s)", runner) == 1


def test_a_real_runner_goes_on_while_the_database_is_upgraded_under_it(yard18: Yard, tmp_path: Path) -> None:
    """From the last schema that was published, in the middle of its work: nothing is lost, and nothing runs twice."""
    newest = max(OLD.glob("*.tar.gz"), key=lambda path: int(path.name.removesuffix(".tar.gz")))
    with tarfile.open(newest) as archive:
        archive.extractall(tmp_path, filter="data")
    with another(yard18.cluster) as old, fleet_on(old.dsn, tmp_path) as fleet:
        db = old.connect()
        install(db, folder=tmp_path / "sql")
        db.execute("set search_path = taskyard, public")
        db.execute("insert into tasks (prompt, agent, priority) values ('sleep 3', 'shell', 9)")
        db.execute("insert into tasks (prompt, agent) select 'sleep 0.2', 'shell' from generate_series(1, 25)")
        fleet.start("real", "--slots", "3")
        until(lambda: value(db, "select count(*) from tasks where status = 'completed'") >= 5, 30)
        assert value(db, "select status::text from tasks where priority = 9") == "running"
        install(db)
        until(lambda: value(db, "select bool_and(status = 'completed') from tasks"), 60)
        assert set(column(db, "select outcome::text from attempts")) == {"completed"}
        assert value(db, "select count(*) from attempts") == 26
        assert value(db, "select count(*) from runners") == 1
        assert "refused" not in fleet.logs() and "Traceback" not in fleet.logs()


def test_a_runner_of_the_version_before_is_refused_with_a_sentence(yard: Yard) -> None:
    refused: list[DictRow] = []
    db = yard.connect()
    with pytest.raises(Exception, match=r"Runner version 0\.1\.0 is too old for this database") as told:
        refused += rows(db, "select register_runner('old', 1, '{}', '[]', '0.1.0', 1)")
    assert getattr(told.value, "sqlstate", "") == "TY009"
    assert refused == []
