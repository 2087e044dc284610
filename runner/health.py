"""What `taskyard doctor` asks of the database. All functions raise psycopg.Error."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg.rows import class_row

from .connection import Yard

ROLES = ("taskyard_viewer", "taskyard_submitter", "taskyard_runner", "taskyard_admin")


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner that is registered; seen is how long ago, trouble why its sandbox cannot be set up."""

    name: str
    slots: int
    busy: int
    draining: bool
    seen: timedelta
    silent: bool
    trouble: str | None


def runners(connection: Yard) -> list[Runner]:
    """The runners that have not left or been given up."""
    with connection.cursor(row_factory=class_row(Runner)) as cursor:
        cursor.execute(
            """
            select r.name, r.slots, r.draining, taskyard._now() - r.last_seen as seen,
                (select count(*) from taskyard.attempts a where a.runner_id = r.id and a.outcome is null) as busy,
                r.last_seen < taskyard._now() - least(r.lease, interval '15 seconds') as silent,
                r.sandbox_trouble as trouble
            from taskyard.runners r
            where r.gone_at is null
            order by r.name
            """
        )
        return cursor.fetchall()


def server(connection: Yard) -> dict[str, Any]:
    """What the server says of itself: {number, version, database, login, search_path}.

    search_path is what a new session of this login gets, not what ours was set to.
    """
    row = connection.execute(
        """
        select current_setting('server_version_num')::integer as number, current_setting('server_version') as version,
            current_database() as database, session_user as login, s.reset_val as search_path
        from pg_catalog.pg_settings s where s.name = 'search_path'
        """
    ).fetchone()
    assert row is not None
    return row


def clock(connection: Yard) -> datetime:
    """The real time on the database's host."""
    return _value(connection, "select clock_timestamp()")


def pgmq_version(connection: Yard) -> str | None:
    """The version of pgmq where it is an extension, "installed from SQL" where not; None without it."""
    return _value(
        connection,
        """
        select case when to_regclass('pgmq.meta') is not null
            then coalesce((select extversion from pg_catalog.pg_extension where extname = 'pgmq'), 'installed from SQL')
            end
        """,
    )


def roles(connection: Yard) -> list[str]:
    """Which of the Taskyard roles this login has."""
    rows = connection.execute(
        """
        select r.rolname from pg_catalog.pg_roles r
        where r.rolname = any(%s) and pg_has_role(session_user, r.oid, 'usage')
        """,
        (list(ROLES),),
    )
    held = {row["rolname"] for row in rows}
    return [role for role in ROLES if role in held]


def missing_partitions(connection: Yard) -> list[str]:
    """Names of the partitions for this week and the next that do not exist (see _ensure_partitions)."""
    rows = connection.execute(
        """
        select p.name
        from unnest(array['transcript', 'task_events']) parent (name)
        cross join unnest(array[interval '0', interval '7 days']) ahead (by)
        cross join lateral (
            select parent.name || '_'
                || to_char(date_trunc('week', now() + ahead.by, 'UTC') at time zone 'UTC', 'YYYYMMDD') as name
        ) p
        where to_regclass('taskyard.' || p.name) is null
        order by p.name
        """
    )
    return [row["name"] for row in rows]


def old_transactions(connection: Yard) -> list[dict[str, Any]]:
    """Transactions older than ten minutes that hold back vacuum: {who, what, age}. Others' sessions are seen only by
    members of pg_read_all_stats (see sees_all_sessions)."""
    return connection.execute(
        """
        select format('pid %s of %s', a.pid, coalesce(a.usename, 'the server')) as who,
            coalesce(nullif(a.application_name, ''), a.backend_type) as what, now() - a.xact_start as age
        from pg_catalog.pg_stat_activity a
        where a.backend_xmin is not null and a.xact_start < now() - interval '10 minutes'
            and a.backend_type <> 'autovacuum worker'
        union all
        select format('prepared transaction %s of %s', p.gid, p.owner), p.database, now() - p.prepared
        from pg_catalog.pg_prepared_xacts p
        where p.prepared < now() - interval '10 minutes'
        order by age desc
        """
    ).fetchall()


def providers(connection: Yard) -> list[dict[str, Any]]:
    """The ways to run work: {name, adapter, settings}."""
    return connection.execute("select name, adapter, settings from taskyard.providers order by name").fetchall()


def ready_providers(connection: Yard) -> set[str]:
    """Providers that some runner has ready."""
    rows = connection.execute(
        """
        select distinct rp.provider from taskyard.runner_providers rp
        join taskyard.runners r on r.id = rp.runner_id
        where r.gone_at is null and rp.state = 'ready'
        """
    )
    return {row["provider"] for row in rows}


def sees_all_sessions(connection: Yard) -> bool:
    """Whether this login sees what the sessions of other logins do."""
    return _value(connection, "select pg_has_role(session_user, 'pg_read_all_stats', 'usage')")


def _value(connection: Yard, query: LiteralString) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return next(iter(row.values()))
