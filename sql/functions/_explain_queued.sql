-- Why no runner takes a queued task now.

create or replace function _explain_queued(p_task tasks) returns setof text
language plpgsql stable
as $$
#variable_conflict use_column
declare
    v_agent agents;
    v_scope effective_scopes;
    v_route text[];
    v_running bigint;
    v_ahead bigint;
    v_reasons integer := 0;
    v_line text;
begin
    select * into v_agent from agents where name = p_task.agent;
    select * into v_scope from effective_scopes where name = p_task.scope;
    v_route := case when p_task.provider is null then v_agent.route else array[p_task.provider] end;

    for v_line in
        select format('Scope %s is paused%s.', s.name, coalesce(': ' || s.paused_reason, '')) from scopes s where s.name = v_scope.paused
        union all
        select format('Scope %s does not allow agent %s.', v_scope.name, p_task.agent) where p_task.agent <> all(v_scope.allowed_agents)
        union all
        select format('Scope %s allows none of %s.', v_scope.name, array_to_string(v_route, ', '))
        where v_scope.allowed_providers is not null and cardinality(v_route) > 0
            and not exists (select from unnest(v_route) r (entry) where split_part(r.entry, ':', 1) = any(v_scope.allowed_providers))
        union all
        select format('Agent %s is paused%s.', v_agent.name, coalesce(': ' || v_agent.paused_reason, '')) where v_agent.paused_at is not null
        union all
        select format('Agent %s has no route yet; an administrator gives it one: update agents set route = ''{...}'' where name = ''%s'';', v_agent.name, v_agent.name)
        where cardinality(v_route) = 0
        union all
        select format('Task %s uses the workspace %s.', h.task_id, h.workspace) from workspace_holders h where h.workspace = p_task.workspace
        union all
        select format('Scope %s runs %s of at most %s.', s.name, c.n, s.max_concurrency)
        from scopes s
        cross join lateral (
            select count(*) as n from attempts a join effective_scopes e on e.name = a.scope where a.outcome is null and s.name = any(e.path)
        ) c
        where s.name = any(v_scope.limited) and c.n >= s.max_concurrency
        union all
        select format('The budget of scope %s is used up: %s of %s%s.', u.scope, _amount(u.measure, u.used), _budget_text(u.measure, u.period, u.amount),
            case when u.period = 'total' then '' else format('; it goes on in %s', _ago(_period_end(u.period) - _now())) end)
        from _budgets_spent(v_scope.budgeted) u
        where v_scope.budgeted is not null and u.used >= u.amount
        union all
        select format('Agent %s runs %s of at most %s.', v_agent.name, n, v_agent.max_concurrency)
        from (select count(*) as n from attempts where agent = v_agent.name and outcome is null) c where n >= v_agent.max_concurrency
        union all
        select format('It stays on %s, where its session is, for %s more at most.', p_task.stays_on, _ago(p_task.stays_until - _now())) where p_task.stays_on is not null
    loop
        v_reasons := v_reasons + 1;
        return next v_line;
    end loop;

    -- Is there a runner that could take it now? If not, what is wrong with each entry of the route?
    if not exists (
        select from runners r
        where r.gone_at is null and not r.draining and p_task.requires <@ (r.labels || ('@' || r.host))
            and r.sandbox_trouble is null and not (v_scope.confined and r.sandbox <> 'strict')
            and exists (select from _offers(r.id, v_agent.route, p_task.provider, p_task.model, p_task.on_limit, v_scope.allowed_providers))
    ) then
        for v_line in
            select case
                when not exists (select from runners r where r.gone_at is null) then 'No runner is up.'
                when not exists (select from runners r where r.gone_at is null and p_task.requires <@ (r.labels || ('@' || r.host)))
                    then format('No runner has the labels %s.', array_to_string(p_task.requires, ', '))
                when not exists (select from runners r where r.gone_at is null and not r.draining and p_task.requires <@ (r.labels || ('@' || r.host)))
                    then 'Every runner that could take it is draining.'
                when v_scope.confined and not exists (
                    select from runners r where r.gone_at is null and p_task.requires <@ (r.labels || ('@' || r.host)) and r.sandbox = 'strict'
                ) then format('Scope %s is confined, and no runner has a sandbox that can do that.', v_scope.name)
            end
            union all
            select format('%s has no usable sandbox: %s', r.name, r.sandbox_trouble)
            from runners r where r.gone_at is null and p_task.requires <@ (r.labels || ('@' || r.host)) and r.sandbox_trouble is not null
            union all
            select x.line
            from unnest(v_route) with ordinality e (entry, preference)
            cross join lateral _explain_entry(
                split_part(e.entry, ':', 1), coalesce(p_task.model, _entry_model(e.entry)), p_task.on_limit
            ) x (line)
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
            where o.priority > greatest(p_task.priority, p_task.lent_priority) or (o.priority = greatest(p_task.priority, p_task.lent_priority) and r.position < p_task.queue_position)
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

