-- claim_task(runner, n): up to n tasks for a runner, each with a fresh attempt id.
--
-- One task at a time goes through a path of its own: the same work as one chain of CTEs for n rows costs a third of the rate.
-- Five statements per claim: look at the runner and the open lanes, look at the one on top (or choose one, see _best_lane), delete the
-- head of the lane from the claim index, set the task running (HOT: no index of tasks knows its status), insert the attempt.
-- The claim does not wait for its fsync: a claim lost in a crash is only claimed again, under another id.
--
-- Where a function is called only for its effect, its result is assigned: that is a simple expression, while PERFORM runs a query.

create or replace function claim_task(p_runner bigint, p_n integer default 1) returns setof claim
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_known boolean;
    v_draining boolean;
    v_labels text[];
    v_lease interval;
    v_login text;
    v_sandbox text;
    v_trouble text;
    v_open integer[];
    v_first integer;
    v_lane lane_choice;
    v_claim claim;
    v_left integer := p_n;
    v_take integer;
    v_most integer;
    v_again integer := 0;
    v_skip integer[] := array[]::integer[];
    v_waited boolean := false;
    v_count integer;
    v_done text;
begin
    if not pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, 'taskyard_runner', 'usage') then
        v_done := _require_role('taskyard_runner', 'claim tasks');
    end if;
    if coalesce(current_setting('taskyard.same_yard', true), '') <> 'yes' then
        v_done := _same_yard();
    end if;
    if p_n is null or p_n not between 1 and 500 then
        raise exception using
            errcode = 'TY001',
            message = format('Cannot claim %s tasks at once.', coalesce(p_n::text, 'null')),
            hint = 'Ask for 1 to 500.';
    end if;
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using
            errcode = 'TY010',
            message = 'Tasks are claimed in read committed transactions only.',
            hint = 'set default_transaction_isolation = ''read committed'';';
    end if;
    -- Two statements and not one: joined, each level of the join carries forty columns (62 microseconds instead of 49).
    select r.gone_at is null, r.draining, r.labels || ('@' || r.host), r.lease, r.login, r.sandbox, r.sandbox_trouble, o.lanes,
        case when o.lanes[2] is null or o.lowest < o.highest then o.lanes[1] end
    into v_known, v_draining, v_labels, v_lease, v_login, v_sandbox, v_trouble, v_open, v_first
    from runners r
    cross join (
        select array_agg(x.lane_id) as lanes, max(x.priority) as highest, min(x.priority) as lowest
        from (select lane_id, priority from open_lanes order by priority desc limit 2) x
    ) o
    where r.id = p_runner;
    if v_known is not true or v_sandbox is null then
        raise exception using
            errcode = 'TY007',
            message = format('Runner %s is not registered any more.', p_runner),
            hint = 'Call register_runner() again.',
            detail = coalesce((
                select coalesce(gone_reason, 'It does not confine what it runs, as this database asks for.') from runners where id = p_runner
            ), 'It never was, in this database.');
    end if;
    if v_login <> coalesce(nullif(current_setting('role'), 'none'), session_user) then
        v_done := _require_own_runner(v_login);
    end if;
    if v_draining or v_open is null or v_trouble is not null then
        v_done := _tell_held();
        return;
    end if;
    -- Only where nothing else was written in this transaction: a completion in it must still reach the disk.
    if pg_current_xact_id_if_assigned() is null then
        v_done := set_config('synchronous_commit', 'off', true);
        v_done := set_config('taskyard.claim_only', 'on', true);
    end if;

    -- Who has ended attempts in this transaction holds locks of budgets shared: two such claims would wait for each other.
    v_waited := pg_current_xact_id_if_assigned() is not null;

    -- Most yards have one open lane at the top priority: then there is nothing to choose.
    if v_first is not null then
        select c.* into v_lane from _lane_with_first_offer(v_first, p_runner, v_labels, v_sandbox) c;
    end if;
    while v_left > 0 loop
        -- Anything but one open lane with a free provider and no limit is looked at more closely.
        if v_lane.provider is null or v_lane.limited is not null or v_lane.budgeted is not null or v_lane.agent_max is not null then
            v_lane := _best_lane(p_runner, v_labels, v_sandbox, v_skip);
            exit when v_lane.lane_id is null;
        end if;
        v_lane.sandbox := v_sandbox;

        if v_lane.canary or v_lane.capped then
            -- Somebody else may have sent the canary, or used the last request, a moment ago: then look again, some times.
            if v_lane.canary and not _may_probe(v_lane.provider, v_lane.account, v_lane.model, v_waited) then
                v_take := 0;
            elsif v_lane.capped then
                v_take := least(v_left, _cap_room(v_lane.provider, v_lane.account, v_waited or v_lane.canary));
            end if;
            v_waited := true;
            if v_take = 0 then
                v_again := v_again + 1;
                if v_again > 3 then
                    v_skip := v_skip || v_lane.lane_id;
                end if;
                v_lane := null;
                v_take := null;
                continue;
            end if;
            v_most := case when v_lane.canary then 1 else v_take end;
        end if;

        -- A fair share of a batch, by weight: one claim of 50 does not hand everything to the first of five scopes.
        v_take := case when v_left = 1 then 1 else least(v_most, greatest(1, ceil(v_left * v_lane.share))::integer) end;
        if v_lane.limited is not null or v_lane.budgeted is not null or v_lane.agent_max is not null then
            v_take := least(v_take, _room(v_lane.limited, v_lane.budgeted, v_lane.agent, v_lane.agent_max, v_waited));
            v_waited := true;
        end if;
        v_count := 0;
        if v_take = 1 or (v_take > 1 and (v_lane.exclusive or v_lane.returned or v_lane.agent = 'auto')) then
            v_claim := _claim_one(p_runner, v_lease, v_lane);
            if v_claim.attempt_id is not null then
                if v_lane.canary then
                    perform _send_canary(v_claim.attempt_id, v_lane.provider, v_lane.account, v_lane.model);
                end if;
                return next v_claim;
                v_count := 1;
            end if;
        elsif v_take > 1 then
            return query select * from _claim_many(p_runner, v_lease, v_lane, v_take);
            get diagnostics v_count = row_count;
        end if;
        v_left := v_left - v_count;
        v_most := null;
        if v_lane.capped and v_count > 0 then
            perform _count_requests(v_lane.provider, v_lane.account, v_count);
        end if;
        if v_count = 0 then
            v_skip := v_skip || v_lane.lane_id;
        end if;
        v_lane := null;
    end loop;
    if v_left = p_n then
        v_done := _tell_held();
    end if;
