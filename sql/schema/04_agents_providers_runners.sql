create table providers (
    name text primary key,
    adapter text not null,
    settings jsonb not null default '{}',
    paused_at timestamptz,
    paused_by text,
    paused_reason text,
    constraint providers_name_is_a_word check (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$')
);
comment on table providers is 'Ways to run work. A runner offers those whose adapter and tool it has (see runner_providers).';
comment on column providers.adapter is 'The runner''s adapter that speaks to it.';
comment on column providers.settings is 'Adapter settings, the same on every host; never a secret: api_key_env names the variable that holds the key on each host.';
comment on column providers.paused_at is 'Set by pause_provider(): nothing is claimed for this provider until resume_provider().';

create table agents (
    name text primary key,
    description text,
    route text[] not null default '{}',
    command text[],
    result_format text not null default 'text',
    system_prompt text,
    tools text[],
    verify text,
    timeout interval not null default interval '30 minutes',
    max_attempts integer not null default 3,
    max_concurrency integer,
    paused_at timestamptz,
    paused_by text,
    paused_reason text,
    max_turns integer,
    output_schema jsonb,
    first_output_timeout interval,
    idle_timeout interval,
    constraint agents_name_is_a_word check (name ~ '^[a-z0-9][a-z0-9_.-]{0,62}$'),
    constraint agents_route_has_no_gaps check (array_position(route, null) is null),
    constraint agents_command_names_a_program check (cardinality(command) > 0 and command[1] <> '' and array_position(command, null) is null),
    constraint agents_result_format_is_known check (result_format in ('text', 'json')),
    constraint agents_timeout_in_range check (timeout > interval '0' and timeout <= interval '30 days'),
    constraint agents_first_output_timeout_is_positive check (first_output_timeout > interval '0'),
    constraint agents_idle_timeout_is_positive check (idle_timeout > interval '0'),
    constraint agents_max_turns_in_range check (max_turns between 1 and 10000),
    constraint agents_output_schema_is_an_object check (jsonb_typeof(output_schema) = 'object'),
    constraint agents_max_attempts_in_range check (max_attempts between 1 and 100),
    constraint agents_max_concurrency_is_positive check (max_concurrency > 0)
);
comment on table agents is 'Kinds of worker. tasks.agent names one.';
comment on column agents.route is 'Providers in order of preference, each "provider" or "provider:model". The first that a runner offers and that is not cooling down is used.';
comment on column agents.command is 'Argument vector for the provider "command"; {task_id}, {attempt}, {workspace} and {model} are filled in. The prompt arrives on standard input.';
comment on column agents.tools is 'Tools that the agent may use, by the names of its command-line tool; null: all that the scope allows.';
comment on column agents.max_turns is 'Answers of the model in one attempt; null: no limit.';
comment on column agents.output_schema is 'JSON schema that the result has to fit; null: free text.';
comment on column agents.first_output_timeout is 'How long an attempt may be silent at first; null: what suits its adapter.';
comment on column agents.idle_timeout is 'How long an attempt may be silent later on; null: what suits its adapter.';
comment on column agents.result_format is 'text: what the command prints is the result. json: it prints one JSON document, stored as such.';
comment on column agents.timeout is 'Wall clock of one attempt, unless the task sets its own.';
comment on column agents.max_attempts is 'Counted attempts before a task fails for good, unless the task sets its own.';
comment on column agents.max_concurrency is 'Hard limit of attempts running at once in the whole fleet; null: none.';

create table outcome_policies (
    outcome text primary key,
    status text not null,
    free_times integer,
    backoff interval not null default interval '0',
    backoff_cap interval not null default interval '1 hour',
    cools text,
    meaning text not null,
    cool_steps interval[] not null default '{5 minutes,15 minutes,1 hour}',
    constraint outcome_policies_status_is_known
    check (status in ('completed', 'queued', 'failed', 'cancelled', 'waiting')),
    constraint outcome_policies_cools_is_known check (cools in ('account', 'provider', 'runner', 'login')),
    constraint outcome_policies_cool_steps_are_positive
    check (cardinality(cool_steps) > 0 and interval '1 second' <= all(cool_steps)),
    constraint outcome_policies_backoff_in_range
    check (backoff >= interval '0' and backoff_cap >= backoff and backoff_cap <= interval '30 days')
);
comment on table outcome_policies is 'What follows from each way an attempt can end. Edit a row to change the policy of the whole fleet.';
comment on column outcome_policies.status is 'Where the task goes; queued means again, after the backoff, while attempts are left.';
comment on column outcome_policies.free_times is 'So many endings of this kind per task use up no attempt; 0: every one counts; null: none ever counts.';
comment on column outcome_policies.backoff is 'Wait before the next try; doubles with each ending of this kind up to backoff_cap, with a fifth of jitter.';
comment on column outcome_policies.cools is 'Whom it cools down: account (for every host), provider (all its accounts), runner (what this one host offers), login (until a human has seen to it).';
comment on column outcome_policies.cool_steps is 'How long, where the provider did not say: the first time, the second in a row, and so on.';

create table provider_limits (
    provider text not null references providers (name) on update restrict on delete cascade,
    account text not null default '',
    model text not null default '',
    window_name text not null default '',
    used_percent numeric(5, 2),
    resets_at timestamptz,
    until timestamptz,
    level integer not null default 0,
    state text not null default 'open',
    evidence text,
    observed_at timestamptz not null default now(),
    hot_since timestamptz,
    canary_attempt bigint,
    canary_until timestamptz,
    primary key (provider, account, model, window_name),
    constraint provider_limits_state_is_known check (state in ('hot', 'open')),
    constraint provider_limits_hot_until_reopened check ((state = 'hot') = (until is not null)),
    constraint provider_limits_used_percent_in_range check (used_percent >= 0)
);
comment on table provider_limits is 'Limit windows of provider accounts. While until lies ahead, no host claims for that account; then one canary attempt finds out whether it answers again.';
comment on column provider_limits.account is 'The login that is limited; empty: the provider as a whole.';
comment on column provider_limits.model is 'The model that is limited; empty: all of them.';
comment on column provider_limits.resets_at is 'When the provider said the window resets; null where it did not say.';
comment on column provider_limits.until is 'Cooling down until then. Only ever moved later while hot; null once the account has answered again.';
comment on column provider_limits.state is 'hot: refused, until a canary succeeds. open: usable; used_percent tells how far it is.';
comment on column provider_limits.hot_since is 'When the first refusal of this series came.';
comment on column provider_limits.canary_attempt is 'The one attempt that finds out whether the account answers again.';
comment on column provider_limits.canary_until is 'The canary''s lease: past it, another may try.';
comment on column provider_limits.level is 'How often in a row no reset time was known: 5 minutes, then 15, then an hour.';

create table provider_caps (
    id integer generated always as identity primary key,
    provider text not null references providers (name) on update restrict on delete cascade,
    account text not null default '',
    period interval not null,
    max_requests integer not null,
    constraint provider_caps_once_per_period unique (provider, account, period),
    constraint provider_caps_period_in_range check (period between interval '1 second' and interval '31 days'),
    constraint provider_caps_max_requests_is_positive check (max_requests > 0)
);
comment on table provider_caps is 'Caps of your own, kept by all hosts together before the provider has to refuse: say 60 requests a minute and 1,000 a day.';
comment on column provider_caps.account is 'The login it holds for; empty: each login of the provider on its own.';
comment on column provider_caps.period is 'Sliding: at no moment more than max_requests within the period before it, counted in twentieths of it.';
comment on column provider_caps.max_requests is 'An attempt counts as one when it is claimed, and once more for each further answer of its model.';

create table provider_cap_usage (
    cap_id integer not null references provider_caps (id) on delete cascade,
    account text not null,
    bucket timestamptz not null,
    requests integer not null,
    primary key (cap_id, account, bucket)
);
comment on table provider_cap_usage is 'Requests counted against provider_caps, per twentieth of the period; older ones are removed.';

create table prices (
    provider text not null references providers (name) on update restrict on delete cascade,
    model text not null,
    input_usd numeric not null,
    cached_usd numeric,
    output_usd numeric not null,
    primary key (provider, model),
    constraint prices_are_not_negative check (input_usd >= 0 and cached_usd >= 0 and output_usd >= 0)
);
comment on table prices is 'Your own prices, in US dollars per million tokens, for tools that report tokens but no cost. Empty unless you fill it: a missing number beats an invented one.';
comment on column prices.cached_usd is 'For input that came from the provider''s cache; null: the same as other input.';

create table routing_rules (
    id integer generated always as identity primary key,
    position integer not null default 100,
    pattern text,
    label text,
    scope text references scopes (name) on update restrict on delete cascade,
    agent text not null references agents (name) on update restrict on delete cascade,
    -- A pattern that is no regular expression is refused here and not at somebody's insert.
    constraint routing_rules_pattern_is_a_regular_expression check (pattern is null or ('' ~ pattern) in (true, false)),
    constraint routing_rules_lead_away_from_auto check (agent <> 'auto')
);
create index routing_rules_scope on routing_rules (scope);
create index routing_rules_agent on routing_rules (agent);
comment on table routing_rules is 'Which agent takes a task inserted for agent auto: the first rule of which every part that is not null fits.';
comment on column routing_rules.position is 'Lower is looked at first.';
comment on column routing_rules.pattern is 'Regular expression, found anywhere in the prompt, whatever the case.';
comment on column routing_rules.label is 'One of the labels in tasks.requires.';

create table runners (
    id bigint generated always as identity primary key,
    name text not null,
    labels text[] not null default '{}',
    slots integer not null,
    version text not null,
    lease interval not null,
    login text not null,
    locked boolean not null default false,
    draining boolean not null default false,
    registered_at timestamptz not null default now(),
    last_seen timestamptz not null default now(),
    lock_missed_at timestamptz,
    gone_at timestamptz,
    gone_reason text,
    host text not null default '',
    sandbox text,
    sandbox_trouble text,
    constraint runners_name_is_a_word check (name ~ '^[A-Za-z0-9][A-Za-z0-9_.@:-]{0,99}$'),
    constraint runners_sandbox_is_known check (sandbox in ('strict', 'container', 'none')),
    constraint runners_slots_in_range check (slots between 1 and 1000),
    constraint runners_lease_in_range check (lease between interval '2 seconds' and interval '1 day')
) with (fillfactor = 50);
create unique index runners_name_is_live_once on runners (name) where gone_at is null;
comment on table runners is 'Runner processes, one row per start. Liveness is last_seen and, on a direct connection, a session advisory lock.';
comment on column runners.host is 'Where it runs: sessions of agents can be resumed there only.';
comment on column runners.lease is 'How long its attempts outlive its last heartbeat.';
comment on column runners.sandbox is 'How its children are confined: strict, container, or none; null: a runner from before there was a sandbox, which gets nothing.';
comment on column runners.sandbox_trouble is 'Why its sandbox cannot be set up; then it claims nothing.';
comment on column runners.locked is 'It holds a session advisory lock, whose loss proves that its process or host is gone.';
comment on column runners.draining is 'Finishes what it has and claims nothing more.';
comment on column runners.gone_at is 'When it left or was given up; its attempts were taken back then.';

create table runner_providers (
    runner_id bigint not null references runners (id) on delete cascade,
    provider text not null references providers (name) on update restrict on delete cascade,
    account text not null default '',
    state text not null default 'ready',
    models text[],
    detail text,
    loaded text[],
    loaded_since timestamptz,
    version text,
    refused_at timestamptz,
    until timestamptz,
    strikes integer not null default 0,
    primary key (runner_id, provider),
    constraint runner_providers_state_is_known check (state in ('ready', 'unauthenticated', 'missing'))
);
create index runner_providers_provider on runner_providers (provider);
comment on table runner_providers is 'What each runner can run, and as whom.';
comment on column runner_providers.models is 'What it can be asked for; null: whatever the tool knows.';
comment on column runner_providers.loaded is 'Local models that are in memory there now; null where the server cannot tell.';
comment on column runner_providers.loaded_since is 'Since when these; for ten minutes their tasks go first, so that a queue drains before a swap.';
comment on column runner_providers.version is 'Of the tool on that host.';
comment on column runner_providers.refused_at is 'When the provider refused this login; resume_provider() lets it be tried again.';
comment on column runner_providers.until is 'The provider could not be reached from that host; not tried again before then.';
comment on column runner_providers.strikes is 'How often in a row it could not be reached.';
comment on column runner_providers.account is 'The login used there; limits belong to it, on whatever host it is used.';
