create or replace function _ago(p_interval interval) returns text
language sql immutable
as $$
    select case
        when p_interval is null then ''
        when p_interval < interval '0' then '0s'
        when p_interval < interval '1 minute' then floor(extract(epoch from p_interval)) || 's'
        when p_interval < interval '1 hour' then floor(extract(epoch from p_interval) / 60) || 'm'
        when p_interval < interval '2 days' then floor(extract(epoch from p_interval) / 3600) || 'h'
        else floor(extract(epoch from p_interval) / 86400) || 'd'
    end
$$;
comment on function _ago(interval) is 'A length of time for a narrow screen: 12s, 5m, 3h, 9d.';
grant execute on function _ago(interval) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
grant execute on function _now() to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function explain_task(p_id bigint) returns setof text
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_task tasks;
    v_attempt attempts;
begin
    perform _require_role('taskyard_viewer', 'read tasks');
    select * into v_task from tasks where id = p_id;
    if not found then
        raise exception using
            errcode = 'TY002',
            message = format('There is no task %s.', p_id),
            hint = 'See: select * from queue;';
    end if;
    if v_task.status in ('running') then
        select * into v_attempt from attempts where id = v_task.attempt_id;
        return query
        select format('Runs on %s since %s, attempt %s, %s.', r.name, _ago(_now() - v_attempt.started_at), v_attempt.number, v_attempt.provider)
        from runners r where r.id = v_attempt.runner_id;
        return query
        select case
            when v_task.cancel_requested_at is not null then format('Is being stopped: %s', v_task.cancel_reason)
            when r.last_seen < _now() - interval '15 seconds'
                then format('%s was last heard of %s ago; the task goes back at %s at the latest.', r.name, _ago(_now() - r.last_seen), to_char(v_attempt.lease_until, 'HH24:MI:SS'))
            when v_attempt.progress_at is not null then format('Last output %s ago.', _ago(_now() - v_attempt.progress_at))
            else 'No output yet.'
        end
        from runners r where r.id = v_attempt.runner_id;
        return;
    end if;
    return query
    select case v_task.status
        when 'completed' then format('Completed %s ago, attempt %s.', _ago(_now() - v_task.finished_at), v_task.attempt_count)
        when 'failed' then format('Failed %s ago: %s', _ago(_now() - v_task.finished_at), v_task.error)
        when 'cancelled' then format('Cancelled %s ago: %s', _ago(_now() - v_task.finished_at), coalesce(v_task.cancel_reason, v_task.error))
        when 'waiting' then 'Waits for an answer; it holds no slot meanwhile.'
        when 'scheduled' then format(
            'Not before %s (in %s)%s.', to_char(v_task.run_at, 'YYYY-MM-DD HH24:MI:SS'), _ago(v_task.run_at - _now()),
            case when v_task.attempt_count > 0 then format('; attempt %s ended with: %s', v_task.attempt_count, v_task.error) else '' end
        )
        when 'blocked' then 'Waits for other tasks:'
        else 'Is queued.'
    end;
    if v_task.status = 'blocked' then
        return query
        select format('Task %s is %s: %s', d.id, d.status, left(d.prompt, 40))
        from tasks d where d.id = any(_unfinished(v_task)) order by d.id limit 20;
    elsif v_task.status = 'queued' then
        return query select * from _explain_queued(v_task);
    end if;
end
$$;
comment on function explain_task(bigint) is 'Why is my task not running? Says what it waits for, one reason per row. Errors: TY002, TY006.';
grant execute on function explain_task(bigint) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _explain_queued(p_task tasks) returns setof text
language plpgsql stable
as $$
#variable_conflict use_column
declare
    v_agent agents;
    v_scope scopes;
    v_route text[];
    v_running bigint;
    v_ahead bigint;
    v_reasons integer := 0;
    v_line text;
