create or replace function approve(p_id bigint, p_note text default null) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_approval approvals;
    v_bound text;
begin
    perform _require_role('taskyard_submitter', 'decide');
    v_approval := _to_decide(p_id);
    if v_approval.kind = 'question' then
        raise exception using
            errcode = 'TY004',
            message = format('%s is a question.', p_id),
            hint = format('Answer it: select answer(%s, ''...'');', p_id);
    elsif v_approval.kind = 'budget' then
        if not pg_has_role(_caller()::name, 'taskyard_admin', 'usage') then
            raise exception using
                errcode = 'TY006',
                message = format('%s may not raise a budget.', _caller()),
                hint = 'An administrator may.';
        end if;
        update budgets b
        set extra = case when b.extra_until > _now() then b.extra else 0 end + greatest(b.amount, 0), extra_until = _period_end(b.period)
        where b.scope = v_approval.scope and b.measure = v_approval.measure and b.period = v_approval.period;
        perform _wake_runners();
    else
        v_bound := _giver(v_approval);
    end if;
    perform _decide(v_approval, 'approved', p_note, v_bound);
    return format('approved: %s', left(v_approval.question, 200));
end
$$;
comment on function approve(bigint, text) is
'Allows what was asked for: for that task alone and never more than the approver''s own scopes allow, or as much again of a used-up budget. Ids are in the view inbox. Errors: TY002, TY004, TY006.';

create or replace function deny(p_id bigint, p_why text default null) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_approval approvals;
begin
    perform _require_role('taskyard_submitter', 'decide');
    v_approval := _to_decide(p_id);
    perform _decide(v_approval, 'denied', p_why, null);
    return format('denied: %s', left(v_approval.question, 200));
end
$$;
comment on function deny(bigint, text) is 'Refuses what was asked for; the agent is told why and goes on. Errors: TY002, TY004, TY006.';

create or replace function answer(p_id bigint, p_text text) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_approval approvals;
begin
    perform _require_role('taskyard_submitter', 'answer');
    v_approval := _to_decide(p_id);
    if v_approval.kind <> 'question' then
        raise exception using
            errcode = 'TY004',
            message = format('%s asks for permission.', p_id),
            hint = format('select approve(%s);  or  select deny(%s, ''why'');', p_id, p_id);
    elsif p_text is null or btrim(p_text) = '' or octet_length(p_text) > 100000 then
        raise exception using
            errcode = 'TY001',
            message = 'An answer has 1 to 100,000 bytes.',
            hint = format('select answer(%s, ''...'');', p_id);
    end if;
    perform _decide(v_approval, 'answered', p_text, null);
    return 'answered';
end
$$;
comment on function answer(bigint, text) is 'Answers an agent''s question; its session goes on with it. Errors: TY001, TY002, TY004, TY006.';
grant execute on function approve(bigint, text), deny(bigint, text), answer(bigint, text)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _to_decide(p_id bigint) returns approvals
language plpgsql volatile
as $$
declare
    v_approval approvals;
    v_status task_status;
begin
    select * into v_approval from approvals where id = p_id;
    if v_approval.id is null or not _in_reach(v_approval.scope) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no question %s.', p_id),
            hint = 'See: select * from inbox;';
    end if;
    -- The task first, as its ending does: whichever of the two comes second sees the other.
    select t.status into v_status from tasks t where t.id = v_approval.task_id for no key update;
    select * into v_approval from approvals where id = p_id for no key update;
    if v_approval.decision is not null then
        raise exception using
            errcode = 'TY004',
            message = format('%s was %s %s ago%s.', p_id, v_approval.decision, _ago(_now() - v_approval.decided_at), coalesce(' by ' || v_approval.decided_by, '')),
            hint = 'Nothing is left to decide.';
    elsif v_status in ('completed', 'failed', 'cancelled') then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s is %s already.', v_approval.task_id, v_status),
            hint = 'Nothing is left to decide.';
    end if;
    return v_approval;
end
$$;
comment on function _to_decide(bigint) is 'An open question in a scope of the caller, locked with its task. Raises TY002, TY004.';

create or replace function _giver(p_approval approvals) returns text
language plpgsql stable
as $$
declare
    v_bound effective_scopes;
begin
    if pg_has_role(_caller()::name, 'taskyard_admin', 'usage') then
        return null;
    end if;
    -- The uppermost scope on the task's path that the caller works in.
    select e.* into v_bound
    from effective_scopes task
    join effective_scopes e on e.name = any(task.path)
    where task.name = p_approval.scope and e.name = any(_my_scopes())
    order by cardinality(e.path)
    limit 1;
    if v_bound.name is null
        or not p_approval.permissions <@ v_bound.permissions
        or exists (select from unnest(p_approval.paths) p where cardinality(_paths_and(array[p], v_bound.allowed_paths)) = 0 or _paths_and(array[p], v_bound.allowed_paths) <> array[p])
        or exists (select from unnest(p_approval.hosts) h where _hosts_and(array[h], v_bound.network_allow) is distinct from array[h]) then
        raise exception using
            errcode = 'TY006',
            message = format('%s may not allow that.', _caller()),
            hint = 'An administrator may, or deny it.',
            detail = format('Scope %s itself is not allowed all of it.', coalesce(v_bound.name, p_approval.scope));
    end if;
    return v_bound.name;
end
$$;
comment on function _giver(approvals) is 'The scope in whose name the caller approves; null for an administrator. Raises TY006 where that scope does not have what is asked for.';

