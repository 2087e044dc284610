-- In the order of a task's life; from completed on it is over.
create type task_status as enum ('blocked', 'scheduled', 'queued', 'running', 'waiting', 'completed', 'failed', 'cancelled');

-- Enums and one short check: PostgreSQL reads the stored form of check constraints anew for every statement, and a list of
-- eight words in one costs a claim more than its index look-ups. Ranges are checked by the row trigger (_check_task).
create table tasks (
    id bigint generated always as identity primary key,
    prompt text not null,
    agent text not null default 'default',
    scope text not null default 'default',
    status task_status not null default 'queued',
    priority integer not null default 0,
    run_at timestamptz,
    parent_id bigint references tasks (id) on delete set null,
    depends_on bigint[] not null default '{}',
    on_dependency_failure text not null default 'fail',
    payload jsonb,
    workspace text,
    verify text,
    requires text[] not null default '{}',
    provider text,
    model text,
    on_limit text not null default 'switch',
    dedupe_key text,
    max_attempts integer,
    timeout interval,
    result jsonb,
    error text,
    created_by text not null default '',
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz,
    attempt_id bigint,
    attempt_count integer not null default 0,
    failure_count integer not null default 0,
    failed_dependency bigint,
    cancel_requested_at timestamptz,
    cancel_reason text,
    lane_id integer,
    queue_position bigint,
    output_schema jsonb,
    routed_by text,
    repository text,
    base text,
    push_to text,
    handoff_id bigint,
    lent_priority integer,
    has_mail boolean not null default false,
    stays_on text,
    stays_until timestamptz,
    constraint tasks_attempt_while_running_and_end_when_over
    check ((status = 'running') = (attempt_id is not null) and (status >= 'completed') = (finished_at is not null))
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);
create unique index tasks_dedupe_key_is_unique on tasks (dedupe_key) where dedupe_key is not null;
create index tasks_parent on tasks (parent_id) where parent_id is not null;
create index tasks_failed_dependency on tasks (failed_dependency) where failed_dependency is not null;
create index tasks_finished on tasks (finished_at) where finished_at is not null;
comment on table tasks is 'The yard. insert into tasks (prompt) values (''...'') is all it takes; explain_task(id) says why one is not running.';
comment on column tasks.prompt is 'What to do; at most 4 MiB.';
comment on column tasks.agent is 'Which kind of worker (agents.name).';
comment on column tasks.scope is 'Project or team (scopes.name).';
comment on column tasks.status is 'blocked (dependencies), scheduled (run_at, backoff), queued, running, waiting (a human, children), completed, failed, cancelled.';
comment on column tasks.priority is 'Higher runs first; -1000 to 1000.';
comment on column tasks.run_at is 'Not before; moved by the backoff between attempts.';
comment on column tasks.depends_on is 'Ids of tasks that must complete first; at most 1,000.';
comment on column tasks.on_dependency_failure is 'fail: this task fails too. run: it runs all the same.';
comment on column tasks.payload is 'Free for the submitter; handed to the agent as it is.';
comment on column tasks.workspace is 'Directory on the runner''s host; never used by two running tasks at once.';
comment on column tasks.verify is 'Command that proves the work done.';
comment on column tasks.requires is 'Labels that a runner must have.';
comment on column tasks.provider is 'Pin: only this provider, whatever the agent''s route says.';
comment on column tasks.on_limit is 'When a provider hits its limit: switch, wait, or "switch after <interval>".';
comment on column tasks.dedupe_key is 'Unique as long as the row lives: a second insert with the same key is refused, submit_task() returns the first.';
comment on column tasks.max_attempts is 'Counted attempts before it fails for good; null: the agent''s default.';
comment on column tasks.timeout is 'Wall clock of one attempt; null: the agent''s default.';
comment on column tasks.output_schema is 'JSON schema that the result has to fit; null: the agent''s.';
comment on column tasks.routed_by is 'Who chose the agent of a task that was inserted for agent auto: a rule, a model, or the default.';
comment on column tasks.repository is 'A git repository, a directory on the runner''s host: the task works in a work tree and on a branch of its own, taskyard/<task>-<attempt>. Instead of a workspace.';
comment on column tasks.base is 'The branch, tag or commit of the repository to start from; null: what is checked out there.';
comment on column tasks.push_to is 'A remote of the repository that gets the branch when the work has ended well.';
comment on column tasks.handoff_id is 'The packet that it was created with, by handoff_task().';
comment on column tasks.lent_priority is 'The priority of those who wait for it, where it is higher than its own.';
comment on column tasks.has_mail is 'Something in its mailbox has not been read.';
comment on column tasks.stays_on is 'The host where its session or its files are: for two minutes after it is queued only that one takes it.';
comment on column tasks.stays_until is 'When others may take it.';
comment on column tasks.result is 'What the agent gave back; plain text is a JSON string: result #>> ''{}''.';
comment on column tasks.error is 'Why it is not completed, in one sentence.';
comment on column tasks.attempt_id is 'The live attempt while running.';
comment on column tasks.attempt_count is 'Claims so far.';
comment on column tasks.failure_count is 'Claims so far that counted against max_attempts.';
comment on column tasks.failed_dependency is 'The dependency whose end failed this task.';
comment on column tasks.cancel_requested_at is 'Set by cancel_task() on a running task; the runner stops it.';
comment on column tasks.lane_id is 'Where its claim-index row is filed, with queue_position.';

