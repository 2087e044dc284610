"""The life of a task under its verbs: how attempts end, what is cancelled, retried, released, passed on."""

from datetime import timedelta

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .test_refusals import contents
from .yardwork import (
    advance,
    claim,
    end,
    heard,
    insert,
    listener,
    misfiled,
    refusal,
    register,
    status,
    stop_clock,
    task_in,
)


def cooled(db: Connection[DictRow]) -> list[str]:
    """Whom the endings so far cooled down, by the words of outcome_policies.cools; all are let go again."""
    found = column(
        db,
        """
        select case account when '' then 'provider' else 'account' end from provider_limits where until > now()
        union all
        select case when until > now() then 'runner' else 'login' end from runner_providers
        where until > now() or state = 'unauthenticated'
        """,
    )
    db.execute("select clear_limit('command'), resume_provider('command')")
    return found


def test_every_outcome_ends_where_its_policy_says_and_counts_as_it_says(db: Connection[DictRow]) -> None:
    runner = register(db, command="me")
    policies = rows(db, "select * from outcome_policies")
    assert len(policies) == 19
    for policy in policies:
        outcome = policy["outcome"]
        task = insert(db, outcome)
        attempt = claim(db, runner)[0]["attempt_id"]
        expected = "scheduled" if policy["status"] == "queued" and policy["backoff"] else policy["status"]
        if outcome == "waiting":
            expected = "queued"  # for nobody was asked: it would wait for ever
        if outcome == "handed_off":
            db.execute(
                "select handoff_task(%s, %s)",
                [attempt, Jsonb({"target": "claude", "reason": "escalation", "context_summary": "hard"})],
            )
        assert end(db, attempt, outcome, exit_code=3, evidence="proof") == expected, outcome
        assert status(db, task) == expected, outcome
        counts = policy["free_times"] == 0 and policy["status"] != "completed"
        ended = rows(db, "select outcome::text, counted, exit_code, evidence from attempts where id = %s", attempt)[0]
        assert ended == {"outcome": outcome, "counted": counts, "exit_code": 3, "evidence": "proof"}
        kept = rows(db, "select attempt_id, failure_count, error from tasks where id = %s", task)[0]
        assert (kept["attempt_id"], kept["failure_count"]) == (None, int(counts)), outcome
        assert (kept["error"] is None) == (outcome in ("completed", "waiting", "handed_off")), outcome
        assert cooled(db) == ([policy["cools"]] if policy["cools"] else []), outcome
        assert misfiled(db) == [], outcome
        db.execute("update tasks set status = 'cancelled' where status in ('queued', 'scheduled')")


def test_an_edited_policy_holds_from_then_on(db: Connection[DictRow]) -> None:
    db.execute("update outcome_policies set status = 'failed', free_times = 0 where outcome = 'network'")
    task = insert(db)
    assert end(db, claim(db, register(db))[0]["attempt_id"], "network") == "failed"
    assert value(db, "select failure_count from tasks where id = %s", task) == 1


def test_backoff_doubles_up_to_its_cap_with_jitter(db: Connection[DictRow]) -> None:
    task, runner = insert(db, max_attempts=100), register(db)
    ratios: list[float] = []
    for time in range(14):
        attempt = claim(db, runner)[0]["attempt_id"]
        assert end(db, attempt, "failed") == "scheduled"
        waits = value(
            db,
            "select extract(epoch from t.run_at - a.finished_at)::float8 from tasks t join attempts a on a.id = %s"
            " where t.id = %s",
            attempt,
            task,
        )
        ratios.append(waits / min(5 * 2**time, 3600))
        db.execute("update tasks set run_at = null where id = %s", [task])
    assert all(0.899 <= ratio <= 1.101 for ratio in ratios), ratios
    assert max(ratios) - min(ratios) > 0.01, "no jitter"