end
$$;
comment on function claim_task(bigint, integer) is
'Claims up to n (1 to 500) tasks for a registered runner and returns all it needs to run them; no row when there is nothing it may run. Errors: TY001, TY006, TY007 (register again), TY010.';
grant execute on function claim_task(bigint, integer) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _room(p_limited text[], p_budgeted text[], p_agent text, p_agent_max integer, p_waited boolean) returns integer
language plpgsql volatile
as $$
declare
    v_waited boolean := p_waited;
    v_scope text;
    v_room integer := 2147483647;
begin
    -- Counting and then claiming overshoots; counting under a lock that is held until commit does not. Whoever holds one such
    -- lock already only tries for the next: two claims never wait for each other.
    foreach v_scope in array coalesce(p_limited, '{}') loop
        if not v_waited then
            perform pg_advisory_xact_lock(742104, hashtext(v_scope));
        elsif not pg_try_advisory_xact_lock(742104, hashtext(v_scope)) then
            return 0;
        end if;
        v_waited := true;
    end loop;
    foreach v_scope in array coalesce(p_budgeted, '{}') loop
        if not v_waited then
            perform pg_advisory_xact_lock(742110, hashtext(v_scope));
        elsif not pg_try_advisory_xact_lock(742110, hashtext(v_scope)) then
            return 0;
        end if;
        v_waited := true;
    end loop;
    if p_agent_max is not null then
        if not v_waited then
            perform pg_advisory_xact_lock(742105, hashtext(p_agent));
        elsif not pg_try_advisory_xact_lock(742105, hashtext(p_agent)) then
            return 0;
        end if;
    end if;
    -- Statements of their own, after the locks: each sees what the lock's last holder committed.
    if p_limited is not null then
        v_room := _scopes_room(p_limited);
    end if;
    if p_budgeted is not null and _over_budget(p_budgeted) then
        return 0;
    end if;
    if p_agent_max is not null then
        v_room := least(v_room, p_agent_max - (select count(*) from attempts where agent = p_agent and outcome is null));
    end if;
    return greatest(v_room, 0);
