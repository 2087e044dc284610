-- Screens for psql, 40 columns wide with aligned output: id first, times relative, text cut to fit.

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

create or replace view queue as
select t.id, case when x.state = 'queued' and t.priority <> 0 then 'pri ' || t.priority else x.state end as state, _line(t.prompt, 15) as task
from (
    select r.task_id, 1 as sort, null::timestamptz as due, 'queued' as state from ready_tasks r
    union all
    select w.task_id, 1, null, 'queued' from workspace_waits w
    union all
    select s.task_id, 2, s.run_at, 'in ' || _ago(s.run_at - _now()) from scheduled_tasks s
    union all
    select distinct d.task_id, 3, null::timestamptz, 'blocked' from task_dependencies d
) x
join tasks t on t.id = x.task_id
order by x.sort, x.due, t.priority desc, t.queue_position, t.id;
comment on view queue is 'What has not started: queued by priority, then scheduled by time, then blocked. explain_task(id) says why.';

create or replace view now_running as
select t.id, _ago(_now() - a.started_at) as since, _line(r.name, 7) as runner, _line(t.prompt, 10) as task
from attempts a
join tasks t on t.id = a.task_id
join runners r on r.id = a.runner_id
where a.outcome is null
order by a.started_at;
comment on view now_running is 'What runs, oldest first.';

create or replace view recently_done as
select t.id, _ago(_now() - t.finished_at) as ago, t.status, _line(coalesce(t.error, t.result #>> '{}', t.prompt), 10) as outcome
from tasks t
where t.finished_at is not null
order by t.finished_at desc, t.id desc
limit 200;
comment on view recently_done is 'What ended, latest first: its error, its result, or else its prompt.';

create or replace view fleet as
select
    _line(r.name, 12) as runner,
    (select count(*) from attempts a where a.runner_id = r.id and a.outcome is null) || '/' || r.slots as busy,
    case
        when r.last_seen < _now() - interval '15 seconds' then 'silent'
        when r.draining then 'drains'
        else 'up'
    end as state,
    _ago(_now() - r.last_seen) as seen
from runners r
where r.gone_at is null
order by r.name;
comment on view fleet is 'The runners: how many of their slots are busy, and when each was last heard of.';

create or replace view task_history as
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

-- Tables: viewers read, submitters also insert and edit what is theirs to say; everything else goes through verbs.
grant select on
tasks, attempts, transcript, task_events, agents, scopes, providers, provider_limits, runners, runner_providers,
outcome_policies, lanes, open_lanes, ready_tasks, scheduled_tasks, task_dependencies, workspace_holders, workspace_waits,
ticker, schema_migrations, queue, now_running, recently_done, fleet, task_history
to taskyard_viewer;
grant insert (
    prompt, agent, scope, priority, run_at, parent_id, depends_on, on_dependency_failure, payload, workspace, verify,
    requires, provider, model, on_limit, dedupe_key, max_attempts, timeout
), update (
    prompt, agent, scope, status, priority, run_at, depends_on, on_dependency_failure, payload, workspace, verify, requires,
    provider, model, on_limit, max_attempts, timeout
) on tasks to taskyard_submitter;
grant insert, update, delete on agents, scopes, providers, provider_limits, outcome_policies to taskyard_admin;
grant delete on tasks to taskyard_admin;
grant delete on runners, attempts, transcript, task_events to taskyard_admin;
