-- Screens for psql, 40 columns wide with aligned output: id first, times relative, text cut to fit. With the rights of whoever
-- looks: row-level security leaves out what is not theirs. But for fleet, offers and limits, which tell of no task and are
-- everybody's: the tables below them quote what providers said to others.

create or replace function _line(p_text text, p_width integer) returns text
language sql immutable
as $$
    -- Wide characters (East Asian, emoji) take two columns each.
    select case when length(t) > w then left(t, w - 1) || '…' else t end
    from (select btrim(regexp_replace(left(p_text, 400), '\s+', ' ', 'g')) as t) x
    cross join lateral (select case when x.t ~ E'[\u1100-\U0010ffff]' then p_width / 2 else p_width end as w) y
$$;
comment on function _line(text, integer) is 'The beginning of a text on one line of at most so many characters.';
grant execute on function _line(text, integer) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _short(p_number bigint) returns text
language sql immutable
as $$
    select case
        when p_number < 1000 then p_number::text
        when p_number < 999500 then round(p_number / 1e3) || 'k'
        when p_number < 99950000 then round(p_number / 1e6, 1) || 'M'
        else round(p_number / 1e6) || 'M'
    end
$$;
comment on function _short(bigint) is 'A count for a narrow screen: 950, 12k, 3.4M.';
grant execute on function _short(bigint) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace view queue with (security_invoker = true) as
select t.id, case when x.state = 'queued' and t.priority <> 0 then 'pri ' || t.priority else x.state end as state, _line(t.prompt, 15) as task
from (
    select r.task_id, 1 as sort, null::timestamptz as due, 'queued' as state from ready_tasks r
    union all
    select w.task_id, 1, null, 'queued' from workspace_waits w
    union all
    select s.task_id, 2, s.run_at, 'in ' || _ago(s.run_at - _now()) from scheduled_tasks s
    union all
    select distinct d.task_id, 3, null::timestamptz, 'blocked' from task_dependencies d join tasks b on b.id = d.task_id and b.status = 'blocked'
) x
join tasks t on t.id = x.task_id
order by x.sort, x.due, t.priority desc, t.queue_position, t.id;
comment on view queue is 'What has not started: queued by priority, then scheduled by time, then blocked. explain_task(id) says why.';

create or replace view now_running with (security_invoker = true) as
select t.id, _ago(_now() - a.started_at) as since, _line(r.name, 7) as runner, _line(coalesce(a.doing, t.prompt), 10) as task
from attempts a
join tasks t on t.id = a.task_id
join runners r on r.id = a.runner_id
where a.outcome is null
order by a.started_at;
comment on view now_running is 'What runs, oldest first: what its agent says that it is doing, or else its prompt.';

