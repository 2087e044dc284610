"""How each tool is told of its attempt's channel: for this run alone, as the only MCP server, and used without asking."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from taskyard.runner.adapters import Launch, Run
from taskyard.runner.adapters.registry import adapters
from taskyard.runner.channel import TOKEN, Address

from .qwen_example import QWEN
from .recorded import a_run, a_tool

CHANNEL = Address("http://127.0.0.1:3130/mcp", "the-token-of-this-attempt")
HEADERS = {"Authorization": f"Bearer {CHANNEL.token}"}
ADAPTERS = {**adapters(), "qwen": QWEN}
TOOLS = ["claude", "codex", "gemini", "opencode", "qwen"]


def prepared(name: str, home: Path, channel: Address | None = CHANNEL, **claim: Any) -> tuple[Run, Launch]:
    keys = {name: "a-key" for name in ("ANTHROPIC_API_KEY", "CODEX_API_KEY", "GEMINI_API_KEY", "OPENAI_API_KEY")}
    run = a_run(home, {**a_tool(home / "bin", name), **keys}, **{"model": "m", **claim})
    run = replace(run, channel=channel)
    return run, ADAPTERS[name].prepare(run)


def after(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def claude(run: Run, launch: Launch) -> dict[str, Any]:
    assert "--strict-mcp-config" in launch.argv, "servers of the user's or the workspace's own"
    at = len(launch.argv) - 1 - launch.argv[::-1].index("--allowedTools")
    assert launch.argv[at + 1] == "mcp__taskyard"
    return json.loads(Path(after(launch.argv, "--mcp-config")).read_text())["mcpServers"]


def codex(run: Run, launch: Launch) -> dict[str, Any]:
    settings = [launch.argv[n + 1] for n, word in enumerate(launch.argv) if word == "-c"]
    servers = tomllib.loads("\n".join(settings))["mcp_servers"]
    assert servers["taskyard"]["default_tools_approval_mode"] == "approve"
    assert servers["taskyard"]["bearer_token_env_var"] == TOKEN
    assert not (run.home / "config.toml").exists()
    return {name: {**server, "headers": HEADERS} for name, server in servers.items()}


def gemini(run: Run, launch: Launch) -> dict[str, Any]:
    assert after(launch.argv, "--allowed-mcp-server-names") == "taskyard"
    servers = json.loads((run.home / ".gemini" / "settings.json").read_text())["mcpServers"]
    assert servers["taskyard"]["trust"]
    return {name: {**server, "url": server["httpUrl"]} for name, server in servers.items()}


def opencode(run: Run, launch: Launch) -> dict[str, Any]:
    configuration = json.loads(launch.env["OPENCODE_CONFIG_CONTENT"])
    assert configuration["permission"]["taskyard_*"] == "allow"
    assert configuration["mcp"]["taskyard"]["type"] == "remote"
    return configuration["mcp"]


def qwen(run: Run, launch: Launch) -> dict[str, Any]:
    assert after(launch.argv, "--allowed-mcp-server-names") == "taskyard"
    servers = json.loads(Path(after(launch.argv, "--mcp-config")).read_text())["mcpServers"]
    assert servers["taskyard"]["trust"]
    return {name: {**server, "url": server["httpUrl"]} for name, server in servers.items()}


TOLD: dict[str, Callable[[Run, Launch], dict[str, Any]]] = {
    "claude": claude,
    "codex": codex,
    "gemini": gemini,
    "opencode": opencode,
    "qwen": qwen,
}


@pytest.mark.parametrize("permissions", [["read"], ["read", "write", "execute", "network"]])
@pytest.mark.parametrize("name", TOOLS)
def test_the_channel_is_the_only_server_whatever_the_scope_allows(
    name: str, permissions: list[str], tmp_path: Path
) -> None:
    servers = TOLD[name](*prepared(name, tmp_path, permissions=permissions))
    assert list(servers) == ["taskyard"]
    assert (servers["taskyard"]["url"], servers["taskyard"]["headers"]) == (CHANNEL.url, HEADERS)


@pytest.mark.parametrize("name", TOOLS)
def test_its_token_is_no_argument(name: str, tmp_path: Path) -> None:
    """Others on the host can read arguments."""
    _, launch = prepared(name, tmp_path)
    assert not any(CHANNEL.token in word for word in launch.argv)


@pytest.mark.parametrize("name", TOOLS)
def test_its_files_are_the_childs_alone(name: str, tmp_path: Path) -> None:
    run, _ = prepared(name, tmp_path)
    holding = [path for path in run.home.rglob("*") if path.is_file() and CHANNEL.token in path.read_text()]
    assert all(path.stat().st_mode & 0o77 == 0 for path in holding)
    assert not any(CHANNEL.token in path.read_text() for path in run.workspace.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["claude", "gemini", "opencode"])
def test_an_agent_whose_tools_are_listed_has_the_channel_all_the_same(name: str, tmp_path: Path) -> None:
    """The list is of what the program brings; the channel is the yard's, and what it allows is decided there."""
    run, launch = prepared(name, tmp_path, tools=["read"] if name == "opencode" else ["Read"])
    assert list(TOLD[name](run, launch)) == ["taskyard"]


@pytest.mark.parametrize("name", TOOLS)
def test_a_later_attempt_has_another_token(name: str, tmp_path: Path) -> None:
    prepared(name, tmp_path)
    later = replace(CHANNEL, token="the-token-of-the-next")
    run, launch = prepared(name, tmp_path, later)
    left = [path for path in run.home.rglob("*") if path.is_file() and CHANNEL.token in path.read_text()]
    assert left == [] and CHANNEL.token not in str(launch)


@pytest.mark.parametrize("name", TOOLS)
def test_without_a_channel_there_is_no_server(name: str, tmp_path: Path) -> None:
    run, launch = prepared(name, tmp_path, None)
    told = [*launch.argv, *launch.env.values(), *(p.read_text() for p in run.home.rglob("*") if p.is_file())]
    assert not any("mcpServers" in text or "mcp_servers" in text or '"remote"' in text for text in told)
