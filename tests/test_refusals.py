"""Bad input is refused with one sentence, a hint and a code of class TY, and changes nothing."""

import re
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import ROLES, Yard, column, rows, value
from .yardwork import refusal

INSERT = "insert into tasks (prompt, {}) values ('x', %s)"

# (what, code, statement, parameters); {one}, {two}, {three} are tasks of which each waits for the one before.
BAD_TASKS: list[tuple[str, str, str, list[Any]]] = [
    ("unknown agent", "TY002", INSERT.format("agent"), ["nobody"]),
    ("unknown agent, quoted", "TY002", INSERT.format("agent"), ["'; drop table tasks; --" * 50]),
    ("null agent", "TY002", INSERT.format("agent"), [None]),
    ("unknown scope", "TY002", INSERT.format("scope"), ["nowhere"]),
    ("null scope", "TY002", INSERT.format("scope"), [None]),
    ("unknown provider", "TY002", INSERT.format("provider"), ["nothing"]),
    ("unknown dependency", "TY002", INSERT.format("depends_on"), [[999999]]),
    ("one of many dependencies unknown", "TY002", INSERT.format("depends_on"), [[1, 2, 999999]]),
    ("agent edited to an unknown one", "TY002", "update tasks set agent = %s where id = {one}", ["nobody"]),
    ("scope edited to an unknown one", "TY002", "update tasks set scope = %s where id = {one}", ["nowhere"]),
    ("edited to an unknown dependency", "TY002", "update tasks set depends_on = %s where id = {one}", [[999999]]),
    ("depends on itself", "TY003", "update tasks set depends_on = array[id] where id = {one}", []),
    ("cycle of two", "TY003", "update tasks set depends_on = array[{two}::bigint] where id = {one}", []),
    ("cycle of three", "TY003", "update tasks set depends_on = array[{three}::bigint] where id = {one}", []),
    ("no prompt", "TY001", "insert into tasks (agent) values (%s)", ["shell"]),
    ("empty prompt", "TY001", "insert into tasks (prompt) values (%s)", [""]),
    ("blank prompt", "TY001", "insert into tasks (prompt) values (%s)", [" \t\r\n  "]),
    ("prompt edited to nothing", "TY001", "update tasks set prompt = %s where id = {one}", [" "]),
    ("prompt of 10 MB", "TY001", "insert into tasks (prompt) values (repeat('x', %s))", [10 * 1024 * 1024]),
    ("payload of 10 MB", "TY001", INSERT.format("payload").replace("%s", "to_jsonb(repeat('x', %s))"), [10485760]),
    ("priority too high", "TY001", INSERT.format("priority"), [99999]),
    ("priority too low", "TY001", INSERT.format("priority"), [-99999]),
    ("priority just too high", "TY001", INSERT.format("priority"), [1001]),
    ("null priority", "TY001", INSERT.format("priority"), [None]),
    ("negative time-out", "TY001", INSERT.format("timeout"), [timedelta(seconds=-1)]),
    ("time-out of nothing", "TY001", INSERT.format("timeout"), [timedelta(0)]),
    ("time-out of a hundred years", "TY001", INSERT.format("timeout"), [timedelta(days=36525)]),
    ("enormous time-out", "TY001", INSERT.format("timeout").replace("%s", "interval '170000000 years'"), []),
    ("max_attempts 0", "TY001", INSERT.format("max_attempts"), [0]),
    ("max_attempts -1", "TY001", INSERT.format("max_attempts"), [-1]),
    ("max_attempts 101", "TY001", INSERT.format("max_attempts"), [101]),
    ("1,001 dependencies", "TY001", INSERT.format("depends_on"), [[1] * 1001]),
    ("null among dependencies", "TY001", INSERT.format("depends_on"), [[1, None]]),
    ("on_limit never", "TY001", INSERT.format("on_limit"), ["never"]),
    ("on_limit without a time", "TY001", INSERT.format("on_limit"), ["switch after "]),
    ("on_limit with no time", "TY001", INSERT.format("on_limit"), ["switch after lunch"]),
    ("on_limit in the past", "TY001", INSERT.format("on_limit"), ["switch after -1 hour"]),
    ("on_limit out of range", "TY001", INSERT.format("on_limit"), ["switch after 99999999999 years"]),
    ("on_limit beyond numbers", "TY001", INSERT.format("on_limit"), ["switch after " + "9" * 400 + " hours"]),
    ("null on_limit", "TY001", INSERT.format("on_limit"), [None]),
    ("on_dependency_failure", "TY001", INSERT.format("on_dependency_failure"), ["shrug"]),
    ("null on_dependency_failure", "TY001", INSERT.format("on_dependency_failure"), [None]),
    ("blank workspace", "TY001", INSERT.format("workspace"), ["  "]),
    ("endless workspace", "TY001", INSERT.format("workspace"), ["/x" * 5000]),
    ("endless dedupe_key", "TY001", INSERT.format("dedupe_key"), ["k" * 501]),
    ("21 labels", "TY001", INSERT.format("requires"), [[str(n) for n in range(21)]]),
    ("null label", "TY001", INSERT.format("requires"), [[None]]),
    ("null requires", "TY001", INSERT.format("requires"), [None]),
    ("one bad row of three", "TY001", "insert into tasks (prompt) values ('x'), (%s), ('y')", [" "]),
    ("submit_task with no prompt", "TY001", "select submit_task(null)", []),
    ("submit_task for nobody", "TY002", "select submit_task('x', 'nobody')", []),
    ("cancel of no task", "TY002", "select cancel_task(999999)", []),
    ("cancel of null", "TY002", "select cancel_task(null)", []),
    ("retry of no task", "TY002", "select retry_task(999999)", []),
    ("retry of a queued task", "TY004", "select retry_task({one})", []),
    ("explanation of no task", "TY002", "select explain_task(999999)", []),
    ("pause of no scope", "TY002", "select pause_scope('nowhere')", []),
    ("resume of no scope", "TY002", "select resume_scope('nowhere')", []),
    ("pause of no provider", "TY002", "select pause_provider('nothing')", []),
    ("resume of no provider", "TY002", "select resume_provider('nothing')", []),
    ("pause of a null scope", "TY002", "select pause_scope(null)", []),
    ("output_schema that is a list", "TY001", INSERT.format("output_schema"), ["[]"]),
    ("output_schema that is a word", "TY001", INSERT.format("output_schema"), ['"text"']),
    ("clearing limits of no provider", "TY002", "select clear_limit('nothing')", []),
    ("clearing limits of null", "TY002", "select clear_limit(null)", []),
    ("repository and workspace", "TY001", "insert into tasks (prompt, repository, workspace) values ('x', %s, '/b')", ["/a"]),
    ("repository that is no path", "TY001", INSERT.format("repository"), ["https://example.com/a.git"]),
    ("base without a repository", "TY001", INSERT.format("base"), ["main"]),
    ("push_to without a repository", "TY001", INSERT.format("push_to"), ["origin"]),
    ("base that is an option", "TY001", "insert into tasks (prompt, repository, base) values ('x', '/a', %s)", ["--upload-pack=sh"]),
    ("push_to that is an option", "TY001", "insert into tasks (prompt, repository, push_to) values ('x', '/a', %s)", ["--receive-pack=sh"]),
    ("push_to that is an address", "TY001", "insert into tasks (prompt, repository, push_to) values ('x', '/a', %s)", ["ext::sh -c id"]),
    ("base that is a range", "TY001", "insert into tasks (prompt, repository, base) values ('x', '/a', %s)", ["main^"]),
    ("empty base", "TY001", "insert into tasks (prompt, repository, base) values ('x', '/a', %s)", [""]),
]  # fmt: skip

