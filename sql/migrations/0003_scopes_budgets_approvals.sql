-- Scopes that inherit, budgets, approvals, artifacts, grants of scopes to logins, and runners that confine what they run.

-- These types grow, and so do the arguments of some functions; all functions are made anew after the migrations.
drop type claim cascade;
drop type lane_choice cascade;
drop function if exists register_runner(text, integer, text[], jsonb, text, integer, interval, text);
drop function if exists _offers(bigint, text[], text, text, text);
drop function if exists _room(text, integer, text, integer, boolean);
drop trigger if exists scopes_after_write on scopes;

-- Worked out anew, with more, in effective_scopes.
alter table scopes drop column permissions;
comment on table scopes is 'Projects or teams that tasks belong to: what they may do, and the unit of fairness, limits and pausing. A scope never allows more than those above it; null inherits. What holds in the end: select * from effective_scope(''name'');';
comment on column scopes.may_read is 'Its tasks see the files of their workspace and of allowed_paths.';
comment on column scopes.may_write is 'They may change them.';
comment on column scopes.may_execute is 'They may start programs: a shell, a compiler, tests.';
comment on column scopes.may_network is 'They reach other hosts than the API of their model: those of network_allow.';
comment on column scopes.may_create_child is 'They may have child tasks.';
comment on column scopes.allowed_paths is 'Directories that its tasks see besides a scratch directory; their workspace has to lie in one of them. Null: a workspace may be any directory, and nothing else is seen.';
comment on column scopes.network_allow is 'Hosts that its tasks reach: example.com, or *.example.com for all below it. Null: all public ones.';
comment on column scopes.allowed_agents is 'Agents that its tasks may name; null: all.';
comment on column scopes.allowed_providers is 'Providers that its tasks run on; null: all.';
comment on column scopes.max_concurrency is 'Hard limit of attempts of this scope and all below it running at once in the whole fleet; null: none.';
comment on column scopes.max_depth is 'How many tasks may lie above one of its tasks: 0, it has no children; null: no limit.';
comment on column scopes.max_children is 'How many children one of its tasks may have; null: no limit.';
comment on column scopes.weight is 'Share of the runners when scopes compete: weight 2 runs twice as much as weight 1.';
comment on column scopes.paused_at is 'Set by pause_scope(): nothing of this scope and those below it is claimed until resume_scope().';


create sequence scope_versions as bigint;

create table effective_scopes (
    name text primary key references scopes (name) on update cascade on delete cascade,
    path text[] not null,
    weight integer not null,
    paused text,
    permissions text[] not null,
    allowed_paths text[],
    network_allow text[],
    allowed_agents text[],
    allowed_providers text[],
    max_concurrency integer,
    max_depth integer,
    max_children integer,
    limited text[],
    budgeted text[],
    confined boolean not null,
    version bigint not null,
    narrowed_at bigint not null
);
comment on table effective_scopes is 'What holds in each scope once everything above it is taken into account; kept up to date by triggers of scopes and budgets, so that a claim need not walk the tree.';
comment on column effective_scopes.path is 'The scopes from the root down to this one.';
comment on column effective_scopes.paused is 'The uppermost scope of the path that is paused; null: none.';
comment on column effective_scopes.permissions is 'Of read, write, execute, network and create_child those that hold.';
comment on column effective_scopes.allowed_paths is 'Directories by prefix, none of them below another; null: any.';
comment on column effective_scopes.max_concurrency is 'The smallest of the path; each is kept for its whole subtree.';
comment on column effective_scopes.limited is 'Scopes of the path that have a max_concurrency of their own; null: none.';
comment on column effective_scopes.budgeted is 'Scopes of the path that have a budget; null: none.';
comment on column effective_scopes.confined is 'Something is forbidden that only a sandbox can keep a task from doing.';
comment on column effective_scopes.version is 'Grows with each change.';
comment on column effective_scopes.narrowed_at is 'The version in which permissions, paths or hosts last became fewer: attempts begun before it are given back.';

create table budgets (
    scope text not null references scopes (name) on update restrict on delete cascade,
    measure text not null,
    period text not null,
    amount numeric not null,
    stops_running boolean not null default false,
    extra numeric not null default 0,
    extra_until timestamptz,
    warned_at timestamptz,
    exceeded_at timestamptz,
    constraint budgets_pkey primary key (scope, measure, period),
    constraint budgets_measure_is_known check (measure in ('tokens', 'usd', 'seconds')),
    constraint budgets_period_is_known check (period in ('day', 'month', 'total')),
    constraint budgets_amount_is_not_negative check (amount >= 0 and amount < 1e15),
    constraint budgets_extra_is_not_negative check (extra >= 0)
);
comment on table budgets is 'What a scope and all below it may spend: insert into budgets (scope, measure, period, amount) values (''home'', ''usd'', ''day'', 5); Used up, nothing more of it is claimed. Days and months are those of UTC.';
comment on column budgets.measure is 'tokens (read and written), usd, or seconds (of running attempts, added up).';
comment on column budgets.stops_running is 'Once it is used up, running attempts are given back too; otherwise they go on to their end.';
comment on column budgets.extra is 'What approve() added for the time until extra_until.';
comment on column budgets.warned_at is 'When four fifths were used, last.';
comment on column budgets.exceeded_at is 'When all was used, last.';

