-- taskyard: a yard for AI agent work. The map:
--
--   tasks             what people insert and read; one row per piece of work, with its status
--   attempts          one row per claim of a task; its id is the fencing token of everything that worker writes
--   lanes             the combinations (priority, scope, agent, labels, pin) that tasks come in; never updated
--   open_lanes        the lanes that may hold claimable tasks right now
--   ready_tasks       the claim index: one narrow row per queued task, by lane and position
--   scheduled_tasks   one narrow row per task that waits for a time
--   task_dependencies one narrow row per unfinished dependency of a blocked task
--   workspace_holders, workspace_waits   who has a directory, and who waits for it
--   runners, runner_providers            the hosts, and what each can run
--   agents, scopes, providers, provider_limits, outcome_policies   what decides which attempt goes where
--   effective_scopes  what holds in each scope, with all above it; budgets, usage_daily  what it may spend and has spent
--   scope_grants      who works in which scopes; approvals  what a human was asked
--   artifacts         files that attempts left
--   transcript, task_events              what happened, append-only
--   templates                            tasks to begin from
--   push_targets, pushes                 where news goes, and the outbox of what is sent there
--   schedules         tasks that come by themselves
--   counters          sums over all that ended, for the numbers of metrics()
--   incarnation       which server and database this is, to notice a restored backup
--   retention         how long things stay; archived_tasks  what is left of tasks after that
--
-- One narrow table per reason to wait keeps tasks itself free of indexes on anything that changes while a task runs:
-- a claim deletes one 48-byte row, updates the task in place (HOT) and inserts an attempt; waiting tasks cost nothing.

grant usage on schema taskyard to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

-- No function is executable by PUBLIC; each verb's own file names who may call it.
alter default privileges for role taskyard_owner revoke execute on functions from public;

create or replace function _now() returns timestamptz
language sql stable
as $$ select now() $$;
comment on function _now() is
'The clock. Every rule about time reads it here, so that a test can replace this one function and own the time. Stable and inlined: a volatile clock would make run_at <= _now() unindexable (16.7 ms against 0.02 ms).';

-- Fencing tokens: milliseconds since 2026, times 1,000, plus a counter. The counter alone would not do: after a crash,
-- a restore or a failover to a lagging replica a sequence can step back and hand a stale worker's token to a new one.
-- Stays below 2^53 until the year 2300, so JavaScript clients read it exactly.
create sequence attempt_counter as bigint;

create or replace function _attempt_id(p_at timestamptz, p_counter bigint) returns bigint
language sql stable
as $$ select ((date_part('epoch', p_at) * 1000)::bigint - 1767225600000) * 1000 + p_counter % 1000 $$;
comment on function _attempt_id(timestamptz, bigint) is
'The attempt id that a claim at this instant gets. Ordered by time, so transcript is partitioned by it.';

create table schema_migrations (
    number integer primary key,
    name text not null,
    applied_at timestamptz not null default now(),
    taskyard_version text not null
);
comment on table schema_migrations is 'Which schema this database has: one row per step, the highest number is the current one.';
