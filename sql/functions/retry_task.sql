create or replace function retry_task(p_id bigint) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_task tasks;
    v_level bigint[];
    v_status task_status;
begin
    perform _require_role('taskyard_submitter', 'retry tasks');
    select * into v_task from tasks where id = p_id for no key update;
    perform _require_task(v_task, p_id);
    if v_task.handoff_id is not null and v_task.status in ('failed', 'cancelled') then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s took over from task %s, which ended with it.', p_id, v_task.parent_id),
            hint = format('select retry_task(%s);', v_task.parent_id);
    end if;
    if v_task.status = 'scheduled' then
        update tasks set run_at = null where id = p_id returning status into v_status;
    elsif v_task.status in ('failed', 'cancelled') then
        delete from waits where task_id = p_id;
        update approvals set decision = 'withdrawn', decided_at = _now() where task_id = p_id and decision is null; -- of its life before
        update tasks
        set status = 'queued', failure_count = 0, error = null, failed_dependency = null, cancel_requested_at = null,
            cancel_reason = null, run_at = null, stays_on = null
        where id = p_id
        returning status into v_status;
        -- What failed only because this task did waits for it again.
        v_level := array[p_id];
        loop
            with revived as (
                update tasks set status = 'queued', error = null, failed_dependency = null
                where failed_dependency = any(v_level) and status = 'failed'
                returning id
            )
            select array_agg(id) into v_level from revived;
            exit when v_level is null;
        end loop;
    else
        raise exception using
            errcode = 'TY004',
            message = format('Task %s is %s.', p_id, v_task.status),
            hint = case v_task.status
                when 'completed' then 'It is done; insert another task to do it again.'
                else 'Only failed, cancelled and scheduled tasks can be retried.'
                end;
    end if;
    perform _log(p_id, null, 'retried', jsonb_build_object('was', v_task.status));
    return v_status;
end
$$;
comment on function retry_task(bigint) is
'Gives a failed or cancelled task all its attempts again, and revives what failed only because of it; makes a scheduled one due now. Returns the new status. Errors: TY002, TY004, TY006.';
grant execute on function retry_task(bigint) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
