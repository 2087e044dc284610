create or replace function _lock_end(p_tasks bigint[], p_shared boolean) returns void
language plpgsql volatile
as $$
declare
    v_key integer;
begin
    -- Sorted, so that two transactions never wait for each other.
    for v_key in select distinct hashint8(t) from unnest(p_tasks) t order by 1 loop
        if p_shared then
            perform pg_advisory_xact_lock_shared(742101, v_key);
        else
            perform pg_advisory_xact_lock(742101, v_key);
        end if;
    end loop;
end
$$;
comment on function _lock_end(bigint[], boolean) is
'Orders the end of a task against new dependents of it: whoever ends it locks it alone, whoever starts to depend on it locks it shared while committing. Then one of the two always sees the other. Advisory, because a row lock would make claims skip the task.';

create or replace function _settle_dependents(p_tasks bigint[]) returns void
language plpgsql volatile
as $$
declare
    v_ended bigint[] := p_tasks;
    v_failing bigint[];
    v_free bigint[];
begin
    -- Level by level instead of recursively: a chain of 10,000 tasks fails in one call.
    while cardinality(v_ended) > 0 loop
        perform _lock_end(v_ended, false);
        perform 1 from tasks t
        where t.id in (select d.task_id from task_dependencies d where d.depends_on = any(v_ended))
        order by t.id
        for update;

        select array_agg(distinct t.id) into v_failing
        from task_dependencies d
        join tasks e on e.id = d.depends_on
        join tasks t on t.id = d.task_id
        where d.depends_on = any(v_ended) and t.status = 'blocked'
            and e.status in ('failed', 'cancelled') and t.on_dependency_failure = 'fail';

        update tasks t
        set status = 'failed',
            failed_dependency = e.id,
            error = format('Task %s, which it depends on, %s.', e.id, case e.status when 'failed' then 'failed' else 'was cancelled' end)
        from (
            select distinct on (d.task_id) d.task_id, x.id, x.status
            from task_dependencies d join tasks x on x.id = d.depends_on
            where d.depends_on = any(v_ended) and d.task_id = any(v_failing) and x.status in ('failed', 'cancelled')
            order by d.task_id, x.id
        ) e
        where t.id = e.task_id;

        with gone as (
            delete from task_dependencies d where d.depends_on = any(v_ended) returning d.task_id
        )
        select array_agg(distinct task_id) into v_free from gone;

        update tasks t set status = 'queued'
        where t.id = any(v_free) and t.status = 'blocked'
            and not exists (select from task_dependencies d where d.task_id = t.id);
        perform _wake_if_ready(v_free);

        v_ended := v_failing;
    end loop;
end
$$;
comment on function _settle_dependents(bigint[]) is 'Passes the end of tasks on: frees what waited for them, fails what cannot run without them.';

create or replace function _tasks_dependencies_settle() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_ended bigint[];
begin
    -- A dependency may have ended while this transaction was open and neither saw the other. Looked at once more at
    -- commit, under a lock that lasts only that long.
    perform _lock_end(new.depends_on, true);
    select array_agg(t.id order by t.id) into v_ended
    from task_dependencies d join tasks t on t.id = d.depends_on
    where d.task_id = new.id and t.status in ('completed', 'failed', 'cancelled');
    if v_ended is not null then
        perform _settle_one(new.id);
    end if;
    return null;
end
$$;
comment on function _tasks_dependencies_settle() is 'Closes the race between a new dependent and the end of its dependency.';

create or replace function _settle_one(p_task bigint) returns void
language plpgsql volatile
as $$
declare
    v_task tasks;
    v_ended tasks;
begin
    select * into v_task from tasks where id = p_task and status in ('blocked', 'waiting') for update;
    if not found then
        return;
    elsif v_task.status = 'waiting' then
        perform _forget_finished(p_task);
        return;
    end if;
    if v_task.on_dependency_failure = 'fail' then
        select * into v_ended from tasks
        where id = any(v_task.depends_on) and status in ('failed', 'cancelled') order by id limit 1;
    end if;
    if v_ended.id is not null then
        update tasks
        set status = 'failed', failed_dependency = v_ended.id,
            error = format('Task %s, which it depends on, %s.', v_ended.id, case v_ended.status when 'failed' then 'failed' else 'was cancelled' end)
        where id = p_task;
        perform _settle_dependents(array[p_task]);
        return;
    end if;
    delete from task_dependencies d
    where d.task_id = p_task and d.depends_on <> all(_unfinished(v_task));
    if not exists (select from task_dependencies d where d.task_id = p_task) then
        update tasks set status = 'queued' where id = p_task;
    end if;
end
$$;
comment on function _settle_one(bigint) is 'Frees or fails one blocked task by looking at all its dependencies.';
