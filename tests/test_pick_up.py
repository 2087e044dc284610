"""What a task's next attempt learns of the work before: a session to resume, or a note."""

from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import value
from .yardwork import claim, end, insert, refuse, say

RESUME = ("session_id", "session_usage", "note")


def host(db: Connection[DictRow], name: str, at: str, **accounts: str) -> int:
    """A runner with that name on that machine."""
    offers = [{"provider": provider, "account": account} for provider, account in accounts.items()]
    return value(db, "select register_runner(%s, 4, '{}', %s, p_host => %s)", name, Jsonb(offers), at)


def routed(db: Connection[DictRow], **columns: Any) -> int:
    db.execute("insert into agents (name, route) values ('routed', '{claude,codex}') on conflict do nothing")
    return insert(db, agent="routed", max_attempts=50, **columns)


def worked(
    db: Connection[DictRow], runner: int, session: str | None = "s-1", said: str = "Half done.", **usage: Any
) -> int:
    """An attempt that said something under a session; still running."""
    row = again(db, runner)
    say(db, row["attempt_id"], said)
    db.execute("select report_session(%s, %s, %s)", [row["attempt_id"], session, Jsonb(usage)])
    return row["attempt_id"]


def again(db: Connection[DictRow], runner: int, n: int = 1) -> DictRow:
    """The task's next claim."""
    db.execute("update tasks set run_at = null where status = 'scheduled'")
    (row,) = claim(db, runner, n)
    return row


@pytest.mark.parametrize("n", [1, 50])
def test_the_same_host_and_login_resume_the_session(db: Connection[DictRow], n: int) -> None:
    runner = host(db, "r", "mill", claude="a")
    task = routed(db)
    end(db, worked(db, runner), "stalled", error="No output for 10 minutes.")
    row = again(db, runner, n)
    assert (row["task_id"], row["number"]) == (task, 2)
    assert [row[name] for name in RESUME] == ["s-1", {}, "You were interrupted: No output for 10 minutes."]


def test_a_first_attempt_has_nothing_to_pick_up(db: Connection[DictRow]) -> None:
    routed(db)
    (row,) = claim(db, host(db, "r", "mill", claude="a"))
    assert [row[name] for name in RESUME] == [None, None, None]


def test_another_runner_on_that_host_resumes_it_too(db: Connection[DictRow]) -> None:
    first, second = host(db, "one", "mill", claude="a"), host(db, "two", "mill", claude="a")
    routed(db)
    worked(db, first)
    db.execute("select retire_runner(%s)", [first])
    row = again(db, second)
    assert (row["session_id"], row["note"]) == ("s-1", "You were interrupted: Attempt 1 was lost: the runner left.")


def test_the_usage_of_the_session_is_the_sum_of_its_attempts_and_of_reported_money(db: Connection[DictRow]) -> None:
    db.execute("insert into prices values ('claude', 'priced', 1, null, 1)")
    runner = host(db, "r", "mill", claude="a")
    routed(db)
    end(db, worked(db, runner, "other", input_tokens=1000, cost_usd=9), "failed")
    end(db, worked(db, runner, "s-2", input_tokens=10, output_tokens=1, turns=2, cost_usd=0.5), "failed")
    end(db, worked(db, runner, "s-2", input_tokens=20, output_tokens=2, model="priced"), "failed")
    row = again(db, runner)
    assert row["session_id"] == "s-2"
    assert row["session_usage"] == {"input_tokens": 30, "output_tokens": 3, "turns": 2, "cost_usd": 0.5}


def test_another_host_gets_a_note_with_the_last_words_and_steps_and_where_the_files_are(
    db: Connection[DictRow],
) -> None:
    here, there = host(db, "one", "mill", claude="a"), host(db, "two", "barn", claude="a")
    routed(db)
    token = worked(db, here, said="I begin.")
    say(db, token, "Bash: make test", "Edit: main.c", kind="tool_call")
    say(db, token, "secret thoughts", kind="thinking")
    say(db, token, "1 failed", kind="tool_result")
    say(db, token, "One test is left.")
    end(db, token, "stalled", error="No output for 10 minutes.")
    row = again(db, there)
    assert (row["session_id"], row["session_usage"]) == (None, None)
    assert row["note"].splitlines() == [
        "Note: you take over. Attempt 1 by claude worked on this task before you and ended: No output for 10 minutes.",
        "Its files are on mill and not here; do over what is missing.",
        "Its last steps:",
        "- Bash: make test",
        "- Edit: main.c",
        "What it said last:",
        "I begin.",
        "One test is left.",
    ]


def test_another_provider_on_the_same_host_is_told_that_the_files_are_here(db: Connection[DictRow]) -> None:
    runner = host(db, "r", "mill", claude="a", codex="a")
    routed(db)
    refuse(db, worked(db, runner))
    row = again(db, runner)
    assert (row["provider"], row["session_id"]) == ("codex", None)
    assert row["note"].splitlines()[:2] == [
        "Note: you take over. Attempt 1 by claude worked on this task before you and ended:"
        " Attempt 1: too many requests for this account.",
        "Its files are in the working directory; look at them first.",
    ]


