"""Many tasks on one repository, by a real runner: from plain SQL to branches, and to a clean host."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .fleet import Fleet, fleet_on, open_to_agents, until

WORK = 'echo "$TASKYARD_TASK" > "own-$TASKYARD_TASK.txt" && echo "$TASKYARD_TASK" >> read.me'
PROOF = 'test "$(cat "own-$TASKYARD_TASK.txt")" = "$TASKYARD_TASK"'


@pytest.fixture
def fleet(yard18: Yard, tmp_path: Path) -> Iterator[Fleet]:
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        yield fleet


class Repository:
    """A user's repository with one commit on main, and a change that is not committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        (folder / "read.me").write_text("one\n")
        self.git("add", ".")
        self.git("commit", "--quiet", "-m", "one")
        (folder / "read.me").write_text("one, and more\n")
        open_to_agents(folder)

    def git(self, *words: str) -> str:
        settings = ["-c", "safe.directory=*", "-c", "user.name=U", "-c", "user.email=u@localhost"]
        done = subprocess.run(["git", *settings, *words], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def branches(self) -> dict[str, str]:
        lines = self.git("for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads").splitlines()
        return dict(line.split() for line in lines)


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_many_tasks_on_one_repository(fleet: Fleet, yard18: Yard, tmp_path: Path, count: int) -> None:
    sql: Connection[DictRow] = yard18.connect()
    app = Repository(tmp_path / "app")
    base = app.branches()["main"]
    tasks: list[int] = [
        value(
            sql,
            "insert into tasks (prompt, agent, repository, verify) values (%s, 'shell', %s, %s) returning id",
            WORK,
            str(app.folder),
            PROOF,
        )
        for _ in range(count)
    ]
    home = tmp_path / "home"
    runner = fleet.start("a", "--slots", "8", env={"TASKYARD_HOME": str(home)})
    took = until(lambda: value(sql, "select count(*) from tasks where status = 'completed'") == count, 240)
    print(f"{count} tasks with 8 slots: {took:.1f} s")
    assert (
        value(
            sql,
            "select max(running) from (select count(*) as running from attempts a join attempts b"
            " on b.started_at between a.started_at and a.finished_at group by a.id) x",
        )
        > 1
    )
    assert column(sql, "select count(*) from attempts group by task_id") == [1] * count

    # Fifty branches, each with its own work on the base as it was; the base, and what the user had not committed, as before.
    branches = app.branches()
    assert branches.pop("main") == base
    assert sorted(branches) == sorted(f"taskyard/{task}-1" for task in tasks)
    for task in tasks:
        assert app.git("show", f"taskyard/{task}-1:own-{task}.txt") == str(task)
        assert app.git("show", f"taskyard/{task}-1:read.me") == f"one\n{task}"
        assert app.git("rev-parse", f"taskyard/{task}-1~1") == base
    assert app.git("status", "--porcelain") == "M read.me"
    assert (app.folder / "read.me").read_text() == "one, and more\n"
    app.git("fsck", "--strict")
    told = rows(sql, "select t.id, a.branch, a.commit_id from tasks t join attempts a on a.task_id = t.id")
    assert {(row["branch"], row["commit_id"]) for row in told} == set(branches.items())

    # Their clones are kept for a while; after that nothing is left of them but what the user has.
    clones = list((home / "work").glob("*/*/clone"))
    assert len(clones) == count
    runner.kill()
    yard18.connect(superuser=True).execute("update tasks set finished_at = finished_at - interval '2 days'")
    until(lambda: time.time() - max(clone.parent.stat().st_mtime for clone in clones) > 1.5)
    fleet.start("b", "--keep", "1s", env={"TASKYARD_HOME": str(home)})
    until(lambda: list((home / "work").glob("*/*")) == [], 90)
    assert sorted(app.branches()) == sorted(["main", *branches])
    assert app.git("worktree", "list").count("\n") == 0
    assert [path.name for path in (app.folder / ".git").rglob("*.lock")] == []
