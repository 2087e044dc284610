create or replace function _take_workspace(p_workspace text, p_task bigint) returns boolean
language plpgsql volatile
as $$
begin
    if exists (select from workspace_holders where workspace = p_workspace) then
        insert into workspace_waits (workspace, priority, task_id)
        select p_workspace, t.priority, t.id from tasks t where t.id = p_task
        on conflict do nothing;
        return false;
    end if;
    insert into workspace_holders (workspace, task_id) values (p_workspace, p_task);
    return true;
end
$$;
comment on function _take_workspace(text, bigint) is
'Gives the directory to the task, or notes that it waits for it. The caller holds the directory''s advisory lock (742103).';

create or replace function _free_workspace(p_task bigint, p_workspace text) returns void
language plpgsql volatile
as $$
declare
    v_next bigint;
begin
    perform pg_advisory_xact_lock(742103, hashtext(p_workspace));
    delete from workspace_holders where workspace = p_workspace and task_id = p_task;
    if exists (select from workspace_holders where workspace = p_workspace) then
        return;
    end if;
    -- The best of each lane, since any one lane may be paused or full; those that lose the race step aside again.
    -- They go ahead of tasks that never ran: each has waited its turn once.
    for v_next in
        select distinct on (t.lane_id) w.task_id
        from workspace_waits w
        join tasks t on t.id = w.task_id
        where w.workspace = p_workspace
        order by t.lane_id, w.priority desc, w.task_id
    loop
        update tasks t set lane_id = _lane_for(t, true), queue_position = nextval('queue_positions')
        where t.id = v_next and t.status = 'queued';
    end loop;
end
$$;
comment on function _free_workspace(bigint, text) is 'Takes the directory back from the task, if it has it, and lets the best of those who wait for it compete again.';