def test_a_task_fails_for_good_after_max_attempts_its_own_or_the_agents(db: Connection[DictRow]) -> None:
    runner = register(db)
    for own, allowed in ((2, 2), (1, 1), (None, 3)):
        task = insert(db, max_attempts=own)
        for time in range(1, allowed + 1):
            attempt = claim(db, runner)[0]
            assert attempt["number"] == time
            expected = "failed" if time == allowed else "scheduled"
            assert end(db, attempt["attempt_id"], "failed", error=f"No. {time}") == expected
            db.execute("update tasks set run_at = null where id = %s and status = 'scheduled'", [task])
        assert value(db, "select error from tasks where id = %s", task) == f"No. {allowed}"


def test_two_crashes_are_free_and_the_third_counts(db: Connection[DictRow]) -> None:
    task = insert(db, max_attempts=1)
    for time, (ended, count) in enumerate((("queued", 0), ("queued", 0), ("failed", 1))):
        runner = register(db, f"host-{time}")
        assert len(claim(db, runner)) == 1
        assert value(db, "select retire_runner(%s)", runner) == 1
        assert (status(db, task), value(db, "select failure_count from tasks where id = %s", task)) == (ended, count)
    assert value(db, "select error from tasks") == "Attempt 3 was lost: the runner left."
    assert column(db, "select counted from attempts order by id") == [False, False, True]


def test_usage_result_and_session_are_kept(db: Connection[DictRow]) -> None:
    task = insert(db)
    attempt = claim(db, register(db))[0]["attempt_id"]
    usage = {"input_tokens": 5, "cached_tokens": 4, "output_tokens": 3, "turns": 2, "cost_usd": 0.5, "model": "m"}
    end(db, attempt, result=Jsonb({"a": [1]}), usage=Jsonb(usage), session_id="s")
    assert value(db, "select result from tasks where id = %s", task) == {"a": [1]}
    kept = rows(db, f"select session_id, {', '.join(usage)} from attempts")[0]  # type: ignore[arg-type]
    assert {name: kept[name] for name in usage} == usage
    assert kept["session_id"] == "s"


@pytest.mark.parametrize("where", ["blocked", "scheduled", "queued", "waiting"])
def test_what_waits_is_cancelled_at_once(db: Connection[DictRow], where: str) -> None:
    task = task_in(db, where)
    assert value(db, "select cancel_task(%s, 'no need')", task) == "cancelled"
    kept = rows(
        db, "select status::text, error, cancel_reason, finished_at is not null as over from tasks where id = %s", task
    )
    assert kept == [{"status": "cancelled", "error": "no need", "cancel_reason": "no need", "over": True}]
    assert misfiled(db) == []


@pytest.mark.parametrize("where", ["completed", "failed", "cancelled"])
def test_what_is_over_is_not_cancelled(db: Connection[DictRow], where: str) -> None:
    error = refusal(db, "select cancel_task(%s)", task_in(db, where))
    assert error is not None
    assert error.sqlstate == "TY004"


def test_a_running_task_is_stopped_by_its_runner_and_cancelled_whatever_that_reports(yard: Yard) -> None:
    db = yard.connect()
    runner = register(db, command="me")
    for policy in rows(db, "select outcome, status from outcome_policies"):
        task = insert(db)
        attempt = claim(db, runner)[0]["attempt_id"]
        listening = listener(yard, f"taskyard_runner_{runner}")
        assert value(db, "select cancel_task(%s, 'enough')", task) == "stopping"
        assert status(db, task) == "running"
        assert [(n.channel, n.payload) for n in heard(listening, db)] == [(f"taskyard_runner_{runner}", "cancel")]
        listening.close()
        told = rows(db, "select * from heartbeat(%s, %s) where directive = 'cancel'", runner, [attempt])
        assert told == [{"attempt_id": attempt, "directive": "cancel", "detail": "enough"}]
        expected = "completed" if policy["status"] == "completed" else "cancelled"
        assert end(db, attempt, policy["outcome"]) == expected, policy
        cooled(db)
    assert set(column(db, "select error from tasks where status = 'cancelled'")) == {"enough"}