end
$$;
comment on function _room(text[], text[], text, integer, boolean) is 'How many more attempts scopes, budgets and an agent admit; holds their locks until commit.';

create or replace function _scopes_room(p_limited text[]) returns integer
language sql stable
as $$
    select min(s.max_concurrency - (
        select count(*) from taskyard.attempts a join taskyard.effective_scopes e on e.name = a.scope
        where a.outcome is null and s.name = any(e.path)
    ))::integer
    from taskyard.scopes s
    where s.name = any(p_limited)
$$;
comment on function _scopes_room(text[]) is 'How many more attempts these scopes admit, each counted with all below it.';

create or replace function _claim_one(p_runner bigint, p_lease interval, p_lane lane_choice) returns claim
language plpgsql volatile
as $$
declare
    v_mark bigint := _mark(p_lane.lane_id);
    v_position bigint;
    v_id bigint;
    v_task tasks;
    v_attempt bigint;
    v_now timestamptz := _now();
    v_claim claim;
    v_done text;
begin
    loop
        if p_lane.exclusive then
            select h.position, h.task_id into v_position, v_id from _head_with_workspace(p_lane.lane_id, v_mark) h;
        else
            -- Both rows or neither: a task whose row somebody edits right now is left for the next claim.
            delete from ready_tasks where ctid = (
                select r.ctid
                from ready_tasks r
                join tasks t on t.id = r.task_id
                where r.lane_id = p_lane.lane_id and r.position > v_mark
                order by r.position
                limit 1
                for update of r skip locked for no key update of t skip locked
            )
            returning position, task_id into v_position, v_id;
        end if;
        exit when v_id is not null;
        if v_mark = 0 then
            return null;
        end if;
        v_mark := 0; -- from the start: something may have become visible below the mark
    end loop;
    v_attempt := _attempt_id(clock_timestamp(), nextval('attempt_counter'));
    update tasks
    set status = 'running', attempt_id = v_attempt, attempt_count = attempt_count + 1, started_at = coalesce(started_at, v_now)
    where id = v_id
    returning prompt, payload, agent, scope, workspace, verify, timeout, output_schema, attempt_count, repository, base, push_to, handoff_id, has_mail
    into v_task.prompt, v_task.payload, v_task.agent, v_task.scope, v_task.workspace, v_task.verify, v_task.timeout,
        v_task.output_schema, v_task.attempt_count, v_task.repository, v_task.base, v_task.push_to, v_task.handoff_id, v_task.has_mail;
    insert into attempts (
        id, task_id, number, runner_id, scope, agent, provider, account, model, lease_until, started_at, scope_version, sandbox, verify
    )
    values (
        v_attempt, v_id, v_task.attempt_count, p_runner, v_task.scope, v_task.agent, p_lane.provider, p_lane.account,
        p_lane.model, v_now + p_lease, v_now, p_lane.scope_version, p_lane.sandbox, coalesce(v_task.verify, p_lane.verify)
    );
    v_done := _set_mark(p_lane.lane_id, v_position);
    v_done := _announce('update', array[v_id], 'running');
    v_claim := row(
        v_attempt, v_id, v_task.attempt_count, v_task.prompt, v_task.payload, v_task.agent, v_task.scope,
        p_lane.provider, p_lane.account, p_lane.model, p_lane.adapter, p_lane.settings, p_lane.command, p_lane.result_format,
        p_lane.system_prompt, p_lane.tools, p_lane.max_turns, coalesce(v_task.output_schema, p_lane.output_schema), p_lane.permissions,
        v_task.workspace, coalesce(v_task.verify, p_lane.verify), coalesce(v_task.timeout, p_lane.timeout),
        p_lane.first_output_timeout, p_lane.idle_timeout, null::text, null::jsonb, null::text, v_now + p_lease, p_lane.allowed_paths,
        p_lane.network_allow, v_task.repository, v_task.base, v_task.push_to, null::bigint, null::text
    )::claim;
    if v_task.agent = 'auto' then
        v_claim := _routing_claim(v_claim);
    elsif v_task.attempt_count > 1 or v_task.handoff_id is not null or v_task.has_mail then
        v_claim := _pick_up(v_claim, p_runner);
    end if;
    return v_claim;