# {runner} is registered and has the running {attempt}.
BAD_WORK: list[tuple[str, str, str]] = [
    ("claim of none", "TY001", "select claim_task({runner}, 0)"),
    ("claim of -1", "TY001", "select claim_task({runner}, -1)"),
    ("claim of 501", "TY001", "select claim_task({runner}, 501)"),
    ("claim of null", "TY001", "select claim_task({runner}, null)"),
    ("claim by nobody", "TY007", "select claim_task(999999)"),
    ("claim by null", "TY007", "select claim_task(null)"),
    ("heartbeat by nobody", "TY007", "select heartbeat(999999)"),
    ("end of no attempt", "TY005", "select complete_task(999999)"),
    ("end of a null attempt", "TY005", "select complete_task(null)"),
    ("bad end of no attempt", "TY005", "select complete_task(999999, 'failed')"),
    ("unknown outcome", "TY001", "select complete_task({attempt}, 'exploded')"),
    ("null outcome", "TY001", "select complete_task({attempt}, null)"),
    ("result of 10 MB", "TY001", "select complete_task({attempt}, 'completed', to_jsonb(repeat('x', 10485760)))"),
    ("as many results as attempts", "TY001", "select complete_tasks(array[{attempt}], array['1', '2']::jsonb[])"),
    ("release of no attempt", "TY005", "select release_task(999999)"),
    ("release into the past", "TY001", "select release_task({attempt}, 'x', interval '-1 second')"),
    ("release for a year", "TY001", "select release_task({attempt}, 'x', interval '1 year')"),
    ("transcript of no attempt", "TY005", """select append_transcript(999999, '[{{"seq": 1, "kind": "note"}}]')"""),
    ("runner without a name", "TY001", "select register_runner(null)"),
    ("runner with a bad name", "TY001", "select register_runner('a b')"),
    ("runner without slots", "TY001", "select register_runner('r', 0)"),
    ("runner with 1,001 slots", "TY001", "select register_runner('r', 1001)"),
    ("runner with a lease of nothing", "TY001", "select register_runner('r', p_lease => '0')"),
    ("runner with a lease of a week", "TY001", "select register_runner('r', p_lease => '7 days')"),
    (
        "runner with an unknown provider",
        "TY002",
        """select register_runner('r', 1, '{{}}', '[{{"provider": "no"}}]')""",
    ),
    ("runner of the past", "TY009", "select register_runner('r', p_protocol => 1)"),
    ("runner of the future", "TY009", "select register_runner('r', p_protocol => 99)"),
    ("runner that runs already", "TY008", "select register_runner('host')"),
    ("drain of no runner", "TY002", "select drain_runner('nobody')"),
    ("offers of nobody", "TY007", "select offer_providers(999999, '[]')"),
    ("offer of an unknown provider", "TY002", """select offer_providers({runner}, '[{{"provider": "no"}}]')"""),
    (
        "offer in an unknown state",
        "TY001",
        """select offer_providers({runner}, '[{{"provider": "command", "state": "asleep"}}]')""",
    ),
    (
        "runner with an offer in an unknown state",
        "TY001",
        """select register_runner('r', 1, '{{}}', '[{{"provider": "command", "state": "asleep"}}]')""",
    ),
    ("session of no attempt", "TY005", "select report_session(999999, 's')"),
    ("limits of no attempt", "TY005", "select report_limit(999999, '[]')"),
    ("child of no attempt", "TY005", """select spawn_task(999999, '{{"prompt": "x"}}')"""),
    ("child without a prompt", "TY001", """select spawn_task({attempt}, '{{"agent": "shell"}}')"""),
    ("child of nobody's", "TY002", """select spawn_task({attempt}, '{{"prompt": "x", "agent": "nobody"}}')"""),
    ("wait of no attempt", "TY005", "select wait_for(999999, '{{1}}')"),
    ("wait for nothing", "TY001", "select wait_for({attempt}, '{{}}')"),
    ("wait for itself", "TY003", "select wait_for({attempt}, '{{{task}}}')"),
    ("wait for no task", "TY002", "select wait_for({attempt}, '{{999999}}')"),
    ("result of no task", "TY002", "select read_result({attempt}, 999999)"),
    ("result for no attempt", "TY005", "select read_result(999999, {task})"),
    ("artifacts of no task", "TY002", "select list_artifacts({attempt}, 999999)"),
    ("artifacts for no attempt", "TY005", "select list_artifacts(999999)"),
    ("empty checkpoint", "TY001", "select save_checkpoint({attempt}, '{{}}')"),
    ("checkpoint of no attempt", "TY005", """select save_checkpoint(999999, '{{"status": "x", "progress": 0}}')"""),
    ("loading for no attempt", "TY005", "select load_checkpoint(999999)"),
    ("empty packet", "TY001", "select handoff_task({attempt}, '{{}}')"),
    ("packet of no attempt", "TY005", """select handoff_task(999999, '{{"target": "claude", "reason": "limit"}}')"""),
    ("end as handed over", "TY004", "select complete_task({attempt}, 'handed_off')"),
    ("progress beyond all", "TY001", "select report_progress({attempt}, 1.5, 'x')"),
    ("progress that is no number", "TY001", "select report_progress({attempt}, 'nan', 'x')"),
    ("no progress", "TY001", "select report_progress({attempt}, null, ' ')"),
    ("progress of no attempt", "TY005", "select report_progress(999999, 0.5, 'x')"),
    ("work without a commit", "TY001", "select report_work({attempt}, 'taskyard/1-1', 'HEAD')"),
    ("work without a branch", "TY001", "select report_work({attempt}, '', repeat('a', 40))"),
    ("work of no attempt", "TY005", "select report_work(999999, 'taskyard/1-1', repeat('a', 40))"),
    ("proof that nobody asked for", "TY001", "select report_verification({attempt}, true, 0, '', '1 s')"),
    ("proof of no attempt", "TY005", "select report_verification(999999, true, 0, '', '1 s')"),
    ("message to nobody", "TY006", "select send_message({attempt}, 999999, 'x')"),
    ("message of nothing", "TY001", "select send_message({attempt}, {task}, ' ')"),
    ("message of no attempt", "TY005", "select send_message(999999, {task}, 'x')"),
    ("reading no messages", "TY001", "select read_messages({attempt}, 0)"),
    ("reading for no attempt", "TY005", "select read_messages(999999)"),
    ("saying nothing", "TY001", "select say({task}, ' ')"),
    ("saying to no task", "TY002", "select say(999999, 'x')"),
    ("saying to what is over", "TY004", "select say({done}, 'x')"),
    ("checkpoint of no task", "TY002", "select export_checkpoint(999999)"),
    ("checkpoint that is not there", "TY002", "select export_checkpoint({done})"),
    ("checkpoint into what runs", "TY004", """select import_checkpoint({task}, '{{"kind": "taskyard.checkpoint"}}')"""),
    ("handoff that is not there", "TY002", "select export_handoff(999999)"),
    ("import of no handoff", "TY001", "select import_handoff('{{}}')"),
    ("cancelling what is over", "TY004", "select cancel_task({done})"),
    ("retrying what is done", "TY004", "select retry_task({done})"),
    ("retrying what runs", "TY004", "select retry_task({task})"),
    ("deleting what runs", "TY004", "delete from tasks where id = {task}"),
]

