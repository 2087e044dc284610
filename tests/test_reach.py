"""Who sees, writes and decides what: a login is kept to the scopes granted to it, in whatever words it asks."""

import itertools
import re

import psycopg
import pytest
from psycopg import sql

from .conftest import Yard, column, value
from .yardwork import claim, end, insert, refusal, register
from .zebra import neighbours

# Of the yard as a whole, not of any scope.
COMMON = {
    "spend", "agents", "providers", "provider_limits", "runners", "runner_providers", "outcome_policies", "open_lanes", "ticker",
    "schema_migrations", "provider_caps", "provider_cap_usage", "prices", "fleet", "offers", "limits",
    "retention", "database_health", "incarnation",
}  # fmt: skip


def told(error: psycopg.Error | None, *names: object) -> tuple[str | None, ...]:
    """What a refusal says, without the names that the caller gave itself."""
    assert error is not None
    diag = error.diag
    parts = [diag.sqlstate, diag.message_primary, diag.message_hint, diag.message_detail, diag.constraint_name]
    for name in names:
        parts = [part and re.sub(rf"\b{re.escape(str(name))}\b", "…", part) for part in parts]
    return tuple(parts)


def test_an_administrator_sees_zebra_wherever_there_is_something_of_a_scope(yard: Yard) -> None:
    """Else the tests below would be told nothing by an empty table; and whoever adds one has to fill it there."""
    two = neighbours(yard)
    shown = two.shown(two.login("boss", "admin"))
    assert {name for name, texts in shown.items() if not texts} == COMMON


def test_a_submitter_sees_nothing_of_other_scopes_in_any_table_or_view(yard: Yard) -> None:
    two = neighbours(yard)
    submitter = two.login("ann", "submitter", "home")
    shown = two.shown(submitter)
    assert {"tasks", "attempts", "transcript", "artifacts", "approvals", "task_history", "inbox", "scope_tree"} <= set(
        shown
    )
    assert {"waits", "child_counts", "checkpoints", "handoffs", "verifications", "rejected_submissions"} <= set(shown)
    assert {name: texts for name, texts in shown.items() if texts} == {}
    assert column(submitter, "select prompt from tasks") == ["of home"]
    assert column(submitter, "select name from scopes order by 1") == ["home", "home/kid"]
    assert column(submitter, "select scope from budget_use") == ["home"]
    assert value(submitter, "select count(*) from spend") == 0


@pytest.mark.parametrize("scopes", [["home"], ["home/kid"]])
def test_a_viewer_with_grants_sees_no_more_than_these(yard: Yard, scopes: list[str]) -> None:
    two = neighbours(yard)
    viewer = two.login("vic", "viewer", *scopes)
    assert {name: texts for name, texts in two.shown(viewer).items() if texts} == {}
    assert column(viewer, "select prompt from tasks") == (["of home"] if "home" in scopes else [])


def test_a_viewer_without_grants_sees_all_and_a_submitter_without_any_nothing(yard: Yard) -> None:
    two = neighbours(yard)
    shown = two.shown(two.login("vic", "viewer"))
    assert {name for name, texts in shown.items() if not texts} == COMMON
    nobody = two.login("noa", "submitter")
    assert {name: texts for name, texts in two.shown(nobody).items() if texts} == {}
    for table in ("tasks", "attempts", "scopes", "lanes", "task_events", "queue", "budget_use"):
        assert value(nobody, f"select count(*) from {table}") == 0  # type: ignore[arg-type]
    error = refusal(nobody, "insert into tasks (prompt) values ('x')")
    assert told(error)[0] == "TY006"


def test_what_a_provider_said_to_others_is_not_shown(yard: Yard) -> None:
    """Refusals are kept verbatim, and tools quote what they were asked."""
    two = neighbours(yard)
    admin = two.admin
    host = register(admin, "other", claude="me", codex="me", gemini="me")
    for agent, outcome in (("claude", "rate_limited"), ("codex", "unauthenticated"), ("gemini", "network")):
        insert(admin, "zebra", scope="zebra/foal", agent=agent, priority=500)
        admin.execute("select resume_scope('zebra/foal')")
        admin.execute("delete from budgets")
        end(admin, claim(admin, host)[0]["attempt_id"], outcome, evidence="zebra was refused")
    for who in (two.login("ann", "submitter", "home"), two.login("vic", "viewer", "home")):
        assert {name: texts for name, texts in two.shown(who).items() if texts} == {}


