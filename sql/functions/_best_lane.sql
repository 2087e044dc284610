-- The choice of a lane.
--
-- Candidates are a window of 24 lanes of that priority, from a random point of the ring of open lanes on; so
-- the cost of a claim does not grow with the number of lanes. With up to 24 open lanes the choice is exact, with more it is
-- the best of a fair sample. Further windows, then lower priorities, are looked at only while nothing was eligible.
create or replace function _best_lane(p_runner bigint, p_labels text[], p_sandbox text, p_skip integer[]) returns lane_choice
language plpgsql volatile
as $$
declare
    c_window constant integer := 24;
    c_last constant integer := 2147483647;
    v_choice lane_choice;
    v_priority integer := c_last;
    v_lanes integer[];
    v_lowest integer;
    v_lane integer;
    v_share double precision;
    v_provider text;
    v_account text;
    v_model text;
    v_canary boolean;
    v_capped boolean;
    v_start integer;
    v_first integer;   -- how far the ring was seen from v_start to its end
    v_second integer;  -- how far it was seen from its beginning to v_start
    v_first_seen integer;
    v_second_seen integer;
    v_seen bigint;
begin
    loop
        select array_agg(o.lane_id), max(o.priority), min(o.priority) into v_lanes, v_priority, v_lowest
        from (select lane_id, priority from open_lanes where priority < v_priority order by priority desc limit 2) o;
        exit when v_priority is null;
        -- One lane at this priority: nothing to choose, it is only checked.
        if cardinality(v_lanes) = 1 or v_lowest < v_priority then
            if v_lanes[1] <> all(p_skip) then
                v_choice := _check_lane(v_lanes[1], p_runner, p_labels, p_sandbox);
                if v_choice.lane_id is not null then
                    return v_choice;
                end if;
            end if;
            continue;
        end if;

        v_start := (random() * 4294967290 - 2147483645)::integer;
        v_first := v_start;
        v_second := -2147483648;
        loop
            with ring as materialized (
                (
                    select o.lane_id, o.spin, 1 as lap from open_lanes o
                    where o.priority = v_priority and o.spin > v_first
                    order by o.spin limit c_window
                )
                union all
                (
                    select o.lane_id, o.spin, 2 as lap from open_lanes o
                    where o.priority = v_priority and o.spin >= v_second and o.spin <= v_start
                    order by o.spin limit c_window
                )
                limit c_window
            ),
            lane as materialized (
                select l.id, l.scope, l.agent, l.returned, l.provider, l.model, l.on_limit, a.route, a.max_concurrency as agent_max, s.limited,
                    s.budgeted, s.weight, s.allowed_providers
                from ring
                join lanes l on l.id = ring.lane_id
                join agents a on a.name = l.agent
                join effective_scopes s on s.name = l.scope
                where l.id <> all(p_skip)
                    and a.paused_at is null
                    and s.paused is null
                    and (s.allowed_agents is null or l.agent = any(s.allowed_agents))
                    and not (s.confined and p_sandbox <> 'strict')
                    and l.requires <@ p_labels
            ),
            -- Neither is worked out unless a lane asks for it.
            full_scope as materialized (
                select s.name from scopes s
                where s.name in (select unnest(lane.limited) from lane) and s.max_concurrency <= (
                    select count(*) from attempts x join effective_scopes e on e.name = x.scope where x.outcome is null and s.name = any(e.path)
                )
            ),
            spent_scope as materialized (
                select u.scope as name from _budgets_spent((select array_agg(distinct b.name) from lane cross join lateral unnest(lane.budgeted) b (name))) u
                where u.used >= u.amount
            )
            select w.n, w.first_spin, w.second_spin, best.*
            into v_seen, v_first_seen, v_second_seen, v_share, v_lane, v_provider, v_account, v_model, v_canary, v_capped
            from (
                select count(*) as n, max(spin) filter (where lap = 1) as first_spin, max(spin) filter (where lap = 2) as second_spin
                from ring
            ) w
            cross join (
                select count(*) as rivals, sum(d.weight) as weights from (select distinct lane.scope, lane.weight from lane) d
            ) contest
            left join lateral (
                select lane.weight::float8 / contest.weights as share, lane.id, offer.provider, offer.account, offer.model, offer.canary, offer.capped
                from lane
                cross join lateral (
                    select * from _offers(p_runner, lane.route, lane.provider, lane.model, lane.on_limit, lane.allowed_providers) limit 1
                ) offer
                cross join lateral (
                    -- The head of the lane, from the session's low-water mark on (see _mark).
                    select h.position from (
                        (select t.position from ready_tasks t where t.lane_id = lane.id and t.position > _mark(lane.id) order by t.position limit 1)
                        union all
                        (select t.position from ready_tasks t where t.lane_id = lane.id and t.position > 0 order by t.position limit 1)
                    ) h limit 1
                ) head
                left join lateral (
                    select count(*) as running from attempts x where x.scope = lane.scope and x.outcome is null
                    having contest.rivals > 1
                ) in_scope on true
                where (lane.limited is null or not exists (select from full_scope f where f.name = any(lane.limited)))
                    and (lane.budgeted is null or not exists (select from spent_scope f where f.name = any(lane.budgeted)))
                    and (
                        lane.agent_max is null
                        or (select count(*) from attempts x where x.agent = lane.agent and x.outcome is null) < lane.agent_max
                    )
                order by offer.preferred desc, in_scope.running::float8 / lane.weight nulls first, lane.returned desc, head.position
                limit 1
            ) best on true;

            if v_lane is not null then
                select l.id, l.exclusive, l.returned, v_share, l.scope, l.agent, s.limited, s.budgeted, a.max_concurrency, p.name, v_account,
                    v_model, v_canary, v_capped, p.adapter, p.settings, a.command, a.result_format, a.system_prompt, a.tools, a.max_turns,
                    a.output_schema, s.permissions, a.verify, a.timeout, a.first_output_timeout, a.idle_timeout, s.allowed_paths,
                    s.network_allow, s.version, null
                into v_choice
                from lanes l
                join agents a on a.name = l.agent
                join effective_scopes s on s.name = l.scope
                join providers p on p.name = v_provider
                where l.id = v_lane;
                return v_choice;
            end if;
            exit when v_seen < c_window;
            if v_second_seen is null then
                v_first := v_first_seen;
            else
                exit when v_second_seen >= v_start;
                v_first := c_last;
                v_second := v_second_seen + 1;
            end if;
        end loop;
    end loop;
    return null;