create or replace function _decide(p_approval approvals, p_decision text, p_answer text, p_bound text) returns void
language plpgsql volatile
as $$
begin
    update approvals
    set decision = p_decision, answer = nullif(p_answer, ''), decided_at = _now(), bound = p_bound,
        decided_by = case when p_decision in ('expired', 'withdrawn') then null else _caller() end
    where id = p_approval.id;
    perform _log(p_approval.task_id, p_approval.attempt_id, p_approval.kind || '_' || p_decision, jsonb_strip_nulls(jsonb_build_object(
        'approval', p_approval.id, 'why', coalesce(p_answer, p_approval.question), 'bound', p_bound, 'scope', p_approval.scope
    )));
    if p_approval.task_id is not null and not _waits(p_approval.task_id) then
        update tasks set status = 'queued', run_at = null, error = null where id = p_approval.task_id and status = 'waiting';
    end if;
end
$$;
comment on function _decide(approvals, text, text, text) is 'Writes a decision down, and lets the task go on if it was the last that it waited for.';

create or replace function _decide_for_silent() returns integer
language plpgsql volatile
as $$
declare
    v_approval approvals;
    v_count integer := 0;
begin
    for v_approval in select a.* from approvals a where a.decision is null and a.deadline <= _now() order by a.deadline limit 100 loop
        -- The task first, as everybody does. It is locked by somebody who decides or ends it right now: the next tick looks again.
        continue when v_approval.task_id is not null
            and not exists (select from tasks t where t.id = v_approval.task_id for no key update skip locked);
        continue when not exists (select from approvals a where a.id = v_approval.id and a.decision is null for no key update skip locked);
        perform _decide(v_approval, 'expired', null, null);
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$$;
comment on function _decide_for_silent() is 'Past the deadline silence means no; returns how many questions came to that.';

create or replace function _withdraw_questions() returns void
language plpgsql volatile
as $$
begin
    update approvals a set decision = 'withdrawn', decided_at = _now()
    where a.decision is null and (
        exists (select from tasks t where t.id = a.task_id and t.status in ('completed', 'failed', 'cancelled'))
        or (a.kind = 'budget' and not exists (
            select from _budgets_spent(array[a.scope]) u where u.measure = a.measure and u.period = a.period and u.used >= u.amount
        ))
    );
end
$$;
comment on function _withdraw_questions() is 'Closes questions of tasks that are over, and of budgets that have room again.';

create or replace function _decisions(p_task bigint, p_since bigint) returns text
language sql stable
as $$
    select string_agg(
        case a.decision
            when 'approved' then format('Allowed from now on: %s', a.question)
            when 'answered' then format(E'You asked: %s\nThe answer: %s', a.question, a.answer)
            when 'denied' then format('Refused: %s%s', a.question, coalesce(E'\nWhy: ' || a.answer, ''))
            else format('Nobody decided in time, which means no: %s', a.question)
        end || case when a.decision = 'approved' and a.answer is not null then E'\nNote: ' || a.answer else '' end,
        E'\n' order by a.id
    )
    from taskyard.approvals a
    where a.task_id = p_task and a.attempt_id >= p_since and a.decision is not null
$$;
comment on function _decisions(bigint, bigint) is 'What was decided on the questions of a task''s attempts from this one on, for the agent; null where they asked nothing.';

create or replace function _with_grants(p_claim claim) returns claim
language plpgsql stable
as $$
declare
    v_claim claim := p_claim;
    v_bound effective_scopes;
    v_approval approvals;
    v_network boolean := 'network' = any(p_claim.permissions);
    v_hosts text[] := array[]::text[];
    v_all boolean;
begin
    for v_approval in
        select * from approvals a
        where a.task_id = p_claim.task_id and a.kind = 'permission' and a.decision = 'approved'
        order by a.id
    loop
        if v_approval.bound is not null then
            select * into v_bound from effective_scopes where name = v_approval.bound;
            continue when not found; -- that scope is gone, and what was given in its name
            v_all := cardinality(v_approval.hosts) = 0;
            v_approval.permissions := _names_and(v_approval.permissions, v_bound.permissions);
            v_approval.paths := _paths_and(v_approval.paths, v_bound.allowed_paths);
            v_approval.hosts := case
                when 'network' = any(v_approval.permissions) then _hosts_and(v_approval.hosts, v_bound.network_allow) else '{}'
            end;
            if not v_all and cardinality(v_approval.hosts) = 0 then
                v_approval.permissions := array_remove(v_approval.permissions, 'network'); -- none of the hosts is not all of them
            end if;
        end if;
        v_claim.permissions := array(
            select x.flag from unnest('{read,write,execute,network,create_child}'::text[]) with ordinality x (flag, place)
            where x.flag = any(v_claim.permissions || v_approval.permissions)
            order by x.place
        );
        if cardinality(v_approval.paths) > 0 then
            v_claim.allowed_paths := _paths_and(coalesce(v_claim.allowed_paths, '{}') || v_approval.paths, null);
        end if;
        v_hosts := v_hosts || v_approval.hosts;
        v_network := v_network or ('network' = any(v_approval.permissions) and cardinality(v_approval.hosts) = 0);
    end loop;
    -- Some hosts for a scope without network are those hosts; for one with it they come on top of its list, if it has one.
    if not v_network then
        v_claim.network_allow := v_hosts;
    elsif v_claim.network_allow is not null then
        v_claim.network_allow := _hosts_and(v_claim.network_allow || v_hosts, null);
    end if;
    return v_claim;
end
$$;
comment on function _with_grants(claim) is 'A claim with what humans allowed for its task, as far as the scope in whose name they did still has it.';
