"""What people see: explain_task(), the views, notifications."""

import json
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from .conftest import Yard, column, rows, value
from .yardwork import (
    advance,
    claim,
    end,
    explained,
    heard,
    insert,
    listener,
    now,
    refuse,
    register,
    stop_clock,
    task_in,
)

LONG = "Please look at all of the invoices of the last year, and find out which were paid twice.\nThen write a table. "


def test_a_waiting_or_ended_task_is_explained(db: Connection[DictRow]) -> None:
    stop_clock(db)
    expected = {
        "completed": [r"Completed 0s ago, attempt 1\."],
        "failed": [r"Failed 0s ago: Attempt 1: a needed permission is missing; no retry can change that\."],
        "cancelled": [r"Cancelled 0s ago: cancelled"],
        "waiting": [r"Waits for a human; it holds no slot meanwhile\.", r"\d+: Which one\? It means no in 24h\."],
        "scheduled": [r"Not before \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(in (1h|59m)\)\."],
        "blocked": [r"Waits for other tasks:", r"Task \d+ is queued: first"],
    }
    for status, lines in expected.items():
        said = explained(db, task_in(db, status))
        assert len(said) == len(lines), (status, said)
        for line, pattern in zip(said, lines, strict=True):
            assert re.fullmatch(pattern, line), (status, line)


def test_a_task_that_waits_out_a_backoff_is_explained(db: Connection[DictRow]) -> None:
    task = insert(db)
    attempt = claim(db, register(db))[0]["attempt_id"]
    db.execute("select complete_task(%s, 'failed', p_error => 'exit 3')", [attempt])
    (line,) = explained(db, task)
    assert re.fullmatch(r"Not before .* \(in [3-5]s\); attempt 1 ended with: exit 3\.", line)


