create or replace function complete_task(
    p_attempt bigint,
    p_outcome text default 'completed',
    p_result jsonb default null,
    p_error text default null,
    p_exit_code integer default null,
    p_evidence text default null,
    p_usage jsonb default null,
    p_session_id text default null,
    p_window jsonb default null
) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_attempt attempts;
    v_task bigint;
    v_canary boolean;
    v_agent text;
    v_awaited boolean;
    v_waits boolean;
    v_login text;
    v_budgeted text[];
    v_workspace text;
    v_verify text;
    v_ending text := case when p_outcome = 'completed' then 'completed' end;
    v_now timestamptz := _now();
    v_done text; -- see claim_task
begin
    if not pg_has_role(coalesce(nullif(current_setting('role'), 'none'), session_user)::name, 'taskyard_runner', 'usage') then
        v_done := _require_role('taskyard_runner', 'complete tasks');
    end if;
    if coalesce(current_setting('taskyard.same_yard', true), '') <> 'yes' then
        v_done := _same_yard();
    end if;
    if current_setting('taskyard.claim_only', true) = 'on' then
        v_done := set_config('synchronous_commit', 'on', true); -- claimed earlier in this very transaction
    end if;
    if p_outcome <> 'completed' then
        select status into v_ending from outcome_policies where outcome = p_outcome;
    end if;
    if v_ending is null then
        raise exception using
            errcode = 'TY001',
            message = format('There is no outcome "%s".', left(coalesce(p_outcome, 'null'), 100)),
            hint = 'See: select outcome, meaning from outcome_policies;';
    end if;
    if pg_column_size(p_result) > 4194304 then
        raise exception using
            errcode = 'TY001',
            message = 'The result is larger than 4 MB.',
            hint = 'Keep the end of it, and leave the rest in the transcript or in a file.';
    end if;

    -- The fence: one row, ended once. Asked by finished_at, since "outcome is null" would invite the planner to the partial index of
    -- live attempts, which it may believe to be empty.
    update attempts
    set outcome = p_outcome::attempt_outcome, finished_at = v_now, counted = false, exit_code = p_exit_code,
        evidence = left(p_evidence, 20000)
    where id = p_attempt and finished_at is null
    returning task_id, canary, agent, verify, (select r.login from runners r where r.id = runner_id),
        (select e.budgeted from effective_scopes e where e.name = scope)
    into v_task, v_canary, v_agent, v_verify, v_login, v_budgeted;
    if v_task is null then
        perform _lost(p_attempt);
    end if;
    if v_login <> coalesce(nullif(current_setting('role'), 'none'), session_user) then
        v_done := _require_own_runner(v_login);
    end if;
    if p_usage is not null or p_session_id is not null then
        select * into v_attempt from attempts where id = p_attempt;
        perform _note_usage(v_attempt, p_session_id, p_usage);
    end if;
    if v_budgeted is not null then
        perform _charge(array[p_attempt]);
    end if;
    if v_canary and v_ending = 'completed' then
        perform _reopen(p_attempt);
        perform _canary_ended(p_attempt);
    end if;
    if v_agent = 'auto' and v_ending = 'completed' then
        return _routed(p_attempt, v_task, p_result);
    end if;

    if v_ending = 'completed' then
        if v_verify is not null and v_agent <> 'auto' then -- by itself: a condition with a query in it is a query, whatever else it says
            if not exists (select from verifications v where v.attempt_id = p_attempt and v.passed) then
                raise exception using
                    errcode = 'TY004',
                    message = 'The work is not proved: the command that verifies it has not passed.',
                    hint = 'report_verification() first, or end with the outcome verify_failed.',
                    detail = left(v_verify, 500);
            end if;
        end if;
        v_done := pg_advisory_xact_lock(742101, hashint8(v_task)); -- see _lock_end; before the statement that looks for dependents
        update tasks
        set status = 'completed', attempt_id = null, result = p_result, error = null, finished_at = v_now
        where id = v_task and attempt_id = p_attempt and not has_mail
        returning workspace, exists (select from task_dependencies d where d.depends_on = v_task),
            exists (select from waits w where w.task_id = v_task and w.over_at is null)
        into v_workspace, v_awaited, v_waits;
        if not found then
            -- Somebody wrote to its agent, who ended before reading it: the same session goes on with the mail.
            update attempts set outcome = 'waiting' where id = p_attempt returning * into v_attempt;
            return _end_badly(v_attempt, p_result, 'Mail came before it had ended; it goes on with that.', null);
        end if;
        if v_workspace is not null then
            perform _free_workspace(v_task, v_workspace);
        end if;
        if v_waits then
            perform _stop_waiting(array[v_task]); -- it did not, in the end
        end if;
        if v_awaited then
            perform _settle_dependents(array[v_task]);
        end if;
        v_done := _announce('update', array[v_task], 'completed');
        return 'completed';
    end if;
    select * into v_attempt from attempts where id = p_attempt;
    return _end_badly(v_attempt, p_result, p_error, p_window);
