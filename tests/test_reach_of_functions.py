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
# And what everybody but runners may: what is beneath a view.
READERS = {"_database_health"}


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
    listed |= READERS if role != "runner" else set[str]()
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
    insert(two.admin, "robs", scope="home", priority=900)
    attempt = claim(runner, own)[0]["attempt_id"]
    ids = [own, two.runner, two.handoff, attempt, *two.tasks.values(), *two.attempts.values(), *two.approvals.values()]
    # With an attempt of its own to ask for what is others'.
    own_calls = [
        "read_result({attempt}, {id})", "list_artifacts({attempt}, {id})", "wait_for({attempt}, '{{{id}}}')", "send_message({attempt}, {id}, 'x')",
        """spawn_task({attempt}, '{{"prompt": "x", "agent": "shell", "depends_on": [{id}]}}')""",
        """spawn_task({attempt}, '{{"prompt": "x", "agent": "shell", "depends_on": ["{id}"]}}')""",
        """spawn_task({attempt}, '{{"prompt": "x", "agent": "shell", "scope": "zebra"}}')""",
        """handoff_task({attempt}, '{{"target": "claude", "reason": "limit"}}')""", "load_checkpoint({attempt})", "read_messages({attempt})",
    ]  # fmt: skip
    by_type: dict[str, str] = {
        "bigint": "{id}", "bigint[]": "array[{id}]::bigint[]", "integer": "1", "text": "'command'", "text[]": "'{{}}'::text[]",
        "jsonb": "'[]'::jsonb", "interval": "interval '1 hour'", "timestamp with time zone": "now()",
        "timestamp with time zone[]": "null::timestamptz[]", "jsonb[]": "null::jsonb[]", "boolean": "true",
        "bytea": "'x'::bytea", "numeric": "1", "real": "0.5",
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
                for outcome in ("completed", "failed", "waiting", "handed_off", "verify_failed")
            }
        calls |= {
            "taskyard." + call.format(attempt=attempt, id=id_)
            for call in own_calls
            if call.startswith(f"{function['name']}(")
            for id_ in ids
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
                if (
                    "zebra" in word.replace('"zebra"', "").replace("scope zebra", "").replace("Scope zebra", "")
                    or b"zebra".hex() in word
                ):
                    said.setdefault(function["name"], []).append(f"{call}: {word}")
    assert {
        "claim_task",
        "heartbeat",
        "complete_task",
        "complete_tasks",
        "release_task",
        "tasks_over",
        "spawn_task",
        "wait_for",
    } <= called
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
    """spawn_task({attempt}, '{{"prompt": "x", "agent": "shell"}}')""",
    "wait_for({attempt}, '{{}}', true)",
    "read_result({attempt}, {task})",
    "list_artifacts({attempt})",
    """save_checkpoint({attempt}, '{{"status": "x", "progress": 0}}')""",
    "load_checkpoint({attempt})",
    "report_progress({attempt}, 0.5, 'x')",
    "report_work({attempt}, 'taskyard/1-1', repeat('a', 40))",
    "report_verification({attempt}, true, 0, '', '1 s')",
    "send_message({attempt}, {task}, 'x')",
    "read_messages({attempt})",
    """handoff_task({attempt}, '{{"target": "claude", "reason": "limit"}}')""",
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
    insert(two.admin, "hers", scope="home", priority=900, verify="true")
    task = insert(two.admin, "next", scope="home", priority=900)
    attempt = claim(ann, runner)[0]["attempt_id"]
    tables = (
        "tasks",
        "attempts",
        "transcript",
        "artifacts",
        "approvals",
        "runners",
        "runner_providers",
        "task_events",
        "waits",
        "checkpoints",
        "handoffs",
        "verifications",
    )
    before = [column(two.admin, f"select t::text from {table} t order by 1") for table in tables]  # type: ignore[arg-type]
    for call in WORK_OF_OTHERS:
        statement = "select " + call.format(runner=runner, attempt=attempt, task=task)
        error = refusal(rob, statement)
        assert told(error)[0] == "TY006", statement
        assert told(error)[1] == f"This runner is not one of rob_{yard.name}.", statement
        assert [column(two.admin, f"select t::text from {table} t order by 1") for table in tables] == before, statement  # type: ignore[arg-type]
    # Each of them is a call that its owner may make, as long as the attempt and the runner are there.
    ends = [call for call in WORK_OF_OTHERS if call.startswith(("claim_", "complete_", "release_", "retire_"))]
    for call in (*(call for call in WORK_OF_OTHERS if call not in ends), "complete_task({attempt}, 'handed_off')"):
        assert refusal(ann, "select " + call.format(runner=runner, attempt=attempt, task=task)) is None, call


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
