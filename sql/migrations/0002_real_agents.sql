-- Real agents: what limits, fallback, sessions and routing need.

-- Both types grow, and so do the arguments of some functions; all functions are made anew after the migrations.
drop type claim cascade;
drop type lane_choice cascade;
drop function complete_task(bigint, text, jsonb, text, integer, text, jsonb, text, timestamptz);
drop function register_runner(text, integer, text[], jsonb, text, integer, interval);
drop function submit_task(
    text, text, text, integer, timestamptz, bigint[], jsonb, text, text[], text, text, text, integer, interval, bigint, text, text, text
);
drop function _offers(bigint, text[], text, text);
drop function _end_badly(attempts, jsonb, text, timestamptz);
drop function _cool_down(text, text, text, timestamptz, text);
drop view fleet;

alter table agents
add column max_turns integer,
add column output_schema jsonb,
add column first_output_timeout interval,
add column idle_timeout interval,
add constraint agents_first_output_timeout_is_positive check (first_output_timeout > interval '0'),
add constraint agents_idle_timeout_is_positive check (idle_timeout > interval '0'),
add constraint agents_max_turns_in_range check (max_turns between 1 and 10000),
add constraint agents_output_schema_is_an_object check (jsonb_typeof(output_schema) = 'object');
comment on column agents.tools is 'Tools that the agent may use, by the names of its command-line tool; null: all that the scope allows.';
comment on column agents.max_turns is 'Answers of the model in one attempt; null: no limit.';
comment on column agents.output_schema is 'JSON schema that the result has to fit; null: free text.';
comment on column agents.first_output_timeout is 'How long an attempt may be silent at first; null: what suits its adapter.';
comment on column agents.idle_timeout is 'How long an attempt may be silent later on; null: what suits its adapter.';
comment on column providers.settings is 'Adapter settings, the same on every host; never a secret: api_key_env names the variable that holds the key on each host.';

alter table scopes add column permissions text[] not null default '{}';
comment on column scopes.permissions is 'What its tasks may do after inheritance, kept up to date by a trigger: read, write, execute, network, create_child.';

alter table outcome_policies
add column cool_steps interval[] not null default '{5 minutes,15 minutes,1 hour}',
drop constraint outcome_policies_cools_is_known,
add constraint outcome_policies_cools_is_known check (cools in ('account', 'provider', 'runner', 'login')),
add constraint outcome_policies_cool_steps_are_positive
check (cardinality(cool_steps) > 0 and interval '1 second' <= all(cool_steps));
comment on column outcome_policies.cools is 'Whom it cools down: account (for every host), provider (all its accounts), runner (what this one host offers), login (until a human has seen to it).';
comment on column outcome_policies.cool_steps is 'How long, where the provider did not say: the first time, the second in a row, and so on.';

-- Only where nobody changed the policy.
update outcome_policies set free_times = 50, backoff = '0', backoff_cap = '0', cools = 'provider', cool_steps = '{1 minute,3 minutes,10 minutes}'
where outcome = 'overloaded' and backoff = interval '30 seconds' and cools is null;
update outcome_policies set free_times = 50, backoff = '0', backoff_cap = '0', cools = 'runner', cool_steps = '{15 seconds,1 minute,5 minutes}'
where outcome = 'network' and backoff = interval '15 seconds' and cools is null;
update outcome_policies set cools = 'login' where outcome = 'unauthenticated' and cools = 'account';

alter table provider_limits
add column hot_since timestamptz,
add column canary_attempt bigint,
add column canary_until timestamptz,
alter column state set default 'open',
drop constraint provider_limits_state_is_known;
update provider_limits
set
    state = case when until > now() then 'hot' else 'open' end, until = case when until > now() then until end,
    hot_since = case when until > now() then observed_at end;
alter table provider_limits
add constraint provider_limits_state_is_known check (state in ('hot', 'open')),
add constraint provider_limits_hot_until_reopened check ((state = 'hot') = (until is not null));
comment on table provider_limits is 'Limit windows of provider accounts. While until lies ahead, no host claims for that account; then one canary attempt finds out whether it answers again.';
comment on column provider_limits.until is 'Cooling down until then. Only ever moved later while hot; null once the account has answered again.';
comment on column provider_limits.state is 'hot: refused, until a canary succeeds. open: usable; used_percent tells how far it is.';
comment on column provider_limits.hot_since is 'When the first refusal of this series came.';
comment on column provider_limits.canary_attempt is 'The one attempt that finds out whether the account answers again.';
comment on column provider_limits.canary_until is 'The canary''s lease: past it, another may try.';

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

alter table runners add column host text not null default '';
comment on column runners.host is 'Where it runs: sessions of agents can be resumed there only.';