end
$$;
comment on function complete_task(bigint, text, jsonb, text, integer, text, jsonb, text, jsonb) is
'Ends an attempt with an outcome of outcome_policies and returns the task''s new status. usage: {input_tokens, cached_tokens, output_tokens, turns, cost_usd, model}, each optional. window: the limit that refused it, as the provider said: {name, resets_at, used_percent, model}. Errors: TY001, TY005 (the attempt is lost: kill the work, write nothing), TY006.';
grant execute on function complete_task(bigint, text, jsonb, text, integer, text, jsonb, text, jsonb)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _lost(p_attempt bigint) returns void
language plpgsql stable
as $$
declare
    v_attempt attempts;
begin
    select * into v_attempt from attempts where id = p_attempt;
    raise exception using
        errcode = 'TY005',
        message = case when v_attempt.id is null then format('There is no attempt %s.', p_attempt)
            else format('Attempt %s of task %s is over (%s).', v_attempt.number, v_attempt.task_id, v_attempt.outcome)
            end,
        hint = 'Stop its work and write nothing; the task went on without it.',
        detail = coalesce(case when _own_attempt(p_attempt) then nullif(v_attempt.evidence, '') end, 'Only a running attempt can be written to.');
end
$$;
comment on function _lost(bigint) is 'Raises TY005 with what became of the attempt.';

create or replace function _end_badly(p_attempt attempts, p_result jsonb, p_error text, p_window jsonb) returns text
language plpgsql volatile
as $$
declare
    v_policy outcome_policies;
    v_task tasks;
    v_times integer;
    v_counted boolean;
    v_failures integer;
    v_wait interval;
    v_status task_status;
    v_error text;
    v_handoff handoffs := _pending_handoff(p_attempt);
    v_refused text;
begin
    select * into strict v_policy from outcome_policies where outcome = p_attempt.outcome::text;
    perform _await_ends(p_attempt.task_id);
    select * into v_task from tasks where id = p_attempt.task_id and attempt_id = p_attempt.id for no key update;
    if not found then
        raise exception 'attempt % was live but task % does not name it', p_attempt.id, p_attempt.task_id;
    end if;
    if p_attempt.outcome = 'handed_off' and v_handoff.id is null and v_task.agent <> 'auto' and v_task.cancel_requested_at is null then
        raise exception using
            errcode = 'TY004',
            message = format('Attempt %s of task %s hands nothing over.', p_attempt.number, p_attempt.task_id),
            hint = 'handoff_task() first: it says to whom, and why.';
    end if;
    select count(*) into v_times from attempts
    where task_id = p_attempt.task_id and outcome = p_attempt.outcome;
    v_counted := v_policy.free_times is not null and v_times > v_policy.free_times;
    v_failures := v_task.failure_count + v_counted::integer;
    update attempts set counted = v_counted where id = p_attempt.id;

    v_error := coalesce(p_error, case when p_attempt.outcome not in ('waiting', 'handed_off') then format('Attempt %s: %s.', p_attempt.number, v_policy.meaning) end);
    v_status := v_policy.status::task_status;
    if v_task.cancel_requested_at is not null then
        v_status := 'cancelled';
        v_error := coalesce(v_task.cancel_reason, 'cancelled');
    elsif v_handoff.id is not null then
        v_status := 'waiting'; -- for the one that goes on, even where this one was killed before it could say so
    elsif v_status = 'queued'
        and v_failures >= coalesce(v_task.max_attempts, (select max_attempts from agents where name = v_task.agent)) then
        v_status := 'failed';
    elsif v_status in ('queued', 'waiting') then
        -- Also where it was killed between asking and stopping; and what was decided meanwhile is no reason to wait.
        perform _forget_finished(p_attempt.task_id);
        v_status := case when _waits(p_attempt.task_id) then 'waiting'::task_status else 'queued' end;
    end if;
    if v_status = 'queued' then
        -- least() before the power, so that the hundredth try does not overflow; a fifth of jitter, so that a herd disperses.
        v_wait := least(v_policy.backoff_cap, v_policy.backoff * (2 ^ least(v_times - 1, 30))) * (0.9 + 0.2 * random());
    end if;
    if v_policy.cools is not null then
        perform _cool_down(p_attempt, v_policy, p_window);
    end if;
    if v_task.agent = 'auto' then
        return _routed(p_attempt.id, v_task.id, null);
    end if;
    perform _leave(v_task, p_attempt.id);
    if v_handoff.id is not null and v_status = 'waiting' then
        v_refused := _hand_over(p_attempt, v_task, v_handoff);
        if v_refused is not null then
            v_status := case when _waits(v_task.id) then 'waiting'::task_status else 'queued' end;
            v_error := v_refused;
        end if;
    end if;
    update tasks
    set status = v_status, stays_on = case when p_attempt.outcome in ('waiting', 'verify_failed') then _host_of(p_attempt) end, failure_count = v_failures, result = coalesce(p_result, result), error = v_error,
        run_at = case when v_status = 'queued' then _now() + nullif(v_wait, interval '0') else run_at end
    where id = v_task.id
    returning status into v_status;
    if v_status = 'waiting' then
        perform _announce('update', array[v_task.id], 'waiting'); -- as _leave put it: no change to the trigger
    end if;
    return v_status;
