-- Schedules, and how long things stay.

create table schedules (
    name text primary key,
    cron text,
    every interval,
    at timestamptz,
    timezone text not null,
    scope text not null default 'default' references scopes (name) on update restrict on delete restrict,
    template text references templates (name) on update cascade on delete restrict,
    variables jsonb not null default '{}',
    task jsonb not null default '{}',
    missed text not null default 'once',
    overlap text not null default 'skip',
    enabled boolean not null default true,
    created_by text not null default '',
    created_at timestamptz not null default now(),
    next_at timestamptz,
    last_at timestamptz,
    last_task_id bigint,
    last_note text,
    constraint schedules_name_is_simple check (name ~ '^[[:alnum:]_][[:alnum:]_./-]{0,62}$'),
    constraint schedules_missed_is_known check (missed in ('once', 'all', 'skip')),
    constraint schedules_overlap_is_known check (overlap in ('skip', 'replace', 'allow'))
);
create index schedules_due on schedules (next_at) where next_at is not null;
create index schedules_scope on schedules (scope);
create index schedules_template on schedules (template);
comment on table schedules is
'Tasks that come by themselves: insert into schedules (name, cron, task) values (''nightly'', ''0 3 * * *'', ''{"prompt": "..."}''); the view timetable shows them.';
comment on column schedules.cron is 'Five fields (minute, hour, day, month, weekday) or @hourly, @daily, @weekly, @monthly, @yearly; or null with every or at.';
comment on column schedules.every is 'Instead of a cron line: an interval of a minute or more. Days and months are those of the time zone.';
comment on column schedules.at is 'Alone: once, then. With every: the first time; without, that is one interval from now.';
comment on column schedules.timezone is 'In which the cron line is meant, like Europe/Berlin; null: that of the session.';
comment on column schedules.scope is 'Where the tasks go; who writes the schedule has to work there.';
comment on column schedules.template is 'The template that the tasks are made from (templates.name).';
comment on column schedules.variables is 'Values for its variables. Filled in by itself where they are wanted: {{schedule}}, {{date}} and {{time}}, in the time zone of the schedule.';
comment on column schedules.task is 'Columns of the table tasks; they overrule those of the template. Without a template at least a prompt.';
comment on column schedules.missed is 'What becomes of times at which nobody was there: once, the last of them runs late; all of them run; skip, none that is more than a minute late.';
comment on column schedules.overlap is 'When the time has come and the last task is not over: skip this time, replace the task (it is cancelled), or allow both.';
comment on column schedules.next_at is 'Worked out by itself; null: never again, or not enabled.';
comment on column schedules.last_at is 'The time that the last task was meant for.';
comment on column schedules.last_note is 'What was left out the last time, and why.';

create type _cron as (
    minutes integer array,
    hours integer array,
    days integer array,
    months integer array,
    weekdays integer array
);
comment on type _cron is 'A cron line, read: the sorted numbers of each field. A field is free where it has all.';

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

insert into retention (what, keep, archive) values
('completed', '60 days', true),
('cancelled', '60 days', true),
('failed', '120 days', true),
('archive', '2 years', false),
('transcript', '90 days', false),
('events', '180 days', false);

-- What is counted for monitoring.
create table counters (
    name text not null,
    labels jsonb not null,
    value numeric not null,
    constraint counters_pkey primary key (name, labels)
) with (fillfactor = 70);
comment on table counters is 'Sums over all attempts that ever ended, for the view metrics: tick() adds to them once a minute, and what retention deletes stays counted.';

create table counted (
    only_row boolean primary key default true,
    until timestamptz not null default '-infinity',
    newest bigint not null default 0,
    pending bigint[] not null default '{}',
    constraint counted_has_one_row check (only_row)
) with (fillfactor = 50);
insert into counted default values;
comment on table counted is 'Up to which end of attempts the counters go.';
comment on column counted.newest is 'The highest attempts.id then: what ended since is looked for among the younger ones and the pending.';
comment on column counted.pending is 'attempts.id of those that ran then, or had ended too shortly before to be counted.';

-- Which server this database is in, so that it notices when it has become another one.
create table incarnation (
    only_row boolean primary key default true,
    system_identifier bigint,
    database oid,
    timeline text,
    restored_at timestamptz,
    constraint incarnation_has_one_row check (only_row)
);
insert into incarnation default values;
comment on table incarnation is 'The server, database and timeline in which attempts were handed out. Where they are others, this is a restored backup or a copy, and no attempt of before is accepted.';
comment on column incarnation.restored_at is 'When that was last noticed, or said by after_restore().';