# Who may call what; taskyard_admin may call everything, a submitter whatever a viewer may.
CALLERS = {
    **dict.fromkeys(("explain_task", "effective_scope", "scope_allows", "export_checkpoint", "export_handoff", "next_fires", "metrics", "metrics_text"), "viewer"),
    **dict.fromkeys(
        (
            "submit_task", "cancel_task", "retry_task", "pause_scope", "resume_scope", "pause_provider",
            "resume_provider", "clear_limit", "approve", "deny", "answer", "say", "import_checkpoint", "import_handoff",
            "submit_template", "filled_template", "run_schedule",
        ),
        "submitter",
    ),
    **dict.fromkeys(
        (
            "register_runner", "hold_runner_lock", "retire_runner", "drain_runner", "claim_task", "heartbeat", "tick",
            "append_transcript", "complete_task", "complete_tasks", "release_task", "sleep_begin", "sleep_end",
            "known_providers", "offer_providers", "report_limit", "report_session", "report_sandbox", "tasks_over",
            "request_permission", "ask_human", "add_artifact", "spawn_task", "wait_for", "read_result", "list_artifacts",
            "save_checkpoint", "load_checkpoint", "handoff_task", "send_message", "read_messages", "report_progress",
            "report_verification", "report_work",
        ),
        "runner",
    ),
    **dict.fromkeys(
        ("grant_scope", "revoke_scope", "after_restore", "next_pushes", "report_push", "push_answers", "press_button"), "admin"
    ),
}  # fmt: skip
INCLUDES = {
    "viewer": {"viewer"},
    "submitter": {"viewer", "submitter"},
    "runner": {"runner"},
    "admin": {"viewer", "submitter", "runner", "admin"},
}


