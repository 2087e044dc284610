"""Which task a runner gets, and what holds one back."""

from collections import Counter
from datetime import timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, value
from .yardwork import advance, claim, heard, insert, listener, misfiled, register, stop_clock


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


MODELS = ["coder", "writer", "painter"]


def local(db: Connection[DictRow], loaded: list[str] | None) -> list[dict[str, object]]:
    return [{"provider": "local", "account": "swap", "models": MODELS, "loaded": loaded}]


@pytest.fixture
def swapper(db: Connection[DictRow]) -> int:
    """A runner on a stopped clock that has one of three local models in memory: the writer."""
    stop_clock(db)
    for model in MODELS:
        db.execute("insert into agents (name, route) values (%s, array[%s])", [model, f"local:{model}"])
    return value(db, "select register_runner('swapper', 50, '{}', %s)", Jsonb(local(db, ["writer"])))


def test_tasks_for_the_local_model_that_is_loaded_go_first_for_ten_minutes(
    db: Connection[DictRow], swapper: int
) -> None:
    for n in range(4):
        insert(db, f"older {n}", agent="coder")
        insert(db, f"loaded {n}", agent="writer")
    assert [claim(db, swapper)[0]["prompt"] for _ in range(2)] == ["loaded 0", "loaded 1"]
    advance(db, minutes=9, seconds=59)
    db.execute(
        "select offer_providers(%s, %s)", [swapper, Jsonb(local(db, ["writer"]))]
    )  # the same: nothing begins anew
    assert claim(db, swapper)[0]["prompt"] == "loaded 2"
    advance(db, seconds=1)
    assert order(db, swapper) == ["older 0", "older 1", "older 2", "older 3", "loaded 3"]


def test_after_a_swap_the_other_models_tasks_go_first(db: Connection[DictRow], swapper: int) -> None:
    for model in MODELS:
        insert(db, model, agent=model)
        insert(db, f"{model} pinned", agent="painter", provider="local", model=model)
    advance(db, minutes=30)
    db.execute("select offer_providers(%s, %s)", [swapper, Jsonb(local(db, ["painter"]))])
    assert order(db, swapper)[:2] == ["painter", "painter pinned"]


def test_a_loaded_model_goes_ahead_of_other_scopes_but_never_of_a_higher_priority(
    db: Connection[DictRow], swapper: int
) -> None:
    db.execute("insert into scopes (name, parent) values ('one', 'default'), ('two', 'default')")
    for n in range(2):
        insert(db, f"low {n}", agent="writer", priority=-1)
        insert(db, f"one {n}", agent="writer", scope="one")
        insert(db, f"two {n}", agent="coder", scope="two")
        insert(db, f"high {n}", agent="coder", priority=1)
    assert order(db, swapper) == ["high 0", "high 1", "one 0", "one 1", "two 0", "two 1", "low 0", "low 1"]


def test_where_the_server_cannot_tell_what_is_loaded_the_older_task_goes_first(
    db: Connection[DictRow], swapper: int
) -> None:
    db.execute("select offer_providers(%s, %s)", [swapper, Jsonb(local(db, None))])
    for n, model in enumerate(("coder", "writer", "painter", "writer", "coder")):
        insert(db, f"{n}", agent=model)
    assert order(db, swapper) == ["0", "1", "2", "3", "4"]


def test_a_model_that_a_runner_does_not_have_is_left_to_one_that_has_it(db: Connection[DictRow], swapper: int) -> None:
    insert(db, "elsewhere", agent="coder", model="huge")
    insert(db, "here", agent="coder")
    assert order(db, swapper) == ["here"]
    other = value(
        db, "select register_runner('other', 1, '{}', %s)", Jsonb([{"provider": "local", "models": ["huge"]}])
    )
    assert [(row["prompt"], row["model"]) for row in claim(db, other)] == [("elsewhere", "huge")]