def test_another_login_on_the_same_host_does_not_get_the_session(db: Connection[DictRow]) -> None:
    one, two = host(db, "one", "mill", claude="a"), host(db, "two", "mill", claude="b")
    routed(db)
    end(db, worked(db, one), "failed")
    row = again(db, two)
    assert row["session_id"] is None
    assert "Half done." in row["note"]


def test_where_the_task_names_a_workspace_the_note_points_there(db: Connection[DictRow]) -> None:
    one, two = host(db, "one", "mill", claude="a"), host(db, "two", "barn", codex="b")
    routed(db, workspace="/srv/app")
    end(db, worked(db, one), "failed")
    note = again(db, two)["note"]
    assert "What it did to files is in the working directory; look at that first." in note
    assert "mill" not in note


@pytest.mark.parametrize("outcome", ["session_lost", "context_overflow"])
def test_a_session_that_is_gone_is_not_offered_again_but_its_work_is_told(
    db: Connection[DictRow], outcome: str
) -> None:
    runner = host(db, "r", "mill", claude="a")
    routed(db)
    first = worked(db, runner)
    if outcome == "session_lost":
        end(db, first, "failed")
        resumed = again(db, runner)
        assert resumed["session_id"] == "s-1"
        end(db, resumed["attempt_id"], outcome)
    else:
        end(db, first, outcome)
    row = again(db, runner)
    assert row["session_id"] is None
    assert "Half done." in row["note"]
    # A new session of a later attempt is resumed again.
    say(db, row["attempt_id"], "More.")
    end(db, row["attempt_id"], "failed", session_id="s-2")
    assert again(db, runner)["session_id"] == "s-2"


def test_attempts_that_never_spoke_leave_nothing_to_pick_up(db: Connection[DictRow]) -> None:
    runner, other = host(db, "one", "mill", claude="a"), host(db, "two", "barn", claude="b")
    routed(db)
    (row,) = claim(db, runner)
    for kind in ("note", "error", "output", "tool_result"):
        say(db, row["attempt_id"], "429 Too Many Requests", kind=kind)
    end(db, row["attempt_id"], "failed", session_id="s-1")
    for where in (runner, other):
        row = again(db, where)
        assert [row[name] for name in RESUME] == [None, None, None]
        end(db, row["attempt_id"], "failed")


def test_the_last_attempt_that_worked_is_picked_up_over_those_that_did_not(db: Connection[DictRow]) -> None:
    runner = host(db, "r", "mill", claude="a")
    routed(db)
    end(db, worked(db, runner, "s-1"), "failed")
    end(db, worked(db, runner, "s-2"), "failed")
    end(db, again(db, runner)["attempt_id"], "network")
    db.execute("select clear_limit('claude')")
    row = again(db, runner)
    assert (row["session_id"], row["number"]) == ("s-2", 4)
    meaning = value(db, "select meaning from outcome_policies where outcome = 'network'")
    assert row["note"] == f"You were interrupted: Attempt 3: {meaning}."


def test_the_note_is_short_however_much_was_said(db: Connection[DictRow]) -> None:
    one, two = host(db, "one", "mill", claude="a"), host(db, "two", "barn", claude="a")
    routed(db)
    token = worked(db, one)
    for kind in ("text", "tool_call", "thinking", "tool_result"):
        say(db, token, *(f"{n:03} " + kind[0] * 100_000 for n in range(60)), kind=kind)
    commit = [{"seq": 900, "kind": "note", "body": "Committed. " + "c" * 100_000, "data": {"commit": "abc"}}]
    db.execute("select append_transcript(%s, %s)", [token, Jsonb(commit)])
    say(db, token, "The very last words.")
    end(db, token, "failed", error="e" * 100_000)
    note = again(db, two)["note"]
    assert note.endswith("The very last words.")
    assert "- 059 ttt" in note
    assert "- 045 ttt" in note
    assert "- 044 ttt" not in note
    assert "Committed." in note
    assert len(note) < 8000


def test_a_released_task_goes_on_in_its_session(db: Connection[DictRow]) -> None:
    runner = host(db, "r", "mill", claude="a")
    routed(db)
    db.execute("select release_task(%s, 'the runner stops')", [worked(db, runner)])
    row = again(db, runner)
    assert (row["session_id"], row["note"]) == ("s-1", "You were interrupted: stopped on request")


def test_the_work_of_others_is_not_picked_up(db: Connection[DictRow]) -> None:
    runner = host(db, "r", "mill", claude="a")
    routed(db)
    end(db, worked(db, runner))
    routed(db)
    end(db, claim(db, runner)[0]["attempt_id"], "failed")
    row = again(db, runner)
    assert [row[name] for name in RESUME] == [None, None, None]
