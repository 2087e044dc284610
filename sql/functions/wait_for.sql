-- Waiting without a slot. Asking does not stop anything by itself: the runner is told (directive wait), ends the tool politely and
-- reports the outcome waiting. Who waits is filed in task_dependencies beside the blocked tasks, so that the end of a task passes
-- on in one way; unlike a blocked task it goes on whether that end was good or bad, and is told.

create or replace function wait_for(
    p_attempt bigint, p_tasks bigint[], p_mail boolean default false, p_within interval default interval '1 day'
) returns jsonb
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    c_locked constant integer := 1000; -- advisory locks that one transaction may take; with more than that see _await_ends
    v_attempt attempts;
    v_tasks bigint[] := coalesce(p_tasks, '{}');
    v_unfinished bigint[];
begin
    perform _require_runner('wait for tasks');
    perform _require_own_attempt(p_attempt);
    if p_within is null or p_within < interval '1 second' or p_within > interval '30 days' then
        raise exception using
            errcode = 'TY001',
            message = format('Waiting for %s is out of range.', coalesce(p_within::text, 'null')),
            hint = 'Use 1 second to 30 days.';
    elsif cardinality(v_tasks) > 20000 or array_position(v_tasks, null) is not null or (cardinality(v_tasks) = 0 and p_mail is not true) then
        raise exception using
            errcode = 'TY001',
            message = 'It does not say what to wait for.',
            hint = 'Name 1 to 20,000 tasks, or wait for mail.';
    end if;
    v_attempt := _live_attempt(p_attempt);
    perform _require_related(v_attempt, v_tasks);
    perform pg_advisory_xact_lock(742112, 0); -- one at a time: two that begin to wait for each other would each not see the other
    if cardinality(v_tasks) <= c_locked then
        perform _lock_end(v_tasks, true);
    end if;
    select array_agg(t.id) into v_unfinished from tasks t where t.id = any(v_tasks) and t.status not in ('completed', 'failed', 'cancelled');
    if (v_unfinished is null and cardinality(v_tasks) > 0)
        or (p_mail and (select t.has_mail from tasks t where t.id = v_attempt.task_id)) then
        return jsonb_build_object('waiting', false, 'results', _results_of(v_tasks));
    end if;
    perform _lend_and_check(v_attempt.task_id, v_unfinished);
    insert into waits as w (task_id, attempt_id, tasks, for_mail, until, asked_at, over_at)
    values (v_attempt.task_id, p_attempt, v_tasks, coalesce(p_mail, false), _now() + p_within, _now(), null)
    on conflict (task_id) do update
    set attempt_id = excluded.attempt_id, tasks = excluded.tasks, for_mail = excluded.for_mail, until = excluded.until,
        asked_at = excluded.asked_at, over_at = null;
    delete from task_dependencies where task_id = v_attempt.task_id; -- of a wait before, which this one replaces
    insert into task_dependencies (depends_on, task_id) select x, v_attempt.task_id from unnest(v_unfinished) x on conflict do nothing;
    perform pg_notify('taskyard_runner_' || v_attempt.runner_id, 'wait');
    return jsonb_build_object('waiting', true, 'unfinished', coalesce(to_jsonb(v_unfinished[1:100]), '[]'));
end
$$;
comment on function wait_for(bigint, bigint[], boolean, interval) is
'An agent waits until tasks have ended, or mail has come, or the time is up, without a slot: {waiting: true, unfinished}; its session is resumed with what came. Where there is nothing to wait for: {waiting: false, results}. Errors: TY001, TY002, TY003, TY005, TY006.';
grant execute on function wait_for(bigint, bigint[], boolean, interval) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _lend_and_check(p_task bigint, p_unfinished bigint[]) returns void
language plpgsql volatile
as $$
declare
    v_upstream bigint[];
    v_priority integer;
