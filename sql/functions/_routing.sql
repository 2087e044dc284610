-- Agent auto: which agent takes a task. Rules first, then the orchestrator model, then the agent default; never a stuck task.

create or replace function _route_by_rules(p_task tasks, out agent text, out routed_by text)
language sql stable
as $$
    select r.agent, format('rule %s', r.id)
    from routing_rules r
    where (r.pattern is null or p_task.prompt ~* r.pattern)
        and (r.label is null or r.label = any(p_task.requires))
        and (r.scope is null or r.scope = p_task.scope)
        and taskyard._may_use(p_task.scope, r.agent)
    order by r.position, r.id
    limit 1
$$;
comment on function _route_by_rules(tasks) is 'The agent that the first fitting rule names; nulls where none fits.';

create or replace function _may_use(p_scope text, p_agent text) returns boolean
language sql stable
as $$
    select not exists (select from taskyard.effective_scopes e where e.name = p_scope and p_agent <> all(e.allowed_agents))
$$;
comment on function _may_use(text, text) is 'Whether a scope allows an agent.';

create or replace function _routing_claim(p_claim claim) returns claim
language plpgsql stable
as $$
declare
    v_claim claim := p_claim;
    v_names jsonb;
    v_list text;
begin
    select jsonb_agg(a.name order by a.name), string_agg(format('- %s: %s', a.name, coalesce(a.description, 'no description')), E'\n' order by a.name)
    into v_names, v_list
    from agents a
    where a.name not in ('auto', 'summary') and a.paused_at is null and cardinality(a.route) > 0 and _may_use(p_claim.scope, a.name);
    v_claim.prompt := format(E'Agents:\n%s\n\nTask:\n%s', v_list, left(p_claim.prompt, 4000));
    v_claim.output_schema := jsonb_build_object(
        'type', 'object', 'additionalProperties', false, 'required', '["agent"]'::jsonb,
        'properties', jsonb_build_object('agent', jsonb_build_object('type', 'string', 'enum', coalesce(v_names, '[]')))
    );
    v_claim.workspace := null;
    v_claim.verify := null;
    v_claim.timeout := (select a.timeout from agents a where a.name = 'auto');
    return v_claim;
end
$$;
comment on function _routing_claim(claim) is 'Turns the claim of a task for agent auto into a question to the orchestrator: which of the agents?';

create or replace function _route(p_task bigint, p_agent text, p_routed_by text) returns text
language plpgsql volatile
as $$
declare
    v_agent text := p_agent;
    v_by text := p_routed_by;
    v_status task_status;
    v_scope text := (select t.scope from tasks t where t.id = p_task);
begin
    if v_agent is null or v_agent = 'auto' or not exists (select from agents a where a.name = v_agent and _may_use(v_scope, a.name)) then
        select a.name into v_agent
        from agents a
        where a.name not in ('auto', 'summary') and cardinality(a.route) > 0 and _may_use(v_scope, a.name)
        order by a.name <> 'default', a.name
        limit 1;
        v_by := 'default';
    end if;
    if v_agent is null then
        update tasks set status = 'failed', error = format('Scope %s allows no agent that could take it.', v_scope) where id = p_task and agent = 'auto';
        return 'failed';
    end if;
    update tasks set status = 'queued', agent = v_agent, routed_by = v_by, error = null
    where id = p_task and agent = 'auto'
    returning status into v_status;
    perform _log(p_task, null, 'routed', jsonb_build_object('agent', v_agent, 'by', v_by));
    return v_status;
end
$$;
comment on function _route(bigint, text, text) is 'Gives a waiting task of agent auto its agent, by default the agent default, and queues it for that.';

create or replace function _routed(p_attempt bigint, p_task bigint, p_result jsonb) returns text
language plpgsql volatile
as $$
declare
    v_task tasks;
    v_attempt attempts;
begin
    select * into v_attempt from attempts where id = p_attempt;
    select * into v_task from tasks where id = p_task and attempt_id = p_attempt for no key update;
    update attempts set counted = false where id = p_attempt;
    perform _leave(v_task, p_attempt);
    if v_task.cancel_requested_at is not null then
        update tasks set status = 'cancelled', error = coalesce(cancel_reason, 'cancelled') where id = p_task;
        return 'cancelled';
    end if;
    return _route(
        p_task, case when jsonb_typeof(p_result) = 'object' then p_result ->> 'agent' end,
        format('model %s', coalesce(v_attempt.model, v_attempt.provider))
    );
end
$$;
comment on function _routed(bigint, bigint, jsonb) is 'Ends an attempt that asked the orchestrator, with its answer or without one.';

create or replace function _route_without_model() returns integer
language plpgsql volatile
as $$
declare
    v_task bigint;
    v_count integer := 0;
begin
    for v_task in
        select t.id
        from lanes l
        join ready_tasks q on q.lane_id = l.id
        join tasks t on t.id = q.task_id
        where l.agent = 'auto'
            and (
                greatest(t.created_at, t.run_at) < _now() - interval '1 minute'
                or not exists (
                    select from runners r, agents a
                    where r.gone_at is null and not r.draining and a.name = 'auto' and l.requires <@ (r.labels || ('@' || r.host))
                        and exists (
                            select from effective_scopes e
                            cross join lateral _offers(r.id, a.route, l.provider, l.model, 'switch', e.allowed_providers)
                            where e.name = l.scope
                        )
                )
            )
        limit 1000
        for no key update of t skip locked
    loop
        perform _route(v_task, null, null);
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$$;
comment on function _route_without_model() is 'Gives tasks of agent auto to the agent default where no orchestrator model is up, or none had time for them within a minute.';