def test_a_running_task_is_explained(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner, task = register(db, "mill"), insert(db)
    attempt = claim(db, runner)[0]["attempt_id"]
    advance(db, seconds=12)
    first = "Runs on mill since 12s, attempt 1, command."
    assert explained(db, task) == [first, "No output yet."]
    db.execute("select heartbeat(%s, %s, array[_now() - interval '5 seconds'])", [runner, [attempt]])
    assert explained(db, task) == [first, "Last output 5s ago."]
    db.execute("select report_progress(%s, 0.5::real, 'half of it')", [attempt])
    said = "Says that it is at: half of it (50 %)"
    assert explained(db, task) == [first, "Last output 0s ago.", said]
    assert column(db, "select task from now_running") == ["half of it"]
    db.execute("select cancel_task(%s, 'enough')", [task])
    assert explained(db, task) == [first, "Is being stopped: enough", said]
    other = insert(db)
    claim(db, runner)
    advance(db, seconds=40)
    assert re.fullmatch(
        r"mill was last heard of 40s ago; the task goes back at \d\d:\d\d:\d\d at the latest\.", explained(db, other)[1]
    )


def test_a_queued_task_is_explained_reason_by_reason(db: Connection[DictRow]) -> None:
    db.execute("insert into providers (name, adapter) values ('spare', 'command')")
    db.execute("insert into scopes (name, parent) values ('s', 'default')")
    task = insert(db, scope="s")

    def why(change: str = "", back: str = "") -> list[str]:
        for statement in change.split(";"):
            db.execute(statement.encode())
        first, *reasons = explained(db, task)
        assert first == "Is queued."
        for statement in back.split(";"):
            db.execute(statement.encode())
        return reasons

    offers_none = "No runner offers provider command."
    assert why() == ["No runner is up.", offers_none]
    runner = register(db, "mill", slots=3)
    nothing = "Nothing holds it back: 0 ahead of it, 0 running, 3 slots in all."
    assert why() == [nothing]
    assert why("select pause_scope('s', 'lunch')", "select resume_scope('s')") == ["Scope s is paused: lunch."]
    assert why("select pause_scope('s')", "select resume_scope('s')") == ["Scope s is paused."]
    assert why("select pause_scope('default', 'night')", "select resume_scope('default')") == [
        "Scope default is paused: night."
    ]
    narrow = "update scopes set allowed_{} = {} where name = 'default'"
    assert why(narrow.format("agents", "'{claude}'"), narrow.format("agents", "null")) == [
        "Scope s does not allow agent shell."
    ]
    assert why(narrow.format("providers", "'{claude}'"), narrow.format("providers", "null")) == [
        "Scope s allows none of command."
    ]
    bare = "set role taskyard_owner; update runners set sandbox = '{}'; reset role"
    confined = "update scopes set may_network = {} where name = 's'"
    assert why(
        f"{bare.format('none')}; {confined.format(False)}", f"{bare.format('strict')}; {confined.format('null')}"
    ) == ["Scope s is confined, and no runner has a sandbox that can do that."]
    assert why(f"select report_sandbox({runner}, 'bwrap: not found')", f"select report_sandbox({runner}, null)") == [
        "mill has no usable sandbox: bwrap: not found"
    ]
    spent = "insert into budgets (scope, measure, period, amount) values ('default', '{}', '{}', 0)"
    (said,) = why(spent.format("usd", "day"), "delete from budgets")
    assert re.fullmatch(
        r"The budget of scope default is used up: \$0\.00 of \$0\.00 a day; it goes on in (\d+h|\d+m|\d+s)\.", said
    )
    assert why(spent.format("tokens", "total"), "delete from budgets") == [
        "The budget of scope default is used up: 0 tokens of 0 tokens in all."
    ]
    assert why("update agents set paused_at = now()", "update agents set paused_at = null") == [
        "Agent shell is paused."
    ]
    assert why("select pause_provider('command', 'bill')", "select resume_provider('command')") == [
        "Provider command is paused: bill."
    ]
    assert why("update agents set route = '{}'", "update agents set route = '{command}'") == [
        "Agent shell has no route yet; an administrator gives it one:"
        " update agents set route = '{...}' where name = 'shell';"
    ]
    assert why("select drain_runner('mill')", "select drain_runner('mill', false)") == [
        "Every runner that could take it is draining."
    ]
    assert why("update tasks set requires = '{gpu}'", "update tasks set requires = '{}'") == [
        "No runner has the labels gpu."
    ]
    assert why("update agents set route = '{spare,command}'") == [nothing]
    assert why("update tasks set provider = 'spare'", "update tasks set provider = null") == [
        "No runner offers provider spare."
    ]
    assert why("update agents set route = '{nowhere:m}'", "update agents set route = '{command}'") == [
        "The route names provider nowhere, which does not exist."
    ]
    hot = "insert into provider_limits (provider, account, window_name, until, state, level) values ('command', {})"
    for limit, line in (
        (
            "'', 'weekly', '2999-01-01', 'hot', 0",
            "Provider command has hit its limit weekly until 2999-01-01 00:00:00 (in 355237d).",
        ),
        (
            "'', 'busy', '2999-01-01', 'hot', 2",
            "Provider command has hit its limit busy until 2999-01-01 00:00:00 (in 355237d, a guess).",
        ),
    ):
        (said,) = why(hot.format(limit), "delete from provider_limits")
        assert re.sub(r"in \d+d", "in 355237d", said) == line
    waits = "update agents set route = '{{command,spare}}'; update tasks set on_limit = '{}'"
    (said,) = why(
        waits.format("wait") + ";" + hot.format("'', '', '2999-01-01', 'hot', 0"),
        "delete from provider_limits; update agents set route = '{command}'; update tasks set on_limit = 'switch'",
    )[:-1]
    assert said.endswith(" The task waits for it (on_limit).")
    tried = "insert into provider_limits (provider, until, state, canary_attempt, canary_until) values ('command', now(), 'hot', 17, '2999-01-01')"
    assert why(tried, "delete from provider_limits") == [
        "Provider command is being tried again after its limit, by attempt 17."
    ]

    def offered(to: str) -> list[str]:
        as_owner = "set role taskyard_owner; update runner_providers set {}; reset role"
        was = "state = 'ready', refused_at = null, until = null, models = null, account = '', detail = null"
        return why(as_owner.format(to), as_owner.format(was))

    assert offered("state = 'missing'") == [offers_none]
    assert offered("state = 'unauthenticated', detail = 'no key'") == [
        "Provider command is not logged in on mill: no key"
    ]
    assert offered("state = 'unauthenticated', refused_at = now(), account = 'me'") == [
        "Provider command refused the login me 0s ago; log in anew, then: select resume_provider('command');"
    ]
    (said,) = offered("until = now() + interval '4 min'")
    assert re.fullmatch(r"mill cannot reach provider command; it tries again in [34]m\.", said)
    assert why("update agents set route = '{command:m}'", "update agents set route = '{command}'") == [nothing]
    db.execute("update agents set route = '{command:m}'")
    assert offered("models = '{x,y}'") == ["mill has no model m for provider command."]
    db.execute("update agents set route = '{command}'")
    (said,) = why(
        "insert into provider_caps (provider, period, max_requests) values ('command', '1 hour', 1);"
        " insert into tasks (prompt, agent, priority) values ('y', 'shell', 9); select claim_task((select id from runners));"
        " select complete_task(attempt_id) from tasks where status = 'running'",
        "delete from provider_caps",
    )
    assert re.fullmatch(
        r"Provider command has used up its cap of 1 requests per 01:00:00; it goes on in (1h|5\dm)\.", said
    )

    other = insert(db, scope="s", priority=9, workspace="/w")
    assert why() == ["Nothing holds it back: 1 ahead of it, 0 running, 3 slots in all."]
    claim(db, runner)
    full = "update scopes set max_concurrency = {} where name = '{}'"
    for scope in ("s", "default"):
        assert why(full.format(1, scope), full.format("null", scope)) == [f"Scope {scope} runs 1 of at most 1."]
    assert why("update agents set max_concurrency = 1", "update agents set max_concurrency = null") == [
        "Agent shell runs 1 of at most 1."
    ]
    stays = (
        "set role taskyard_owner; update tasks set stays_on = {}, stays_until = {} where status = 'queued'; reset role"
    )
    (said,) = why(stays.format("'mill'", "_now() + interval '1 min'"), stays.format("null", "null"))
    assert re.fullmatch(r"It stays on mill, where its session is, for (1m|\d+s) more at most\.", said)
    assert why("update tasks set workspace = '/w' where status = 'queued'") == [f"Task {other} uses the workspace /w."]


def test_every_reason_of_explain_task_is_tested_here(db: Connection[DictRow]) -> None:
    source = value(
        db,
        "select string_agg(prosrc, '') from pg_proc where proname in ('explain_task', '_explain_queued', '_explain_entry')",
    )
    patterns: list[str] = re.findall(r"(?:format\(\s*|then |else |return next )'((?:[^']|''){9,})'", source)
    sentences = {pattern.replace("''", "'") for pattern in patterns} - {"There is no task %s.", "10,000 or more"}
    assert len(sentences) > 20
    files = [
        Path(__file__).with_name(f"test_{name}.py")
        for name in ("screens", "handoffs", "handoff_chains", "handoff_summaries", "waits", "wait_circles")
    ]
    tests = re.sub(r'"\s*r?f?"', "", "".join(file.read_text() for file in files)).replace("\\", "")
    for sentence in sentences:
        piece = max(sentence.split("%s"), key=len).strip(" .:")
        assert piece in tests, sentence


def printed(yard: Yard, view: str) -> list[str]:
    """The lines that psql shows for a view."""
    command = yard.cluster.psql_command(["-X", "-c", f"table {view}"], database=yard.name)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def number_tasks_from(db: Connection[DictRow], first: int) -> None:
    db.execute("set role taskyard_owner")
    db.execute(f"alter table tasks alter id restart with {first}".encode())
    db.execute("reset role")


@pytest.mark.parametrize("view", ["queue", "now_running", "recently_done", "fleet"])
def test_a_view_fits_a_phone(yard: Yard, view: str) -> None:
    db = yard.connect()
    number_tasks_from(db, 1000000)
    runners = [register(db, f"a-host-with-a-long-name-{n}.example.org", slots=1000) for n in range(2)]
    for n in range(6):
        insert(db, LONG * 9, priority=-1000 + n)
    insert(db, LONG, run_at="2999-01-01")
    insert(db, LONG, depends_on=[1000000])
    attempts = claim(db, runners[0], 4)
    db.execute("select complete_task(%s, 'completed', to_jsonb(%s::text))", [attempts[0]["attempt_id"], LONG])
    db.execute("select complete_task(%s, 'permission_denied', p_error => %s)", [attempts[1]["attempt_id"], LONG])
    db.execute("select cancel_task(1000001, %s)", [LONG])
    db.execute(
        "select offer_providers(%s, %s)",
        [runners[0], Jsonb([{"provider": "command", "loaded": ["a-model-with-a-long-name", "another"]}])],
    )
    assert value(db, f"select count(*) from {view}") >= 2  # type: ignore[arg-type]
    lines = printed(yard, view)
    assert max(len(line) for line in lines) <= 40, lines


@pytest.mark.parametrize("view", ["limits", "spend", "offers", "fleet"])
def test_a_view_of_the_providers_fits_a_phone(yard: Yard, view: str) -> None:
    db = yard.connect()
    stop_clock(db)
    long = "a-provider-with-a-long-name"
    db.execute("insert into providers (name, adapter) values (%s, 'command')", [long])
    db.execute("insert into agents (name, route) values ('long', array[%s])", [long])
    for period, most in (("1 minute", 60), ("1 day", 1000), ("31 days", 1_000_000)):
        db.execute(
            "insert into provider_caps (provider, period, max_requests) values (%s, %s, %s)", [long, period, most]
        )
    usage = {"input_tokens": 999_400_000, "output_tokens": 99_949_999, "cost_usd": 12345.67, "turns": 40}
    states = ("ready", "unauthenticated", "missing", "ready", "ready", "ready")
    for n, state in enumerate(states):
        offer = {
            "provider": long, "account": f"somebody-{n}@example.org", "state": state, "version": "12.345.678-beta.9",
            "loaded": ["a-local-model-with-a-long-name"],
        }  # fmt: skip
        runner = value(
            db, "select register_runner(%s, 1000, '{}', %s)", f"a-host-with-a-long-name-{n}.example.org", Jsonb([offer])
        )
        insert(db, agent="long", provider=long, model="a-model-with-a-long-name" if n == 5 else None)
        for row in claim(db, runner):
            outcome = {3: "network", 4: "rate_limited", 5: "quota_exhausted"}.get(n, "completed")
            window = {"name": "a_long_name_for_a_window", "model": row["model"], "used_percent": 100}
            if n == 5:
                window["resets_at"] = (now(db) + timedelta(days=6, hours=23)).isoformat()
            end(db, row["attempt_id"], outcome, usage=Jsonb(usage), window=Jsonb(window))
    assert value(db, f"select count(*) from {view}") >= (1 if view == "spend" else 2)  # type: ignore[arg-type]
    lines = printed(yard, view)
    assert max(len(line) for line in lines) <= 40, lines


@pytest.mark.parametrize("view", ["scope_tree", "budget_use"])
def test_a_view_of_the_scopes_fits_a_phone(yard: Yard, view: str) -> None:
    db = yard.connect()
    parent = "default"
    for level in range(8):
        name = f"{'' if parent == 'default' else parent + '/'}a-long-name-{level}"[:100]
        db.execute("insert into scopes (name, parent, max_concurrency) values (%s, %s, 1000)", [name, parent])
        for measure, amount in (("usd", 123456789.5), ("tokens", 99_949_999), ("seconds", 86400 * 700)):
            db.execute(
                "insert into budgets (scope, measure, period, amount) values (%s, %s, 'month', %s)",
                [name, measure, amount],
            )
        parent = name
    db.execute("update budgets set amount = 0 where measure = 'usd'")
    assert value(db, f"select count(*) from {view}") >= 8  # type: ignore[arg-type]
    lines = printed(yard, view)
    assert max(len(line) for line in lines) <= 40, lines


def test_the_tree_of_scopes_is_indented_and_says_what_each_may(db: Connection[DictRow]) -> None:
    db.execute(
        "insert into scopes (name, parent, may_network, max_concurrency) values ('home', 'default', false, 3), ('home/kid', 'home', null, null)"
    )
    db.execute(
        "insert into budgets (scope, measure, period, amount) values ('home', 'usd', 'day', 2), ('home', 'usd', 'month', 50)"
    )
    runner = register(db)
    insert(db, scope="home/kid")
    insert(db, scope="home/kid")
    first, _ = claim(db, runner, 2)
    db.execute("select report_session(%s, 's', %s)", [first["attempt_id"], Jsonb({"cost_usd": 0.5})])
    db.execute("select pause_scope('home/kid')")
    assert [tuple(row.values()) for row in rows(db, "select * from scope_tree")] == [
        ("default", "rwxnc", "2", ""),
        ("  home", "rwx-c", "2/3", "25%"),
        ("    kid", "rwx-c", "2", "paused"),
    ]


def test_the_fleet_says_which_hosts_have_no_sandbox(db: Connection[DictRow]) -> None:
    for name, sandbox in (
        ("a", {"level": "strict"}), ("b", {"level": "none"}), ("c", {"level": "container", "trouble": "no bwrap"}),
    ):  # fmt: skip
        db.execute("select register_runner(%s, p_sandbox => %s)", [name, Jsonb(sandbox)])
    assert [(row["runner"], row["state"]) for row in rows(db, "select * from fleet")] == [
        ("a", "up"),
        ("b", "bare"),
        ("c", "no jail"),
    ]


def test_the_limits_are_listed_with_what_a_person_wants_to_know_of_them(db: Connection[DictRow]) -> None:
    stop_clock(db)
    db.execute("insert into provider_caps (provider, period, max_requests) values ('claude', '1 day', 1000)")
    runner = register(db, claude="a", codex="b", gemini="c")
    limits = "select provider, what, used, back from limits order by 1, 2"
    for agent in ("claude", "codex", "gemini"):
        insert(db, agent=agent)
    attempts = {row["provider"]: row["attempt_id"] for row in claim(db, runner, 3)}
    told = [
        {"name": "five_hour", "used_percent": 87.4, "resets_at": (now(db) + timedelta(hours=2)).isoformat()},
        {"name": "long_ago", "used_percent": 3, "resets_at": (now(db) - timedelta(hours=2)).isoformat()},
    ]
    db.execute("select report_limit(%s, %s)", [attempts["gemini"], Jsonb(told)])
    refuse(db, attempts["codex"], name="weekly", resets_at=now(db) + timedelta(days=3), used_percent=100)
    refuse(db, attempts["claude"], name="rpm")
    assert rows(db, limits) == [
        {"provider": "claude", "what": "1000/24h", "used": 0, "back": ""},
        {"provider": "claude", "what": "rpm", "used": None, "back": "5m ?"},
        {"provider": "codex", "what": "weekly", "used": 100, "back": "3d"},
        {"provider": "gemini", "what": "five_hour", "used": 87, "back": ""},
    ]
    advance(db, minutes=5)
    assert value(db, "select back from limits where what = 'rpm'") == "to try"
    claim(db, runner)
    assert value(db, "select back from limits where what = 'rpm'") == "tried"


def test_spending_is_summed_by_day_and_provider_and_leaves_out_what_nobody_said(db: Connection[DictRow]) -> None:
    stop_clock(db)
    runner = register(db, claude="a", codex="b")
    for agent, usage in (
        ("claude", {"input_tokens": 1200, "output_tokens": 300, "cost_usd": 0.5}),
        ("claude", {"input_tokens": 2_400_000, "cost_usd": 1.256}),
        ("codex", {}),
    ):
        insert(db, agent=agent)
        end(db, claim(db, runner)[0]["attempt_id"], usage=Jsonb(usage))
    told = [list(row.values()) for row in rows(db, "select * from spend")]
    assert [(day, provider, usd) for day, provider, *_, usd in told] == [
        (f"{now(db):%m-%d}", "claude", "1.76"),
        (f"{now(db):%m-%d}", "codex", None),
    ]
    advance(db, days=31)
    assert rows(db, "select * from spend") == []


def test_views_are_in_the_order_that_people_look_for(db: Connection[DictRow]) -> None:
    runner = register(db)
    for n in range(2):
        insert(db, f"running {n}")
        claim(db, runner)
    for n in range(2):
        insert(db, f"done {n}", priority=9)
        db.execute("select complete_task(attempt_id) from claim_task(%s)", [runner])
    later, sooner = insert(db, "later", run_at="2999-01-01"), insert(db, "sooner", run_at="2998-01-01")
    blocked = insert(db, "blocked", depends_on=[later])
    low, high = insert(db, "low", priority=-1), insert(db, "high", priority=1)
    assert column(db, "select id from queue") == [high, low, sooner, later, blocked]
    assert column(db, "select task from now_running") == ["running 0", "running 1"]
    assert column(db, "select outcome from recently_done") == ["done 1", "done 0"]
    assert rows(db, "select runner, busy, state from fleet") == [{"runner": "host", "busy": "2/4", "state": "up"}]


def test_each_change_of_a_task_is_announced(yard: Yard, db: Connection[DictRow]) -> None:
    listening, runner = listener(yard, "task_updates"), register(db)
    task = insert(db, 'a "quoted" prompt')
    attempt = claim(db, runner)[0]["attempt_id"]
    db.execute("select complete_task(%s, 'session_lost')", [attempt])
    db.execute("select complete_task(attempt_id) from claim_task(%s)", [runner])
    told = [json.loads(n.payload) for n in heard(listening, db)]
    assert {update["id"] for update in told} == {task}
    assert [(update["operation"], update["status"]) for update in told] == [
        ("insert", "queued"),
        ("update", "running"),
        ("update", "queued"),
        ("update", "running"),
        ("update", "completed"),
    ]


def test_an_announcement_of_ten_thousand_rows_stays_small(yard: Yard, db: Connection[DictRow]) -> None:
    number_tasks_from(db, 9007199254000000)
    listening = listener(yard, "task_updates")
    ids = column(db, "insert into tasks (prompt) select 'x' from generate_series(1, 10000) returning id")
    (notification,) = heard(listening, db)
    assert len(notification.payload.encode()) < 8000
    told = json.loads(notification.payload)
    assert (told["operation"], told["status"], told["id"]) == ("insert", "queued", told["ids"][0])
    assert set(told["ids"]) <= set(ids)


def test_a_busy_session_says_only_that_there_was_more(yard: Yard, db: Connection[DictRow]) -> None:
    listening = listener(yard, "task_updates")
    runner = register(db)
    db.execute("do $$ begin for n in 1..200 loop insert into tasks (prompt) values ('x'); end loop; end $$")
    told = [json.loads(n.payload) for n in heard(listening, db)]
    assert 20 <= len(told) < 100
    claim(db, runner)  # it comes to rest
    last = json.loads(heard(listening, db)[-1].payload)
    assert (last["operation"], last["status"]) == ("refresh", None)


def test_new_tasks_wake_runners_only_if_one_sleeps(yard: Yard, db: Connection[DictRow]) -> None:
    listening, sleeper = listener(yard, "task_ready"), yard.connect("runner")
    for asleep in (False, True, False):
        if asleep:
            sleeper.execute("select taskyard.sleep_begin()")
        insert(db)
        insert(db, run_at="2999-01-01")  # nothing to do now
        assert len(heard(listening, db)) == int(asleep)
        if asleep:
            db.execute("update tasks set run_at = null where status = 'scheduled'")
            assert heard(listening, db) != []
            sleeper.execute("select taskyard.sleep_end()")
