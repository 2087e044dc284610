create or replace function say(p_task bigint, p_text text) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_task tasks;
    v_id bigint;
begin
    perform _require_role('taskyard_submitter', 'write to tasks');
    select * into v_task from tasks where id = p_task for no key update;
    perform _require_task(v_task, p_task);
    perform _check_message(p_text);
    v_id := _deliver(v_task, _caller(), p_text);
    perform _log(p_task, v_task.attempt_id, 'said', jsonb_build_object('message', v_id));
    return case v_task.status when 'running' then 'sent: its agent gets it with its next step' else 'kept: its agent gets it when it goes on' end;
end
$$;
comment on function say(bigint, text) is
'Writes to a task''s agent: into its session if it runs, else into the prompt with which it starts or goes on. At most 100,000 bytes. Errors: TY001, TY002, TY004 (it is over, or its mailbox is full), TY006, TY009.';
grant execute on function say(bigint, text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