end
$$;
comment on function _best_lane(bigint, text[], text, integer[]) is
'The lane this runner should claim from now, or null. Order: priority, then the local model that is loaded, then the scope with fewest running per weight, then tasks that come back, then age.';

create or replace function _lane_with_first_offer(p_lane integer, p_runner bigint, p_labels text[], p_sandbox text) returns setof lane_choice
language sql stable
as $$
    select l.id, l.exclusive, l.returned, 1::float8, l.scope, l.agent, s.limited, s.budgeted, a.max_concurrency, p.name, rp.account,
        coalesce(l.model, case when l.provider is null then taskyard._entry_model(a.route[1]) end), false, false, p.adapter, p.settings,
        a.command, a.result_format, a.system_prompt, a.tools, a.max_turns, a.output_schema, s.permissions, a.verify, a.timeout,
        a.first_output_timeout, a.idle_timeout, s.allowed_paths, s.network_allow, s.version, null::text
    from taskyard.lanes l
    join taskyard.agents a on a.name = l.agent
    join taskyard.effective_scopes s on s.name = l.scope
    left join taskyard.runner_providers rp
        on rp.runner_id = p_runner and rp.provider = coalesce(l.provider, split_part(a.route[1], ':', 1)) and rp.state = 'ready'
        and coalesce(rp.until <= taskyard._now(), true) and rp.models is null
        and (s.allowed_providers is null or rp.provider = any(s.allowed_providers))
    left join taskyard.providers p
        on p.name = rp.provider and p.paused_at is null
        -- Any limit or cap of the provider is for the close look of _offers.
        and not exists (select from taskyard.provider_limits pl where pl.provider = rp.provider and pl.until is not null)
        and not exists (select from taskyard.provider_caps c where c.provider = rp.provider)
    where l.id = p_lane and a.paused_at is null and s.paused is null and l.requires <@ p_labels
        and (s.allowed_agents is null or l.agent = any(s.allowed_agents)) and not (s.confined and p_sandbox <> 'strict')
$$;
comment on function _lane_with_first_offer(integer, bigint, text[], text) is
'The lane if it is open to this runner, with the first entry of its route (nearly always the one) where nothing at all speaks against that, else without a provider. Inlined into its callers, so it pins no search_path.';

create or replace function _check_lane(p_lane integer, p_runner bigint, p_labels text[], p_sandbox text) returns lane_choice
language plpgsql volatile
as $$
declare
    v_choice lane_choice;
begin
    select c.* into v_choice from _lane_with_first_offer(p_lane, p_runner, p_labels, p_sandbox) c;
    if v_choice.lane_id is null then
        return null;
    end if;
    if v_choice.provider is null then
        select p.name, o.account, o.model, o.canary, o.capped, p.adapter, p.settings
        into v_choice.provider, v_choice.account, v_choice.model, v_choice.canary, v_choice.capped, v_choice.adapter, v_choice.settings
        from lanes l
        join agents a on a.name = l.agent
        join effective_scopes s on s.name = l.scope
        cross join lateral (select * from _offers(p_runner, a.route, l.provider, l.model, l.on_limit, s.allowed_providers) limit 1) o
        join providers p on p.name = o.provider
        where l.id = p_lane;
        if not found then
            return null;
        end if;
    end if;
    -- Full is full; whether there really is room is decided under a lock, by _room.
    if v_choice.limited is not null and _scopes_room(v_choice.limited) <= 0 then
        return null;
    end if;
    if v_choice.budgeted is not null and _over_budget(v_choice.budgeted) then
        return null;
    end if;
    if v_choice.agent_max is not null
        and (select count(*) from attempts x where x.agent = v_choice.agent and x.outcome is null) >= v_choice.agent_max then
        return null;
    end if;
    return v_choice;
end
$$;
comment on function _check_lane(integer, bigint, text[], text) is 'The lane, if this runner may claim from it now.';
