-- Tasks that come by themselves.
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
