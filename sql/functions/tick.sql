create or replace function tick(p_runner bigint default null) returns integer
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    c_lock_grace constant interval := interval '4 seconds';
    v_ticker ticker;
    v_runner runners;
    v_task bigint;
    v_ticked_at timestamptz;
    v_done integer := 0;
begin
    perform _require_runner('tick');
    if not pg_try_advisory_xact_lock(742107, 0) then
        return 0;
    end if;
    select * into v_ticker from ticker;
    if v_ticker.runner_id <> p_runner and v_ticker.until > _now() and exists (select from runners where id = v_ticker.runner_id and gone_at is null) then
        return 0; -- another runner does it
    end if;
    v_ticked_at := v_ticker.ticked_at;
    -- No tick for ten seconds: the database was down, or nobody was there. Runners that went on working get as long to report
    -- before anybody is given up.
    update ticker
    set runner_id = p_runner, until = _now() + interval '3 seconds', ticked_at = _now(),
        blind_until = case when v_ticker.ticked_at between '1970-01-01' and _now() - interval '10 seconds' then _now() + interval '10 seconds' else blind_until end
    returning * into v_ticker;

    -- Time has come.
    for v_task in
        with due as materialized (
            select s.task_id from scheduled_tasks s where s.run_at <= _now() order by s.run_at limit 1000 for update skip locked
        )
        select t.id from due join tasks t on t.id = due.task_id where t.status = 'scheduled' for no key update of t skip locked
    loop
        update tasks set status = 'queued' where id = v_task;
        v_done := v_done + 1;
    end loop;

    -- What cooled down may be tried again: those who sleep are told.
    if exists (select from provider_limits where until > v_ticked_at and until <= _now())
        or exists (select from provider_limits where canary_until > v_ticked_at and canary_until <= _now())
        or exists (select from runner_providers where until > v_ticked_at and until <= _now())
        or exists (
            select from provider_cap_usage u join provider_caps c on c.id = u.cap_id
            where u.bucket + c.period * 1.05 > v_ticked_at and u.bucket + c.period * 1.05 <= _now()
        ) then
        perform _wake_runners();
        v_done := v_done + 1; -- the caller's own session is not notified by itself
    end if;
    v_done := v_done + _route_without_model();
    v_done := v_done + _decide_for_silent();
    v_done := v_done + _end_waits();
    v_done := v_done + _take_submissions();
    v_done := v_done + _summaries_overdue();
    v_done := v_done + _let_others_have();
    v_done := v_done + _fire_schedules();
    if exists (select from budgets) then
        v_done := v_done + _watch_budgets();
        if (v_ticked_at at time zone 'UTC')::date < (_now() at time zone 'UTC')::date then
            perform _wake_runners(); -- a new day, and perhaps a new budget
        end if;
    end if;

    -- Who is gone?
    if v_ticker.blind_until <= _now() then
        for v_runner in select * from runners where gone_at is null loop
            if v_runner.last_seen < _now() - v_runner.lease then
                v_done := v_done + _give_up_runner(v_runner.id, 'no heartbeat within the lease');
            elsif v_runner.locked and _runner_lock_free(v_runner.id) then
                if v_runner.lock_missed_at is null then
                    update runners set lock_missed_at = _now() where id = v_runner.id;
                elsif v_runner.lock_missed_at < _now() - c_lock_grace then
                    v_done := v_done + _give_up_runner(v_runner.id, 'its process or host is gone');
                end if;
            elsif v_runner.lock_missed_at is not null then
                update runners set lock_missed_at = null where id = v_runner.id;
            end if;
        end loop;
    end if;

    perform _sweep_lanes();
    perform _retain_tasks();
    if date_trunc('minute', v_ticked_at) < date_trunc('minute', _now()) then
        perform _sweep_blocked();
        perform _withdraw_questions();
        perform _ensure_partitions();
        perform _drop_partitions();
        perform _drop_mailboxes();
        perform _sweep_pushes();
        perform _count_ended();
    end if;
    perform _tell_held();
    return v_done;
end
$$;
comment on function tick(bigint) is
'Does what only the passing of time causes: due tasks, runners that are gone, lanes that ran empty. Any runner may call it as often as it likes; one at a time does the work. Returns more than 0 if there may be something to claim.';
grant execute on function tick(bigint) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _sweep_lanes() returns void
language plpgsql volatile
as $$
declare
    v_missed integer[];
begin
    -- A lane is closed without any lock; a row that was put into it at the same moment is found here a second later.
    with recursive filled (lane_id) as (
        (select r.lane_id from ready_tasks r order by r.lane_id limit 1)
        union all
        select (select r.lane_id from ready_tasks r where r.lane_id > f.lane_id order by r.lane_id limit 1)
        from filled f where f.lane_id is not null
    )
    select array_agg(f.lane_id) into v_missed
    from filled f
    where f.lane_id is not null and not exists (select from open_lanes o where o.lane_id = f.lane_id);
    if v_missed is not null then
        perform _open_lanes(v_missed);
        perform _wake_runners();
    end if;
    delete from open_lanes o
    where not exists (select from ready_tasks r where r.lane_id = o.lane_id)
        or exists (select from open_lanes twin where twin.lane_id = o.lane_id and twin.ctid < o.ctid);
end
$$;
comment on function _sweep_lanes() is 'Opens lanes that were missed, closes empty ones, removes doubles.';

create or replace function _let_others_have() returns integer
language plpgsql volatile
as $$
declare
    v_task bigint;
    v_count integer := 0;
begin
    for v_task in
        select t.id
        from open_lanes o
        join lanes l on l.id = o.lane_id and l.returned and left(l.requires[cardinality(l.requires)], 1) = '@'
        join ready_tasks q on q.lane_id = l.id
        join tasks t on t.id = q.task_id
        where t.stays_on is not null and (
            t.stays_until <= _now()
            or not exists (select from runners r where r.host = t.stays_on and r.gone_at is null and not r.draining and r.sandbox_trouble is null)
        )
        limit 1000
        for no key update of t skip locked
    loop
        update tasks set stays_on = null where id = v_task;
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$$;
comment on function _let_others_have() is 'Lets other hosts take tasks whose own host is gone, or has not had time for them; returns how many.';

create or replace function _sweep_blocked() returns void
language plpgsql volatile
as $$
declare
    v_task bigint;
begin
    for v_task in
        select distinct d.task_id
        from task_dependencies d
        left join tasks e on e.id = d.depends_on
        where e.id is null or e.status in ('completed', 'failed', 'cancelled')
        limit 1000
    loop
        perform _settle_one(v_task);
    end loop;
end
$$;
comment on function _sweep_blocked() is 'Frees blocked tasks whose dependencies ended unnoticed: belt to the braces of _lock_end, and for databases restored in parts.';
