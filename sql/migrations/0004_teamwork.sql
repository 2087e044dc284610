-- Agents that work together: children, waits, checkpoints, handoffs, mail, work trees and proofs.

-- The type grows; all functions are made anew after the migrations.
drop type claim cascade;
drop type lane_choice cascade;
drop function if exists cancel_task(bigint, text);
drop function if exists submit_task(
    text, text, text, integer, timestamptz, bigint[], jsonb, text, text[], text, text, text, integer, interval, bigint, text, text, text, jsonb
);
drop trigger if exists scopes_after_update on scopes; -- it would call a function that does not know the new column

alter table scopes add column max_spawns_per_minute integer,
add constraint scopes_max_spawns_per_minute_in_range check (max_spawns_per_minute >= 0);
comment on column scopes.max_spawns_per_minute is 'How many children an agent may create in one minute; null: no limit.';
alter table effective_scopes add column max_spawns_per_minute integer;
update scopes set max_depth = coalesce(max_depth, 10), max_spawns_per_minute = 60 where name = 'default';

alter table tasks
add column repository text,
add column base text,
add column push_to text,
add column handoff_id bigint,
add column lent_priority integer,
add column has_mail boolean not null default false,
add column stays_on text,
add column stays_until timestamptz;
comment on column tasks.repository is 'A git repository, a directory on the runner''s host: the task works in a work tree and on a branch of its own, taskyard/<task>-<attempt>. Instead of a workspace.';
comment on column tasks.base is 'The branch, tag or commit of the repository to start from; null: what is checked out there.';
comment on column tasks.push_to is 'A remote of the repository that gets the branch when the work has ended well.';
comment on column tasks.handoff_id is 'The packet that it was created with, by handoff_task().';
comment on column tasks.lent_priority is 'The priority of those who wait for it, where it is higher than its own.';
comment on column tasks.has_mail is 'Something in its mailbox has not been read.';
comment on column tasks.stays_on is 'The host where its session or its files are: for two minutes after it is queued only that one takes it.';
comment on column tasks.stays_until is 'When others may take it.';

alter table attempts
add column verify text,
add column branch text,
add column commit_id text,
add column progress real,
add column doing text;
comment on column attempts.verify is 'The command that has to succeed before it counts as completed, as it was when the task was claimed.';
comment on column attempts.branch is 'The branch of the task''s repository that holds its work.';
comment on column attempts.commit_id is 'The last commit of its work.';
comment on column attempts.progress is 'From 0 to 1, as the agent said.';
comment on column attempts.doing is 'What the agent said that it is doing.';

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

create type claim as (
    attempt_id bigint,
    task_id bigint,
    number integer,
    prompt text,
    payload jsonb,
    agent text,
    scope text,
    provider text,
    account text,
    model text,
    adapter text,
    settings jsonb,
    command text [],
    result_format text,
    system_prompt text,
    tools text [],
    max_turns integer,
    output_schema jsonb,
    permissions text [],
    workspace text,
    verify text,
    timeout interval,
    first_output_timeout interval,
    idle_timeout interval,
    session_id text,
    session_usage jsonb,
    note text,
    lease_until timestamptz,
    allowed_paths text [],
    network_allow text [],
    repository text,
    base text,
    push_to text,
    files_of bigint,
    branch text
);
comment on type claim is 'Everything that a runner needs for one attempt.';

create type lane_choice as (
    lane_id integer,
    exclusive boolean,
    returned boolean,
    share double precision,
    scope text,
    agent text,
    limited text [],
    budgeted text [],
    agent_max integer,
    provider text,
    account text,
    model text,
    canary boolean,
    capped boolean,
    adapter text,
    settings jsonb,
    command text [],
    result_format text,
    system_prompt text,
    tools text [],
    max_turns integer,
    output_schema jsonb,
    permissions text [],
    verify text,
    timeout interval,
    first_output_timeout interval,
    idle_timeout interval,
    allowed_paths text [],
    network_allow text [],
    scope_version bigint,
    sandbox text
);
comment on type lane_choice is 'A lane to claim from, with all of its agent and provider that a claim hands out.';

insert into child_counts (task_id, children, minute, in_minute)
select parent_id, count(*), '-infinity', 0 from tasks where parent_id is not null group by parent_id;
update outcome_policies set status = 'waiting', meaning = 'another agent goes on, and the task ends as that one does' where outcome = 'handed_off';
insert into agents (name, description, route, command, system_prompt, timeout, output_schema) values
(
    'summary', 'Sums up work so far for whoever takes it over; used by handoffs.', '{local:orchestrator}', null,
    'Sum up the work on a task for the agent who takes it over: what was done, what was found, what is left. At most 300 words.', '1 minute',
    '{"type": "object", "additionalProperties": false, "required": ["summary"], "properties": {"summary": {"type": "string"}}}'
)
on conflict (name) do nothing;

-- Runners that go on from before know no proofs, waits and handovers: they register anew, and are told why not.
update runners set sandbox = null where gone_at is null;
