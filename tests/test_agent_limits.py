"""The real tools, real runners and the database together: limits, fallback, and work that goes on by itself."""

from datetime import UTC, datetime, timedelta

import pytest

from .agents import MOSTLY_CLAUDE, Agents
from .conftest import Yard, column, rows, value
from .fleet import until
from .stand_in import (
    overloaded,
    rate_limited,
    run_command,
    stalled,
    text,
    unauthorized,
    usage_limit,
    write_file,
)
from .test_runner import ended, status


def short_cooldowns(yard: Yard) -> None:
    """A reset within seconds would otherwise be waited for a minute."""
    yard.connect(superuser=True).execute(
        "create or replace function taskyard._shortest_cooldown() returns interval language sql immutable"
        " as $$ select interval '1 second' $$"
    )


def test_limits_lead_to_the_next_provider_and_no_host_asks_the_limited_ones_again(agents: Agents) -> None:
    sql = agents.sql
    reset = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    agents.gemini.limit(rate_limited(3600))
    agents.claude.limit(usage_limit(reset))
    agents.codex.script(write_file("notes.txt", "written"), text("All done."))
    sql.execute("update agents set route = '{gemini,claude,codex}' where name = 'default'")
    agents.start("a", host="one")
    began = datetime.now(UTC)
    task = ended(sql, agents.submit("write notes", "default"), 60)
    assert (task["status"], task["result"], task["failure_count"]) == ("completed", "All done.", 0)
    assert column(sql, "select provider from attempts order by id") == ["gemini", "claude", "codex"]

    limits = {row["provider"]: row for row in rows(sql, "select * from provider_limits where until is not null")}
    assert set(limits) == {"gemini", "claude"}
    assert limits["claude"]["resets_at"] == reset
    assert limits["claude"]["window_name"] == "five_hour"
    assert abs(limits["gemini"]["resets_at"] - began - timedelta(hours=1)) < timedelta(seconds=30)
    assert reset <= limits["claude"]["until"] <= reset + timedelta(minutes=2)
    assert all(limit["level"] == 0 for limit in limits.values())  # no guesses

    agents.start("b", host="two")
    others = [agents.submit("again", "default") for _ in range(4)]
    for other in others:
        assert ended(sql, other, 60)["status"] == "completed"
    assert set(column(sql, "select distinct provider from attempts where task_id = any(%s)", others)) == {"codex"}
    assert value(sql, "select count(distinct runner_id) from attempts where task_id = any(%s)", others) == 2
    assert (len(agents.gemini.requests), len(agents.claude.requests)) == (1, 1)
    assert value(sql, "select sum(failure_count) from tasks") == 0


@pytest.mark.slow
def test_after_the_reset_one_attempt_tries_and_then_the_rest_go(agents: Agents, yard18: Yard) -> None:
    sql = agents.sql
    short_cooldowns(yard18)
    agents.start("a", "--slots", "4")
    agents.start("b", "--slots", "4", host="two")
    reset = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=20)
    agents.claude.limit(usage_limit(reset))
    agents.claude.script(
        lambda now, request: stalled("Done.") if request.results else write_file("notes.txt", "so far")
    )
    tasks = [agents.submit(f"task {n}", "claude") for n in range(4)]
    until(lambda: value(sql, "select count(*) from provider_limits where until is not null"), 30)
    # Whoever was under way already when the limit struck may have been refused as well; from now on nobody asks.
    until(lambda: value(sql, "select count(*) from attempts where outcome is null") == 0, 30)
    refused = len(agents.claude.requests)
    assert refused <= 4
    assert [status(sql, task) for task in tasks] == ["queued"] * 4
    told = "\n".join(column(sql, "select explain_task(%s)", tasks[0]))
    assert "has hit its limit five_hour until" in told and "in " in told

    agents.claude.wait_for(refused + 1, seconds=40)
    assert datetime.now(UTC) >= reset
    canary = value(sql, "select canary_attempt from provider_limits where canary_attempt is not null")
    assert column(sql, "select id from attempts where outcome is null") in ([canary], [])
    # It speaks, so the others follow before it is done: each asks twice.
    agents.claude.wait_for(refused + 8, seconds=40)
    assert value(sql, "select count(*) from attempts where canary") == 1
    agents.claude.release()
    for task in tasks:
        assert ended(sql, task, 60)["status"] == "completed"
    assert value(sql, "select sum(failure_count) from tasks") == 0
    assert value(sql, "select count(*) from provider_limits where until is not null") == 0