def contents(db: Connection[DictRow]) -> dict[str, list[str]]:
    """Every row of every table of the schema."""
    tables = column(
        db,
        "select relname::text from pg_class where relnamespace = 'taskyard'::regnamespace and relkind = 'r' order by 1",
    )
    return {
        table: column(db, f"select t::text from taskyard.{table} t order by 1")  # type: ignore[arg-type]
        for table in tables
    }


def unclear(error: psycopg.Error | None, code: str) -> str:
    """What is wrong with a refusal; empty where it is as it should be."""
    if error is None:
        return "was accepted"
    if error.sqlstate != code:
        return f"{error.sqlstate} instead of {code}: {error}"
    message, hint = error.diag.message_primary or "", error.diag.message_hint or ""
    # It may begin with the name of a role or a column.
    if not re.fullmatch(r"([A-Z]|\w+ )[^\n]{5,300}\.", message) or re.search(r"[.!?]\s+[A-Z]", message):
        return f"{message!r} is not one sentence"
    if not re.fullmatch(r"([A-Z]|[a-z_]+\(\) )[^\n]{3,}|[a-z_]+ [^\n]{3,};", hint):
        return f"{hint!r} is no hint"
    return ""


def test_bad_tasks_are_refused_with_a_sentence_and_change_nothing(yard: Yard, db: Connection[DictRow]) -> None:
    submitter = yard.connect("submitter")
    one = value(db, "insert into tasks (prompt) values ('1') returning id")
    two = value(db, "insert into tasks (prompt, depends_on) values ('2', array[%s::bigint]) returning id", one)
    three = value(db, "insert into tasks (prompt, depends_on) values ('3', array[%s::bigint]) returning id", two)
    before = contents(db)
    problems: dict[str, str] = {}
    for what, code, statement, parameters in BAD_TASKS:
        error = refusal(submitter, statement.format(one=one, two=two, three=three), *parameters)
        problems[what] = unclear(error, code)
        assert contents(db) == before, (what, problems)
    assert {what: problem for what, problem in problems.items() if problem} == {}