begin
    with recursive upstream (id) as (
        select unnest(p_unfinished)
        union
        select x.id from upstream u
        cross join lateral (
            select d.depends_on from task_dependencies d where d.task_id = u.id
            union all
            -- One that runs may become blocked again.
            select unnest(t.depends_on) from tasks t where t.id = u.id and t.status not in ('completed', 'failed', 'cancelled')
        ) x (id)
    )
    select array_agg(id) into v_upstream from upstream;
    if p_task = any(v_upstream) then
        raise exception using
            errcode = 'TY003',
            message = format('Task %s would wait for itself.', p_task),
            hint = 'One of these tasks waits for it already; go on without that one.';
    end if;
    -- Who is waited for by somebody important is important, and so is whom it waits for.
    select greatest(t.priority, t.lent_priority) into v_priority from tasks t where t.id = p_task;
    -- Whoever is being written at this moment goes without: to wait for its row while holding the lock of its end could be for ever.
    update tasks set lent_priority = v_priority
    where id in (
        select t.id from tasks t
        where t.id = any(v_upstream) and greatest(t.priority, t.lent_priority) < v_priority and t.status not in ('completed', 'failed', 'cancelled')
        for no key update skip locked
    );
end
$$;
comment on function _lend_and_check(bigint, bigint[]) is 'Raises TY003 where these tasks wait for this one, directly or through others; else lends them all its priority.';

create or replace function _results_of(p_tasks bigint[]) returns jsonb
language sql stable
as $$
    -- All of a few, the beginnings of many: an agent's context is what this costs.
    select coalesce(jsonb_agg(taskyard._result_of(x.id, greatest(200, 100000 / greatest(cardinality(p_tasks), 1))) order by x.place), '[]')
        || case
            when cardinality(p_tasks) > 100 then jsonb_build_array(jsonb_build_object('more', cardinality(p_tasks) - 100, 'by_status', (
                select jsonb_object_agg(s.status, s.n) from (select t.status, count(*) as n from taskyard.tasks t where t.id = any(p_tasks) group by t.status) s
            )))
            else '[]'
        end
    from unnest(p_tasks[1:100]) with ordinality x (id, place)
$$;
comment on function _results_of(bigint[]) is 'What became of tasks, for an agent: the first hundred in turn, the others counted.';

create or replace function _waits(p_task bigint) returns boolean
language sql stable
as $$
    select exists (select from taskyard.approvals a where a.task_id = p_task and a.decision is null)
        or exists (select from taskyard.waits w where w.task_id = p_task and w.over_at is null)
$$;
comment on function _waits(bigint) is 'Whether a task waits for somebody''s decision, for other tasks or for mail.';

create or replace function _wake_if_ready(p_tasks bigint[]) returns void
language plpgsql volatile
as $$
declare
    v_ready bigint[];
    v_wait record;
begin
    -- Most tasks that end are waited for by blocked ones or by nobody.
    if not exists (select from waits w where w.task_id = any(p_tasks) and w.over_at is null) then
        return;
    end if;
    perform 1 from tasks t where t.id = any(p_tasks) order by t.id for no key update;
    with ready as (
        update waits w set over_at = _now()
        where w.task_id = any(p_tasks) and w.over_at is null
            and (
                (cardinality(w.tasks) > 0 and not exists (select from task_dependencies d where d.task_id = w.task_id))
                or (w.for_mail and exists (select from tasks t where t.id = w.task_id and t.has_mail))
                or w.until <= _now()
            )
        returning w.task_id
    )
    select array_agg(task_id) into v_ready from ready;
    if v_ready is null then
        return;
    end if;
    delete from task_dependencies where task_id = any(v_ready);
    -- A task that was handed over ends as the one that went on with it.
    for v_wait in
        select w.task_id, n.id, n.status, n.result, n.error
        from waits w
        join handoffs h on h.task_id = w.task_id and h.attempt_id = w.attempt_id and h.to_task = w.tasks[1]
        join tasks n on n.id = h.to_task
        where w.task_id = any(v_ready) and n.status in ('completed', 'failed', 'cancelled')
        order by w.task_id
    loop
        update tasks
        set status = v_wait.status, result = v_wait.result,
            error = case v_wait.status
                when 'failed' then format('Task %s, to which it was handed over, failed: %s', v_wait.id, v_wait.error)
                when 'cancelled' then format('Task %s, to which it was handed over, was cancelled.', v_wait.id)
                end
        where id = v_wait.task_id and status = 'waiting';
    end loop;
    update tasks set status = 'queued', run_at = null, error = null
    where id = any(v_ready) and status = 'waiting' and not _waits(id);
