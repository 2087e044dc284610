create or replace function _log(p_task bigint, p_attempt bigint, p_kind text, p_detail jsonb default null) returns void
language plpgsql volatile
as $$
begin
    perform _ensure_partitions(); -- no runner may have ticked for weeks
    insert into task_events (task_id, attempt_id, kind, actor, detail) values (p_task, p_attempt, p_kind, _caller(), p_detail);
end
$$;
comment on function _log(bigint, bigint, text, jsonb) is 'Adds to the audit.';
