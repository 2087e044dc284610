create or replace function release_task(p_attempt bigint, p_why text default 'released', p_delay interval default interval '0') returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_attempt attempts;
    v_task tasks;
    v_status task_status;
    v_handoff handoffs;
    v_refused text;
begin
    perform _require_runner('release tasks');
    if p_delay < interval '0' or p_delay > interval '30 days' then
        raise exception using
            errcode = 'TY001',
            message = format('A delay of %s is out of range.', p_delay),
            hint = 'Use nothing up to 30 days.';
    end if;
    update attempts set outcome = 'cancelled', finished_at = _now(), counted = false, evidence = left('released: ' || p_why, 20000)
    where id = p_attempt and finished_at is null
    returning * into v_attempt;
    if not found then
        perform _lost(p_attempt);
    end if;
    perform _require_own_attempt(p_attempt);
    perform _charge(array[p_attempt]);
    select * into v_task from tasks where id = v_attempt.task_id;
    perform _await_ends(v_task.id);
    perform _leave(v_task, p_attempt);
    v_handoff := _pending_handoff(v_attempt);
    if v_handoff.id is not null and v_task.cancel_requested_at is null then
        v_refused := _hand_over(v_attempt, v_task, v_handoff);
    end if;
    perform _forget_finished(v_task.id);
    update tasks
    set stays_on = case when agent <> 'auto' then _host_of(v_attempt) end, status = case
            when cancel_requested_at is not null then 'cancelled'::task_status
            when _waits(id) then 'waiting'
            else 'queued'
        end,
        error = case when cancel_requested_at is null then coalesce(v_refused, error) else cancel_reason end,
        run_at = case when p_delay > interval '0' then _now() + p_delay else run_at end
    where id = v_task.id
    returning status into v_status;
    if v_status = 'waiting' then
        perform _announce('update', array[v_task.id], 'waiting'); -- as _leave put it: no change to the trigger
    end if;
    return v_status;
end
$$;
comment on function release_task(bigint, text, interval) is
'Gives a task back unharmed: it uses up no attempt and is claimable again, after the delay if one is given. Returns its new status. Errors: TY001, TY005, TY006.';
grant execute on function release_task(bigint, text, interval) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