begin
    select * into v_agent from agents where name = p_task.agent;
    select * into v_scope from scopes where name = p_task.scope;
    v_route := case when p_task.provider is null then v_agent.route else array[p_task.provider] end;

    for v_line in
        select format('Scope %s is paused%s.', v_scope.name, coalesce(': ' || v_scope.paused_reason, '')) where v_scope.paused_at is not null
        union all
        select format('Agent %s is paused%s.', v_agent.name, coalesce(': ' || v_agent.paused_reason, '')) where v_agent.paused_at is not null
        union all
        select format('Agent %s has no route yet; an administrator gives it one: update agents set route = ''{...}'' where name = ''%s'';', v_agent.name, v_agent.name)
        where cardinality(v_route) = 0
        union all
        select format('Task %s uses the workspace %s.', h.task_id, h.workspace) from workspace_holders h where h.workspace = p_task.workspace
        union all
        select format('Scope %s runs %s of at most %s.', v_scope.name, n, v_scope.max_concurrency)
        from (select count(*) as n from attempts where scope = v_scope.name and outcome is null) c where n >= v_scope.max_concurrency
        union all
        select format('Agent %s runs %s of at most %s.', v_agent.name, n, v_agent.max_concurrency)
        from (select count(*) as n from attempts where agent = v_agent.name and outcome is null) c where n >= v_agent.max_concurrency
    loop
        v_reasons := v_reasons + 1;
        return next v_line;
    end loop;

    -- Is there a runner that could take it now? If not, what is wrong with each entry of the route?
    if not exists (
        select from runners r
        where r.gone_at is null and not r.draining and p_task.requires <@ r.labels
            and exists (select from _offers(r.id, v_agent.route, p_task.provider, p_task.model))
    ) then
        for v_line in
            select case
                when not exists (select from runners r where r.gone_at is null) then 'No runner is up.'
                when not exists (select from runners r where r.gone_at is null and p_task.requires <@ r.labels)
                    then format('No runner has the labels %s.', array_to_string(p_task.requires, ', '))
                when not exists (select from runners r where r.gone_at is null and not r.draining and p_task.requires <@ r.labels)
                    then 'Every runner that could take it is draining.'
            end
        loop
            if v_line is not null then
                v_reasons := v_reasons + 1;
                return next v_line;
            end if;
        end loop;
        for v_line in
            select case
                when p.name is null then format('The route names provider %s, which does not exist.', split_part(e.entry, ':', 1))
                when p.paused_at is not null then format('Provider %s is paused%s.', p.name, coalesce(': ' || p.paused_reason, ''))
                when l.until is not null then format('Provider %s cools down until %s%s.', p.name, to_char(l.until, 'YYYY-MM-DD HH24:MI:SS'), case when l.level > 0 then ' (a guess)' else '' end)
                when not exists (select from runner_providers rp join runners r on r.id = rp.runner_id where rp.provider = p.name and r.gone_at is null)
                    then format('No runner offers provider %s.', p.name)
                when not exists (select from runner_providers rp join runners r on r.id = rp.runner_id where rp.provider = p.name and r.gone_at is null and rp.state = 'ready')
                    then format('No runner has provider %s ready.', p.name)
            end
            from unnest(v_route) with ordinality e (entry, preference)
            left join providers p on p.name = split_part(e.entry, ':', 1)
            left join lateral (
                select max(pl.until) as until, max(pl.level) as level from provider_limits pl
                where pl.provider = p.name and pl.until > _now()
            ) l on true
            order by e.preference
        loop
            if v_line is not null then
                v_reasons := v_reasons + 1;
                return next v_line;
            end if;
        end loop;
    end if;
    if v_reasons = 0 then
        select count(*) into v_ahead
        from (
            select from ready_tasks r join open_lanes o on o.lane_id = r.lane_id
            where o.priority > p_task.priority or (o.priority = p_task.priority and r.position < p_task.queue_position)
            limit 10000
        ) a;
        select count(*) into v_running from attempts where outcome is null and runner_id in (select id from runners where gone_at is null);
        return next format('Nothing holds it back: %s ahead of it, %s running, %s slots in all.',
            case when v_ahead = 10000 then '10,000 or more' else v_ahead::text end, v_running,
            (select coalesce(sum(slots), 0) from runners where gone_at is null and not draining));
    end if;
end
$$;
comment on function _explain_queued(tasks) is 'The reasons why no runner takes a queued task now, or how many are ahead of it.';