def test_another_role_widens_nothing(yard: Yard) -> None:
    two = neighbours(yard)
    submitter = two.login("ann", "submitter", "home")
    other = f"zebra_{yard.name}"
    for role in ("taskyard_admin", "taskyard_owner", "taskyard_runner", other, "yard", "pg_read_all_data"):
        error = refusal(submitter, f"set role {role}")
        assert told(error)[0] == "42501", role
        assert refusal(submitter, f"set session authorization {role}") is not None, role
    for role in ("taskyard_viewer", "taskyard_submitter"):
        submitter.execute(f"set role {role}".encode())
        assert {name: texts for name, texts in two.shown(submitter).items() if texts} == {}, role
        assert value(submitter, "select count(*) from tasks") == 0, role
        assert told(refusal(submitter, f"select explain_task({two.tasks['queued']})"))[0] == "TY002", role
    submitter.execute("reset role")
    submitter.execute("set row_security = off")
    assert told(refusal(submitter, "select * from tasks"))[0] == "42501"


@pytest.mark.parametrize("scopes", [[], ["home"]])
def test_a_login_that_does_not_inherit_its_role_is_bound_all_the_same(yard: Yard, scopes: list[str]) -> None:
    two = neighbours(yard)
    login = two.login("ned", "submitter", *scopes)
    superuser = yard.connect(superuser=True)
    name = sql.Identifier(f"ned_{yard.name}")
    superuser.execute(sql.SQL("alter role {} noinherit").format(name))
    superuser.execute(sql.SQL("revoke taskyard_submitter from {}").format(name))
    superuser.execute(sql.SQL("grant taskyard_submitter to {}").format(name))  # from PostgreSQL 16 on the grant says it
    for role in ("taskyard_viewer", "taskyard_submitter"):
        login.execute(f"set role {role}".encode())
        assert {name: texts for name, texts in two.shown(login).items() if texts} == {}, role


STATE = """{{"kind": "taskyard.checkpoint", "state": {{"status": "x", "progress": 0}}}}"""
PACKET = """{{"kind": "taskyard.handoff", "prompt": "x", "packet": {{"target": "claude", "reason": "limit"}}}}"""
# {task}, {scope}, {approval} and {handoff} are of zebra, or do not exist at all; {mine} is a task of home.
FORBIDDEN = [
    "insert into tasks (prompt, scope) values ('x', '{scope}')",
    "select submit_task('x', 'shell', '{scope}')",
    "update tasks set scope = '{scope}' where id = {mine}",
    "insert into tasks (prompt, depends_on) values ('x', '{{{task}}}')",
    "insert into tasks (prompt, depends_on) values ('x', '{{{mine},{task}}}')",
    "update tasks set depends_on = '{{{task}}}' where id = {mine}",
    "insert into tasks (prompt, parent_id) values ('x', {task})",
    "select submit_task('x', 'shell', p_parent_id => {task})",
    "select submit_task('x', 'shell', p_depends_on => '{{{task}}}')",
    "select cancel_task({task})",
    "select retry_task({task})",
    "select explain_task({task})",
    "select approve({approval})",
    "select deny({approval})",
    "select answer({approval}, 'yes')",
    "select pause_scope('{scope}')",
    "select resume_scope('{scope}')",
    "select effective_scope('{scope}')",
    "select scope_allows('{scope}', 'read')",
    "select say({task}, 'hello')",
    "select export_checkpoint({task})",
    f"select import_checkpoint({{task}}, '{STATE}')",
    "select export_handoff({handoff})",
    f"select import_handoff('{PACKET}', '{{scope}}')",
]  # fmt: skip


