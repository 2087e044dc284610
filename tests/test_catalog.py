"""Rules about the schema, read from the catalog: whoever adds a function or a table and forgets one is told here."""

import itertools
import re
from pathlib import Path

from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, rows, value

ROOT = Path(__file__).parent.parent
SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "sql").glob("*/*.sql")))
FUNCTION_SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "sql/functions").glob("*.sql")))

# Private functions that the views, the policies and submit_task() need, which run as their caller.
OPEN_HELPERS = {
    "_database_health",
    "_now", "_ago", "_line", "_short", "_caller", "_require_role", "_sees_all", "_my_scopes", "_in_reach",
    "_budgets_in_reach", "_percent_used", "_budget_text", "_amount", "_period_end", "_period_start",
}  # fmt: skip
# Public functions that touch nothing and need no role.
PURE_HELPERS: set[str] = set()
# Columns of tasks whose name says it all.
SELF_EVIDENT = {
    "id",
    "parent_id",
    "model",
    "created_by",
    "created_at",
    "started_at",
    "finished_at",
    "cancel_reason",
    "queue_position",
}
WRITES = re.compile(
    r"\b(insert\s+into|update\s+\w+(\s+\w+)?\s+set|delete\s+from|truncate|nextval|setval|set_config|pg_notify|execute"
    r"|pg_(try_)?advisory\w+|for\s+(no\s+key\s+)?(update|key\s+share|share))\b"
)


def functions(db: Connection[DictRow]) -> list[DictRow]:
    """name, source (without comments and literals), volatility, definer, config, trigger of each of our functions."""
    found = rows(
        db,
        """
        select proname as name, prosrc as source, provolatile as volatility, prosecdef as definer, proconfig as config,
            prorettype = 'trigger'::regtype as trigger, oid::regprocedure::text as signature
        from pg_proc where pronamespace = 'taskyard'::regnamespace order by 1
        """,
    )
    for function in found:
        function["source"] = re.sub(r"--.*", "", function["source"])
    return found


def without_literals(source: str) -> str:
    return re.sub(r"'[^']*'", "''", source)


def test_every_definer_function_pins_its_search_path_to_ours(db: Connection[DictRow]) -> None:
    definers = [function for function in functions(db) if function["definer"]]
    assert len(definers) > 20
    for function in definers:
        settings: list[str] = function["config"] or []
        pinned = [setting for setting in settings if setting.startswith("search_path=")]
        assert pinned == ["search_path=taskyard, pg_catalog, pg_temp"], function["signature"]


def test_the_owner_of_everything_cannot_log_in(db: Connection[DictRow]) -> None:
    owned = rows(
        db,
        """
        select 'schema' as kind, nspname::text as name, nspowner as owner from pg_namespace where nspname = 'taskyard'
        union all select 'relation', relname, relowner from pg_class where relnamespace = 'taskyard'::regnamespace
        union all select 'function', proname, proowner from pg_proc where pronamespace = 'taskyard'::regnamespace
        union all select 'type', typname, typowner from pg_type where typnamespace = 'taskyard'::regnamespace
        """,
    )
    assert {object_["kind"] for object_ in owned} == {"schema", "relation", "function", "type"}
    owner = rows(db, "select * from pg_roles where rolname = 'taskyard_owner'")[0]
    assert [object_ for object_ in owned if object_["owner"] != owner["oid"]] == []
    for may in ("rolcanlogin", "rolsuper", "rolcreaterole", "rolcreatedb", "rolbypassrls", "rolreplication"):
        assert owner[may] is False, may