def test_a_cancelled_task_is_cancelled_too_if_its_runner_is_lost_or_releases_it(db: Connection[DictRow]) -> None:
    for verb in ("retire_runner({runner})", "release_task({attempt})"):
        runner, task = register(db, verb[:6]), insert(db)
        attempt = claim(db, runner)[0]["attempt_id"]
        db.execute("select cancel_task(%s, 'enough')", [task])
        db.execute(f"select {verb}".format(runner=runner, attempt=attempt).encode())
        assert rows(db, "select status::text, error from tasks where id = %s", task) == [
            {"status": "cancelled", "error": "enough"}
        ]


def test_a_released_task_is_unharmed_and_comes_back_first(db: Connection[DictRow]) -> None:
    first, _second, runner = insert(db, "first"), insert(db, "second"), register(db)
    for _ in range(3):
        attempt = claim(db, runner)[0]
        assert attempt["task_id"] == first
        assert value(db, "select release_task(%s, 'going home')", attempt["attempt_id"]) == "queued"
        assert misfiled(db) == []
    kept = rows(db, "select failure_count, attempt_count, error from tasks where id = %s", first)[0]
    assert kept == {"failure_count": 0, "attempt_count": 3, "error": None}
    assert set(column(db, "select evidence from attempts")) == {"released: going home"}
    attempt = claim(db, runner)[0]["attempt_id"]
    assert value(db, "select release_task(%s, 'later', '1 hour')", attempt) == "scheduled"
    assert value(db, "select run_at - now() between '59 minutes' and '1 hour' from tasks where id = %s", first)


def test_retrying_gives_all_attempts_again_and_revives_what_failed_because_of_it(db: Connection[DictRow]) -> None:
    runner = register(db)
    root, other = insert(db, "root", max_attempts=1), insert(db, "other", max_attempts=1)
    child = insert(db, "child", depends_on=[root])
    grandchild = insert(db, "grandchild", depends_on=[child])
    torn = insert(db, "torn", depends_on=[root, other])
    dropped = insert(db, "dropped", depends_on=[root])
    db.execute("select cancel_task(%s)", [dropped])
    for attempt in claim(db, runner, 2):
        end(db, attempt["attempt_id"], "failed")
    assert {status(db, task) for task in (root, other, child, grandchild, torn)} == {"failed"}

    assert value(db, "select retry_task(%s)", root) == "queued"
    assert rows(db, "select failure_count, error, finished_at from tasks where id = %s", root) == [
        {"failure_count": 0, "error": None, "finished_at": None}
    ]
    assert [status(db, task) for task in (child, grandchild, dropped)] == ["blocked", "blocked", "cancelled"]
    assert (
        value(db, "select status::text || ' ' || failed_dependency from tasks where id = %s", torn) == f"failed {other}"
    )
    assert misfiled(db) == []
    for task in (root, child, grandchild):
        assert end(db, claim(db, runner)[0]["attempt_id"]) == "completed"
        assert status(db, task) == "completed"


def test_retrying_a_scheduled_task_makes_it_due(db: Connection[DictRow]) -> None:
    task = task_in(db, "scheduled")
    assert value(db, "select retry_task(%s)", task) == "queued"
    assert misfiled(db) == []


@pytest.mark.slow
def test_failure_passes_down_a_chain_of_two_thousand(db: Connection[DictRow]) -> None:
    first = insert(db)
    with db.transaction():
        db.execute(
            "do $$ begin for n in 1..2000 loop insert into tasks (prompt, depends_on)"
            " select 'link', array[max(id)] from tasks; end loop; end $$"
        )
    assert value(db, "select count(*) from tasks where status = 'blocked'") == 2000
    end(db, claim(db, register(db))[0]["attempt_id"], "permission_denied")
    assert value(db, "select count(*) from tasks where status = 'failed'") == 2001
    assert value(db, "select bool_and(failed_dependency = depends_on[1]) from tasks where id > %s", first)
    assert (
        value(db, "select error from tasks where id = %s", first + 7)
        == f"Task {first + 6}, which it depends on, failed."
    )
    assert value(db, "select count(*) from task_dependencies") == 0
    assert value(db, "select retry_task(%s)", first) == "queued"
    assert value(db, "select count(*) from tasks where status = 'blocked'") == 2000