def test_what_is_not_yours_is_refused_as_if_it_did_not_exist(yard: Yard) -> None:
    two = neighbours(yard)
    submitter = two.login("ann", "submitter", "home")
    mine = insert(submitter, "mine", scope="home")
    asked: set[str] = set()

    def contents() -> list[list[str]]:
        return [
            column(two.admin, f"select t::text from {name} t order by 1")
            for name in ("tasks", "approvals", "scopes", "checkpoints", "handoffs", "waits")
        ]  # type: ignore[arg-type]

    before = contents()
    for statement in FORBIDDEN:
        nothing = {"task": 424242, "scope": "nowhere", "approval": 424242, "handoff": 424242}
        fake = refusal(submitter, statement.format(mine=mine, **nothing))
        for task, approval, scope in itertools.product(
            two.tasks.values(), two.approvals.values(), ("zebra", "zebra/foal", "default")
        ):
            if scope == "default" and re.search("insert|submit|import", statement):
                continue  # it is taken for unsaid there
            call = statement.format(task=task, scope=scope, approval=approval, handoff=two.handoff, mine=mine)
            if call in asked:
                continue
            asked.add(call)
            real = refusal(submitter, call)
            assert told(real, task, scope, approval, two.handoff) == told(fake, 424242, "nowhere"), call
            assert told(real)[0] in ("TY002", "TY006"), call
    assert len(asked) > 100
    assert contents() == before


def test_rows_of_others_are_neither_updated_nor_deleted(yard: Yard) -> None:
    two = neighbours(yard)
    submitter = two.login("ann", "submitter", "home")
    before = column(two.admin, "select t::text from tasks t order by 1")
    for change in (
        "prompt = 'mine now'",
        "scope = 'home'",
        "status = 'cancelled'",
        "priority = 1",
        "depends_on = '{}'",
    ):
        assert (
            submitter.execute(
                f"update tasks set {change} where id = any(%s)".encode(), [list(two.tasks.values())]
            ).rowcount
            == 0
        )
    assert told(refusal(submitter, "delete from tasks"))[0] == "42501"
    assert told(refusal(submitter, "truncate tasks"))[0] == "42501"
    assert column(two.admin, "select t::text from tasks t order by 1") == before


@pytest.mark.parametrize("role", ["viewer", "submitter", "runner"])
def test_nobody_but_an_administrator_writes_any_table_except_tasks_and_schedules(yard: Yard, role: str) -> None:
    """Scopes, budgets, caps, prices, grants, approvals, usage: whatever keeps somebody within limits."""
    two = neighbours(yard)
    login = two.login("ann", role, *(["home"] if role != "runner" else []))
    for table in two.relations():
        granted = value(
            login,
            "select array_remove(array[case when has_any_column_privilege(%(t)s, 'insert') then 'insert' end,"
            " case when has_any_column_privilege(%(t)s, 'update') then 'update' end,"
            " case when has_table_privilege(%(t)s, 'delete') or has_table_privilege(%(t)s, 'truncate') then 'delete' end], null)".replace(
                "%(t)s", f"'taskyard.{table}'"
            ),  # type: ignore[arg-type]
        )
        written = (
            {"tasks": ["insert", "update"], "schedules": ["insert", "update", "delete"]} if role == "submitter" else {}
        )
        assert granted == written.get(table, []), table
    for statement in (
        "update scopes set may_network = true, max_concurrency = null, paused_at = null",
        "update effective_scopes set permissions = '{network}'",
        "update budgets set amount = 1000000",
        "delete from budgets",
        "insert into scope_grants values (current_user, 'zebra', 'me')",
        "update agents set max_concurrency = null",
        "delete from provider_caps",
        "insert into prices values ('command', 'x', 0, 0, 0)",
        "update outcome_policies set free_times = null",
        "update approvals set decision = 'approved', decided_at = now()",
        "update runners set sandbox = 'strict'",
        "delete from usage_charges",
        "update waits set until = 'infinity'",
        "update child_counts set in_minute = 0",
        "insert into checkpoints values (1, 1, 1, 'x', 0, '{}', '[]', now())",
        "update handoffs set target = 'shell'",
        "update verifications set passed = true",
        "delete from verifications",
        "delete from rejected_submissions",
        "update tasks set lent_priority = 1000",
        "update tasks set stays_on = 'here'",
        "update tasks set has_mail = false",
        "insert into tasks (prompt, handoff_id) values ('x', 1)",
    ):
        assert told(refusal(login, statement))[0] == "42501", statement