end
$$;
comment on function _claim_one(bigint, interval, lane_choice) is 'Claims the head of a lane; null where nothing in it can be had.';

create or replace function _head_with_workspace(p_lane integer, p_mark bigint, out "position" bigint, out task_id bigint)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    v_mark bigint := p_mark;
    v_position bigint;
    v_id bigint;
    v_workspace text;
begin
    loop
        select r.position, t.id, t.workspace into v_position, v_id, v_workspace
        from ready_tasks r
        join tasks t on t.id = r.task_id
        where r.lane_id = p_lane and r.position > v_mark
        order by r.position
        limit 1
        for update of r skip locked for no key update of t skip locked;
        if not found then
            return;
        end if;
        v_mark := v_position;
        if pg_try_advisory_xact_lock(742103, hashtext(v_workspace)) then
            delete from ready_tasks r where r.lane_id = p_lane and r.position = v_position;
            if _take_workspace(v_workspace, v_id) then
                "position" := v_position;
                task_id := v_id;
                return;
            end if;
        end if;
    end loop;
end
$$;
comment on function _head_with_workspace(integer, bigint) is
'Takes the first task of the lane whose directory is free out of the claim index; those before it step aside until theirs is.';

create or replace function _claim_many(p_runner bigint, p_lease interval, p_lane lane_choice, p_n integer) returns setof claim
language plpgsql volatile
as $$
declare
    v_mark bigint := _mark(p_lane.lane_id);
    v_positions bigint[];
    v_ids bigint[];
    v_attempts bigint[];
    v_done text;
begin
    loop
        with picked as materialized (
            select r.position, t.id
            from ready_tasks r
            join tasks t on t.id = r.task_id
            where r.lane_id = p_lane.lane_id and r.position > v_mark
            order by r.position
            limit p_n
            for update of r skip locked for no key update of t skip locked
        )
        select array_agg(position), array_agg(id), array_agg(_attempt_id(clock_timestamp(), nextval('attempt_counter')))
        into v_positions, v_ids, v_attempts
        from picked;
        exit when v_ids is not null or v_mark = 0;
        v_mark := 0;
    end loop;
    if v_ids is null then
        return;
    end if;
    delete from ready_tasks where lane_id = p_lane.lane_id and position = any(v_positions);
    return query
    with taken as (
        update tasks t
        set status = 'running', attempt_id = x.attempt, attempt_count = t.attempt_count + 1,
            started_at = coalesce(t.started_at, _now())
        from unnest(v_ids, v_attempts) x (id, attempt)
        where t.id = x.id
        returning t.*
    ),
    begun as (
        insert into attempts (
            id, task_id, number, runner_id, scope, agent, provider, account, model, lease_until, started_at, scope_version, sandbox, verify
        )
        select taken.attempt_id, taken.id, taken.attempt_count, p_runner, taken.scope, taken.agent,
            p_lane.provider, p_lane.account, p_lane.model, _now() + p_lease, _now(), p_lane.scope_version, p_lane.sandbox,
            coalesce(taken.verify, p_lane.verify)
        from taken
    )
    select t.attempt_id, t.id, t.attempt_count, t.prompt, t.payload, t.agent, t.scope, p_lane.provider, p_lane.account, p_lane.model,
        p_lane.adapter, p_lane.settings, p_lane.command, p_lane.result_format, p_lane.system_prompt, p_lane.tools, p_lane.max_turns,
        coalesce(t.output_schema, p_lane.output_schema), p_lane.permissions, t.workspace, coalesce(t.verify, p_lane.verify),
        coalesce(t.timeout, p_lane.timeout), p_lane.first_output_timeout, p_lane.idle_timeout, null::text, null::jsonb, null::text,
        _now() + p_lease, p_lane.allowed_paths, p_lane.network_allow, t.repository, t.base, t.push_to, null::bigint, null::text
    from taken t;
    v_done := _set_mark(p_lane.lane_id, v_positions[cardinality(v_positions)]);
    v_done := _announce('update', v_ids, 'running');
end
$$;
comment on function _claim_many(bigint, interval, lane_choice, integer) is 'Claims up to n tasks of a lane in one set-based step.';
