create type attempt_outcome as enum (
    'completed', 'failed', 'rate_limited', 'quota_exhausted', 'overloaded', 'unauthenticated', 'network', 'context_overflow',
    'session_lost', 'permission_denied', 'turn_limit', 'timed_out', 'stalled', 'crashed', 'verify_failed', 'cancelled',
    'waiting', 'handed_off', 'unknown'
);

create table attempts (
    id bigint primary key,
    -- No foreign keys: each would cost a look-up and a row lock per claim. Only verbs write here, and a task takes its attempts along.
    task_id bigint not null,
    number integer not null,
    runner_id bigint not null,
    scope text not null,
    agent text not null,
    provider text not null,
    account text not null,
    model text,
    session_id text,
    lease_until timestamptz not null,
    progress_at timestamptz,
    outcome attempt_outcome,
    counted boolean,
    exit_code integer,
    evidence text,
    input_tokens bigint,
    cached_tokens bigint,
    output_tokens bigint,
    turns integer,
    cost_usd numeric(12, 6),
    started_at timestamptz not null,
    finished_at timestamptz,
    cost_estimated boolean not null default false,
    canary boolean not null default false,
    scope_version bigint not null default 0,
    sandbox text,
    verify text,
    branch text,
    commit_id text,
    progress real,
    doing text,
    constraint attempts_end_together check ((outcome is null) = (finished_at is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
create index attempts_task on attempts (task_id);
-- One index for all that is asked about running attempts: each further one costs every claim an insertion, and what runs is few.
create index attempts_live on attempts (scope, agent, runner_id) where outcome is null;
comment on table attempts is 'Claims of tasks. A row ends once and is never overwritten by a later attempt.';
comment on column attempts.id is 'Fencing token: every write by the worker carries it, and only the live one is accepted.';
comment on column attempts.number is 'First, second, ... claim of the task.';
comment on column attempts.lease_until is 'Renewed by the runner''s heartbeat; past it the task is taken back.';
comment on column attempts.progress_at is 'Last output seen.';
comment on column attempts.outcome is 'How it ended (see outcome_policies); null while it runs.';
comment on column attempts.counted is 'Whether it used up one of max_attempts.';
comment on column attempts.evidence is 'What the outcome was read from, verbatim.';
comment on column attempts.model is 'Asked for; once the tool has said so, the one really used.';
comment on column attempts.session_id is 'The tool''s own session, which a later attempt on the same host can resume.';
comment on column attempts.input_tokens is 'All that were read, those from a cache included; null where the tool does not say.';
comment on column attempts.cached_tokens is 'Those of input_tokens that came from a cache.';
comment on column attempts.turns is 'Answers of the model.';
comment on column attempts.cost_usd is 'As reported by the tool, else by your own table prices; null where neither says.';
comment on column attempts.cost_estimated is 'cost_usd comes from the table prices.';
comment on column attempts.canary is 'The first try of an account after a limit.';
comment on column attempts.scope_version is 'The version of its scope (effective_scopes) whose permissions it was given.';
comment on column attempts.sandbox is 'How it was confined: strict, container, or none: as free as the runner''s own user.';
comment on column attempts.verify is 'The command that has to succeed before it counts as completed, as it was when the task was claimed.';
comment on column attempts.branch is 'The branch of the task''s repository that holds its work.';
comment on column attempts.commit_id is 'The last commit of its work.';
comment on column attempts.progress is 'From 0 to 1, as the agent said.';
comment on column attempts.doing is 'What the agent said that it is doing.';

create table transcript (
    attempt_id bigint not null,
    seq integer not null,
    at timestamptz not null default now(),
    kind text not null,
    body text not null,
    data jsonb,
    constraint transcript_pkey primary key (attempt_id, seq)
) partition by range (attempt_id);
comment on table transcript is 'What the agents said and did, one row per event, in weekly partitions by the start of the attempt.';
comment on column transcript.kind is 'text (the agent''s own words), thinking, tool_call, tool_result, usage, error, note, or output (of a plain command).';

create table task_events (
    at timestamptz not null default clock_timestamp(),
    task_id bigint,
    attempt_id bigint,
    kind text not null,
    actor text not null,
    detail jsonb
) partition by range (at);
create index task_events_task on task_events (task_id, at);
comment on table task_events is 'Append-only audit of what people and the yard decided. Claims and endings are in attempts and are not repeated here.';

create table ticker (
    only_row boolean primary key default true,
    runner_id bigint,
    until timestamptz not null default '-infinity',
    ticked_at timestamptz not null default '-infinity',
    blind_until timestamptz not null default '-infinity',
    constraint ticker_has_one_row check (only_row)
) with (fillfactor = 10);
insert into ticker default values;
comment on table ticker is 'Which runner calls tick() at present, and when it last did.';
comment on column ticker.blind_until is 'After a gap without any tick nobody is given up before then: hosts that went on working get time to report.';

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