@pytest.mark.slow
def test_a_task_whose_providers_are_all_limited_waits_and_runs_by_itself(agents: Agents, yard18: Yard) -> None:
    sql = agents.sql
    short_cooldowns(yard18)
    sql.execute("update agents set route = '{gemini,claude,codex}' where name = 'default'")
    agents.start("a")
    reset = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=15)
    agents.claude.limit(usage_limit(reset))
    agents.codex.limit(usage_limit(reset + timedelta(hours=5)))
    agents.gemini.limit(rate_limited(3600))
    task = agents.submit("patience", "default")
    until(lambda: value(sql, "select count(*) from provider_limits where until is not null") == 3, 40)
    until(lambda: status(sql, task) == "queued")
    told = "\n".join(column(sql, "select explain_task(%s)", task))
    until_claude = value(sql, "select to_char(until, 'HH24:MI:SS') from provider_limits where provider = 'claude'")
    assert until_claude in told
    assert "gemini" in told and "codex" in told
    assert ended(sql, task, 60)["status"] == "completed"
    assert datetime.now(UTC) >= reset
    assert column(sql, "select provider from attempts order by id") == ["gemini", "claude", "codex", "claude"]
    assert len(agents.codex.requests) == len(agents.gemini.requests) == 1
    assert value(sql, "select failure_count from tasks where id = %s", task) == 0


@pytest.mark.slow
def test_a_refused_login_takes_that_login_out_of_use_and_not_the_task(agents: Agents) -> None:
    sql = agents.sql
    sql.execute("update agents set route = '{claude,codex}' where name = 'default'")
    agents.claude.script(lambda now, request: unauthorized())
    agents.codex.script(text("Done by the other."))
    agents.start("a")
    assert ended(sql, agents.submit("anything", "default"), 60)["result"] == "Done by the other."
    assert ended(sql, agents.submit("more", "default"), 60)["status"] == "completed"
    pinned = agents.submit("only claude", "default", provider="claude")
    until(lambda: status(sql, pinned) == "queued")
    assert "refused the login" in "\n".join(column(sql, "select explain_task(%s)", pinned))
    assert len(agents.claude.requests) <= 2  # the tool asks twice where the first token might only be stale
    agents.claude.script(text("Back again."))
    sql.execute("select resume_provider('claude')")
    assert ended(sql, pinned, 60)["result"] == "Back again."
    assert value(sql, "select sum(failure_count) from tasks") == 0


@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_words_about_limits_are_not_limits(agents: Agents, name: str) -> None:
    words = "I generate and iterate: HTTP 429, rate limit. You've hit your usage limit, try again at 8:35 PM."
    agents.account(name).script(run_command(f'echo "{words}"'), text(words))
    agents.start("a")
    task = ended(agents.sql, agents.submit("talk", name), 60)
    assert (task["status"], task["result"]) == ("completed", words)
    assert value(agents.sql, "select count(*) from provider_limits where until is not null") == 0


@pytest.mark.parametrize("name", MOSTLY_CLAUDE)
def test_an_overloaded_or_broken_provider_gives_way_and_nothing_counts(agents: Agents, name: str) -> None:
    other = "codex" if name != "codex" else "claude"
    agents.sql.execute("update agents set route = array[%s, %s] where name = 'default'", (name, other))
    agents.account(name).script(lambda now, request: overloaded())
    agents.account(other).script(text("Taken over."))
    agents.start("a")
    task = ended(agents.sql, agents.submit("go", "default"), 60)
    assert (task["result"], task["failure_count"]) == ("Taken over.", 0)
    assert rows(agents.sql, "select outcome from attempts order by id")[0]["outcome"] == "overloaded"