def test_a_task_without_a_scope_belongs_to_the_first_scope_of_its_submitter(yard: Yard) -> None:
    two = neighbours(yard)
    ann = two.login("ann", "submitter", "home/kid", "zebra")
    ann.execute("insert into tasks (prompt) values ('x')")
    ann.execute("insert into tasks (prompt, scope) values ('y', 'default')")
    task = value(ann, "select submit_task('z')")
    assert value(ann, "select scope from tasks where id = %s", task) == "home/kid"
    assert column(ann, "select scope from tasks where prompt in ('x', 'y')") == ["home/kid"] * 2
    assert value(ann, "select created_by from tasks where id = %s", task) == f"ann_{yard.name}"


def test_a_grant_holds_for_all_below_and_ends_when_it_is_revoked(yard: Yard) -> None:
    two = neighbours(yard)
    ann = two.login("ann", "submitter", "home")
    two.admin.execute("insert into scopes (name, parent) values ('home/new', 'home')")
    insert(ann, "below", scope="home/new")
    assert column(ann, "select prompt from tasks where scope = 'home/new'") == ["below"]
    two.admin.execute("update scopes set parent = 'zebra' where name = 'home/new'")
    assert column(ann, "select prompt from tasks where scope = 'home/new'") == []
    assert told(refusal(ann, "insert into tasks (prompt, scope) values ('x', 'home/new')"))[0] == "TY006"
    two.admin.execute("select revoke_scope(%s, 'home')", [f"ann_{yard.name}"])
    assert value(ann, "select count(*) from tasks") == 0
    assert column(two.admin, "select kind from task_events where kind like 'scope\\_%%' and detail ->> 'scope' = 'home' order by at") == [
        "scope_granted", "scope_revoked",
    ]  # fmt: skip


def test_only_administrators_grant_and_only_what_exists(yard: Yard) -> None:
    two = neighbours(yard)
    ann, bob = two.login("ann", "submitter", "home"), two.login("bob", "viewer")
    for login in (ann, bob):
        for verb in ("grant_scope", "revoke_scope"):
            assert told(refusal(login, f"select {verb}('ann_{yard.name}', 'zebra')"))[0] == "TY006"
    assert told(refusal(two.admin, f"select grant_scope('ann_{yard.name}', 'nowhere')"))[0] == "TY002"
    assert told(refusal(two.admin, "select grant_scope('nobody at all', 'home')"))[0] == "TY002"
    assert told(refusal(two.admin, f"select revoke_scope('ann_{yard.name}', 'zebra')"))[0] == "TY002"


def test_what_concerns_all_scopes_is_not_for_those_who_are_bound_to_some(yard: Yard) -> None:
    two = neighbours(yard)
    ann, whole = two.login("ann", "submitter", "home"), two.login("will", "submitter", "default")
    for call in (
        "pause_provider('command')",
        "resume_provider('command')",
        "clear_limit('command')",
        "pause_provider('nothing')",
    ):
        assert told(refusal(ann, f"select {call}"))[0] == "TY006", call
        if "nothing" not in call:
            assert refusal(whole, f"select {call}") is None, call


def test_a_key_that_is_taken_elsewhere_tells_no_more_than_that(yard: Yard) -> None:
    two = neighbours(yard)
    ann = two.login("ann", "submitter", "home")
    error = refusal(ann, "select submit_task('x', 'shell', p_dedupe_key => 'zebra')")
    assert told(error)[0] == "TY004"
    plain = refusal(ann, "insert into tasks (prompt, dedupe_key) values ('x', 'zebra')")
    assert told(plain)[0] == "23505"
    for said in (error, plain):
        diag = said.diag if said else None
        assert diag is not None
        parts = (diag.message_primary, diag.message_hint, diag.message_detail)
        assert not any(re.search(r"\b7770000\d\d\b|running|scope zebra", part) for part in parts if part), parts
    mine = value(ann, "select submit_task('x', 'shell', p_dedupe_key => 'mine')")
    assert value(ann, "select submit_task('x', 'shell', p_dedupe_key => 'mine')") == mine


SEARCH_PATHS = ["pg_temp, evil, taskyard, pg_catalog", "evil, pg_catalog, taskyard", "pg_temp, taskyard"]


