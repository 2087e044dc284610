"""Which functions each role may call, and what none of them tells a runner of others' work."""

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import ROLES, Yard, column, rows, value
from .test_reach import told
from .test_refusals import CALLERS, INCLUDES
from .yardwork import claim, insert, refusal, register
from .zebra import neighbours

# What everybody may call besides the verbs of CALLERS: nothing that tells of a task.
ANYONE = {
    "_now", "_ago", "_line", "_short", "_caller", "_require_role", "_sees_all", "_my_scopes", "_in_reach",
    "_budgets_in_reach", "_percent_used", "_budget_text", "_amount", "_period_end", "_period_start",
}  # fmt: skip


def all_functions(db: Connection[DictRow]) -> list[DictRow]:
    """oid, name and the types of the arguments of every function of the schema."""
    return rows(
        db,
        """
        select p.oid, p.proname::text as name, p.prorettype = 'trigger'::regtype as trigger, array(
            select format_type(a, null) from unnest(p.proargtypes::oid[]) with ordinality x (a, n) order by n
        ) as types
        from pg_proc p where p.pronamespace = 'taskyard'::regnamespace order by 2
        """,
    )


@pytest.mark.parametrize("role", ROLES)
def test_every_function_is_refused_or_listed_for_each_role(yard: Yard, role: str) -> None:
    """From the catalog: a function in neither list fails here."""
    two = neighbours(yard)
    login = two.login("ann", role, *(["home"] if role == "submitter" else []))
    listed = ANYONE | {name for name, needed in CALLERS.items() if needed in INCLUDES[role]}
    found = all_functions(two.admin)
    assert listed <= {function["name"] for function in found}
    for function in found:
        may = value(login, "select has_function_privilege(%s::oid, 'execute')", function["oid"])
        if function["name"] in listed:
            assert may, function["name"]
            continue
        nulls = ", ".join(f"null::{kind}" for kind in function["types"])
        error = refusal(login, f"select taskyard.{function['name']}({nulls})")
        assert error is not None, (role, function["name"])
        assert error.sqlstate == "TY006" if may else error.sqlstate in ("42501", "0A000"), (
            role,
            function["name"],
            str(error),
        )


def test_a_runner_reads_no_table_and_no_view(yard: Yard) -> None:
    two = neighbours(yard)
    runner = two.login("rob", "runner")
    for name in two.relations():
        assert told(refusal(runner, f"select * from taskyard.{name}"))[0] == "42501", name
        assert told(refusal(runner, f"select count(*) from taskyard.{name}"))[0] == "42501", name


def test_no_function_tells_a_runner_of_tasks_that_it_did_not_claim(yard: Yard) -> None:
    """Every function that it may call, with every id there is, in every argument that takes one."""
    two = neighbours(yard)
    two.admin.execute("select pause_scope('zebra')")
    runner = two.login("rob", "runner")
    own = register(runner, "robs")
    ids = [own, two.runner, *two.tasks.values(), *two.attempts.values(), *two.approvals.values()]
    by_type: dict[str, str] = {
        "bigint": "{id}", "bigint[]": "array[{id}]::bigint[]", "integer": "1", "text": "'command'", "text[]": "'{{}}'::text[]",
        "jsonb": "'[]'::jsonb", "interval": "interval '1 hour'", "timestamp with time zone": "now()",
        "timestamp with time zone[]": "null::timestamptz[]", "jsonb[]": "null::jsonb[]", "boolean": "true",
        "bytea": "'x'::bytea", "numeric": "1",
    }  # fmt: skip
    said: dict[str, list[str]] = {}
    called: set[str] = set()
    for function in all_functions(two.admin):
        if not value(runner, "select has_function_privilege(%s::oid, 'execute')", function["oid"]):
            continue
        called.add(function["name"])
        arguments = ", ".join(by_type[kind] for kind in function["types"])
        calls = {f"taskyard.{function['name']}({arguments.format(id=id_)})" for id_ in ids}
        if function["name"] == "heartbeat":
            calls |= {f"taskyard.heartbeat({own}, array[{id_}]::bigint[])" for id_ in ids}
        if function["name"] == "complete_task":
            calls |= {
                f"taskyard.complete_task({id_}, '{outcome}')"
                for id_ in ids
                for outcome in ("completed", "failed", "waiting")
            }
        for call in calls:
            words: list[str] = []
            runner.execute("begin")
            try:
                words += [str(row) for row in runner.execute(f"select * from {call}".encode())]
            except psycopg.Error as error:
                words += [
                    str(part)
                    for part in (error.diag.message_primary, error.diag.message_detail, error.diag.message_hint)
                ]
            runner.execute("rollback")
            for word in words:
                if "zebra" in word or b"zebra".hex() in word:
                    said.setdefault(function["name"], []).append(f"{call}: {word}")
    assert {"claim_task", "heartbeat", "complete_task", "complete_tasks", "release_task", "tasks_over"} <= called
    assert {name: lines[:2] for name, lines in said.items()} == {}