end
$$;
comment on function _end_badly(attempts, jsonb, text, jsonb) is 'Applies outcome_policies to a task whose attempt did not complete.';

create or replace function _host_of(p_attempt attempts) returns text
language sql stable
as $$ select nullif(r.host, '') from taskyard.runners r where r.id = p_attempt.runner_id $$;
comment on function _host_of(attempts) is 'Where an attempt''s session and files are.';

create or replace function _leave(p_task tasks, p_attempt bigint) returns void
language plpgsql volatile
as $$
begin
    -- Off the runner first, without triggers; where it goes from there is an ordinary transition with all its effects.
    update tasks set status = 'waiting', attempt_id = null where id = p_task.id and attempt_id = p_attempt;
    if p_task.workspace is not null then
        perform _free_workspace(p_task.id, p_task.workspace);
    end if;
    perform _canary_ended(p_attempt);
end
$$;
comment on function _leave(tasks, bigint) is 'Takes a task off its attempt.';

create or replace function complete_tasks(p_attempts bigint[], p_results jsonb[] default null)
returns table (attempt_id bigint, status text)
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_ids bigint[];
    v_done bigint[];
    v_alone bigint[] := array[]::bigint[];
    r record;
    v_mailed attempts;
begin
    perform _require_runner('complete tasks');
    if current_setting('taskyard.claim_only', true) = 'on' then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    if p_results is not null and cardinality(p_results) <> cardinality(p_attempts) then
        raise exception using
            errcode = 'TY001',
            message = 'There are not as many results as attempts.',
            hint = 'Give one result per attempt, in the same order, or none at all.';
    end if;
    perform _require_own_runner(r.login)
    from (select distinct x.runner_id from attempts x where x.id = any(p_attempts)) a
    join runners r on r.id = a.runner_id;
    -- More follows from the end of a canary, of the orchestrator, of what has to be proved or has mail: one by one.
    for r in
        select x.id, g.result
        from attempts x
        join unnest(p_attempts, p_results) g (attempt_id, result) on g.attempt_id = x.id
        where x.id = any(p_attempts) and x.finished_at is null
            and (x.canary or x.agent = 'auto' or x.verify is not null or exists (select from tasks t where t.id = x.task_id and t.has_mail))
        order by x.id
    loop
        perform complete_task(r.id, 'completed', r.result);
        v_alone := v_alone || r.id;
    end loop;
    with ended as (
        update attempts x
        set outcome = 'completed', counted = false, finished_at = _now()
        where x.id = any(p_attempts) and x.finished_at is null
        returning x.id, x.task_id
    ),
    done as (
        update tasks t
        set status = 'completed', attempt_id = null, result = g.result, error = null, finished_at = _now()
        from ended
        left join unnest(p_attempts, p_results) g (attempt_id, result) on g.attempt_id = ended.id
        where t.id = ended.task_id and t.attempt_id = ended.id and not t.has_mail
        returning t.id, ended.id as attempt, t.workspace
    )
    select array_agg(done.id), array_agg(done.attempt) into v_ids, v_done from done;
    -- Mail came between the look and now.
    for v_mailed in
        update attempts x set outcome = 'waiting'
        from tasks t
        where x.id = any(p_attempts) and t.id = x.task_id and t.attempt_id = x.id and t.has_mail and x.outcome = 'completed'
        returning x.*
    loop
        perform _end_badly(v_mailed, null, null, null);
        v_alone := v_alone || v_mailed.id;
    end loop;
    if v_ids is not null then
        perform _stop_waiting(v_ids);
        for r in select t.id, t.workspace from tasks t where t.id = any(v_ids) and t.workspace is not null order by t.workspace loop
            perform _free_workspace(r.id, r.workspace);
        end loop;
        perform _charge(v_done);
        perform _lock_end(v_ids, false);
        if exists (select from task_dependencies where depends_on = any(v_ids)) then
            perform _settle_dependents(v_ids);
        end if;
        perform _announce('update', v_ids, 'completed');
    end if;
    return query select a.id, case when a.id = any(v_done || v_alone) then 'completed' else 'lost' end from unnest(p_attempts) a (id);
end
$$;
comment on function complete_tasks(bigint[], jsonb[]) is
'Completes many attempts at once; all or, where one of them has yet to be proved (TY004), none. One row per attempt: completed, or lost where it was no longer the caller''s (stop its work). Errors: TY001, TY006.';
grant execute on function complete_tasks(bigint[], jsonb[]) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
