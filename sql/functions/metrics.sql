-- The yard in numbers, for Prometheus and its like: as rows, and as the text that they read. Costs as much as there are lanes, runners
-- and accounts, not tasks; but for the scheduled and the blocked, which are counted in narrow tables of their own.

create or replace function metrics() returns table (name text, kind text, help text, labels jsonb, value double precision)
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_viewer', 'read metrics');
    perform _require_whole_yard('read metrics');
    return query
    with queued as (
        select l.scope, l.agent, count(*) as tasks, min(r.task_id) as oldest
        from ready_tasks r join lanes l on l.id = r.lane_id
        group by l.scope, l.agent
    )
    select 'taskyard_tasks_queued', 'gauge', 'Tasks that could be claimed.', jsonb_build_object('scope', q.scope, 'agent', q.agent), q.tasks::double precision
    from queued q
    union all
    select 'taskyard_queue_age_seconds', 'gauge', 'Since when the oldest of them has been there.', jsonb_build_object('scope', q.scope, 'agent', q.agent),
        date_part('epoch', _now() - t.created_at)
    from queued q join tasks t on t.id = q.oldest
    union all
    select 'taskyard_tasks_scheduled', 'gauge', 'Tasks that wait for a time.', '{}', count(*) from scheduled_tasks
    union all
    select 'taskyard_tasks_blocked', 'gauge', 'Tasks that wait for others.', '{}', count(distinct d.task_id) from task_dependencies d
    union all
    select 'taskyard_tasks_held', 'gauge', 'Queued tasks whose directory is in use.', '{}', count(*) from workspace_waits
    union all
    select 'taskyard_tasks_running', 'gauge', 'Attempts under way.', jsonb_build_object('scope', a.scope, 'agent', a.agent, 'provider', a.provider), count(*)
    from attempts a where a.outcome is null group by a.scope, a.agent, a.provider
    union all
    select 'taskyard_questions', 'gauge', 'Questions that wait for a human.', '{}', count(*)
    from approvals p
    where p.decision is null and not exists (select from tasks t where t.id = p.task_id and t.finished_at is not null)
    union all
    select 'taskyard_' || c.name || '_total', 'counter',
        case c.name
            when 'attempts' then 'Attempts that ended, by how.'
            when 'lost_attempts' then 'Attempts that were taken back: a lease ran out, or a runner was gone.'
            when 'attempt_seconds' then 'Wall time of attempts that ended.'
            when 'tokens' then 'Tokens that attempts read and wrote, where the tool says.'
            when 'cost_dollars' then 'What they cost, where the tool or the table prices says.'
        end,
        c.labels, c.value::double precision
    from counters c
    union all
    select 'taskyard_limit_used_ratio', 'gauge', 'How much of a limit window is used, where the provider says.',
        jsonb_build_object('provider', l.provider, 'account', l.account, 'model', l.model, 'window', l.window_name), (l.used_percent / 100)::double precision
    from provider_limits l where l.used_percent is not null and (l.resets_at is null or l.resets_at > _now())
    union all
    select 'taskyard_limit_seconds', 'gauge', 'How long an account is not asked any more; 0: it is.',
        jsonb_build_object('provider', l.provider, 'account', l.account, 'model', l.model, 'window', l.window_name),
        greatest(date_part('epoch', l.until - _now()), 0)
    from provider_limits l where l.until is not null
    union all
    select 'taskyard_runner_slots', 'gauge', 'Slots of a runner.', jsonb_build_object('runner', r.name), r.slots from runners r where r.gone_at is null
    union all
    select 'taskyard_runner_busy_slots', 'gauge', 'Slots of a runner in which something runs.', jsonb_build_object('runner', r.name),
        (select count(*) from attempts a where a.runner_id = r.id and a.outcome is null)
    from runners r where r.gone_at is null
    union all
    select 'taskyard_runner_silent_seconds', 'gauge', 'How long ago a runner was last heard of.', jsonb_build_object('runner', r.name),
        greatest(date_part('epoch', _now() - r.last_seen), 0)
    from runners r where r.gone_at is null
    union all
    select 'taskyard_runner_healthy', 'gauge', 'Whether a runner can take tasks: its sandbox works, and it is not draining.', jsonb_build_object('runner', r.name),
        (r.sandbox_trouble is null and not r.draining)::integer
    from runners r where r.gone_at is null
    union all
    select 'taskyard_tick_age_seconds', 'gauge', 'When a runner last did what only time causes.', '{}', date_part('epoch', _now() - k.ticked_at)
    from ticker k where isfinite(k.ticked_at)
    union all
    select 'taskyard_notifications_due', 'gauge', 'Notifications that were not delivered yet.', '{}', count(*) from pushes p where p.next_try_at is not null
    union all
    select 'taskyard_database_complaints', 'gauge', 'Rows of the view database_health.', '{}', count(*) from _database_health()
    union all
    select 'taskyard_table_bytes', 'gauge', 'Size of a table with its indexes.', jsonb_build_object('table', x.told), sum(pg_total_relation_size(x.oid))::double precision
    from (
        select c.oid, coalesce(i.inhparent::regclass::text, c.relname::text) as told
        from pg_catalog.pg_class c
        left join pg_catalog.pg_inherits i on i.inhrelid = c.oid
        where c.relnamespace = 'taskyard'::regnamespace and c.relkind = 'r'
    ) x
    group by x.told;
end
$$;
comment on function metrics() is
'The yard in numbers, as Prometheus has them: name, kind (gauge, counter), help, labels, value. For who sees all scopes. Errors: TY006.';

create or replace function metrics_text() returns text
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_viewer', 'read metrics');
    return (
        select string_agg(x.family, '' order by x.name) || E'# EOF\n'
        from (
            select m.name, format(
                E'# TYPE %1$s %2$s\n# HELP %1$s %3$s\n', regexp_replace(m.name, '_total$', ''), min(m.kind), min(m.help)
            ) || string_agg(m.name || _metric_labels(m.labels) || ' ' || m.value || E'\n', '' order by m.labels) as family
            from metrics() m
            group by m.name
        ) x
    );
end
$$;
comment on function metrics_text() is
'The same as OpenMetrics text: psql -XAtc ''select metrics_text()'' serves a textfile collector, taskyard metrics a scraper. Errors: TY006.';
grant execute on function metrics(), metrics_text() to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _metric_labels(p_labels jsonb) returns text
language sql immutable
as $$
    select coalesce('{' || string_agg(
        format('%s="%s"', e.key, replace(replace(replace(coalesce(e.value, ''), '\', '\\'), '"', '\"'), E'\n', '\n')), ',' order by e.key
    ) || '}', '')
    from jsonb_each_text(p_labels) e
$$;
comment on function _metric_labels(jsonb) is 'Labels as OpenMetrics writes them.';
