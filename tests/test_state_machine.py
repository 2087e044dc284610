"""Random verbs by many runners, then the invariants: no task lost, none running twice, no stale write accepted, no claim
on an account that is hot, and never a second canary while the first may still answer."""

import os
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from psycopg.types.json import Jsonb

from .clock import Clock
from .conftest import Yard, column, rows, value
from .watched_claims import claim_watched
from .yardwork import misfiled

LIMITS = {"one": 1, "two": 2}
OUTCOMES = [
    "completed",
    "completed",
    "completed",
    "failed",
    "crashed",
    "rate_limited",
    "timed_out",
    "permission_denied",
    "quota_exhausted",
    "overloaded",
    "network",
    "unauthenticated",
    "session_lost",
    "waiting",
    "waiting",
    "handed_off",
    "verify_failed",
]

# Each query lists what must not be; a name, and why it must not.
FORBIDDEN: dict[str, Any] = {
    "a queued task stands in the claim index once, or waits for its directory": """
        select t.id from tasks t where (t.status = 'queued') <> (
            (select count(*) from ready_tasks r where r.task_id = t.id and r.lane_id = t.lane_id and r.position = t.queue_position)
            + (select count(*) from workspace_waits w where w.task_id = t.id) = 1)""",
    "the claim index holds nothing else": """
        select r.task_id from ready_tasks r left join tasks t on t.id = r.task_id where t.status is distinct from 'queued'""",
    "a scheduled task stands in scheduled_tasks once": """
        select t.id from tasks t where (t.status = 'scheduled')::int <> (
            select count(*) from scheduled_tasks s where s.task_id = t.id and s.run_at = t.run_at)""",
    "scheduled_tasks holds nothing else": """
        select s.task_id from scheduled_tasks s left join tasks t on t.id = s.task_id where t.status is distinct from 'scheduled'""",
    "a task is blocked exactly while dependencies of it are unfinished, or it waits for others": """
        select t.id from tasks t where (t.status = 'blocked') <> exists (select from task_dependencies d where d.task_id = t.id)
            and not exists (select from waits w where w.task_id = t.id and w.over_at is null and t.status in ('running', 'waiting'))""",
    "no circle of tasks that wait for each other": """
        with recursive above (id, start) as (
            select depends_on, task_id from task_dependencies
            union select d.depends_on, a.start from above a join task_dependencies d on d.task_id = a.id)
        select start from above where id = start""",
    "a task that was handed over ends with the one that went on with it": """
        select t.id from handoffs h join waits w on w.task_id = h.task_id and w.attempt_id = h.attempt_id
        join tasks t on t.id = h.task_id join tasks n on n.id = h.to_task
        where t.status = 'waiting' and n.status >= 'completed'""",
    "no attempt that is over has a packet that nobody took": """
        select h.id from handoffs h join attempts a on a.id = h.attempt_id join tasks t on t.id = h.task_id
        where h.to_task is null and a.outcome not in ('completed', 'cancelled') and a.agent <> 'auto'
            and t.cancel_requested_at is null and t.attempt_count = a.number and t.failure_count = 0""",
    "a child lies in the scope of its parent, or below it": """
        select t.id from tasks t join tasks p on p.id = t.parent_id join effective_scopes e on e.name = t.scope where p.scope <> all(e.path)""",
    "every unfinished dependency of a blocked task is listed, unless its end was ignored once": """
        select t.id from tasks t cross join unnest(t.depends_on) x (id) join tasks d on d.id = x.id
        where t.status = 'blocked' and d.status < 'completed' and t.on_dependency_failure = 'fail'
            and not exists (select from task_dependencies e where e.task_id = t.id and e.depends_on = d.id)""",
    "a task runs exactly while its attempt lives": """
        select t.id from tasks t where (t.status = 'running')::int <> (
            select count(*) from attempts a where a.task_id = t.id and a.outcome is null and a.id = t.attempt_id)""",
    "no task has two live attempts": """
        select task_id from attempts where outcome is null group by task_id having count(*) > 1""",
    "attempts are numbered without gaps and counted": """
        select t.id from tasks t where array(select number from attempts a where a.task_id = t.id order by id)
            <> array(select generate_series(1, t.attempt_count))""",
    "no scope runs more than its limit": """
        select a.scope from attempts a join scopes s on s.name = a.scope where a.outcome is null
        group by a.scope, s.max_concurrency having count(*) > s.max_concurrency""",
    "no two tasks run in one directory": """
        select workspace from tasks where status = 'running' and workspace is not null and agent <> 'auto' group by workspace having count(*) > 1""",
    "a directory is held exactly by the task that runs in it, and not while it is asked which agent it is for": """
        select h.workspace from workspace_holders h full join (
            select * from tasks where status = 'running' and workspace is not null and agent <> 'auto') t
            on t.id = h.task_id and t.workspace = h.workspace where h.task_id is null or t.id is null""",
    "who waits for a directory waits for one that is held, or one like it is claimable": """
        select w.task_id from workspace_waits w join tasks t on t.id = w.task_id
        where not exists (select from workspace_holders h where h.workspace = w.workspace)
            and not exists (
                select from ready_tasks r join tasks o on o.id = r.task_id
                where o.workspace = t.workspace and o.scope = t.scope and o.agent = t.agent)""",
    "a lane with claimable tasks is open": """
        select lane_id from ready_tasks r where not exists (select from open_lanes o where o.lane_id = r.lane_id)""",
    "a task that ran had its dependencies": """
        select t.id from tasks t cross join unnest(t.depends_on) x (id) join tasks d on d.id = x.id
        where t.status in ('running', 'completed') and t.on_dependency_failure = 'fail' and d.status <> 'completed'
            and d.cancel_requested_at is null and d.attempt_count <= 1 and d.failure_count = 0 and d.status < 'completed'""",
    "a completed task completed once, or was handed over, apart from the question which agent it is for": """
        select t.id from tasks t where t.status = 'completed' and not exists (select from handoffs h where h.task_id = t.id) and (
            select count(*) from attempts a where a.task_id = t.id and a.outcome = 'completed' and a.agent <> 'auto') <> 1""",
    "no limit and no question about the agent counts as an attempt": """
        select a.id from attempts a join outcome_policies p on p.outcome = a.outcome::text
        where a.counted and (p.cools is not null or a.agent = 'auto')""",
    "the place of a canary is held by a live attempt": """
        select l.provider from provider_limits l where l.canary_attempt is not null
            and not exists (select from attempts a where a.id = l.canary_attempt and a.canary and a.outcome is null)""",
    "no task has used more attempts than it has": """
        select t.id from tasks t where t.failure_count > t.max_attempts""",
}