create or replace view recently_done with (security_invoker = true) as
select t.id, _ago(_now() - t.finished_at) as ago, t.status, _line(coalesce(t.error, t.result #>> '{}', t.prompt), 10) as outcome
from tasks t
where t.finished_at is not null
order by t.finished_at desc, t.id desc
limit 200;
comment on view recently_done is 'What ended, latest first: its error, its result, or else its prompt.';

create or replace view fleet as
select
    _line(r.name, 9) as runner,
    (select count(*) from attempts a where a.runner_id = r.id and a.outcome is null) || '/' || r.slots as busy,
    case
        when r.last_seen < _now() - interval '15 seconds' then _ago(_now() - r.last_seen) || ' ago'
        when r.sandbox_trouble is not null then 'no jail'
        when r.sandbox = 'none' then 'bare'
        when r.draining then 'drains'
        else 'up'
    end as state,
    _line((select string_agg(array_to_string(rp.loaded, ' '), ' ') from runner_providers rp where rp.runner_id = r.id), 8) as loaded
from runners r
where r.gone_at is null
order by r.name;
comment on view fleet is 'The runners: how many of their slots are busy, when a silent one was last heard of, and which local models are in memory there. no jail: its sandbox cannot be set up (runners.sandbox_trouble says why), so it gets nothing; bare: it runs everything without one.';

create or replace view offers as
select
    _line(r.name, 7) as runner,
    _line(rp.provider, 8) as provider,
    case when rp.until > _now() then 'back ' || _ago(rp.until - _now()) when rp.state = 'unauthenticated' then 'no login' else rp.state end as state,
    _line(coalesce(rp.version, ''), 6) as tool
from runner_providers rp
join runners r on r.id = rp.runner_id
where r.gone_at is null
order by r.name, rp.provider;
comment on view offers is 'What each runner can run: ready, no login (see runner_providers.detail), missing, or out of reach for a while; and the version of the tool there.';

create or replace view limits as
select
    _line(l.provider, 8) as provider,
    _line(concat_ws(' ', nullif(l.model, ''), nullif(l.window_name, '')), 11) as what,
    round(l.used_percent)::integer as used,
    case
        when l.canary_until > _now() then 'tried'
        when l.until <= _now() then 'to try'
        when l.until is not null then _ago(l.until - _now()) || case when l.level > 0 then ' ?' else '' end
        else ''
    end as back
from provider_limits l
where l.until is not null or l.resets_at is null or l.resets_at > _now()
union all
select _line(c.provider, 8), _line(c.max_requests || '/' || _ago(c.period), 11), round(100.0 * coalesce(u.used, 0) / c.max_requests)::integer, ''
from provider_caps c
left join lateral (
    select sum(q.requests) as used
    from provider_cap_usage q
    where q.cap_id = c.id and q.bucket > _now() - c.period * 1.05
    group by q.account
    order by used desc
    limit 1
) u on true
order by back desc, provider, what;
comment on view limits is 'Accounts and their limit windows: used percent, and when one that is hot comes back (a question mark: a guess). The whole of it is in provider_limits and provider_caps.';

create or replace view spend with (security_invoker = true) as
select
    to_char(a.finished_at, 'MM-DD') as day,
    _line(a.provider, 8) as provider,
    _short(sum(a.input_tokens)::bigint) || '/' || _short(sum(a.output_tokens)::bigint) as tokens,
    case when sum(a.cost_usd) < 1000 then to_char(sum(a.cost_usd), 'FM990.00') else _short(sum(a.cost_usd)::bigint) end as usd
from attempts a
where a.finished_at > _now() - interval '30 days'
group by date_trunc('day', a.finished_at), to_char(a.finished_at, 'MM-DD'), a.provider
order by date_trunc('day', a.finished_at) desc, a.provider;
comment on view spend is 'Tokens read and written, and dollars, by day and provider, latest first; empty where no tool said.';

create or replace view inbox with (security_invoker = true) as
select
    a.id,
    case when a.deadline is null then '' else _ago(a.deadline - _now()) end as "left",
    case when a.task_id is null then _line(a.scope, 8) else a.task_id::text end as task,
    _line(case a.kind when 'permission' then regexp_replace(a.question, '^May it ', '') else a.question end, 13) as asks
from approvals a
where
    a.decision is null
    and not exists (select from tasks t where t.id = a.task_id and t.status in ('completed', 'failed', 'cancelled'))
order by a.deadline nulls last, a.id;
comment on view inbox is 'What waits for you: approve(id), deny(id, ''why'') or answer(id, ''...''). left: until silence means no. In full: select question from approvals where id = 17;';

create or replace view scope_tree with (security_invoker = true) as
select
    repeat(' ', least(2 * (cardinality(e.path) - 1), 6)) || _line(split_part(e.name, '/', -1), 12 - least(2 * (cardinality(e.path) - 1), 6)) as scope,
    (
        select string_agg(case when f.flag = any(e.permissions) then f.letter else '-' end, '' order by f.place)
        from unnest('{read,write,execute,network,create_child}'::text[], '{r,w,x,n,c}'::text[]) with ordinality f (flag, letter, place)
    ) as may,
    (select count(*) from attempts a join effective_scopes b on b.name = a.scope where a.outcome is null and e.name = any(b.path))
    || coalesce('/' || s.max_concurrency, '') as busy,
    case
        when e.paused is not null then 'paused'
        else coalesce((
            select max(_percent_used(u.used, u.amount)) || '%' from _budgets_in_reach() u where u.scope = e.name
        ), '')
    end as spent
from effective_scopes e
join scopes s on s.name = e.name
order by e.path;
comment on view scope_tree is 'The scopes with what holds in each: r(ead), w(rite), x(ecute), n(etwork), c(hildren); what runs there and below of how many; how much of its fullest budget is used. In full: select * from effective_scope(''name'');';

create or replace view budget_use with (security_invoker = true) as
select
    _line(u.scope, 8) as scope,
    _line(
        replace(_amount(u.measure, u.amount), ' tokens', ' tok') || case u.period when 'day' then '/day' when 'month' then '/mon' else ' in all' end, 13
    ) as budget,
    _percent_used(u.used, u.amount) as used,
    case
        when u.used < u.amount then ''
        when u.period = 'total' then 'over'
        else _ago(_period_end(u.period) - _now())
    end as back
from _budgets_in_reach() u
order by u.used / greatest(u.amount, 1e-9) desc, u.scope, u.measure, u.period;
comment on view budget_use is 'Budgets: used percent (more than 100: what ran on when it was used up), and when one that is used up goes on. approve() in the inbox adds as much again.';

create or replace view task_history with (security_invoker = true) as
select t.id as task_id, t.created_at as at, 'created' as what, t.created_by as who, null::bigint as attempt_id, null::text as detail
from tasks t
union all
select a.task_id, a.started_at, 'claimed', r.name, a.id, a.provider
from attempts a
join runners r on r.id = a.runner_id
union all
select a.task_id, a.finished_at, a.outcome::text, r.name, a.id, a.evidence
from attempts a
join runners r on r.id = a.runner_id
where a.outcome is not null
union all
select e.task_id, e.at, e.kind, e.actor, e.attempt_id, e.detail ->> 'why'
from task_events e
where e.task_id is not null;
comment on view task_history is 'All that happened to a task: where task_id = 17 order by at.';

create or replace view sent with (security_invoker = true) as
select
    _line(p.target, 8) as target,
    _line(concat_ws(' ', p.kind, coalesce(p.approval_id, p.task_id)), 12) as what,
    case
        when p.delivered_at is not null then _ago(_now() - p.delivered_at) || ' ago'
        when p.next_try_at is null then 'dropped'
        when p.tries = 0 then 'due'
        else 'try ' || p.tries
    end as state,
    case when p.delivered_at is null then _line(p.last_error, 8) end as why
from pushes p
order by p.created_at desc, p.id desc
limit 200;
comment on view sent is 'Notifications, latest first: delivered how long ago, or how often it was tried and why it failed. In full: select * from pushes;';

create or replace view timetable with (security_invoker = true) as
select
    _line(s.name, 12) as schedule,
    case
        when not s.enabled then 'off'
        when s.next_at is null then 'over'
        when s.next_at <= _now() then 'due'
        else _ago(s.next_at - _now())
    end as next,
    case
        when s.last_note is not null then _line('! ' || s.last_note, 15)
        when t.id is not null then _line(t.id || ' ' || t.status, 15)
    end as last
from schedules s
left join tasks t on t.id = s.last_task_id
order by s.next_at nulls last, s.name;
comment on view timetable is 'What comes by itself, soonest first: in how long, and the last task with its status; with an exclamation mark what was left out the last time. In full: select * from schedules;';

create or replace view database_health as
select f.what, _line(f.who, 11) as who, case when f.since is null then '' else _ago(f.since) end as since, _line(f.amount, 11) as amount
from _database_health() f
order by f.sort, f.since desc nulls last, f.who;
comment on view database_health is
'What slows the database down or will: sessions that wait for a lock or keep old row versions alive (end one: select pg_terminate_backend(pid)), forgotten prepared transactions and replication slots, tables that vacuum does not catch up with, transaction ids that run out, nobody who calls tick(). Empty is good. half blind: sessions of others are not seen; a superuser can change that: grant pg_read_all_stats to taskyard_owner;';

-- Tables: viewers read, submitters also insert and edit what is theirs to say; everything else goes through verbs.
grant select on
tasks, attempts, transcript, task_events, agents, scopes, effective_scopes, scope_grants, budgets, usage_daily, usage_charges, approvals, artifacts,
providers, provider_limits, runners, runner_providers,
outcome_policies, lanes, open_lanes, ready_tasks, scheduled_tasks, task_dependencies, workspace_holders, workspace_waits,
waits, child_counts, checkpoints, handoffs, verifications, rejected_submissions, templates, pushes, sent, schedules, timetable, retention, archived_tasks, database_health, counters, counted, incarnation,
ticker, schema_migrations, queue, now_running, recently_done, fleet, offers, limits,
spend, task_history, inbox, scope_tree, budget_use, provider_caps, provider_cap_usage, prices, routing_rules
to taskyard_viewer;
-- Not the addresses: who knows the name of an ntfy topic can read it.
grant select (name, kind, scope, events, digest, show_text, token_env, max_per_hour, enabled, digested_at) on push_targets to taskyard_viewer;
grant select on push_targets to taskyard_admin;
grant insert (
    prompt, agent, scope, priority, run_at, parent_id, depends_on, on_dependency_failure, payload, workspace, repository, base, push_to,
    verify, requires, provider, model, on_limit, dedupe_key, max_attempts, timeout, output_schema
), update (
    prompt, agent, scope, status, priority, run_at, depends_on, on_dependency_failure, payload, workspace, repository, base, push_to,
    verify, requires, provider, model, on_limit, max_attempts, timeout, output_schema
) on tasks to taskyard_submitter;
grant insert, update, delete on agents, scopes, providers, provider_limits, outcome_policies, provider_caps, prices, routing_rules
to taskyard_admin;
grant insert (scope, measure, period, amount, stops_running), update (amount, stops_running), delete on budgets to taskyard_admin;
grant delete on tasks to taskyard_admin;
grant insert, update, delete on templates, push_targets, schedules to taskyard_admin;
grant insert (name, cron, every, at, timezone, scope, template, variables, task, missed, overlap, enabled),
update (name, cron, every, at, timezone, scope, template, variables, task, missed, overlap, enabled), delete on schedules to taskyard_submitter;
grant update (keep, archive) on retention to taskyard_admin;
grant delete on archived_tasks to taskyard_admin;
grant delete on pushes, runners, attempts, transcript, task_events, artifacts, checkpoints, handoffs, verifications, rejected_submissions to taskyard_admin;
grant execute on function _percent_used(numeric, numeric), _budget_text(text, text, numeric), _amount(text, numeric), _period_end(text), _period_start(text)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
