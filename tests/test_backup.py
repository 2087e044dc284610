"""`taskyard db backup` and `restore`: into the same server, and into a new one on another machine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from psycopg import Connection
from psycopg.conninfo import make_conninfo
from psycopg.rows import DictRow, dict_row

from taskyard.runner.cli import main
from taskyard.runner.postgres import Cluster

from .command_line import NOWHERE
from .conftest import column, fastest, value
from .yardwork import claim, insert, refusal, register


@pytest.fixture
def homes(temporary_home: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Folders of two embedded servers."""
    for name in NOWHERE:
        monkeypatch.delenv(name, raising=False)
    made = [temporary_home(fastest()), temporary_home(fastest())]
    yield made
    for home in made:
        Cluster(home).stop("immediate")


def taskyard(home: Path, *words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, words, env={"TASKYARD_HOME": str(home)})
    assert done.exit_code == code, done.output
    return done


def connect(dsn: str) -> Connection[DictRow]:
    made = Connection[DictRow].connect(dsn, autocommit=True, row_factory=dict_row)
    made.execute("set search_path = taskyard, public")
    return made


def test_a_backup_comes_back_here_and_elsewhere(homes: list[Path], tmp_path: Path) -> None:
    here, elsewhere = homes
    taskyard(here, "db", "start")
    taskyard(here, "install")
    password = json.loads(taskyard(here, "phone-role", "phone", "--scope", "default", "--json").output)["password"]
    with connect(Cluster(here).url()) as db:
        runner = register(db)
        task = insert(db, "before", agent="shell")
        attempt = claim(db, runner)[0]["attempt_id"]
        dump = Path(json.loads(taskyard(here, "db", "backup", str(tmp_path / "kept"), "--json").output)["dump"])
        for file in (tmp_path / "kept").iterdir():
            assert file.stat().st_mode & 0o777 == 0o600
        insert(db, "after", agent="shell")
    before = json.loads(taskyard(here, "db", "restore", "--yes", "--json", str(dump)).output)["before"]
    taskyard(elsewhere, "db", "start")
    taskyard(elsewhere, "db", "restore", "--yes", str(dump))
    for home in homes:
        with connect(Cluster(home).url()) as db:
            assert column(db, "select prompt from tasks") == ["before"]
            assert value(db, "select status::text from tasks where id = %s", task) == "queued"
            error = refusal(db, "select complete_task(%s)", attempt)
            assert error is not None and error.sqlstate == "TY005"
            assert value(db, "select current_setting('search_path')") == "taskyard, public"
            again = register(db, "again")
            assert claim(db, again)[0]["task_id"] == task
        # A login of then can come in with its password, and does what it could.
        with connect(make_conninfo(Cluster(home).url(), user="phone", password=password)) as phone:
            insert(phone, "from the phone", agent="shell")
    with connect(Cluster(here).url(before)) as db:
        assert column(db, "select prompt from tasks order by id") == ["before", "after"]


def test_what_is_no_backup_changes_nothing_and_old_ones_go(homes: list[Path], tmp_path: Path) -> None:
    here = homes[0]
    assert "not running" in taskyard(here, "db", "backup", str(tmp_path), code=4).output
    taskyard(here, "db", "start")
    taskyard(here, "install")
    (tmp_path / "x.dump").write_bytes(b"PGDMP and then nothing")
    (tmp_path / "y.dump").write_bytes(b"hello")
    for name in ("x", "y"):
        taskyard(here, "db", "restore", "--yes", str(tmp_path / f"{name}.dump"), code=4)
    with connect(Cluster(here).url()) as db:
        assert value(db, "select count(*) from tasks") == 0
        assert column(db, "select datname::text from pg_database where datname like 'taskyard%%'") == ["taskyard"]
    kept = tmp_path / "kept"
    kept.mkdir()
    for day in range(1, 4):
        (kept / f"taskyard-2026-01-0{day}T00-00-00.dump").write_bytes(b"")
        (kept / f"taskyard-2026-01-0{day}T00-00-00.roles.sql").write_bytes(b"")
    taskyard(here, "db", "backup", str(kept), "--keep", "2")
    left = sorted(file.name for file in kept.glob("*.dump"))
    assert len(left) == 2 and left[0] == "taskyard-2026-01-03T00-00-00.dump"
    assert len(list(kept.iterdir())) == 4