@pytest.mark.parametrize(("ending", "said"), [("fail", "failed"), ("cancel", "was cancelled")])
def test_a_task_runs_in_spite_of_a_failed_dependency_only_if_it_says_so(
    db: Connection[DictRow], ending: str, said: str
) -> None:
    first = insert(db)
    strict = insert(db, depends_on=[first])
    tough = insert(db, depends_on=[first], on_dependency_failure="run")
    below = insert(db, depends_on=[strict], on_dependency_failure="run")
    if ending == "fail":
        end(db, claim(db, register(db))[0]["attempt_id"], "permission_denied")
    else:
        db.execute("select cancel_task(%s)", [first])
    assert [status(db, task) for task in (strict, tough, below)] == ["failed", "queued", "queued"]
    assert value(db, "select error from tasks where id = %s", strict) == f"Task {first}, which it depends on, {said}."
    assert misfiled(db) == []


def test_a_diamond_joins_when_both_sides_are_done_and_fails_when_one_does(db: Connection[DictRow]) -> None:
    runner = register(db)
    for outcome, ended in (("completed", "queued"), ("permission_denied", "failed")):
        top = insert(db, "top")
        left, right = insert(db, "left", depends_on=[top]), insert(db, "right", depends_on=[top])
        bottom = insert(db, "bottom", depends_on=[left, right])
        assert end(db, claim(db, runner)[0]["attempt_id"]) == "completed"
        sides = claim(db, runner, 2)
        assert sorted(side["task_id"] for side in sides) == [left, right]
        end(db, sides[0]["attempt_id"])
        assert status(db, bottom) == "blocked"
        end(db, sides[1]["attempt_id"], outcome)
        assert status(db, bottom) == ended
        db.execute("update tasks set status = 'cancelled' where id = %s and status = 'queued'", [bottom])
        assert misfiled(db) == []


def test_a_stale_attempt_can_write_nothing(db: Connection[DictRow]) -> None:
    insert(db)
    gone, runner = register(db, "gone"), register(db)
    stale = claim(db, gone)[0]["attempt_id"]
    db.execute("select retire_runner(%s)", [gone])
    live = claim(db, runner)[0]["attempt_id"]
    before = contents(db)
    for verb in ("complete_task(%s)", "complete_task(%s, 'failed')", "release_task(%s)", "append_transcript(%s, '[]')"):
        error = refusal(db, f"select {verb}", stale)
        assert error is not None, verb
        assert (error.sqlstate, error.diag.message_detail) == ("TY005", "the runner left"), verb
        assert contents(db) == before, verb
    told = rows(db, "select * from heartbeat(%s, %s) where directive <> 'tick'", runner, [stale, live])
    assert told == [{"attempt_id": stale, "directive": "lost", "detail": "the runner left"}]
    assert end(db, live) == "completed"


def test_a_heartbeat_renews_its_own_attempts_and_no_others(db: Connection[DictRow]) -> None:
    stop_clock(db)
    mine, other = register(db), register(db, "other")
    for _ in range(2):
        insert(db)
    ours, theirs = claim(db, mine)[0]["attempt_id"], claim(db, other)[0]["attempt_id"]
    leases = "select id, lease_until from attempts order by id"
    before = {row["id"]: row["lease_until"] for row in rows(db, leases)}
    advance(db, seconds=30)
    told = rows(db, "select * from heartbeat(%s, %s) where directive = 'lost'", mine, [ours, theirs])
    assert [row["attempt_id"] for row in told] == [theirs]
    after = {row["id"]: row["lease_until"] for row in rows(db, leases)}
    assert after == {ours: before[ours] + timedelta(seconds=30), theirs: before[theirs]}


