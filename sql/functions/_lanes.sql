-- Where a task is filed, and which of those places claims look at.

create or replace function _lane_for(p_task tasks, p_returned boolean) returns integer
language plpgsql volatile
as $$
declare
    v_lane integer;
    v_provider text := p_task.provider;
    v_model text := p_task.model;
    v_on_limit text := p_task.on_limit;
    v_exclusive boolean := p_task.workspace is not null;
    v_priority integer := greatest(p_task.priority, p_task.lent_priority);
    v_requires text[] := case when p_task.stays_on is null then p_task.requires else p_task.requires || ('@' || p_task.stays_on) end;
begin
    if p_task.agent = 'auto' then
        -- Who is to do it is a question to the orchestrator; these wishes are about the work itself.
        v_provider := null;
        v_model := null;
        v_on_limit := 'switch';
        v_exclusive := false;
    end if;
    select l.id into v_lane
    from lanes l
    where l.scope = p_task.scope and l.agent = p_task.agent and l.priority = v_priority
        and l.returned = p_returned
        and l.provider is not distinct from v_provider
        and l.model is not distinct from v_model
        and l.requires = v_requires
        and l.exclusive = v_exclusive
        and l.on_limit = v_on_limit
    order by l.id
    limit 1;
    if v_lane is null then
        perform _check_references(p_task);
        insert into lanes (priority, returned, scope, agent, requires, provider, model, exclusive, on_limit)
        values (
            v_priority, p_returned, p_task.scope, p_task.agent, v_requires, v_provider, v_model, v_exclusive, v_on_limit
        )
        returning id into v_lane;
    end if;
    return v_lane;
end
$$;
comment on function _lane_for(tasks, boolean) is 'The lane that a task is filed under, made if it is new.';

create or replace function _open_lanes(p_lanes integer[]) returns void
language plpgsql volatile
as $$
begin
    insert into open_lanes (lane_id, priority, spin)
    select l.id, l.priority, l.spin
    from lanes l
    where l.id = any(p_lanes)
        and not exists (select from open_lanes o where o.lane_id = l.id);
end
$$;
comment on function _open_lanes(integer[]) is 'Makes lanes visible to claims; called after rows were put into ready_tasks.';