alter table runner_providers
add column loaded text[],
add column loaded_since timestamptz,
add column version text,
add column refused_at timestamptz,
add column until timestamptz,
add column strikes integer not null default 0;
comment on column runner_providers.models is 'What it can be asked for; null: whatever the tool knows.';
comment on column runner_providers.loaded is 'Local models that are in memory there now; null where the server cannot tell.';
comment on column runner_providers.loaded_since is 'Since when these; for ten minutes their tasks go first, so that a queue drains before a swap.';
comment on column runner_providers.version is 'Of the tool on that host.';
comment on column runner_providers.refused_at is 'When the provider refused this login; resume_provider() lets it be tried again.';
comment on column runner_providers.until is 'The provider could not be reached from that host; not tried again before then.';
comment on column runner_providers.strikes is 'How often in a row it could not be reached.';

alter table tasks add column output_schema jsonb, add column routed_by text;
comment on column tasks.output_schema is 'JSON schema that the result has to fit; null: the agent''s.';
comment on column tasks.routed_by is 'Who chose the agent of a task that was inserted for agent auto: a rule, a model, or the default.';

alter table lanes add column on_limit text not null default 'switch';
drop index lanes_combination;
create index lanes_combination on lanes (scope, agent, priority, returned, provider, model, on_limit);

-- Tasks that wait and do not switch at a limit move to lanes of their own. No trigger: nothing else about them changes.
alter table tasks disable trigger user;
with own as (
    insert into lanes (priority, returned, scope, agent, requires, provider, model, exclusive, on_limit)
    select distinct l.priority, l.returned, l.scope, l.agent, l.requires, l.provider, l.model, l.exclusive, t.on_limit
    from tasks t
    join lanes l on l.id = t.lane_id
    where t.on_limit <> 'switch' and t.status in ('blocked', 'scheduled', 'queued')
    returning *
),

moved as (
    update tasks t set lane_id = own.id
    from lanes l, own
    where
        l.id = t.lane_id and t.on_limit = own.on_limit and t.status in ('blocked', 'scheduled', 'queued')
        and (l.priority, l.returned, l.scope, l.agent, l.requires, l.exclusive)
        = (own.priority, own.returned, own.scope, own.agent, own.requires, own.exclusive)
        and l.provider is not distinct from own.provider and l.model is not distinct from own.model
    returning t.id, t.lane_id
)

update ready_tasks r set lane_id = moved.lane_id from moved where moved.id = r.task_id;
insert into open_lanes (lane_id, priority, spin)
select l.id, l.priority, l.spin from lanes l
where l.on_limit <> 'switch' and exists (select from ready_tasks r where r.lane_id = l.id);
alter table tasks enable trigger user;

alter table attempts
add column cost_estimated boolean not null default false,
add column canary boolean not null default false;
comment on column attempts.model is 'Asked for; once the tool has said so, the one really used.';
comment on column attempts.session_id is 'The tool''s own session, which a later attempt on the same host can resume.';
comment on column attempts.input_tokens is 'All that were read, those from a cache included; null where the tool does not say.';
comment on column attempts.cached_tokens is 'Those of input_tokens that came from a cache.';
comment on column attempts.turns is 'Answers of the model.';
comment on column attempts.cost_usd is 'As reported by the tool, else by your own table prices; null where neither says.';
comment on column attempts.cost_estimated is 'cost_usd comes from the table prices.';
comment on column attempts.canary is 'The first try of an account after a limit.';
comment on column transcript.kind is 'text (the agent''s own words), thinking, tool_call, tool_result, usage, error, note, or output (of a plain command).';

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
    lease_until timestamptz
);
comment on type claim is 'Everything that a runner needs for one attempt.';

create type lane_choice as (
    lane_id integer,
    exclusive boolean,
    returned boolean,
    share double precision,
    scope text,
    agent text,
    scope_max integer,
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
    idle_timeout interval
);
comment on type lane_choice is 'A lane to claim from, with all of its agent and provider that a claim hands out.';

-- Names that are taken stay as their owners made them.
insert into providers (name, adapter) values
('claude', 'claude'),
('codex', 'codex'),
('gemini', 'gemini'),
('opencode', 'opencode'),
('local', 'openai')
on conflict do nothing;
insert into agents (name, description, route, command, system_prompt, timeout) values
('claude', 'Claude Code: writes and runs code, reads large repositories.', '{claude}', null, null, default),
('codex', 'Codex: writes and runs code.', '{codex}', null, null, default),
('gemini', 'Gemini CLI: writes and runs code, reads very long documents.', '{gemini}', null, null, default),
('opencode', 'A local model with tools: reads and writes files at no cost.', '{opencode:coder}', null, null, default),
('local', 'A local model without tools: answers short questions about the text that it is given.', '{local:coder}', null, null, default),
(
    'auto', 'Chooses the agent: first by routing_rules, then by the orchestrator model, else the agent default.', '{local:orchestrator}', null,
    'You route tasks to agents. Answer with the one agent that suits the task best.', '1 minute'
)
on conflict do nothing;
update agents set
    route = '{claude,codex,gemini,opencode:coder}',
    description = 'What a task without an agent gets: the first of these tools that some runner has.'
where name = 'default' and route = '{}';
update scopes set permissions = '{read,write,execute,network,create_child}' where name = 'default' and parent is null;
