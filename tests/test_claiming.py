"""Which task a runner gets, and what holds one back."""

from collections import Counter
from datetime import datetime, timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value
from .yardwork import advance, claim, heard, insert, listener, misfiled, register, status, stop_clock


def order(db: Connection[DictRow], runner: int) -> list[str]:
    """The prompts in the order in which they are claimed one by one, all of them left running."""
    prompts: list[str] = []
    while found := claim(db, runner):
        prompts.append(found[0]["prompt"])
    return prompts


def end(db: Connection[DictRow], attempt: DictRow, outcome: str = "completed") -> str:
    return value(db, "select complete_task(%s, %s)", attempt["attempt_id"], outcome)


def test_higher_priority_runs_first_and_older_first_within_it(db: Connection[DictRow]) -> None:
    db.execute("insert into agents (name, route) values ('other', '{command}')")
    for prompt, priority, agent in (
        ("low", -5, "shell"),
        ("first", 0, "shell"),
        ("second", 0, "other"),
        ("high", 5, "other"),
        ("third", 0, "shell"),
        ("fourth", 0, "other"),
    ):
        insert(db, prompt, priority=priority, agent=agent)
    assert order(db, register(db)) == ["high", "first", "second", "third", "fourth", "low"]


def test_a_batch_is_in_the_same_order(db: Connection[DictRow]) -> None:
    for n, priority in enumerate((0, 7, -3, 7, 0)):
        insert(db, str(n), priority=priority)
    batch = sorted(claim(db, register(db), 3), key=lambda row: row["attempt_id"])
    assert [row["prompt"] for row in batch] == ["1", "3", "0"]
    assert [row["prompt"] for row in claim(db, register(db, "other"), 500)] == ["4", "2"]


def test_tasks_that_come_back_run_before_new_ones_of_their_scope(db: Connection[DictRow]) -> None:
    runner = register(db)
    for prompt in ("old", "new", "urgent"):
        insert(db, prompt)
    assert end(db, claim(db, runner)[0], "session_lost") == "queued"
    db.execute("update tasks set priority = 1 where prompt = 'urgent'")
    assert order(db, runner) == ["urgent", "old", "new"]


def test_scopes_share_the_runners_by_weight(db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent, weight) values ('one', 'default', 1), ('two', 'default', 2)")
    for scope in ("one", "two"):
        db.execute(
            "insert into tasks (prompt, agent, scope) select 'x', 'shell', %s from generate_series(1, 20)", [scope]
        )
    runner, counts = register(db), Counter[str]()
    for n in range(1, 19):
        claim(db, runner)
        counts = Counter(column(db, "select scope from attempts"))
        assert abs(counts["two"] - 2 * counts["one"]) <= 2, (n, counts)
    assert counts == {"one": 6, "two": 12}


def test_one_batch_does_not_hand_everything_to_one_scope(db: Connection[DictRow]) -> None:
    for n in range(5):
        db.execute("insert into scopes (name, parent) values (%s, 'default')", [f"s{n}"])
        db.execute(
            "insert into tasks (prompt, agent, scope) select 'x', 'shell', %s from generate_series(1, 9)", [f"s{n}"]
        )
    claimed = Counter(row["scope"] for row in claim(db, register(db), 10))
    assert claimed == {f"s{n}": 2 for n in range(5)}


@pytest.mark.parametrize("whose", ["scope", "agent"])
def test_a_limit_of_attempts_at_once_is_kept(db: Connection[DictRow], whose: str) -> None:
    db.execute(f"update {whose}s set max_concurrency = 3".encode())
    for n in range(6):
        insert(db, str(n))
    runner = register(db)
    attempts = claim(db, runner, 2)
    attempts += claim(db, runner, 4)
    assert len(attempts) == 3
    assert claim(db, runner) == []
    end(db, attempts[0])
    assert len(claim(db, runner, 4)) == 1
    assert claim(db, register(db, "other"), 4) == []


def test_labels_are_all_needed(db: Connection[DictRow]) -> None:
    insert(db, "both", requires=["gpu", "docker"])
    insert(db, "none")
    assert order(db, register(db, "gpu-host", "gpu")) == ["none"]
    assert order(db, register(db, "host", "docker", "tidy", "gpu")) == ["both"]