@pytest.mark.parametrize("path", SEARCH_PATHS)
def test_objects_of_the_same_names_in_front_of_ours_change_nothing(yard: Yard, path: str) -> None:
    two = neighbours(yard)
    login = f"ann_{yard.name}"
    ann = two.login("ann", "submitter", "home")
    yard.connect(superuser=True).execute(sql.SQL("create schema evil authorization {}").format(sql.Identifier(login)))
    for schema in ("pg_temp", "evil"):
        for table, columns in {
            "scope_grants": "login text, scope text, granted_at timestamptz",
            "effective_scopes": "name text, path text[], permissions text[]",
            "scopes": "name text, parent text",
            "approvals": "id bigint, scope text",
            "runners": "id bigint, login text",
            "handoffs": "id bigint, task_id bigint, to_task bigint",
            "checkpoints": "task_id bigint, data jsonb",
        }.items():
            ann.execute(f"create table {schema}.{table} ({columns})".encode())
        ann.execute(
            f"insert into {schema}.scope_grants values ('{login}', 'zebra', now()), ('{login}', 'default', now())".encode()
        )
        ann.execute(f"insert into {schema}.effective_scopes values ('zebra', '{{default,zebra}}', '{{read}}')".encode())
        for function in (
            "_sees_all() returns boolean language sql as 'select true'",
            "_my_scopes() returns text[] language sql as $$ select '{zebra,home,default}'::text[] $$",
            "_in_reach(text) returns boolean language sql as 'select true'",
            "_caller() returns text language sql as $$ select 'postgres'::text $$",
            "_require_role(text, text) returns void language sql as 'select'",
            "pg_has_role(name, name, text) returns boolean language sql as 'select true'",
            "pg_has_role(text, text, text) returns boolean language sql as 'select true'",
            "current_setting(text) returns text language sql as $$ select 'postgres'::text $$",
            "yes(text, text) returns boolean language sql as 'select true'",
        ):
            ann.execute(f"create function {schema}.{function}".encode())
        ann.execute(f"create operator {schema}.= (leftarg = text, rightarg = text, function = {schema}.yes)".encode())
    ann.execute(f"set search_path = {path}".encode())
    for relation in two.relations():
        if value(ann, "select pg_catalog.has_table_privilege(%s, 'select')", f"taskyard.{relation}"):
            texts = column(ann, f"select t::text from taskyard.{relation} t")  # type: ignore[arg-type]
            assert [text for text in texts if two.marks.search(text)] == [], relation
    for call in (
        f"cancel_task({two.tasks['queued']})", f"retry_task({two.tasks['failed']})", f"explain_task({two.tasks['queued']})",
        f"approve({two.approvals['permission']})", f"deny({two.approvals['question']})", "effective_scope('zebra')",
        "pause_scope('zebra')", "submit_task('x', 'shell', 'zebra')", "pause_provider('command')", "grant_scope('x', 'zebra')",
        f"say({two.tasks['queued']}, 'x')", f"export_checkpoint({two.tasks['handed']})", f"export_handoff({two.handoff})",
        f"import_checkpoint({two.tasks['queued']}, '{STATE.format()}')", f"import_handoff('{PACKET.format()}', 'zebra')",
    ):  # fmt: skip
        error = refusal(ann, f"select taskyard.{call}")
        assert told(error)[0] in ("TY002", "TY006"), call
    assert told(refusal(ann, "insert into taskyard.tasks (prompt, scope) values ('x', 'zebra')"))[0] == "TY006"
    assert value(two.admin, "select count(*) from tasks where created_by = %s", login) == 0
    ann.execute("insert into taskyard.tasks (prompt) values ('x')")
    assert column(two.admin, "select scope from tasks where created_by = %s", login) == ["home"]


def test_a_condition_that_tells_on_what_it_reads_reads_no_row_of_others(yard: Yard) -> None:
    two = neighbours(yard)
    ann = two.login("ann", "submitter", "home")
    yard.connect(superuser=True).execute(
        sql.SQL("create schema evil authorization {}").format(sql.Identifier(f"ann_{yard.name}"))
    )
    ann.execute(
        "create function evil.told(text) returns boolean language plpgsql immutable cost 0.0000001 as"
        " $$ begin raise notice '%', $1; return true; end $$"
    )
    heard: list[str] = []
    ann.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary or ""))
    for relation, text in (
        ("tasks", "prompt"),
        ("transcript", "body"),
        ("approvals", "question"),
        ("queue", "task"),
        ("inbox", "asks"),
    ):
        ann.execute(f"select * from {relation} where evil.told({text})".encode())
    assert "of home" in heard
    assert [word for word in heard if "zebra" in word] == []
