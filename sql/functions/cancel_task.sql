create or replace function cancel_task(p_id bigint, p_why text default 'cancelled', p_children boolean default true) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_task tasks;
    v_tries integer := 0;
    v_family bigint[];
    v_found bigint[];
begin
    perform _require_role('taskyard_submitter', 'cancel tasks');
    loop
        begin
            select * into v_task from tasks where id = p_id for no key update;
            perform _require_task(v_task, p_id);
            if v_task.status in ('completed', 'failed', 'cancelled') then
                raise exception using
                    errcode = 'TY004',
                    message = format('Task %s is %s already.', p_id, v_task.status),
                    hint = 'Nothing is left to cancel.';
            end if;
            -- A running child may get children of its own until it is marked: look again until there are no new ones.
            v_found := null;
            loop
                v_family := case when p_children is not false then _family(p_id) else array[p_id] end;
                exit when cardinality(v_family) = cardinality(v_found);
                v_found := v_family;
                perform _cancel(v_family, left(coalesce(p_why, 'cancelled'), 2000));
            end loop;
            exit;
        exception when deadlock_detected then
            -- A child that ends locks upwards, this goes downwards; whoever is refused begins again.
            v_tries := v_tries + 1;
            if v_tries = 5 then
                raise;
            end if;
        end;
    end loop;
    perform _log(p_id, v_task.attempt_id, 'cancelled', jsonb_build_object('why', p_why, 'was', v_task.status));
    return case v_task.status when 'running' then 'stopping' else 'cancelled' end;
end
$$;
comment on function cancel_task(bigint, text, boolean) is
'Cancels a task, and its children and those who took over from it unless children is false: at once where one waits, or by stopping its attempt where it runs (returns "stopping"). Tasks that depend on it fail, unless they say otherwise. Errors: TY002, TY004, TY006.';
grant execute on function cancel_task(bigint, text, boolean) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _family(p_task bigint) returns bigint[]
language sql stable
as $$
    with recursive below (id) as (
        select p_task
        union
        select t.id from below b join taskyard.tasks t on t.parent_id = b.id
    )
    select array_agg(id) from below
$$;
comment on function _family(bigint) is 'A task and all below it.';

create or replace function _cancel(p_tasks bigint[], p_why text) returns void
language plpgsql volatile
as $$
declare
    v_runners bigint[];
begin
    -- Its runner stops what runs and reports; should the runner be gone, the end of its lease cancels it.
    with stopping as (
        update tasks
        set cancel_requested_at = coalesce(cancel_requested_at, _now()), cancel_reason = p_why
        where id = any(p_tasks) and status = 'running'
        returning attempt_id
    )
    select array_agg(distinct a.runner_id) into v_runners from attempts a where a.id in (select attempt_id from stopping);
    perform pg_notify('taskyard_runner_' || r, 'cancel') from unnest(v_runners) r;
    update tasks
    set status = 'cancelled', cancel_requested_at = _now(), cancel_reason = p_why, error = p_why
    where id = any(p_tasks) and status in ('blocked', 'scheduled', 'queued', 'waiting');
    update tasks
    set status = 'cancelled', cancel_requested_at = _now(), cancel_reason = p_why, error = p_why
    where id = any(p_tasks) and status in ('queued', 'waiting'); -- freed by those above
end
$$;
comment on function _cancel(bigint[], text) is 'Cancels those of these tasks that are not over.';
