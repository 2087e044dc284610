create table scopes (
    name text primary key,
    parent text references scopes (name) on update restrict on delete restrict,
    may_read boolean,
    may_write boolean,
    may_execute boolean,
    may_network boolean,
    may_create_child boolean,
    allowed_paths text[],
    network_allow text[],
    allowed_agents text[],
    allowed_providers text[],
    max_concurrency integer,
    max_depth integer,
    max_children integer,
    weight integer not null default 1,
    paused_at timestamptz,
    paused_by text,
    paused_reason text,
    max_spawns_per_minute integer,
    constraint scopes_name_is_a_path check (name ~ '^[a-z0-9][a-z0-9_./-]{0,99}$'),
    constraint scopes_parent_is_another check (parent <> name),
    constraint scopes_only_default_is_root check ((parent is null) = (name = 'default')),
    constraint scopes_max_concurrency_is_positive check (max_concurrency > 0),
    constraint scopes_max_depth_in_range check (max_depth between 0 and 100),
    constraint scopes_max_children_in_range check (max_children >= 0),
    constraint scopes_max_spawns_per_minute_in_range check (max_spawns_per_minute >= 0),
    constraint scopes_weight_in_range check (weight between 1 and 1000)
);
create index scopes_parent on scopes (parent);
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
comment on column scopes.max_spawns_per_minute is 'How many children an agent may create in one minute; null: no limit.';
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
    narrowed_at bigint not null,
    max_spawns_per_minute integer
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