def test_public_may_do_nothing(db: Connection[DictRow]) -> None:
    # A null ACL means the built-in defaults, which let PUBLIC execute functions.
    granted = column(
        db,
        """
        select x.name || ': ' || a.privilege_type
        from (
            select oid::regprocedure::text as name, coalesce(proacl, acldefault('f', proowner)) as acl
            from pg_proc where pronamespace = 'taskyard'::regnamespace
            union all
            select relname, coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner))
            from pg_class where relnamespace = 'taskyard'::regnamespace and relkind in ('r', 'p', 'v', 'S', 'm', 'f')
            union all
            select c.relname || '.' || t.attname, t.attacl from pg_attribute t join pg_class c on c.oid = t.attrelid
            where c.relnamespace = 'taskyard'::regnamespace and t.attacl is not null
            union all
            select nspname, coalesce(nspacl, acldefault('n', nspowner)) from pg_namespace where nspname = 'taskyard'
        ) x
        cross join lateral aclexplode(x.acl) a
        where a.grantee = 0
        """,
    )
    assert granted == []


def test_a_function_added_later_is_not_public_either(db: Connection[DictRow]) -> None:
    db.execute("set role taskyard_owner")
    db.execute("create function taskyard.added_later() returns integer language sql stable as 'select 1'")
    assert not value(
        db,
        "select bool_or(a.grantee = 0) from pg_proc p cross join lateral aclexplode(coalesce(proacl, acldefault('f',"
        " proowner))) a where proname = 'added_later'",
    )


def test_private_functions_are_for_the_owner_alone(db: Connection[DictRow]) -> None:
    granted = rows(
        db,
        r"""
        select p.proname as name, a.grantee::regrole::text as grantee
        from pg_proc p cross join lateral aclexplode(coalesce(proacl, acldefault('f', proowner))) a
        where p.pronamespace = 'taskyard'::regnamespace and p.proname like '\_%' and a.grantee <> p.proowner
        """,
    )
    assert {grant["name"] for grant in granted} == OPEN_HELPERS
    assert {grant["grantee"] for grant in granted} <= {
        "taskyard_viewer",
        "taskyard_submitter",
        "taskyard_runner",
        "taskyard_admin",
    }


def test_only_submitters_and_admins_may_write_tables(db: Connection[DictRow]) -> None:
    written = rows(
        db,
        """
        select distinct grantee::text, table_name::text as name
        from information_schema.column_privileges
        where table_schema = 'taskyard' and privilege_type <> 'SELECT' and grantee <> 'taskyard_owner'
        """,
    )
    assert {(grant["grantee"], grant["name"]) for grant in written} == {
        ("taskyard_submitter", "tasks"),
        ("taskyard_submitter", "schedules"),
        *(
            ("taskyard_admin", table)
            for table in (
                "agents",
                "scopes",
                "budgets",
                "providers",
                "provider_limits",
                "provider_caps",
                "prices",
                "routing_rules",
                "outcome_policies",
                "templates",
                "push_targets",
                "schedules",
                "retention",
            )
        ),
    }
    settable = column(
        db,
        """
        select distinct column_name::text from information_schema.column_privileges
        where table_schema = 'taskyard' and table_name = 'tasks' and grantee = 'taskyard_submitter'
            and privilege_type in ('INSERT', 'UPDATE')
        """,
    )
    assert not {
        "id",
        "created_by",
        "created_at",
        "attempt_id",
        "attempt_count",
        "result",
        "routed_by",
        "lane_id",
    } & set(settable)


def test_every_table_view_and_function_has_a_comment(db: Connection[DictRow]) -> None:
    silent = column(
        db,
        """
        select relname::text from pg_class
        where relnamespace = 'taskyard'::regnamespace and relkind in ('r', 'p', 'v') and not relispartition
            and obj_description(oid, 'pg_class') is null
        union all
        select oid::regprocedure::text from pg_proc
        where pronamespace = 'taskyard'::regnamespace and obj_description(oid, 'pg_proc') is null
        order by 1
        """,
    )
    assert silent == []