end
$$;
comment on function _wake_if_ready(bigint[]) is 'Lets those of these tasks go on that wait for nothing any more.';

create or replace function _stop_waiting(p_tasks bigint[]) returns void
language plpgsql volatile
as $$
begin
    update waits set over_at = _now() where task_id = any(p_tasks) and over_at is null;
    if found then
        delete from task_dependencies where task_id = any(p_tasks);
    end if;
end
$$;
comment on function _stop_waiting(bigint[]) is 'Tasks that are over wait for nothing any more.';

create or replace function _await_ends(p_task bigint) returns void
language plpgsql volatile
as $$
declare
    v_awaited bigint;
begin
    -- Of so many tasks wait_for took no locks: one that ends in the very moment in which the wait began may have overlooked it. Let it
    -- finish, before a row is locked that its end may want. The locks are given back at once, so there may be as many as there are tasks.
    for v_awaited in
        select d.depends_on
        from waits w join task_dependencies d on d.task_id = w.task_id
        where w.task_id = p_task and w.over_at is null and cardinality(w.tasks) > 1000
    loop
        perform pg_advisory_lock_shared(742101, hashint8(v_awaited));
        perform pg_advisory_unlock_shared(742101, hashint8(v_awaited));
    end loop;
end
$$;
comment on function _await_ends(bigint) is 'Waits for the ends under way among very many tasks that a task waits for.';

create or replace function _forget_finished(p_task bigint) returns void
language plpgsql volatile
as $$
begin
    if exists (select from waits w where w.task_id = p_task and w.over_at is null) then
        delete from task_dependencies d using tasks t
        where d.task_id = p_task and t.id = d.depends_on and t.status in ('completed', 'failed', 'cancelled');
        perform _wake_if_ready(array[p_task]);
    end if;
end
$$;
comment on function _forget_finished(bigint) is 'Looks once more whether what a task waits for has ended.';

create or replace function _end_waits() returns integer
language plpgsql volatile
as $$
declare
    v_tasks bigint[];
begin
    select array_agg(w.task_id) into v_tasks
    from (
        select x.task_id from waits x join tasks t on t.id = x.task_id
        where x.over_at is null and x.until <= _now()
        order by x.until limit 100
        for no key update of t skip locked
    ) w;
    if v_tasks is null then
        return 0;
    end if;
    perform _wake_if_ready(v_tasks);
    return cardinality(v_tasks);
end
$$;
comment on function _end_waits() is 'Lets tasks go on whose time to wait is up; returns how many.';

create or replace function _awaited(p_task bigint, p_since bigint) returns text
language sql stable
as $$
    select concat_ws(
        E'\n',
        case
            when w.over_at >= w.until then 'The time that you wanted to wait is up. What became of the tasks until now:'
            when cardinality(w.tasks) > 0 then 'What you waited for has come:'
        end,
        case when cardinality(w.tasks) > 0 then taskyard._results_of(w.tasks)::text end
    )
    from taskyard.waits w
    where w.task_id = p_task and w.attempt_id >= p_since and w.over_at is not null
        and not exists (select from taskyard.handoffs h where h.attempt_id = w.attempt_id and h.to_task = w.tasks[1])
$$;
comment on function _awaited(bigint, bigint) is 'What a task''s attempts, from this one on, waited for and got, for the agent; null where they did not.';
