"""The real tools: results, numbers and large prompts."""

import time

import pytest
from psycopg.types.json import Jsonb

from .agents import MOSTLY_CLAUDE, Agents
from .conftest import column, rows, value
from .stand_in import (
    cut,
    structured,
    text,
    write_file,
)
from .test_runner import ended


def test_a_stream_that_is_cut_is_no_success(agents: Agents) -> None:
    agents.codex.script(cut("Half an ans"), text("A whole answer."))
    agents.start("a")
    agents.sql.execute("update outcome_policies set cool_steps = '{1 second}' where outcome = 'network'")
    task = ended(agents.sql, agents.submit("answer", "codex"), 60)
    assert (task["result"], task["failure_count"]) == ("A whole answer.", 0)
    assert column(agents.sql, "select outcome from attempts order by id") == ["network", "completed"]


@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_a_schema_gives_a_json_result(agents: Agents, name: str) -> None:
    schema = '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false}'
    api = agents.account(name)
    api.script(structured({"ok": True}))
    agents.start("a")
    task = ended(agents.sql, agents.submit("is it?", name, output_schema=schema), 60)
    assert (task["status"], task["result"]) == ("completed", {"ok": True})


@pytest.mark.slow
@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_a_prompt_of_a_mebibyte_arrives_whole(agents: Agents, name: str) -> None:
    prompt = "begin " + "wörter " * 130_000 + " the very end"
    api = agents.account(name).script(text("Read it."))
    agents.start("a")
    assert ended(agents.sql, agents.submit(prompt, name), 90)["result"] == "Read it."
    assert "the very end" in api.requests[0].text


def test_the_numbers_of_a_run_are_kept(agents: Agents) -> None:
    agents.claude.script(write_file("a", "b"), text("Done."))
    agents.start("a")
    started = time.monotonic()
    ended(agents.sql, agents.submit("work", "claude"), 60)
    assert time.monotonic() - started < 30
    attempt = rows(agents.sql, "select * from attempts")[0]
    sent = agents.claude.requests
    assert attempt["turns"] == len(sent) == 2
    assert attempt["input_tokens"] > attempt["cached_tokens"] >= 0 and attempt["output_tokens"] > 0
    assert attempt["model"] == "claude-sonnet-4-5"
    assert attempt["cost_usd"] > 0 and not attempt["cost_estimated"]


def test_settings_alone_point_claude_at_a_local_server(agents: Agents) -> None:
    sql = agents.sql
    tool = value(sql, "select settings ->> 'executable' from providers where name = 'claude'")
    settings = Jsonb({"executable": tool, "base_url": agents.claude.url, "model": "coder"})
    sql.execute("insert into providers (name, adapter, settings) values ('claude-local', 'claude', %s)", (settings,))
    sql.execute("insert into agents (name, route) values ('free', '{claude-local}')")
    agents.claude.script(write_file("notes.txt", "local"), text("Done at home."))
    agents.start("a")
    assert ended(sql, agents.submit("work at home", "free"), 60)["result"] == "Done at home."
    assert {request.key for request in agents.claude.requests} == {"local"}
    assert {request.model for request in agents.claude.requests} == {"coder"}
    assert value(sql, "select cost_usd from attempts") is None  # no invented price
