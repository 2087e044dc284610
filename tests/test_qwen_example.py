"""The example adapter: another package brings it, and it keeps the contract."""

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from taskyard.runner.adapters import CannotRun, Said
from taskyard.runner.adapters.registry import GROUP

from .qwen_example import QWEN, SOURCE
from .recorded import Recording, a_run, a_tool, assert_as_expected, read_all, recordings, replay

RECORDED = recordings("qwen")


def case(name: str) -> Recording:
    return next(r for r in RECORDED if r.case == name)


@pytest.mark.parametrize("recording", RECORDED, ids=lambda r: r.case)
def test_recorded_run_ends_as_it_really_ended(recording: Recording, tmp_path: Path) -> None:
    _, ending = read_all(QWEN, recording, tmp_path)
    assert_as_expected(ending, recording.expect)
    assert ending.exit_code == recording.code


def test_installed_package_is_found_by_the_registry(tmp_path: Path) -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())
    for module in project["tool"]["setuptools"]["py-modules"]:
        shutil.copy(SOURCE / f"{module}.py", tmp_path)
    metadata = tmp_path / "taskyard_qwen-0.1.0.dist-info"  # what an installer makes of the project
    metadata.mkdir()
    name, version = project["project"]["name"], project["project"]["version"]
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    entries = "\n".join(f"{n} = {v}" for n, v in project["project"]["entry-points"][GROUP].items())
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")

    program = "from taskyard.runner.adapters.registry import adapters; print(type(adapters()['qwen']).__module__)"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "taskyard_qwen"


def test_error_that_the_tool_prints_as_the_agents_words_is_no_text(tmp_path: Path) -> None:
    seen, _ = read_all(QWEN, case("invalid400"), tmp_path)
    assert [(s.kind, s.body) for s in seen if isinstance(s, Said)] == [("error", "[API Error: 400 bad param]")]


@pytest.mark.parametrize("name", ["success-json", "invalid400", "rate429-default"])
def test_words_of_the_agent_never_make_a_limit(name: str, tmp_path: Path) -> None:
    recording = case(name)
    words = (
        '{"type":"assistant","message":{"content":[{"type":"text","text":"[API Error: 429 rate limit] I iterate"}]}}'
    )
    _, ending = replay(
        QWEN.read(a_run(tmp_path)), [words, *recording.lines[:1], words, *recording.lines[1:]], recording.exit
    )
    assert (ending.outcome, ending.window) == (recording.expect["outcome"], None)


def test_refused_request_is_a_limit_by_the_tools_own_record(tmp_path: Path) -> None:
    recording = case("invalid400")
    lines = [line.replace("[API Error: 400 bad param]", "[API Error: 429 slow down]") for line in recording.lines]
    _, ending = replay(QWEN.read(a_run(tmp_path)), lines, recording.exit)
    assert ending.outcome == "rate_limited"
    assert ending.window is not None and ending.window.name == "requests"


def test_launch_says_what_the_claim_says(tmp_path: Path) -> None:
    environ = {**a_tool(tmp_path / "bin", "qwen"), "OPENAI_API_KEY": "a-key", "PGPASSWORD": "secret"}
    settings = {"base_url": "http://127.0.0.1:8080/v1", "model": "coder"}
    run = a_run(
        tmp_path, environ, settings=settings, max_turns=3, system_prompt="You sweep.", permissions=["read", "write"]
    )
    launch = QWEN.prepare(run)
    told = dict(zip(launch.argv[1::2], launch.argv[2::2], strict=False))
    assert (told["-m"], told["--approval-mode"], told["--max-session-turns"]) == ("coder", "auto-edit", "3")
    assert launch.stdin == b"Sweep the yard."
    assert launch.env["OPENAI_API_KEY"] == "a-key"
    assert launch.env["OPENAI_BASE_URL"] == "http://127.0.0.1:8080/v1"
    assert "secret" not in launch.env.values()


def test_host_is_ready_with_a_key_or_a_server(tmp_path: Path) -> None:
    environ = a_tool(tmp_path / "bin", "qwen", "0.24.4")
    assert QWEN.probe({}, {"PATH": str(tmp_path)}).state == "missing"
    assert QWEN.probe({}, environ).state == "unauthenticated"
    offer = QWEN.probe({"base_url": "http://models.example:81/v1"}, environ)
    assert (offer.state, offer.account, offer.version) == ("ready", "models.example:81", "0.24.4")
    assert "a-key" not in QWEN.probe({}, {**environ, "OPENAI_API_KEY": "a-key"}).account
    with pytest.raises(CannotRun, match="not installed"):
        QWEN.prepare(a_run(tmp_path))


def test_in_a_jail_the_program_behind_the_entry_is_started_itself(tmp_path: Path) -> None:
    package = tmp_path / "node_modules" / "qwen"
    for name in ("cli-entry.js", "cli.js"):
        a_tool(package, name)
        (package / name).write_text("#!/usr/bin/env node\n")
    environ = a_tool(tmp_path / "bin", "node")
    settings = {"executable": str(package / "cli-entry.js"), "base_url": "http://127.0.0.1:8080/v1"}
    run = a_run(tmp_path, environ, settings=settings)
    launch = QWEN.prepare(replace(run, gateway="http://127.0.0.1:3101"))
    assert launch.argv[:2] == [str(tmp_path / "bin" / "node"), str(package / "cli.js")]
    assert launch.programs == (tmp_path / "bin" / "node", tmp_path / "node_modules")
    assert QWEN.prepare(run).argv[0] == str(package / "cli-entry.js")