# {runner} and {attempt} are of another login.
WORK_OF_OTHERS = [
    "heartbeat({runner})",
    "heartbeat({runner}, '{{{attempt}}}')",
    "claim_task({runner})",
    "complete_task({attempt})",
    "complete_task({attempt}, 'failed')",
    "complete_tasks('{{{attempt}}}')",
    "release_task({attempt})",
    """append_transcript({attempt}, '[{{"seq": 1, "kind": "text", "body": "x"}}]')""",
    "report_session({attempt}, 's')",
    "report_limit({attempt}, '[]')",
    "add_artifact({attempt}, 'x', 1, repeat('0', 64))",
    "request_permission({attempt}, '{{network}}')",
    "ask_human({attempt}, 'Now?')",
    "retire_runner({runner})",
    "drain_runner('anns')",
    "hold_runner_lock({runner})",
    "report_sandbox({runner}, 'none')",
    "offer_providers({runner}, '[]')",
]


def test_a_runner_login_speaks_for_its_own_runners_alone(yard: Yard) -> None:
    two = neighbours(yard)
    ann, rob = two.login("ann", "runner"), two.login("rob", "runner")
    runner = register(ann, "anns")
    register(rob, "robs")
    insert(two.admin, "hers", scope="home", priority=900)
    insert(two.admin, "next", scope="home", priority=900)
    attempt = claim(ann, runner)[0]["attempt_id"]
    tables = ("tasks", "attempts", "transcript", "artifacts", "approvals", "runners", "runner_providers", "task_events")
    before = [column(two.admin, f"select t::text from {table} t order by 1") for table in tables]  # type: ignore[arg-type]
    for call in WORK_OF_OTHERS:
        statement = "select " + call.format(runner=runner, attempt=attempt)
        error = refusal(rob, statement)
        assert told(error)[0] == "TY006", statement
        assert told(error)[1] == f"This runner is not one of rob_{yard.name}.", statement
        assert [column(two.admin, f"select t::text from {table} t order by 1") for table in tables] == before, statement  # type: ignore[arg-type]
    # Each of them is a call that its owner may make (the one without its fence comes last).
    for call in (*WORK_OF_OTHERS[:2], *WORK_OF_OTHERS[7:13], "complete_task({attempt})", *WORK_OF_OTHERS[14:]):
        assert refusal(ann, "select " + call.format(runner=runner, attempt=attempt)) is None, call


def test_every_verb_with_a_runner_or_an_attempt_asks_whose_it_is(yard: Yard) -> None:
    """From the catalog, so that a new one is not forgotten in the list above."""
    db = yard.connect()
    listed = {call.split("(")[0] for call in WORK_OF_OTHERS}
    taking = column(
        db,
        "select distinct proname::text from pg_proc where pronamespace = 'taskyard'::regnamespace"
        " and proargnames && '{p_runner,p_attempt,p_attempts}' and proname not like '\\_%%' order by 1",
    )
    # Anybody may let time pass, and it does not matter in whose name.
    assert set(taking) - {"tick"} == listed - {"drain_runner"}