def test_a_task_names_an_existing_parent(db: Connection[DictRow]) -> None:
    assert unclear(refusal(db, "insert into tasks (prompt, parent_id) values ('x', 999999)"), "TY002") == ""
    assert value(db, "select count(*) from tasks") == 0


def test_bad_work_is_refused_with_a_sentence_and_changes_nothing(yard: Yard, db: Connection[DictRow]) -> None:
    admin = yard.connect("admin")
    runner = value(db, "select register_runner('host', 2)")
    db.execute("insert into tasks (prompt, agent) values ('a', 'shell'), ('b', 'shell')")
    db.execute("select complete_task(attempt_id) from claim_task(%s)", [runner])
    attempt = rows(db, "select attempt_id as attempt, task_id as task from claim_task(%s)", runner)[0]
    done = value(db, "select id from tasks where status = 'completed'")
    before = contents(db)
    problems: dict[str, str] = {}
    for what, code, statement in BAD_WORK:
        problems[what] = unclear(refusal(admin, statement.format(runner=runner, done=done, **attempt)), code)
        assert contents(db) == before, (what, problems)
    assert {what: problem for what, problem in problems.items() if problem} == {}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_tasks_are_claimed_in_read_committed_transactions_only(db: Connection[DictRow], isolation: str) -> None:
    db.execute("insert into tasks (prompt, agent) values ('x', 'shell')")
    runner = value(db, "select register_runner('host')")
    before = contents(db)
    db.execute(f"begin isolation level {isolation}".encode())
    assert unclear(refusal(db, f"select claim_task({runner})"), "TY010") == ""
    db.execute("rollback")
    assert contents(db) == before