def test_a_pin_wins_over_the_route_and_the_route_goes_by_preference(db: Connection[DictRow]) -> None:
    db.execute("insert into providers (name, adapter) values ('a', 'command'), ('b', 'command'), ('c', 'command')")
    db.execute("insert into agents (name, route) values ('routed', '{a:big,b}')")
    insert(db, "free", agent="routed")
    insert(db, "pinned", agent="routed", provider="c", model="mine")
    assert order(db, register(db, "none", command="x")) == []
    got = claim(db, register(db, "b-and-c", b="me", c="you"), 5)
    assert sorted((row["prompt"], row["provider"], row["account"], row["model"]) for row in got) == [
        ("free", "b", "me", None),
        ("pinned", "c", "you", "mine"),
    ]
    both = register(db, "both", b="me", a="me")
    insert(db, "free", agent="routed")
    assert [(row["provider"], row["model"]) for row in claim(db, both)] == [("a", "big")]
    insert(db, "with a model", agent="routed", model="small")
    assert [(row["provider"], row["model"]) for row in claim(db, both)] == [("a", "small")]


def test_a_claim_hands_out_the_agents_defaults_and_the_tasks_own_settings(db: Connection[DictRow]) -> None:
    db.execute("update agents set timeout = '5 min', verify = 'make', system_prompt = 'Be kind.' where name = 'shell'")
    insert(db, payload='{"a": 1}')
    insert(db, timeout=timedelta(hours=1), verify="true", priority=-1)
    plain, own = claim(db, register(db), 2)
    assert (plain["timeout"], plain["verify"], plain["payload"]) == (timedelta(minutes=5), "make", {"a": 1})
    assert (own["timeout"], own["verify"], own["system_prompt"]) == (timedelta(hours=1), "true", "Be kind.")
    assert plain["command"] == ["sh", "-s"]


def test_a_workspace_is_used_by_one_task_at_a_time_and_goes_to_the_best_that_waits(db: Connection[DictRow]) -> None:
    runner = register(db)
    insert(db, "holder", workspace="/w")
    holder = claim(db, runner)[0]
    for prompt, priority in (("one", 1), ("five", 5), ("three", 3)):
        insert(db, prompt, workspace="/w", priority=priority)
    insert(db, "elsewhere", workspace="/v", priority=-9)
    assert order(db, runner) == ["elsewhere"]
    assert misfiled(db) == []
    assert value(db, "select count(*) from workspace_waits") == 3
    for prompt in ("five", "three", "one"):
        end(db, holder, "completed" if prompt != "three" else "permission_denied")
        (holder,) = claim(db, runner, 5)
        assert holder["prompt"] == prompt
        assert misfiled(db) == []
    end(db, holder)
    assert value(db, "select count(*) from workspace_holders where workspace = '/w'") == 0


@pytest.mark.parametrize("what", ["select cancel_task(%s)", "update tasks set workspace = null where id = %s"])
def test_those_who_wait_for_a_workspace_are_not_forgotten_when_the_next_one_leaves(
    db: Connection[DictRow], what: str
) -> None:
    runner = register(db)
    insert(db, "holder", workspace="/w")
    holder = claim(db, runner)[0]
    better, other = insert(db, "better", workspace="/w", priority=1), insert(db, "other", workspace="/w")
    assert claim(db, runner, 5) == []  # both step aside
    end(db, holder)  # the better one may compete again ...
    db.execute(what.encode(), [better])  # ... and does not want to
    for _ in range(2):
        db.execute("select tick(%s)", [runner])
    assert other in [row["task_id"] for row in claim(db, runner, 5)]


def test_a_waiting_task_whose_workspace_is_edited_is_filed_anew(db: Connection[DictRow]) -> None:
    runner = register(db)
    insert(db, "holder", workspace="/w")
    claim(db, runner)
    insert(db, "waits", workspace="/w")
    assert order(db, runner) == []
    db.execute("update tasks set workspace = '/v' where prompt = 'waits'")
    assert misfiled(db) == []
    assert order(db, runner) == ["waits"]


def test_a_paused_scope_is_left_alone_until_it_is_resumed(yard: Yard, db: Connection[DictRow]) -> None:
    db.execute("insert into scopes (name, parent) values ('s', 'default')")
    insert(db, "in s", scope="s")
    insert(db, "not in s")
    assert value(db, "select pause_scope('s', 'lunch')") == "scope s is paused; what runs goes on"
    runner = register(db)
    assert order(db, runner) == ["not in s"]
    sleeper, listening = yard.connect(), listener(yard, "task_ready")
    sleeper.execute("select sleep_begin()")
    db.execute("select resume_scope('s')")
    assert [n.channel for n in heard(listening, db)] == ["task_ready"]
    assert order(db, runner) == ["in s"]