create or replace function _explain_entry(p_provider text, p_model text, p_on_limit text) returns setof text
language plpgsql stable
as $$
declare
    v_provider providers;
    v_line text;
begin
    select * into v_provider from providers where name = p_provider;
    if v_provider.name is null then
        return next format('The route names provider %s, which does not exist.', p_provider);
        return;
    elsif v_provider.paused_at is not null then
        return next format('Provider %s is paused%s.', p_provider, coalesce(': ' || v_provider.paused_reason, ''));
        return;
    end if;
    if not exists (
        select from runner_providers rp join runners r on r.id = rp.runner_id
        where rp.provider = p_provider and r.gone_at is null and rp.state <> 'missing'
    ) then
        return next format('No runner offers provider %s.', p_provider);
        return;
    end if;
    for v_line in
        -- Every login that some runner has, and what keeps it from being used.
        select distinct case
            when rp.state = 'unauthenticated' and rp.refused_at is null
                then format('Provider %s is not logged in on %s: %s', p_provider, r.name, rp.detail)
            when rp.state = 'unauthenticated' then format(
                'Provider %s refused the login%s %s ago; log in anew, then: select resume_provider(''%s'');',
                p_provider, coalesce(' ' || nullif(rp.account, ''), ''), _ago(_now() - rp.refused_at), p_provider
            )
            when rp.state = 'ready' and p_model <> all(rp.models) then format('%s has no model %s for provider %s.', r.name, p_model, p_provider)
            when rp.state = 'ready' and rp.until > _now() then format(
                '%s cannot reach provider %s; it tries again in %s.', r.name, p_provider, _ago(rp.until - _now())
            )
            when pl.until > _now() then format(
                'Provider %s%s has hit its limit %s until %s (in %s%s).%s', p_provider, coalesce(' ' || nullif(rp.account, ''), ''),
                concat_ws(' ', nullif(pl.window_name, ''), 'of ' || nullif(pl.model, '')), to_char(pl.until, 'YYYY-MM-DD HH24:MI:SS'),
                _ago(pl.until - _now()), case when pl.level > 0 then ', a guess' else '' end,
                case when p_on_limit <> 'switch' and _worth_waiting(p_provider, p_model, p_on_limit) then ' The task waits for it (on_limit).' else '' end
            )
            when pl.canary_until > _now() then format('Provider %s is being tried again after its limit, by attempt %s.', p_provider, pl.canary_attempt)
            when cap.period is not null then format(
                'Provider %s%s has used up its cap of %s requests per %s; it goes on in %s.', p_provider,
                coalesce(' ' || nullif(rp.account, ''), ''), cap.max_requests, cap.period, _ago(cap.free_at - _now())
            )
        end
        from runner_providers rp
        join runners r on r.id = rp.runner_id and r.gone_at is null
        left join lateral (
            select l.* from provider_limits l
            where l.provider = rp.provider and l.account in ('', rp.account) and (l.model = '' or p_model is null or l.model = p_model)
                and l.until is not null
            order by l.until desc limit 1
        ) pl on true
        left join lateral (
            select c.period, c.max_requests, (
                select min(u.bucket) + c.period * 1.05 from provider_cap_usage u
                where u.cap_id = c.id and u.account = rp.account and u.bucket > _now() - c.period * 1.05
            ) as free_at
            from provider_caps c
            where c.provider = rp.provider and c.account in ('', rp.account) and _cap_used(c.id, c.period, rp.account) >= c.max_requests
            order by 3 desc limit 1
        ) cap on true
        where rp.provider = p_provider and rp.state <> 'missing'
    loop
        if v_line is not null then
            return next v_line;
        end if;
    end loop;
end
$$;
comment on function _explain_entry(text, text, text) is 'What keeps each login of a provider from taking a task now; nothing where one is free.';
