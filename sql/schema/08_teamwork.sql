-- What agents leave for each other, and what they wait for.

create table waits (
    task_id bigint primary key references tasks (id) on delete cascade,
    attempt_id bigint not null,
    tasks bigint[] not null,
    for_mail boolean not null,
    until timestamptz not null,
    asked_at timestamptz not null,
    over_at timestamptz
);
create index waits_until on waits (until) where over_at is null;
comment on table waits is 'Tasks that wait for others, or for mail, without a slot: the last time that each did. Those that have not ended yet are in task_dependencies.';
comment on column waits.tasks is 'All that it waits for, in the order in which it named them.';
comment on column waits.until is 'Past it the task goes on, whatever came.';
comment on column waits.over_at is 'When what it waited for had come; null: it waits.';

create table child_counts (
    task_id bigint primary key references tasks (id) on delete cascade,
    children integer not null,
    minute timestamptz not null,
    in_minute integer not null
) with (fillfactor = 50);
comment on table child_counts is 'How many children a task has had so far, and how many its agent created within the current minute. Counted here, since counting rows for each new one would take ever longer.';

create table checkpoints (
    task_id bigint not null references tasks (id) on delete cascade,
    attempt_id bigint not null,
    version integer not null,
    status text not null,
    progress real not null,
    data jsonb not null,
    conversation jsonb not null,
    created_at timestamptz not null,
    constraint checkpoints_pkey primary key (task_id, attempt_id, version),
    constraint checkpoints_progress_is_a_share check (progress between 0 and 1)
);
comment on table checkpoints is 'State that agents saved, by attempt and version; a later attempt goes on from the last one. As JSON: select export_checkpoint(task).';
comment on column checkpoints.attempt_id is 'The attempt that saved it; 0: imported.';
comment on column checkpoints.status is 'In the agent''s own words.';
comment on column checkpoints.progress is 'From 0 to 1.';
comment on column checkpoints.data is 'Whatever the agent needs to go on; an object.';
comment on column checkpoints.conversation is 'What was said so far, as far as the agent kept it; an array.';

create table handoffs (
    id bigint generated always as identity primary key,
    task_id bigint not null references tasks (id) on delete cascade,
    attempt_id bigint not null,
    to_task bigint,
    source text not null,
    target text not null,
    reason text not null,
    context_summary text,
    summary_by text,
    summary_task bigint,
    pending_actions text[] not null,
    artifacts text[] not null,
    created_at timestamptz not null,
    constraint handoffs_reason_is_known check (reason in ('specialization', 'timeout', 'escalation', 'limit')),
    constraint handoffs_summary_by_is_known check (summary_by in ('agent', 'model', 'rule'))
);
create index handoffs_task on handoffs (task_id);
create unique index handoffs_to_task on handoffs (to_task) where to_task is not null;
create index handoffs_summary_task on handoffs (summary_task) where summary_task is not null;
comment on table handoffs is 'Packets by which one agent hands its task to another. As JSON: select export_handoff(id).';
comment on column handoffs.attempt_id is 'The attempt that handed over; 0: imported.';
comment on column handoffs.to_task is 'The task that goes on with it; null: the attempt has not ended yet.';
comment on column handoffs.source is 'The agent that hands over.';
comment on column handoffs.target is 'The agent that goes on.';
comment on column handoffs.reason is 'specialization, timeout, escalation or limit.';
comment on column handoffs.summary_by is 'Who wrote the summary: the leaving agent, the orchestrator model, or a rule from the transcript; null: nobody yet.';
comment on column handoffs.summary_task is 'The task that has the orchestrator model write the summary.';
comment on column handoffs.artifacts is 'Paths of artifacts that the next agent should look at.';

create table verifications (
    attempt_id bigint primary key,
    task_id bigint not null references tasks (id) on delete cascade,
    command text not null,
    passed boolean not null,
    exit_code integer,
    output_tail text not null,
    duration interval not null,
    commit_id text,
    verified_at timestamptz not null
);
create index verifications_task on verifications (task_id);
comment on table verifications is 'What the command that proves the work said, once per attempt whose agent said that it was done.';
comment on column verifications.exit_code is 'Null where it was stopped, by its time limit for example.';
comment on column verifications.output_tail is 'The end of what it printed, at most 20,000 characters.';
comment on column verifications.commit_id is 'The commit that was verified, where the task works in a git repository.';

create table rejected_submissions (
    msg_id bigint primary key,
    rejected_at timestamptz not null,
    login text,
    message jsonb,
    error text not null
);
comment on table rejected_submissions is 'Messages of the pgmq queue inbox that are no tasks, and why; the messages themselves are in pgmq.a_inbox too.';
