create or replace function _ago(p_interval interval) returns text
language sql immutable
as $$
    select case
        when p_interval is null then ''
        when p_interval < interval '0' then '0s'
        when p_interval < interval '1 minute' then floor(extract(epoch from p_interval)) || 's'
        when p_interval < interval '1 hour' then floor(extract(epoch from p_interval) / 60) || 'm'
        when p_interval < interval '2 days' then floor(extract(epoch from p_interval) / 3600) || 'h'
        else floor(extract(epoch from p_interval) / 86400) || 'd'
    end
$$;
comment on function _ago(interval) is 'A length of time for a narrow screen: 12s, 5m, 3h, 9d.';
grant execute on function _ago(interval) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
grant execute on function _now() to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function explain_task(p_id bigint) returns setof text
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_task tasks;
    v_attempt attempts;
    v_wait waits;
    v_handoff handoffs;
begin
    perform _require_role('taskyard_viewer', 'read tasks');
    select * into v_task from tasks where id = p_id;
    perform _require_task(v_task, p_id);
    if v_task.status in ('running') then
        select * into v_attempt from attempts where id = v_task.attempt_id;
        return query
        select format('Runs on %s since %s, attempt %s, %s.', r.name, _ago(_now() - v_attempt.started_at), v_attempt.number, v_attempt.provider)
        from runners r where r.id = v_attempt.runner_id;
        return query
        select case
            when v_task.cancel_requested_at is not null then format('Is being stopped: %s', v_task.cancel_reason)
            when r.last_seen < _now() - interval '15 seconds'
                then format('%s was last heard of %s ago; the task goes back at %s at the latest.', r.name, _ago(_now() - r.last_seen), to_char(v_attempt.lease_until, 'HH24:MI:SS'))
            when v_attempt.progress_at is not null then format('Last output %s ago.', _ago(_now() - v_attempt.progress_at))
            else 'No output yet.'
        end
        from runners r where r.id = v_attempt.runner_id;
        if v_attempt.doing is not null then
            return next format('Says that it is at: %s%s', left(v_attempt.doing, 300), ' (' || round((v_attempt.progress * 100)::numeric) || ' %)');
        end if;
        return;
    end if;
    select * into v_wait from waits where task_id = p_id and over_at is null;
    select * into v_handoff from handoffs where task_id = p_id and attempt_id = v_wait.attempt_id and to_task = v_wait.tasks[1];
    return query
    select case v_task.status
        when 'completed' then format('Completed %s ago, attempt %s.', _ago(_now() - v_task.finished_at), v_task.attempt_count)
        when 'failed' then format('Failed %s ago: %s', _ago(_now() - v_task.finished_at), v_task.error)
        when 'cancelled' then format('Cancelled %s ago: %s', _ago(_now() - v_task.finished_at), coalesce(v_task.cancel_reason, v_task.error))
        when 'waiting' then case
            when exists (select from approvals a where a.task_id = p_id and a.decision is null) then 'Waits for a human; it holds no slot meanwhile.'
            when v_handoff.id is not null then format('Was handed over to %s; ends as task %s does.', v_handoff.target, v_handoff.to_task)
            when cardinality(v_wait.tasks) = 0 then format('Waits for mail, %s more at most: select say(%s, ''...'');', _ago(v_wait.until - _now()), p_id)
            else format('Waits for other tasks, %s more at most; it holds no slot meanwhile.', _ago(v_wait.until - _now()))
        end
        when 'scheduled' then format(
            'Not before %s (in %s)%s.', to_char(v_task.run_at, 'YYYY-MM-DD HH24:MI:SS'), _ago(v_task.run_at - _now()),
            case when v_task.attempt_count > 0 then format('; attempt %s ended with: %s', v_task.attempt_count, v_task.error) else '' end
        )
        when 'blocked' then 'Waits for other tasks:'
        else 'Is queued.'
    end;
    if v_task.status = 'blocked' then
        return query
        select format('Task %s is %s: %s', d.id, d.status, case when _in_reach(d.scope) then left(d.prompt, 40) else '...' end)
        from tasks d where d.id = any(_unfinished(v_task)) order by d.id limit 20;
    elsif v_task.status = 'waiting' then
        return query
        select format('%s: %s It means no in %s.', a.id, left(a.question, 300), _ago(a.deadline - _now()))
        from approvals a where a.task_id = p_id and a.decision is null order by a.id;
        return query
        select format('Task %s is %s: %s', d.id, d.status, case when _in_reach(d.scope) then left(d.prompt, 40) else '...' end)
        from task_dependencies x join tasks d on d.id = x.depends_on where x.task_id = p_id order by d.id limit 20;
    elsif v_task.status = 'queued' then
        return query select * from _explain_queued(v_task);
    end if;
end
$$;
comment on function explain_task(bigint) is 'Why is my task not running? Says what it waits for, one reason per row. Errors: TY002, TY006.';
grant execute on function explain_task(bigint) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