create table lanes (
    id integer generated always as identity primary key,
    priority integer not null,
    returned boolean not null,
    scope text not null references scopes (name) on update restrict on delete restrict,
    agent text not null references agents (name) on update restrict on delete restrict,
    requires text[] not null,
    provider text references providers (name) on update restrict on delete restrict,
    model text,
    exclusive boolean not null,
    -- A fixed scatter of the ids (multiplication by an odd number modulo 2^32 maps one to one): claims start at a random
    -- point of this ring, so a bounded window of candidate lanes is a fair sample however many are open.
    spin integer not null generated always as
    (((id::bigint * 2654435761) % 4294967296 - 2147483648)::integer) stored,
    on_limit text not null default 'switch'
);
-- Deliberately not unique: a unique index would make every producer wait for another's open transaction that uses a new
-- combination first. Two lanes with the same combination do no harm.
create index lanes_combination on lanes (scope, agent, priority, returned, provider, model, on_limit);
create index lanes_agent on lanes (agent);
create index lanes_provider on lanes (provider);
comment on table lanes is 'Combinations that tasks come in. Eligibility is decided once per lane and claim, never per task.';
comment on column lanes.returned is 'Holds tasks that come back after an attempt; served before new ones of the same scope.';
comment on column lanes.exclusive is 'Its tasks name a workspace.';

create table open_lanes (
    lane_id integer not null references lanes (id) on delete cascade,
    priority integer not null,
    spin integer not null
);
create index open_lanes_ring on open_lanes (priority desc, spin, lane_id);
create index open_lanes_lane on open_lanes (lane_id);
comment on table open_lanes is
'Lanes that may hold claimable tasks. Producers insert without looking for others'' uncommitted rows (nobody waits), tick() removes the empty ones and the doubles, and adds any that was missed.';

create table ready_tasks (
    lane_id integer not null,
    position bigint not null,
    task_id bigint not null,
    constraint ready_tasks_pkey primary key (lane_id, position)
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000, autovacuum_analyze_threshold = 100000);
create sequence queue_positions as bigint cache 1;
comment on table ready_tasks is 'The claim index: one row per queued task that nothing holds back.';

create table scheduled_tasks (
    run_at timestamptz not null,
    task_id bigint not null,
    constraint scheduled_tasks_pkey primary key (run_at, task_id)
);
comment on table scheduled_tasks is 'Tasks that wait for a time; tick() queues those whose time has come.';

create table task_dependencies (
    depends_on bigint not null,
    task_id bigint not null,
    constraint task_dependencies_pkey primary key (depends_on, task_id)
);
create index task_dependencies_task on task_dependencies (task_id);
comment on table task_dependencies is 'Unfinished dependencies of blocked tasks; a row goes when its dependency ends. The full list is tasks.depends_on.';

create table workspace_holders (
    workspace text primary key,
    task_id bigint not null
);
comment on table workspace_holders is 'Which running task has a directory to itself.';

create table workspace_waits (
    workspace text not null,
    priority integer not null,
    task_id bigint not null,
    constraint workspace_waits_pkey primary key (workspace, priority, task_id)
);
create index workspace_waits_task on workspace_waits (task_id);
comment on table workspace_waits is 'Queued tasks that stepped aside because their directory is in use; the best one returns when it is free.';
