create or replace function cancel_task(p_id bigint, p_why text default 'cancelled') returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_task tasks;
begin
    perform _require_role('taskyard_submitter', 'cancel tasks');
    select * into v_task from tasks where id = p_id for no key update;
    perform _require_task(v_task, p_id);
    if v_task.status in ('completed', 'failed', 'cancelled') then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s is %s already.', p_id, v_task.status),
            hint = 'Nothing is left to cancel.';
    end if;
    if v_task.status = 'running' then
        -- Its runner stops it and reports; should the runner be gone, the end of its lease cancels it.
        update tasks set cancel_requested_at = coalesce(cancel_requested_at, _now()), cancel_reason = left(coalesce(p_why, 'cancelled'), 2000) where id = p_id;
        perform pg_notify('taskyard_runner_' || (select runner_id from attempts where id = v_task.attempt_id), 'cancel');
    else
        update tasks
        set status = 'cancelled', cancel_requested_at = _now(), cancel_reason = left(coalesce(p_why, 'cancelled'), 2000), error = left(coalesce(p_why, 'cancelled'), 2000)
        where id = p_id;
    end if;
    perform _log(p_id, v_task.attempt_id, 'cancelled', jsonb_build_object('why', p_why, 'was', v_task.status));
    return case v_task.status when 'running' then 'stopping' else 'cancelled' end;
end
$$;
comment on function cancel_task(bigint, text) is
'Cancels a task: at once where it waits, or by stopping its attempt where it runs (returns "stopping"). Tasks that depend on it fail, unless they say otherwise. Errors: TY002, TY004, TY006.';
grant execute on function cancel_task(bigint, text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