def test_complete_tasks_tells_for_each_attempt_whether_it_was_lost(db: Connection[DictRow]) -> None:
    runner, tasks = register(db, slots=9), [insert(db) for _ in range(4)]
    below = insert(db, depends_on=tasks[:2])
    a, b, c = (row["attempt_id"] for row in sorted(claim(db, runner, 3), key=lambda row: row["task_id"]))
    end(db, c, "permission_denied")
    done = rows(db, "select * from complete_tasks(%s, %s)", [a, c, 999, b], [Jsonb(n) for n in range(4)])
    assert {row["attempt_id"]: row["status"] for row in done} == {
        a: "completed",
        c: "lost",
        999: "lost",
        b: "completed",
    }
    assert column(db, "select result from tasks where id = any(%s) order by id", tasks) == [0, 3, None, None]
    assert [status(db, task) for task in (*tasks, below)] == ["completed", "completed", "failed", "queued", "queued"]


def test_submitting_with_a_key_that_is_taken_returns_the_first_task(db: Connection[DictRow]) -> None:
    first = value(db, "select submit_task('a', 'shell', p_dedupe_key => 'k')")
    assert value(db, "select submit_task('b', 'shell', p_dedupe_key => 'k')") == first
    assert value(db, "select submit_task('c', 'shell')") != first
    assert column(db, "select prompt from tasks order by id") == ["a", "c"]
    assert misfiled(db) == []


def test_tick_queues_what_is_due_exactly_once(yard: Yard, db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db)
    for minutes in (1, 2, 600):
        insert(db, run_at=value(db, "select _now() + %s", timedelta(minutes=minutes)))
    assert value(db, "select tick(%s)", runner) == 0
    advance(db, minutes=2)
    db.execute("select heartbeat(%s)", [runner])
    with db.transaction():
        assert value(db, "select tick(%s)", runner) == 2
        assert value(yard.connect(), "select tick()") == 0  # one at a time does the work
    assert value(db, "select tick(%s)", runner) == 0
    assert value(db, "select tick(%s)", register(db, "other")) == 0
    assert column(db, "select status::text from tasks order by id") == ["queued", "queued", "scheduled"]
    assert misfiled(db) == []


def test_a_silent_runner_loses_its_tasks_but_not_right_after_the_yard_itself_was_away(db: Connection[DictRow]) -> None:
    stop_clock(db)
    silent, awake = register(db, "silent"), register(db, "awake")
    insert(db)
    attempt = claim(db, silent)[0]["attempt_id"]
    db.execute("select tick(%s)", [awake])
    advance(db, seconds=61)
    for seconds, taken_back in ((0, 0), (5, 0), (4, 0), (2, 1), (1, 0)):
        advance(db, seconds=seconds)
        db.execute("select heartbeat(%s)", [awake])
        assert value(db, "select tick(%s)", awake) == taken_back, seconds
    assert rows(db, "select outcome::text, evidence from attempts where id = %s", attempt) == [
        {"outcome": "crashed", "evidence": "no heartbeat within the lease"}
    ]
    assert column(db, "select status::text from tasks") == ["queued"]
    error = refusal(db, "select heartbeat(%s)", silent)
    assert error is not None
    assert error.sqlstate == "TY007"


def test_sending_transcript_events_twice_does_no_harm(db: Connection[DictRow]) -> None:
    insert(db)
    attempt = claim(db, register(db))[0]["attempt_id"]
    events = [{"seq": n, "kind": "output", "body": f"line {n}", "data": {"n": n}} for n in range(1, 4)]
    for batch, new in ((events[:2], 2), (events[:2], 0), (events[1:], 1), ([], 0)):
        assert value(db, "select append_transcript(%s, %s)", attempt, Jsonb(batch)) == new
    assert rows(db, "select seq, kind, body, data from transcript order by seq") == events