def test_every_column_of_tasks_has_a_comment_or_a_name_that_needs_none(db: Connection[DictRow]) -> None:
    silent = column(
        db,
        """
        select attname::text from pg_attribute
        where attrelid = 'taskyard.tasks'::regclass and attnum > 0 and not attisdropped
            and col_description(attrelid, attnum) is null
        """,
    )
    assert set(silent) - SELF_EVIDENT == set()


def test_every_public_function_begins_with_a_role_check(db: Connection[DictRow]) -> None:
    public = [function for function in functions(db) if not function["name"].startswith("_")]
    assert len(public) > 15
    check = re.compile(
        r"\bbegin\s+(perform _require_(role|runner)\('|if not pg_has_role\(.*?\) then\s+v_done := _require_role\()"
    )
    unchecked = {function["name"] for function in public if not check.search(function["source"])}
    assert unchecked == PURE_HELPERS


def test_no_function_that_writes_is_called_stable(db: Connection[DictRow]) -> None:
    found = functions(db)
    writing = {f["name"] for f in found if WRITES.search(without_literals(f["source"]))}
    assert {"claim_task", "_set_mark", "_log", "_tell_held", "_leave"} <= writing
    while True:  # calling one that writes is writing
        calls = re.compile(rf"\b({'|'.join(writing)})\(")
        more = {f["name"] for f in found if calls.search(without_literals(f["source"]))} - writing
        if not more:
            break
        writing |= more
    assert {f["signature"] for f in found if f["name"] in writing and f["volatility"] != "v"} == set()


def test_nothing_that_reads_tables_or_the_clock_is_called_immutable(db: Connection[DictRow]) -> None:
    immutable = [f for f in functions(db) if f["volatility"] == "i"]
    reads = re.compile(r"\b(now|_now|clock_timestamp|current_setting|random)\(|\b(from|join)\s+(taskyard\.)?[a-z_]+s\b")
    assert immutable
    assert [f["signature"] for f in immutable if reads.search(without_literals(f["source"]))] == []


def test_every_function_states_its_volatility() -> None:
    headers = re.findall(r"create or replace function (\w+)\((.*?)\nas \$\$", SOURCES, re.DOTALL)
    assert len(headers) > 50
    for name, header in headers:
        if "returns trigger" not in header:
            assert re.search(r"\b(immutable|stable|volatile)\b", header), name


def test_every_sql_function_is_valid(db: Connection[DictRow]) -> None:
    # The installer turns checking off, since files name each other.
    db.execute("set role taskyard_owner")
    db.execute("set search_path = taskyard, pg_catalog, pg_temp")
    db.execute("set check_function_bodies = on")
    bodies = column(
        db,
        """
        select pg_get_functiondef(p.oid) from pg_proc p join pg_language l on l.oid = p.prolang
        where p.pronamespace = 'taskyard'::regnamespace and l.lanname = 'sql'
        """,
    )
    assert bodies
    for body in bodies:
        db.execute(body)


def test_every_foreign_key_has_an_index_on_the_side_that_refers(db: Connection[DictRow]) -> None:
    keys = rows(
        db,
        """
        select c.conname as name, exists (
            select from pg_index i
            where i.indrelid = c.conrelid and i.indisvalid
                and (string_to_array(i.indkey::text, ' ')::smallint[])[1:cardinality(c.conkey)] @> c.conkey
        ) as indexed
        from pg_constraint c where c.contype = 'f' and c.connamespace = 'taskyard'::regnamespace
        """,
    )
    assert len(keys) > 5
    assert [key["name"] for key in keys if not key["indexed"]] == []


