"""taskyard-agent: the channel's tools for whatever does not speak MCP."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from taskyard.runner.channel import PATH, TOKEN, URL, client
from taskyard.runner.channel.client import Wrong, read
from taskyard.runner.channel.server import Server
from taskyard.runner.channel.tools import TOOLS, Channel
from taskyard.runner.cli import main

from .jail_servers import serving

SCHEMAS = {tool.name: tool.schema for tool in TOOLS}
WAITING = {"waiting": True, "unfinished": [12, 13]}


class Verbs:
    """What the verbs were called with; they answer with `answer`."""

    def __init__(self) -> None:
        self.called: list[tuple[str, tuple[Any, ...]]] = []
        self.answer: Any = {"task": 12, "status": "queued", "existed": False}

    async def __call__(self, verb: Callable[..., Any], *arguments: Any) -> Any:
        self.called.append((verb.__name__, arguments))
        return self.answer


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Verbs]:
    """The verbs behind a channel that the environment leads to, past a proxy that is nowhere."""
    verbs = Verbs()

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    server = Server(Channel(7, verbs, nothing, lambda _: None, nothing))
    with serving(server) as port:
        monkeypatch.setenv(URL, f"http://127.0.0.1:{port}{PATH}")
        monkeypatch.setenv(TOKEN, server.token)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        yield verbs


def test_a_child_is_created_and_the_answer_printed(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["spawn-task", "write the tests", "--agent", "codex", "--priority=3"]) == 0
    assert json.loads(capsys.readouterr().out) == verbs.answer
    assert verbs.called == [("spawn_task", (7, {"prompt": "write the tests", "agent": "codex", "priority": 3}))]


def test_children_are_waited_for(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.answer = dict(WAITING)
    assert client.main(["wait-for", "12", "13", "--mail"]) == 0
    assert json.loads(capsys.readouterr().out)["unfinished"] == [12, 13]
    [(name, (attempt, tasks, mail, _))] = verbs.called
    assert (name, attempt, tasks, mail) == ("wait_for", 7, [12, 13], True)


def test_any_tool_takes_a_document(verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    verbs.answer = None
    assert client.main(["call", "report-progress", '{"progress": 0.5}']) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"doing": "half"}'))
    assert client.main(["call", "report_progress", "-"]) == 0
    assert [arguments for _, arguments in verbs.called] == [(7, 0.5, None), (7, None, "half")]


def test_a_prompt_may_come_from_standard_input(verbs: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("line one\nline two"))
    assert client.main(["spawn-task", "-"]) == 0
    assert verbs.called[0][1] == (7, {"prompt": "line one\nline two"})


def test_a_refusal_is_told_on_standard_error(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main(["call", "read_result", '{"task": "x"}']) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "task is a whole number.\n")


def test_alone_it_tells_what_there_is(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> None:
    assert client.main([]) == client.main(["--help"]) == 0
    told = capsys.readouterr().out
    for tool in TOOLS:
        assert told.count(f"\n{tool.name.replace('_', '-')} ") + told.count(f"\n{tool.name.replace('_', '-')}\n") == 2
    assert verbs.called == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-such-tool"], "there is no tool no-such-tool; taskyard-agent alone tells what there is"),
        (["spawn-task", "x", "--wish", "y"], "there is no --wish; there are: --prompt, --agent, "),
        (["spawn-task", "x", "--agent"], "--agent wants a value"),
        (["spawn-task", "x", "--priority", "high"], "--priority: 'high' is no integer"),
        (["read-result", "1", "2"], "'2' is one value too many"),
        (["call", "read_result"], "call takes a tool and a JSON object"),
        (["call", "read_result", "["], "this is not JSON: "),
        (["call", "read_result", "[1]"], "the arguments are a JSON object"),
    ],
)
def test_a_command_line_that_makes_no_sense(
    verbs: Verbs, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert client.main(words) == 2
    assert capsys.readouterr().err.startswith(f"taskyard-agent: {told}")
    assert verbs.called == []


@pytest.mark.parametrize(
    ("tool", "words", "arguments"),
    [
        ("wait_for", ["1,2", "3"], {"tasks": [1, 2, 3]}),
        ("wait_for", ["[1, 2]"], {"tasks": [1, 2]}),
        ("wait_for", ["--mail"], {"mail": True}),
        ("wait_for", ["--mail=false", "--within-minutes", "5", "9"], {"mail": False, "within_minutes": 5, "tasks": [9]}),
        ("send_message", ["7", "be quick"], {"task": 7, "text": "be quick"}),
        ("save_checkpoint", ["half", "0.5", "--data", '{"n": 1}'], {"status": "half", "progress": 0.5, "data": {"n": 1}}),
        ("spawn_task", ["x", "--payload", '"text"', "--requires", "a", "--requires", "b"], {"prompt": "x", "payload": "text", "requires": ["a", "b"]}),
        ("handoff", ["claude", "limit", "--pending-actions", "one, and", "--pending-actions=two"], {"target": "claude", "reason": "limit", "pending_actions": ["one, and", "two"]}),
        ("add_artifact", ["out/a.txt"], {"path": "out/a.txt"}),
        ("spawn_task", ["-5 is below zero"], {"prompt": "-5 is below zero"}),
    ],
)  # fmt: skip
def test_words_become_what_the_schema_wants(tool: str, words: list[str], arguments: dict[str, Any]) -> None:
    assert read(SCHEMAS[tool], words) == arguments


def test_a_number_that_is_none_is_told() -> None:
    with pytest.raises(Wrong, match="--tasks: 'x' is no integer"):
        read(SCHEMAS["wait_for"], ["1,x"])


def test_without_a_channel_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(URL, raising=False)
    assert client.main(["spawn-task", "x"]) == 2
    assert "there is no channel here" in capsys.readouterr().err
    monkeypatch.setenv(URL, "http://127.0.0.1:9/mcp")
    monkeypatch.setenv(TOKEN, "t")
    assert client.main(["spawn-task", "x"]) == 2
    assert "the channel does not answer" in capsys.readouterr().err


def test_with_anothers_token_it_is_refused(
    verbs: Verbs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOKEN, "another's")
    assert client.main(["spawn-task", "x"]) == 2
    assert "401" in capsys.readouterr().err and verbs.called == []


def test_the_file_alone_is_enough(verbs: Verbs, tmp_path: Path) -> None:
    """As it lies in a jail: no Taskyard, no packages, only Python."""
    lonely = tmp_path / "taskyard-agent"
    lonely.write_bytes(Path(client.__file__).read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(lonely), "spawn-task", "x"],
        env={URL: os.environ[URL], TOKEN: os.environ[TOKEN]},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == verbs.answer


def test_the_command_line_has_the_same(verbs: Verbs) -> None:
    done = CliRunner().invoke(main, ["agent", "spawn-task", "x", "--agent", "codex"])
    assert done.exit_code == 0 and json.loads(done.stdout) == verbs.answer
    assert verbs.called == [("spawn_task", (7, {"prompt": "x", "agent": "codex"}))]
    assert "spawn-task --prompt" in CliRunner().invoke(main, ["agent", "--help"]).stdout
    assert CliRunner().invoke(main, ["agent", "no-such-tool"]).exit_code == 2


def test_outside_of_a_task_it_tells_what_it_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(URL, raising=False)
    monkeypatch.delenv(TOKEN, raising=False)
    assert client.main(["--help"]) == 0
    assert "taskyard-agent wait-for 12 13" in capsys.readouterr().out
    assert client.main([]) == 2
    assert "this works within a task that a runner started" in capsys.readouterr().err
