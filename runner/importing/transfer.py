"""Carrying rows over: pgloader brings them into a staging schema, one transaction from there into `tasks`."""

import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from ..connection import Yard, value
from ..errors import TaskyardError
from .mapping import Task

STAGING = "taskyard_import"
LOCK = "select pg_advisory_xact_lock(742199, 5)"
TIMEOUT = 3600.0  # seconds for pgloader
COLUMNS = (
    "n", "source_id", "prompt", "status", "agent", "priority", "run_at", "created_at", "started_at", "finished_at",
    "workspace", "depends_on", "parent", "result", "error", "max_attempts", "timeout", "payload",
)  # fmt: skip
CURE = "Install it (apt install pgloader, brew install pgloader; others: https://pgloader.io), or go to a host with it."


def find_pgloader() -> str:
    """The pgloader program. Raises TaskyardError where there is none."""
    found = shutil.which("pgloader")
    if found is None:
        raise TaskyardError("The program pgloader is not on this host.", CURE)
    return found


def transfer(yard: Yard, tasks: Sequence[Task], source: str, scope: str) -> int:
    """Bring all of the tasks into the yard, or none; those that came from `source` before are left as they are.

    Returns how many are new. Raises TaskyardError, psycopg.Error.
    """
    program = find_pgloader()
    with tempfile.TemporaryDirectory(prefix="taskyard-import-") as folder:
        _write(Path(folder, "rows.db"), tasks)
        yard.execute(f"drop schema if exists {STAGING} cascade".encode())
        yard.execute(f"create schema {STAGING}".encode())
        try:
            _load(program, yard, Path(folder))
            return _insert(yard, len(tasks), source, scope)
        finally:
            yard.execute(f"drop schema if exists {STAGING} cascade".encode())


def _write(path: Path, tasks: Sequence[Task]) -> None:
    """The rows as texts, which no cast of pgloader can misread."""
    with sqlite3.connect(path) as copy:
        copy.execute(f"create table tasks ({', '.join(f'{name} text' for name in COLUMNS)})")
        copy.executemany(
            f"insert into tasks values ({', '.join('?' * len(COLUMNS))})",
            ([_as_text(part) for part in (n, task.id, *_parts(task))] for n, task in enumerate(tasks)),
        )
    copy.close()


def _parts(task: Task) -> list[object]:
    named = {name: getattr(task, name) for name in COLUMNS[2:]}
    for name in ("depends_on", "result", "payload"):
        named[name] = None if named[name] is None else json.dumps(named[name], ensure_ascii=False)
    return list(named.values())


def _as_text(part: object) -> str | None:
    return None if part is None else str(part)


def _load(program: str, yard: Yard, folder: Path) -> None:
    info = yard.info
    host = f"unix:{info.host}" if info.host.startswith("/") else info.host
    user, database = quote(info.user, safe=""), quote(info.dbname, safe="")
    (folder / "tasks.load").write_text(
        f"""
load database
    from sqlite://{folder}/rows.db
    into postgresql://{user}@{host}:{info.port}/{database}{"?sslmode=require" if yard.pgconn.ssl_in_use else ""}
    with create tables, create no indexes, no foreign keys, reset no sequences
    set search_path to '{STAGING}';
"""
    )
    done = subprocess.run(
        [
            program,
            "--on-error-stop",
            "--no-ssl-cert-verification",
            "--root-dir",
            str(folder),
            str(folder / "tasks.load"),
        ],
        env={**os.environ, "PGPASSWORD": info.password},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
    )
    if done.returncode != 0:
        said = [line for line in done.stdout.splitlines() if line.strip()]
        raise TaskyardError("pgloader failed, so nothing was imported.", "\n".join(said[-5:]))


def _insert(yard: Yard, expected: int, source: str, scope: str) -> int:
    with yard.transaction():
        yard.execute(LOCK)
        staged = value(yard, "select count(*) from taskyard_import.tasks")
        if staged != expected:
            raise TaskyardError(
                f"pgloader brought {staged:,} of {expected:,} rows, so nothing was imported.", "Try again."
            )
        yard.execute("set local taskyard.importing = 'on'")
        yard.execute("alter table taskyard_import.tasks add key text, add id bigint")
        yard.execute("update taskyard_import.tasks set key = left('sqlite ' || %s || ' ' || source_id, 200)", [source])
        yard.execute("analyze taskyard_import.tasks")
        # What retention has put away since it came is not brought again.
        yard.execute(
            """
            delete from taskyard_import.tasks s
            using taskyard.archived_tasks a where a.payload #>> '{imported,key}' = s.key
            """
        )
        new = value(
            yard,
            """
            with new as (
                insert into taskyard.tasks (
                    prompt, agent, scope, status, priority, run_at, created_at, started_at, finished_at, workspace,
                    result, error, max_attempts, timeout, dedupe_key, payload
                )
                select s.prompt, s.agent, %s, s.status::taskyard.task_status, s.priority::integer,
                    s.run_at::timestamptz, coalesce(s.created_at::timestamptz, now()), s.started_at::timestamptz,
                    case when s.status in ('completed', 'failed', 'cancelled')
                        then coalesce(s.finished_at::timestamptz, now()) end,
                    s.workspace, s.result::jsonb, s.error, s.max_attempts::integer,
                    make_interval(secs => s.timeout::double precision),
                    s.key, jsonb_set(p.payload, '{imported,key}', to_jsonb(s.key))
                from taskyard_import.tasks s
                cross join lateral (
                    select case
                        when s.payload::jsonb ? 'imported' then s.payload::jsonb
                        when jsonb_typeof(s.payload::jsonb) = 'object' then s.payload::jsonb || '{"imported": {}}'
                        when s.payload is null then '{"imported": {}}'::jsonb
                        else jsonb_build_object('payload', s.payload::jsonb, 'imported', '{}'::jsonb)
                    end as payload
                ) p
                where not exists (select from taskyard.tasks t where t.dedupe_key = s.key)
                order by s.n::bigint
                returning 1
            )
            select count(*) from new
            """,
            scope,
        )
        yard.execute("update taskyard_import.tasks s set id = t.id from taskyard.tasks t where t.dedupe_key = s.key")
        yard.execute("create index on taskyard_import.tasks (source_id)")
        yard.execute(
            """
            update taskyard.tasks t set parent_id = p.id
            from taskyard_import.tasks s join taskyard_import.tasks p on p.source_id = s.parent
            where t.id = s.id and t.parent_id is null and p.id <> s.id
            """
        )
        yard.execute(
            """
            update taskyard.tasks t set depends_on = d.ids
            from (
                select s.id, array_agg(p.id order by p.id) as ids
                from taskyard_import.tasks s
                cross join lateral jsonb_array_elements_text(s.depends_on::jsonb) n (source_id)
                join taskyard_import.tasks p on p.source_id = n.source_id
                where s.status = 'queued' and s.depends_on <> '[]'
                group by s.id
            ) d
            where t.id = d.id and t.depends_on = '{}' and t.finished_at is null and t.attempt_count = 0
            """
        )
    return new