def test_no_index_of_tasks_but_one_knows_what_a_claim_or_an_ending_changes(yard: Yard, db: Connection[DictRow]) -> None:
    # Else those updates could not be heap-only. Key columns, expressions and predicates all count.
    indexed: dict[str, set[str]] = {}
    for row in rows(
        db,
        """
        select distinct i.indexrelid::regclass::text as index, a.attname::text as column
        from pg_index i
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum > 0
        where i.indrelid = 'taskyard.tasks'::regclass and (
            a.attnum = any(i.indkey)
            or exists (
                select from pg_depend d
                where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
                    and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid and d.refobjsubid = a.attnum
            )
        )
        """,
    ):
        indexed.setdefault(row["index"], set()).add(row["column"])
    assert len(indexed) >= 4

    db.execute("insert into tasks (prompt, agent) select 'x', 'shell' from generate_series(1, 2)")
    runner = value(db, "select register_runner('host')")
    states = [rows(db, "select * from tasks order by id")]
    attempts = column(db, "select attempt_id from claim_task(%s, 2)", runner)
    states.append(rows(db, "select * from tasks order by id"))
    db.execute("select complete_task(%s, 'completed', '1')", [attempts[0]])
    db.execute("select complete_task(%s, 'failed', '1', 'no')", [attempts[1]])
    states.append(rows(db, "select * from tasks order by id"))
    changed = {
        name
        for before, after in itertools.pairwise(states)
        for old, new in zip(before, after, strict=True)
        for name in old
        if old[name] != new[name]
    }
    assert {"status", "attempt_id", "attempt_count", "finished_at", "run_at"} <= changed
    assert {index: names & changed for index, names in indexed.items() if names & changed} == {
        "tasks_finished": {"finished_at"}
    }


def test_every_outcome_has_a_policy(db: Connection[DictRow]) -> None:
    outcomes = column(db, "select unnest(enum_range(null::attempt_outcome))::text")
    assert len(outcomes) == 19
    assert sorted(outcomes) == sorted(column(db, "select outcome from outcome_policies"))
    assert set(column(db, "select status from outcome_policies")) <= set(
        column(db, "select unnest(enum_range(null::task_status))::text")
    )


def test_no_function_builds_sql_but_those_that_make_and_drop_partitions(db: Connection[DictRow]) -> None:
    dynamic = re.compile(r"\bexecute\b|\breturn query execute\b|\bdblink|\bquery_to_xml")
    found = {f["name"] for f in functions(db) if dynamic.search(without_literals(f["source"]))}
    assert found == {"_ensure_partition", "_drop_partitions"}


def test_every_refusal_has_a_code_a_sentence_and_a_hint(db: Connection[DictRow]) -> None:
    ends = r";\s*\n\s*(?:end|else|elsif|exception)\b"
    refusals = [
        (f["name"], text)
        for f in functions(db)
        for text in re.findall(rf"raise exception\b(.*?){ends}", f["source"], re.DOTALL)
    ]
    assert len(refusals) == sum(f["source"].count("raise exception") for f in functions(db)) > 40
    # A broken invariant is nobody's mistake to put right: it is reported as such.
    plain = [name for name, text in refusals if not text.startswith(" using")]
    assert plain == ["_end_badly"]
    for name, text in refusals:
        if name != "_end_badly":
            for part in ("errcode = 'TY", "message = ", "hint = "):
                assert part in text, (name, text)


def test_every_code_is_documented_and_every_documented_code_is_used() -> None:
    used = set(re.findall(r"errcode = '(\w+)'", FUNCTION_SOURCES))
    assert used
    assert {code for code in used if not re.fullmatch(r"TY\d{3}", code)} == set()
    documented = re.findall(r"^\|\s*`(TY\d{3})`\s*\|", (ROOT / "docs/errors.md").read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(used)


def test_every_code_that_a_comment_promises_is_real(db: Connection[DictRow]) -> None:
    used = set(re.findall(r"errcode = '(\w+)'", FUNCTION_SOURCES))
    for row in rows(
        db,
        "select oid::regprocedure::text as name, obj_description(oid, 'pg_proc') as comment from pg_proc"
        " where pronamespace = 'taskyard'::regnamespace",
    ):
        assert set(re.findall(r"TY\d{3}", row["comment"] or "")) <= used, row["name"]
