"""What PostgreSQL's own checker says of our functions: `python -m tests.plpgsql_check`, part of `make lint`.

PL/pgSQL is compiled when it is first run, line by line; plpgsql_check does that for all lines at once. It needs
Debian's PostgreSQL 15, since the embedded server has no extensions of others.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from psycopg import Connection
from psycopg.rows import DictRow, dict_row

from taskyard.runner.install import install
from taskyard.runner.postgres import Cluster

BIN = Path("/usr/lib/postgresql/15/bin")
CURE = (
    "plpgsql_check is not here: apt-get install postgresql-15 postgresql-15-plpgsql-check"
    " (apt.postgresql.org has it for every version)."
)

# plpgsql_check_function_tb looks at one trigger function per relation; those of statements read their transition tables.
FUNCTIONS = """
    select p.oid, p.oid::regprocedure::text as signature, coalesce(t.tgrelid, 0) as relation, t.tgnewtable as new_table, t.tgoldtable as old_table
    from pg_proc p
    join pg_language l on l.oid = p.prolang
    left join lateral (
        select distinct tgrelid, tgnewtable, tgoldtable from pg_trigger where tgfoid = p.oid and not tgisinternal
    ) t on true
    where p.pronamespace = 'taskyard'::regnamespace and l.lanname = 'plpgsql'
    order by 2
"""

# Two kinds are left out. Performance: hidden casts of counts and of v_done, and advice to make stable what is
# volatile so that each statement sees what was committed meanwhile. And v_done is never read: it takes the result of
# functions called for their effect, since assigning is a simple expression while PERFORM runs a query (see claim_task).
CHECK = """
    select lineno, statement, level, message, detail, hint
    from plpgsql_check_function_tb(
        %(oid)s::oid::regprocedure, %(relation)s::oid::regclass, newtable => %(new_table)s, oldtable => %(old_table)s,
        fatal_errors => false, other_warnings => true, extra_warnings => true, performance_warnings => false,
        security_warnings => true
    )
    where message <> 'never read variable "v_done"'
"""


@contextmanager
def server() -> Generator[Cluster]:
    """Debian's 15 in a folder that is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="ty-"))
    home.chmod(0o755)
    before = os.environ.get("TASKYARD_PG_BIN")
    os.environ["TASKYARD_PG_BIN"] = str(BIN)
    cluster = Cluster(home)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop("immediate")
        shutil.rmtree(home, ignore_errors=True)
        if before is None:
            del os.environ["TASKYARD_PG_BIN"]
        else:
            os.environ["TASKYARD_PG_BIN"] = before


def findings(admin: Connection[DictRow]) -> tuple[int, list[str]]:
    """How many functions there are, and one line per finding."""
    found: list[str] = []
    functions = admin.execute(FUNCTIONS).fetchall()
    for function in functions:
        for row in admin.execute(CHECK, function):
            more = "; ".join(row[part] for part in ("detail", "hint") if row[part])
            where = f"{function['signature']}:{row['lineno'] or 0}"
            found.append(f"{where}: {row['level']}: {row['message']}{f' ({more})' if more else ''}")
    return len({function["oid"] for function in functions}), found


def main() -> int:
    with server() as cluster:
        with Connection[DictRow].connect(cluster.url(), autocommit=True, row_factory=dict_row) as owner:
            install(owner)
        with Connection[DictRow].connect(cluster.url(admin=True), autocommit=True, row_factory=dict_row) as admin:
            admin.execute("create extension plpgsql_check")
            admin.execute("set search_path = taskyard, public")
            count, found = findings(admin)
    for line in found:
        print(line)
    print(f"plpgsql_check: {count} functions checked, {len(found) or 'no'} findings")
    return 1 if found or not count else 0


if __name__ == "__main__":
    if any(BIN.parent.glob("lib/plpgsql_check.so")):
        sys.exit(main())
    print(CURE)
    sys.exit(1 if os.environ.get("CI") else 0)