def test_a_refused_statement_in_a_transaction_takes_back_only_itself(db: Connection[DictRow]) -> None:
    with db.transaction():
        db.execute("insert into tasks (prompt) values ('kept')")
        with pytest.raises(psycopg.Error), db.transaction():
            db.execute("insert into tasks (prompt, priority) values ('dropped', 5000)")
    assert column(db, "select prompt from tasks") == ["kept"]
    assert value(db, "select count(*) from ready_tasks") == 1


def test_the_limits_themselves_are_accepted(db: Connection[DictRow]) -> None:
    ids = column(db, "insert into tasks (prompt) select 'x' from generate_series(1, 1000) returning id")
    accepted: dict[str, tuple[Any, ...]] = {
        "priority": (-1000, 1000),
        "timeout": (timedelta(microseconds=1), timedelta(days=30)),
        "max_attempts": (1, 100),
        "depends_on": ([], ids),
        "on_limit": ("switch", "wait", "switch after 2 hours", "switch after 1 week 90 min"),
        "on_dependency_failure": ("fail", "run"),
        "requires": ([], [str(n) for n in range(20)]),
        "dedupe_key": ("k" * 500,),
        "workspace": ("/", "/" + "x" * 4095),
    }
    for name, values in accepted.items():
        for new in values:
            assert refusal(db, INSERT.format(name), new) is None, (name, new)
    assert refusal(db, "insert into tasks (prompt) values (repeat('x', 4194304))") is None


def test_every_verb_is_refused_to_whoever_lacks_its_role(yard: Yard, db: Connection[DictRow]) -> None:
    verbs = rows(
        db,
        r"""
        select proname::text as name, coalesce(
            (select string_agg('null::' || format_type(a, null), ', ' order by n)
            from unnest(proargtypes::oid[]) with ordinality x (a, n)), ''
        ) as arguments
        from pg_proc where pronamespace = 'taskyard'::regnamespace and proname not like '\_%'
            and prorettype <> 'trigger'::regtype
        order by 1
        """,
    )
    assert sorted(verb["name"] for verb in verbs) == sorted(CALLERS)
    db.execute("insert into tasks (prompt, agent) values ('x', 'shell')")
    for role in ROLES:
        caller = yard.connect(role)
        before = contents(db)
        for verb in verbs:
            error = refusal(caller, f"select taskyard.{verb['name']}({verb['arguments']})")
            code = error.sqlstate if error else None
            if CALLERS[verb["name"]] in INCLUDES[role]:
                assert code not in ("TY006", "42501"), (role, verb["name"], str(error))
                before = contents(db)
            else:
                assert code in ("TY006", "42501"), (role, verb["name"], str(error))
                if code == "TY006":
                    assert unclear(error, "TY006") == ""
                    assert f"taskyard_{role} may not" in str(error)
                assert contents(db) == before, (role, verb["name"])


def test_a_login_is_refused_under_its_own_name(yard: Yard) -> None:
    with Connection[DictRow].connect(yard.login("screen", "viewer"), autocommit=True) as screen:
        error = refusal(screen, "select cancel_task(1)")
    assert error is not None
    assert error.diag.message_primary == f"screen_{yard.name} may not cancel tasks."
    assert error.diag.message_hint == (
        f"An administrator can allow it: grant taskyard_submitter to screen_{yard.name};"
    )


def test_nul_bytes_never_get_in(db: Connection[DictRow]) -> None:
    for statement, parameters in (
        ("insert into tasks (prompt) values (%s)", ["a\x00b"]),
        ("insert into tasks (prompt) values ('a' || chr(0))", []),
        (INSERT.format("payload"), ['{"a": "\\u0000"}']),
        (INSERT.format("workspace"), ["/a\x00b"]),
    ):
        assert refusal(db, statement, *parameters) is not None, statement
    assert value(db, "select count(*) from tasks") == 0