create table usage_daily (
    scope text not null references scopes (name) on update cascade on delete cascade,
    day date not null,
    tokens bigint not null default 0,
    cost_usd numeric not null default 0,
    seconds numeric not null default 0,
    attempts integer not null default 0,
    constraint usage_daily_pkey primary key (scope, day)
) with (fillfactor = 50);
comment on table usage_daily is 'What the ended attempts of a scope with a budget, and of all below it, have used, by the UTC day of their end. Counts from the attempts that were on record when its first budget was made.';

create table usage_charges (
    scope text not null references scopes (name) on update cascade on delete cascade,
    day date not null,
    tokens bigint not null,
    cost_usd numeric not null,
    seconds numeric not null
);
create index usage_charges_scope on usage_charges (scope);
comment on table usage_charges is 'Not yet added to usage_daily: endings only insert here, so that none waits for another at a row that all of them would update. tick() adds them up.';

create table scope_grants (
    login text not null,
    scope text not null references scopes (name) on update cascade on delete cascade,
    granted_by text not null,
    granted_at timestamptz not null default now(),
    constraint scope_grants_pkey primary key (login, scope)
);
create index scope_grants_scope on scope_grants (scope);
comment on table scope_grants is 'Which scopes, with all below them, a login of taskyard_submitter works in: grant_scope(). A viewer who has any sees only those; administrators see all.';

-- Who could put in tasks until now worked in all scopes, and goes on to.
insert into scope_grants (login, scope, granted_by)
select r.rolname, 'default', 'upgrade'
from pg_roles r
where r.rolcanlogin and pg_has_role(r.oid, 'taskyard_submitter', 'usage') and not pg_has_role(r.oid, 'taskyard_admin', 'usage');

-- Runners from before have no sandbox: what they still run goes on, and they get nothing more.
alter table runners
add column sandbox text,
add column sandbox_trouble text,
add constraint runners_sandbox_is_known check (sandbox in ('strict', 'container', 'none'));
comment on column runners.sandbox is 'How its children are confined: strict, container, or none; null: a runner from before there was a sandbox, which gets nothing.';
comment on column runners.sandbox_trouble is 'Why its sandbox cannot be set up; then it claims nothing.';

alter table attempts
add column scope_version bigint not null default 0,
add column sandbox text;
comment on column attempts.scope_version is 'The version of its scope (effective_scopes) whose permissions it was given.';
comment on column attempts.sandbox is 'How it was confined: strict, container, or none: as free as the runner''s own user.';

create table artifacts (
    attempt_id bigint not null,
    path text not null,
    kind text not null default 'file',
    task_id bigint not null,
    scope text not null,
    size bigint not null,
    sha256 text not null,
    content bytea,
    created_at timestamptz not null default now(),
    constraint artifacts_pkey primary key (attempt_id, path),
    constraint artifacts_kind_is_known check (kind in ('file', 'diff', 'log', 'commit')),
    constraint artifacts_size_is_not_negative check (size >= 0),
    constraint artifacts_sha256_is_one check (sha256 ~ '^[0-9a-f]{64}$')
);
create index artifacts_task on artifacts (task_id);
comment on table artifacts is 'What attempts left: every file in the directory that the agent finds in TASKYARD_ARTIFACTS.';
comment on column artifacts.path is 'Relative, with slashes.';
comment on column artifacts.content is 'The file itself; null where it is larger than 4 MB. As text: convert_from(content, ''UTF8'').';

create table approvals (
    id bigint generated always as identity primary key,
    task_id bigint references tasks (id) on delete cascade,
    attempt_id bigint,
    scope text not null references scopes (name) on update cascade on delete cascade,
    kind text not null,
    question text not null,
    permissions text[] not null default '{}',
    paths text[] not null default '{}',
    hosts text[] not null default '{}',
    measure text,
    period text,
    asked_at timestamptz not null,
    deadline timestamptz,
    decision text,
    answer text,
    decided_by text,
    decided_at timestamptz,
    bound text,
    constraint approvals_kind_is_known check (kind in ('permission', 'question', 'budget')),
    constraint approvals_decision_is_known check (decision in ('approved', 'denied', 'answered', 'expired', 'withdrawn')),
    constraint approvals_decided_together check ((decision is null) = (decided_at is null)),
    constraint approvals_are_of_a_task_or_a_budget check ((kind = 'budget') = (task_id is null))
);
create index approvals_task on approvals (task_id);
create index approvals_scope on approvals (scope);
create index approvals_pending on approvals (deadline) where decision is null;
comment on table approvals is 'Questions for a human, and what was decided. The open ones are in the view inbox; approve(id), deny(id, why) and answer(id, text) decide.';
comment on column approvals.kind is 'permission (for this task alone), question, or budget (used up: approve adds as much again for this period).';
comment on column approvals.permissions is 'What is asked for: of read, write, execute, network.';
comment on column approvals.paths is 'Directories that the task asks to see.';
comment on column approvals.hosts is 'Hosts that the task asks to reach.';
comment on column approvals.deadline is 'Past it, silence means no.';
comment on column approvals.decision is 'approved, denied, answered, expired (nobody decided in time), or withdrawn (its task ended); null: open.';
comment on column approvals.bound is 'The scope in whose name it was approved: the task never gets more than that scope allows. Null: an administrator''s word, which knows no bound.';

update agents set description = 'Runs the prompt as a shell script in the runner''s sandbox.'
where name = 'shell' and description = 'Runs the prompt as a shell script on the runner''s host, as the runner''s user.';

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
    network_allow text []
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
