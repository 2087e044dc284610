"""The real tools: what was begun goes on where it stopped, here or elsewhere."""

import contextlib
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from .agents import MOSTLY_CLAUDE, Agents
from .conftest import column, rows, value
from .fleet import open_to_agents, until
from .stand_in import (
    Model,
    Request,
    Step,
    run_command,
    stalled,
    text,
    usage_limit,
    write_file,
)
from .test_runner import ended


def halves(command: str) -> Model:
    """A first half, then a long command; whoever is told of an interruption brings it to an end."""

    def answer(_: datetime, request: Request) -> Step:
        if b"interrupted" in request.body:
            return text("Finished in the end.")
        if not request.results:
            return write_file("notes.txt", "half")
        if b"time.sleep(" not in request.body:
            return run_command(command)
        return stalled("Waiting for it.")

    return answer


def running(argument: str) -> bool:
    """Whether some process has this in its arguments."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if argument in " ".join(process.cmdline()):
                return True
    return False


def carries(process: psutil.Process, mark: str) -> bool:
    """Whether it belongs to the attempt."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("TASKYARD_RUN") == mark
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_a_killed_runner_leaves_a_session_that_the_next_attempt_resumes(agents: Agents, name: str) -> None:
    sql = agents.sql
    api = agents.account(name).script(halves("python3 -c 'import time; time.sleep(31.5)'"))
    runner = agents.start("a")
    task = agents.submit("do both halves", name)
    api.wait_for(2, seconds=60)
    until(lambda: running("sleep(31.5)"), 20)
    until(lambda: value(sql, "select session_id from attempts"), 20)
    runner.kill()
    until(lambda: not running("sleep(31.5)"), 15)
    agents.start("a2")
    assert ended(sql, task, 60)["result"] == "Finished in the end."
    first, second = rows(sql, "select * from attempts order by id")
    assert (first["outcome"], second["outcome"]) == ("crashed", "completed")
    assert first["session_id"] == second["session_id"]
    resumed = next(request for request in api.requests if b"interrupted" in request.body)
    assert b"do both halves" in resumed.body and b"notes.txt" in resumed.body
    assert value(sql, "select failure_count from tasks where id = %s", task) == 0


@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_a_killed_tool_is_resumed_in_its_session(agents: Agents, name: str) -> None:
    sql = agents.sql
    api = agents.account(name).script(halves("python3 -c 'import time; time.sleep(32.5)'"))
    agents.start("a")
    task = agents.submit("do both halves", name)
    api.wait_for(2, seconds=60)
    until(lambda: running("sleep(32.5)"), 20)
    mark = str(value(sql, "select attempt_id from tasks where id = %s", task))
    tools = [p for p in psutil.process_iter() if carries(p, mark) and "sleep(32.5)" not in " ".join(p.cmdline())]
    assert tools
    for tool in tools:
        with contextlib.suppress(psutil.NoSuchProcess):
            tool.kill()
    assert ended(sql, task, 60)["result"] == "Finished in the end."
    first, second = rows(sql, "select * from attempts order by id")
    assert first["outcome"] == "crashed"
    assert first["session_id"] == second["session_id"]
    assert not running("sleep(32.5)")


@pytest.mark.slow
def test_another_host_or_provider_takes_over_with_a_note_and_the_work_as_a_commit(
    agents: Agents, tmp_path: Path
) -> None:
    sql = agents.sql
    repository = tmp_path / "repository"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=U", "-c", "user.email=u@localhost"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "begin"], check=True)
    open_to_agents(repository)
    git[1:1] = ["-c", "safe.directory=*"]
    sql.execute("update agents set route = '{claude,codex}' where name = 'default'")
    agents.claude.script(
        write_file("half.txt", "first half", words="I begin with the first half."),
        usage_limit(datetime.now(UTC) + timedelta(hours=1)),
    )
    agents.codex.script(write_file("rest.txt", "second half"), text("Both halves are done."))
    agents.start("a")
    task = ended(sql, agents.submit("write both halves", "default", workspace=str(repository)), 60)
    assert task["result"] == "Both halves are done."
    assert column(sql, "select provider from attempts order by id") == ["claude", "codex"]
    asked = agents.codex.requests[0].text
    assert "write both halves" in asked
    assert "Attempt 1 by claude worked on this task before you" in asked
    assert "I begin with the first half." in asked
    assert "Write: " in asked
    kept = subprocess.run(
        [*git, "show", f"refs/taskyard/{task['id']}/1:half.txt"], capture_output=True, text=True, check=True
    )
    assert kept.stdout == "first half"
    assert f"refs/taskyard/{task['id']}/1" in asked
    log = subprocess.run([*git, "log", "--oneline"], capture_output=True, text=True, check=True).stdout
    assert log.count("\n") == 1  # the user's branch is as it was
    assert (repository / "rest.txt").read_text().strip() == "second half"