def test_a_paused_provider_is_passed_over_until_it_is_resumed(db: Connection[DictRow]) -> None:
    db.execute("insert into providers (name, adapter) values ('a', 'command')")
    db.execute("update agents set route = '{command,a}' where name = 'shell'")
    runner = register(db, command="x", a="x")
    db.execute("select pause_provider('command', 'bill')")
    insert(db)
    assert [row["provider"] for row in claim(db, runner)] == ["a"]
    db.execute("select pause_provider('a')")
    insert(db)
    assert claim(db, runner) == []
    db.execute("select resume_provider('command')")
    assert [row["provider"] for row in claim(db, runner)] == ["command"]


def test_a_draining_runner_claims_nothing_and_is_told(db: Connection[DictRow]) -> None:
    runner = register(db)
    insert(db)
    attempt = claim(db, runner)[0]
    insert(db)
    db.execute("select drain_runner('host')")
    assert claim(db, runner) == []
    assert "drain" in column(db, "select directive from heartbeat(%s, %s)", runner, [attempt["attempt_id"]])
    assert end(db, attempt) == "completed"
    db.execute("select drain_runner('host', false)")
    assert "drain" not in column(db, "select directive from heartbeat(%s)", runner)
    assert len(claim(db, runner)) == 1


def test_a_limit_holds_every_runner_with_that_account_and_no_other(db: Connection[DictRow]) -> None:
    here, there, other = (
        register(db, "here", command="a"),
        register(db, "there", command="a"),
        register(db, "o", command="b"),
    )
    task = insert(db)
    resets_at = value(db, "select date_trunc('second', now()) + interval '3 hours'")
    attempt = claim(db, here)[0]["attempt_id"]
    assert value(db, "select complete_task(%s, 'rate_limited', p_retry_at => %s)", attempt, resets_at) == "queued"
    assert value(db, "select failure_count from tasks where id = %s", task) == 0
    assert claim(db, here) == claim(db, there) == []
    assert len(claim(db, other)) == 1
    db.execute("select retire_runner(%s)", [other])
    assert status(db, task) == "queued"
    assert column(db, "select explain_task(%s)", task) == [
        "Is queued.",
        f"Provider command cools down until {resets_at:%Y-%m-%d %H:%M:%S}.",
    ]


def test_a_cooldown_lasts_until_the_stated_reset_or_a_growing_guess(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db, command="a")
    insert(db)

    def strike(after: timedelta | None) -> float:
        attempt = claim(db, runner)[0]["attempt_id"]
        retry_at: datetime | None = value(db, "select _now() + %s::interval", after)
        db.execute("select complete_task(%s, 'rate_limited', p_retry_at => %s)", [attempt, retry_at])
        assert claim(db, runner) == []
        wait = value(db, "select extract(epoch from until - _now())::float8 from provider_limits")
        advance(db, seconds=wait - 1)
        assert claim(db, runner) == []
        advance(db, seconds=2)
        return wait

    minutes = 60.0
    assert [strike(None) for _ in range(4)] == [5 * minutes, 15 * minutes, 60 * minutes, 60 * minutes]
    assert strike(timedelta(hours=2)) == 120 * minutes
    assert strike(timedelta(seconds=1)) == 1 * minutes
    assert strike(timedelta(days=-1)) == 1 * minutes
    assert strike(timedelta(days=30)) == 8 * 24 * 60 * minutes


def test_attempts_that_were_under_way_when_the_limit_struck_never_shorten_it(db: Connection[DictRow]) -> None:
    runner = register(db, command="a")
    for _ in range(3):
        insert(db)
    first, second, third = claim(db, runner, 3)
    later, sooner = column(db, "select unnest(array[now() + interval '3 hours', now() + interval '1 hour'])")
    for attempt, retry_at in ((first, later), (second, sooner), (third, None)):
        db.execute("select complete_task(%s, 'rate_limited', p_retry_at => %s)", [attempt["attempt_id"], retry_at])
        assert rows(db, "select until, level from provider_limits") == [{"until": later, "level": 0}]