def offers(*providers: str, account: str = "a") -> Jsonb:
    return Jsonb([{"provider": provider, "account": account} for provider in providers])


class YardMachine(RuleBasedStateMachine):
    yard: Yard
    tasks = Bundle("tasks")
    runners = Bundle("runners")
    claims = Bundle("claims")
    stale = Bundle("stale")

    @initialize()
    def begin(self) -> None:
        self.db = self.yard.connect(superuser=True)
        self.db.execute(
            "truncate tasks, attempts, ready_tasks, scheduled_tasks, task_dependencies, workspace_holders, workspace_waits,"
            " open_lanes, provider_limits, runners, transcript, task_events restart identity cascade"
        )
        self.db.execute("update scopes set paused_at = null")
        for scope, limit in LIMITS.items():
            self.db.execute(
                "insert into scopes (name, parent, max_concurrency) values (%s, 'default', %s) on conflict do nothing",
                (scope, limit),
            )
        self.db.execute(
            "insert into agents (name, route) values ('routed', '{claude,codex,command}') on conflict do nothing"
        )
        self.clock = Clock(self.yard, self.db)
        self.names = 0

    def teardown(self) -> None:
        if not hasattr(self, "db"):
            return
        self.everything_ends()
        self.db.close()

    def everything_ends(self) -> None:
        """Whatever happened, a healthy runner brings every task to its end: nothing is lost."""
        self.db.execute("update scopes set paused_at = null")
        self.db.execute("update runners set draining = true")
        runner = value(
            self.db, "select register_runner('last', 50, '{}', %s)", offers("claude", "codex", "local", "command")
        )
        for _ in range(200):
            self.clock.advance(timedelta(hours=2))
            for _ in range(3):  # the first tick after a gap gives nobody up, nor does any in the ten seconds after it
                self.clock.advance(timedelta(seconds=6))
                self.db.execute("select heartbeat(%s)", (runner,))
                self.db.execute("select tick(%s)", (runner,))
            for attempt in column(self.db, "select attempt_id from claim_task(%s, 50)", runner):
                self.db.execute("select complete_task(%s)", (attempt,))
            if not rows(self.db, "select from tasks where finished_at is null"):
                break
        left = rows(self.db, "select id, status, lane_id from tasks where finished_at is null")
        assert left == [], [(row, column(self.db, "select explain_task(%s)", row["id"])) for row in left]
        self.nothing_forbidden()

    @rule(
        target=runners,
        account=st.sampled_from(["a", "a", "b"]),
        providers=st.sampled_from([("claude",), ("claude", "codex"), ("claude", "codex", "local")]),
    )
    def register(self, account: str, providers: tuple[str, ...]) -> Any:
        self.names += 1
        return value(
            self.db,
            "select register_runner(%s, 4, '{}', %s, p_lease => '1 minute', p_host => %s)",
            f"r{self.names}",
            offers(*providers, "command", account=account),
            f"host-{self.names % 2}",
        )

    @rule(
        target=tasks,
        data=st.data(),
        scope=st.sampled_from(["default", "one", "two"]),
        priority=st.integers(-1, 1),
        workspace=st.sampled_from([None, None, None, "/w/a", "/w/b"]),
        max_attempts=st.integers(1, 3),
        policy=st.sampled_from(["fail", "fail", "run"]),
        delay=st.sampled_from([None, None, 30]),
        count=st.integers(1, 3),
        agent=st.sampled_from(["shell", "routed", "routed", "auto"]),
        pin=st.sampled_from([None, None, None, "claude"]),
        on_limit=st.sampled_from(["switch", "wait", "switch after 10 minutes"]),
    )
    def insert(
        self,
        data: Any,
        scope: str,
        priority: int,
        workspace: str | None,
        max_attempts: int,
        policy: str,
        delay: int | None,
        count: int,
        agent: str,
        pin: str | None,
        on_limit: str,
    ) -> Any:
        known = column(self.db, "select id from tasks order by id")
        depends_on: list[int] = data.draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
        made = column(
            self.db,
            "insert into tasks (prompt, agent, provider, on_limit, scope, priority, workspace, max_attempts, on_dependency_failure, depends_on, run_at)"
            " select 'x', %s, %s, %s, %s, %s, %s, %s, %s, %s::bigint[], _now() + %s * interval '1 second' from generate_series(1, %s) returning id",
            agent, pin, on_limit, scope, priority, workspace, max_attempts, policy, depends_on, delay, count,
        )  # fmt: skip
        return multiple(*made)

    @rule(target=claims, runner=runners, n=st.integers(1, 5))
    def claim(self, runner: int, n: int) -> Any:
        try:
            claimed = claim_watched(self.db, runner, n)
        except psycopg.Error as error:
            assert error.sqlstate == "TY007"
            claimed = []
        here = value(self.db, "select host from runners where id = %s", runner)
        stays = "select t.stays_on from tasks t where t.attempt_id = any(%s) and t.stays_on <> %s and t.stays_until > _now()"
        assert rows(self.db, stays, claimed, here) == []
        return multiple(*claimed)

    @rule(target=claims, runner=runners)
    def wait_out(self, runner: int) -> Any:
        """The limits are over, the runners are still there, and one of them tries again."""
        over = value(self.db, "select max(until) from provider_limits")
        if over is not None and over > self.clock.now:
            self.clock.set(over)
        for other in column(self.db, "select id from runners where gone_at is null"):
            self.beat(other)
        return self.claim(runner, 3)

    @rule(attempt=claims, kind=st.sampled_from(["text", "tool_call", "note"]))
    def speak(self, attempt: int, kind: str) -> None:
        said = Jsonb([{"seq": value(self.db, "select count(*) from transcript") + 1, "kind": kind, "body": "Hello."}])
        self.allowing("TY005", "select append_transcript(%s, %s)", attempt, said)
        if kind != "note":
            hot = "select from provider_limits where canary_attempt = %s and until <= _now()"
            assert rows(self.db, hot, attempt) == [], "the canary got an answer"

    @rule(provider=st.sampled_from(["claude", "codex", "local"]))
    def see_to(self, provider: str) -> None:
        """A human buys credits, and logs in again."""
        self.db.execute("select clear_limit(%s), resume_provider(%s)", (provider, provider))

    @rule(task=tasks)
    def leave_the_choice(self, task: int) -> None:
        self.allowing("TY004", "update tasks set agent = 'auto' where id = %s", task)

    @rule(
        target=stale,
        attempt=consumes(claims),
        outcome=st.sampled_from(OUTCOMES),
        resets_in=st.sampled_from([None, None, -60, 90, 7200]),
    )
    def complete(self, attempt: int, outcome: str, resets_in: int | None) -> Any:
        live = value(self.db, "select outcome is null from attempts where id = %s", attempt)
        if outcome == "handed_off" and not value(
            self.db, "select count(*) from handoffs where attempt_id = %s", attempt
        ):
            outcome = "waiting"
        if live:
            self.db.execute(
                "select complete_task(%s, %s, p_error => 'as drawn', p_window => jsonb_build_object('name', 'w', 'resets_at',"
                " _now() + %s * interval '1 second'))",
                (attempt, outcome, resets_in),
            )
        else:
            self.refused(attempt)
        return attempt

    @rule(target=tasks, attempt=claims, count=st.integers(1, 3), agent=st.sampled_from(["shell", "routed", "auto"]))
    def spawn(self, attempt: int, count: int, agent: str) -> Any:
        """Children of what an attempt works on; the same ones when it asks again."""
        made: list[int] = []
        for n in range(count):
            child = Jsonb({"prompt": f"part {n}", "agent": agent, "max_attempts": 2})
            if answer := self.allowing("TY004 TY005 TY006", "select spawn_task(%s, %s)", attempt, child):
                made.append(answer["task"])
        return multiple(*made)

    @rule(attempt=claims, data=st.data(), seconds=st.sampled_from([5, 60, 7200]), mail=st.booleans())
    def wait(self, attempt: int, data: Any, seconds: int, mail: bool) -> None:
        known = column(self.db, "select id from tasks order by id")
        others: list[int] = (
            data.draw(st.lists(st.sampled_from(known), min_size=0 if mail else 1, max_size=3)) if known else []
        )
        self.allowing(
            "TY001 TY002 TY003 TY005", "select wait_for(%s, %s::bigint[], %s, %s * interval '1 second')", attempt, others, mail, seconds
        )  # fmt: skip

    @rule(attempt=claims, target_agent=st.sampled_from(["shell", "routed"]), summed_up=st.booleans())
    def hand_over(self, attempt: int, target_agent: str, summed_up: bool) -> None:
        packet = {"target": target_agent, "reason": "limit", **({"context_summary": "So far."} if summed_up else {})}
        if value(self.db, "select agent not in ('auto', 'summary') from attempts where id = %s", attempt):
            self.allowing("TY004 TY005", "select handoff_task(%s, %s)", attempt, Jsonb(packet))

    @rule(task=tasks)
    def cancel_alone(self, task: int) -> None:
        self.allowing("TY004", "select cancel_task(%s, 'alone', false)", task)

    @rule(target=stale, attempt=consumes(claims))
    def release(self, attempt: int) -> Any:
        if value(self.db, "select outcome is null from attempts where id = %s", attempt):
            self.db.execute("select release_task(%s)", (attempt,))
        return attempt

    @rule(attempt=stale)
    def refused(self, attempt: int) -> None:
        """A token that is used up opens nothing."""
        before = self.everything()
        for verb in (
            "select complete_task(%s, 'completed', '\"stale\"')",
            "select release_task(%s)",
            'select append_transcript(%s, \'[{"seq": 1, "kind": "output", "body": "stale"}]\')',
            'select spawn_task(%s, \'{"prompt": "stale"}\')',
            "select wait_for(%s, '{}', true)",
            'select handoff_task(%s, \'{"target": "shell", "reason": "limit"}\')',
            'select save_checkpoint(%s, \'{"status": "stale", "progress": 1}\')',
        ):
            with pytest.raises(psycopg.Error) as refusal:
                self.db.execute(verb, (attempt,))
            assert refusal.value.sqlstate == "TY005"
        assert value(self.db, "select status from complete_tasks(array[%s::bigint])", attempt) == "lost"
        assert before == self.everything()

    def everything(self) -> Any:
        return [
            rows(self.db, "select * from tasks order by id"),
            rows(self.db, "select * from attempts order by id"),
            rows(self.db, "select * from transcript order by attempt_id, seq"),
            rows(self.db, "select w::text from waits w order by task_id"),
            rows(self.db, "select * from handoffs order by id"),
            rows(self.db, "select * from checkpoints order by task_id, attempt_id, version"),
        ]

    @rule(runner=runners)
    def beat(self, runner: int) -> None:
        """A living runner; it lists what it holds."""
        try:
            held = column(self.db, "select id from attempts where runner_id = %s and outcome is null", runner)
            directives = rows(self.db, "select * from heartbeat(%s, %s)", runner, held)
            assert not [d for d in directives if d["directive"] == "lost"]
        except psycopg.Error as error:
            assert error.sqlstate == "TY007"

    @rule(runner=runners)
    def retire(self, runner: int) -> None:
        self.db.execute("select retire_runner(%s)", (runner,))

    @rule(task=tasks)
    def cancel(self, task: int) -> None:
        self.allowing("TY004", "select cancel_task(%s)", task)

    @rule(task=tasks)
    def retry(self, task: int) -> None:
        self.allowing("TY004", "select retry_task(%s)", task)

    @rule(task=tasks, priority=st.integers(-2, 2))
    def edit(self, task: int, priority: int) -> None:
        self.allowing("TY004", "update tasks set priority = %s where id = %s", priority, task)

    @rule(task=tasks)
    def cancel_by_hand(self, task: int) -> None:
        self.allowing("TY004", "update tasks set status = 'cancelled' where id = %s", task)

    @rule(task=tasks, seconds=st.sampled_from([None, 45]))
    def postpone(self, task: int, seconds: int | None) -> None:
        self.allowing(
            "TY004",
            "update tasks set run_at = _now() + %s * interval '1 second' where id = %s and status <> 'running'",
            seconds,
            task,
        )

    @rule(scope=st.sampled_from(["default", "one", "two"]), paused=st.booleans())
    def pause(self, scope: str, paused: bool) -> None:
        self.db.execute("select pause_scope(%s)" if paused else "select resume_scope(%s)", (scope,))

    @rule(seconds=st.sampled_from([1, 8, 40, 90, 310]), ticks=st.booleans())
    def time_passes(self, seconds: int, ticks: bool) -> None:
        self.clock.advance(timedelta(seconds=seconds))
        if ticks:
            self.db.execute("select tick()")

    def allowing(self, codes: str, query: Any, *parameters: object) -> Any:
        """What it answers; None where it is refused for one of these reasons, or answers nothing."""
        try:
            done = self.db.execute(query, parameters)
        except psycopg.Error as error:
            assert error.sqlstate in codes.split(), error
            return None
        row = done.fetchone() if done.description else None
        return next(iter(row.values())) if row else None

    @invariant()
    def nothing_forbidden(self) -> None:
        if not hasattr(self, "db"):
            return
        for promise, query in FORBIDDEN.items():
            assert column(self.db, query) == [], promise
        assert misfiled(self.db) == []


def test_whatever_runners_and_people_do_the_invariants_hold_and_everything_ends(yard: Yard) -> None:
    class Machine(YardMachine):
        pass

    Machine.yard = yard
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(os.environ.get("TASKYARD_EXAMPLES", "8")),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            print_blob=True,
            phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes; the printed steps are short enough
        ),
    )
