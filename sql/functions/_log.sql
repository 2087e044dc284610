create or replace function _log(p_task bigint, p_attempt bigint, p_kind text, p_detail jsonb default null) returns void
language sql volatile
as $$
    insert into taskyard.task_events (task_id, attempt_id, kind, actor, detail)
    values (p_task, p_attempt, p_kind, taskyard._caller(), p_detail)
$$;
comment on function _log(bigint, bigint, text, jsonb) is 'Adds to the audit.';
