create or replace function heartbeat(p_runner bigint, p_attempts bigint[] default '{}', p_progress timestamptz[] default null)
returns table (attempt_id bigint, directive text, detail text)
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    v_runner runners;
    v_ours bigint[];
    v_stray bigint;
begin
    perform _require_runner('send heartbeats');
    -- A heartbeat lost in a crash is only sent again: no need to wait for the disk, fifty times in five seconds.
    if pg_current_xact_id_if_assigned() is null then
        perform set_config('synchronous_commit', 'off', true), set_config('taskyard.claim_only', 'on', true);
    end if;
    update runners set last_seen = _now()
    where id = p_runner and gone_at is null
    returning * into v_runner;
    if not found then
        raise exception using
            errcode = 'TY007',
            message = format('Runner %s is not registered any more.', p_runner),
            hint = 'Stop its work and call register_runner() again.',
            detail = coalesce((select gone_reason from runners where id = p_runner), 'It never was, in this database.');
    end if;
    perform _require_own_runner(v_runner.login);
    -- Narrow and in place (HOT): no index knows lease_until.
    with renewed as (
        update attempts a
        set lease_until = _now() + v_runner.lease, progress_at = coalesce(x.progress_at, a.progress_at)
        from unnest(p_attempts, p_progress) x (id, progress_at)
        where a.id = x.id and a.runner_id = p_runner and a.finished_at is null
        returning a.id
    )
    select coalesce(array_agg(id), '{}') into v_ours from renewed;
    -- Attempts that the runner does not know of: the answer to its claim was lost on the way.
    for v_stray in
        select a.id from attempts a
        where a.runner_id = p_runner and a.outcome is null and a.lease_until < _now() and a.id <> all(p_attempts)
    loop
        perform _take_back(v_stray, 'the runner does not know of it');
    end loop;
    perform _tell_held();

    return query
    select x.id, 'lost', (select a.evidence from attempts a where a.id = x.id and _own_attempt(x.id))
    from (select unnest(p_attempts) except select unnest(v_ours)) x (id);
    return query
    select t.attempt_id, case when t.cancel_requested_at is not null then 'cancel' else 'message' end, t.cancel_reason
    from attempts a join tasks t on t.id = a.task_id
    where a.id = any(v_ours) and (t.cancel_requested_at is not null or t.has_mail) and t.attempt_id = a.id;
    return query
    select a.id, case when h.id is null then 'wait' else 'handoff' end, coalesce('hands over to ' || h.target, 'waits for tasks or mail')
    from attempts a
    left join waits w on w.task_id = a.task_id and w.attempt_id = a.id and w.over_at is null
    left join handoffs h on h.task_id = a.task_id and h.attempt_id = a.id and h.to_task is null
    where a.id = any(v_ours) and (w.task_id is not null or h.id is not null);
    return query
    select x.attempt_id, 'wait', x.question
    from (
        select distinct on (q.attempt_id) q.attempt_id, q.question
        from approvals q
        where q.decision is null and q.attempt_id = any(v_ours)
        order by q.attempt_id, q.id
    ) x;
    return query select g.attempt_id, 'release', g.why from _to_give_back(v_ours) g;
    if v_runner.draining then
        return query select null::bigint, 'drain', null::text;
    end if;
    if exists (select from ticker where until < _now() or runner_id = p_runner) then
        return query select null::bigint, 'tick', null::text;
    end if;
end
$$;
comment on function heartbeat(bigint, bigint[], timestamptz[]) is
'Renews a runner and all its leases and returns directives: lost (kill the work, write nothing), cancel, wait (stop and complete with the outcome waiting: it waits for a human, for tasks or for mail), handoff (stop and complete with the outcome handed_off), message (there is mail: read_messages), release (stop and give it back: detail says why), drain, tick (call tick() once a second). progress: when each attempt last showed output, in the same order. Errors: TY006, TY007 (register again).';
grant execute on function heartbeat(bigint, bigint[], timestamptz[]) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _to_give_back(p_attempts bigint[]) returns table (attempt_id bigint, why text)
language sql stable
as $$
    select a.id, case
        when a.scope_version < e.narrowed_at or a.agent <> all(e.allowed_agents) or a.provider <> all(e.allowed_providers)
            then format('scope %s was narrowed', a.scope)
        else format('the budget of scope %s is used up', spent.scope)
    end
    from taskyard.attempts a
    join taskyard.tasks t on t.id = a.task_id and t.attempt_id = a.id
    join taskyard.effective_scopes e on e.name = a.scope
    left join lateral (
        select u.scope
        from taskyard._budgets_spent(e.budgeted) u
        join taskyard.budgets b on b.scope = u.scope and b.measure = u.measure and b.period = u.period
        where e.budgeted is not null and b.stops_running and u.used >= u.amount
        limit 1
    ) spent on true
    where a.id = any(p_attempts) and t.cancel_requested_at is null
        and (
            spent.scope is not null
            or (
                a.scope_version < e.version
                and (a.scope_version < e.narrowed_at or a.agent <> all(e.allowed_agents) or a.provider <> all(e.allowed_providers))
            )
        )
$$;
comment on function _to_give_back(bigint[]) is 'Which running attempts have to stop because their scope does not allow them any more, or has no budget left that lets them go on.';
