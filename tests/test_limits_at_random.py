"""Random refusals, words, crashes and pauses on few accounts: no claim on one that is hot, never two canaries, no lost task.

A machine of its own: among all other verbs (test_state_machine) canaries are too rare.
"""

import os
from datetime import timedelta
from typing import Any

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
from .yardwork import misfiled, refuse, say

ACCOUNTS = ("a", "a", "b")  # of the hosts 0, 1 and 2
FORBIDDEN: dict[str, Any] = {
    "the place of a canary is held by a live attempt": """
        select * from provider_limits l where l.canary_attempt is not null
            and not exists (select from attempts a where a.id = l.canary_attempt and a.canary and a.outcome is null)""",
    "a limit lasts from a minute to eight days": """
        select * from provider_limits where until < hot_since + interval '1 minute' or until > observed_at + interval '8 days'""",
    "what is open is forgotten": """
        select * from provider_limits where state = 'open' and (level, hot_since, canary_attempt, canary_until) is distinct from
            (0, null::timestamptz, null::bigint, null::timestamptz)""",
    "no limit counts as an attempt": "select * from attempts where counted",
}


class LimitsMachine(RuleBasedStateMachine):
    yard: Yard
    claims = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.db = self.yard.connect(superuser=True)
        self.db.execute(
            "truncate tasks, attempts, ready_tasks, scheduled_tasks, open_lanes, provider_limits, runners, transcript, task_events"
            " restart identity cascade"
        )
        self.clock = Clock(self.yard, self.db)
        self.db.execute("insert into agents (name, route) values ('routed', '{claude,codex}') on conflict do nothing")
        self.db.execute(
            "insert into tasks (prompt, agent, max_attempts, on_limit) select 'x', (array['claude', 'claude', 'routed'])[1 + g % 3], 1,"
            " (array['switch', 'wait'])[1 + g % 2] from generate_series(1, 60) g"
        )
        self.hosts = [self.started(n) for n in range(len(ACCOUNTS))]

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()

    def started(self, host: int) -> int:
        offers = [{"provider": provider, "account": ACCOUNTS[host]} for provider in ("claude", "codex")]
        return value(
            self.db, "select register_runner(%s, 4, '{}', %s, p_lease => '1 day')", f"host-{host}", Jsonb(offers)
        )

    @rule(target=claims, host=st.integers(0, 2), n=st.integers(1, 3))
    def claim(self, host: int, n: int) -> Any:
        return multiple(*claim_watched(self.db, self.hosts[host], n))

    @rule(target=claims, host=st.integers(0, 2), late=st.sampled_from([-1, 0, 0, 0, 60]))
    def try_again(self, host: int, late: int) -> Any:
        """Around the moment when the first limit of those that hold somebody back is over."""
        over = value(self.db, "select min(until) from provider_limits where until > _now()")
        if over is not None:
            self.clock.set(over + timedelta(seconds=late))
        return multiple(*claim_watched(self.db, self.hosts[host], 3))

    @rule(
        attempt=consumes(claims),
        outcome=st.sampled_from(["rate_limited", "rate_limited", "quota_exhausted", "overloaded"]),
        resets_in=st.sampled_from([None, None, None, -60, 90, 7200, 10**7]),
    )
    def refuse(self, attempt: int, outcome: str, resets_in: int | None) -> None:
        if not self.live(attempt):
            return
        latest = "select max(until) from provider_limits where provider = (select provider from attempts where id = %s)"
        before = value(self.db, latest, attempt)
        window: dict[str, Any] = (
            {} if resets_in is None else {"resets_at": self.clock.now + timedelta(seconds=resets_in)}
        )
        assert refuse(self.db, attempt, outcome, name="w", **window) == "queued"
        assert before is None or value(self.db, latest, attempt) >= before, "until only moves later"

    @rule(attempt=claims, kind=st.sampled_from(["text", "thinking", "tool_call", "note"]))
    def speak(self, attempt: int, kind: str) -> None:
        if not self.live(attempt):
            return
        hot = "select provider, account, model, window_name from provider_limits where until is not null"
        before = rows(self.db, hot)
        tried = rows(self.db, f"{hot} and canary_attempt = %s and until <= _now()", attempt)  # type: ignore[arg-type]
        say(self.db, attempt, "Hello.", kind=kind)
        opened = tried if kind != "note" else []
        assert rows(self.db, hot) == [limit for limit in before if limit not in opened]

    @rule(attempt=consumes(claims))
    def complete(self, attempt: int) -> None:
        if self.live(attempt):
            self.db.execute("select complete_task(%s)", (attempt,))

    @rule(attempt=consumes(claims))
    def release(self, attempt: int) -> None:
        if self.live(attempt):
            self.db.execute("select release_task(%s)", (attempt,))

    @rule(host=st.integers(0, 2))
    def restart(self, host: int) -> None:
        self.db.execute("select retire_runner(%s)", (self.hosts[host],))
        self.db.execute("update outcome_policies set free_times = null where outcome = 'crashed'")
        self.hosts[host] = self.started(host)

    @rule(minutes=st.sampled_from([1, 4, 6]))
    def time_passes(self, minutes: int) -> None:
        self.clock.advance(timedelta(minutes=minutes))

    @rule(account=st.sampled_from([None, "a", "b"]))
    def buy_credits(self, account: str | None) -> None:
        self.db.execute("select clear_limit('claude', %s)", (account,))

    def live(self, attempt: int) -> bool:
        return value(self.db, "select outcome is null from attempts where id = %s", attempt)

    @invariant()
    def nothing_forbidden(self) -> None:
        if hasattr(self, "db"):
            for promise, query in FORBIDDEN.items():
                assert rows(self.db, query) == [], promise
            assert misfiled(self.db) == []
            assert column(self.db, "select id from tasks where status not in ('queued', 'running', 'completed')") == []


def test_whatever_providers_say_no_hot_account_is_used_and_one_canary_goes_at_a_time(yard: Yard) -> None:
    class Machine(LimitsMachine):
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
            phases=[Phase.explicit, Phase.generate],
        ),
    )
