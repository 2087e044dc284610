-- How long things stay.
create table retention (
    what text primary key,
    keep interval,
    archive boolean not null default false,
    looked_at timestamptz not null default '-infinity',
    looked_on date not null default '-infinity',
    constraint retention_what_is_known check (what in ('completed', 'failed', 'cancelled', 'archive', 'transcript', 'events')),
    constraint retention_keep_is_a_day_or_more check (keep >= interval '1 day'),
    constraint retention_archives_tasks check (not archive or what in ('completed', 'failed', 'cancelled'))
);
comment on table retention is 'How long things stay; tick() sees to it, a little at a time. update retention set keep = ''1 year'' where what = ''completed'';';
comment on column retention.what is 'Tasks that ended as completed, failed or cancelled, with all that belongs to them; archive: archived_tasks; transcript and events (task_events), which go by the week.';
comment on column retention.keep is 'From their end on; null: for ever.';
comment on column retention.archive is 'Tasks: one row of each, with its result and a line for each attempt, goes to archived_tasks. Else they are gone.';
comment on column retention.looked_at is 'Tasks that ended before were looked at today.';

create table archived_tasks (
    archived_at timestamptz not null,
    id bigint not null,
    prompt text not null,
    agent text not null,
    scope text not null,
    status task_status not null,
    priority integer not null,
    parent_id bigint,
    payload jsonb,
    result jsonb,
    error text,
    created_by text not null,
    created_at timestamptz not null,
    started_at timestamptz,
    finished_at timestamptz not null,
    attempts jsonb not null,
    constraint archived_tasks_pkey primary key (id, archived_at)
) partition by range (archived_at);
create index archived_tasks_finished on archived_tasks (finished_at);
comment on table archived_tasks is 'Tasks that ended long ago, in monthly partitions by the time at which they were put here; see retention.';
comment on column archived_tasks.attempts is 'Of each attempt: number, provider, model, outcome, started_at, finished_at, input_tokens, output_tokens, cost_usd.';
