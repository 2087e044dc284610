-- Handing over: the packet is written down while the agent still runs; its runner then stops the tool, keeps the work, and ends the
-- attempt with the outcome handed_off. In that one transaction the old token ends and the new task begins. Should the runner die in
-- between, taking the attempt back does the same. The old task waits for the new one and ends as it does, so that whoever
-- depends on it need not know.

create or replace function handoff_task(p_attempt bigint, p_packet jsonb) returns bigint
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    c_most constant integer := 10;
    v_attempt attempts;
    v_wrong text := _wrong_packet(p_packet);
    v_target text := p_packet ->> 'target';
    v_id bigint;
begin
    perform _require_runner('hand over');
    perform _require_own_attempt(p_attempt);
    select * into v_attempt from attempts where id = p_attempt and finished_at is null for no key update;
    if not found then
        perform _lost(p_attempt);
    end if;
    if v_wrong is not null then
        raise exception using
            errcode = 'TY001',
            message = format('The packet is not usable: %s.', v_wrong),
            hint = 'For example: {"target": "claude", "reason": "specialization", "context_summary": "...", "pending_actions": ["..."], "artifacts": []}';
    elsif v_target in ('auto', 'summary') or not exists (select from agents a where a.name = v_target and cardinality(a.route) > 0) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no agent "%s".', left(v_target, 100)),
            hint = format('Known agents: %s.', (select string_agg(name, ', ' order by name) from agents where name not in ('auto', 'summary') and cardinality(route) > 0));
    elsif not _may_use(v_attempt.scope, v_target) then
        raise exception using
            errcode = 'TY006',
            message = format('Scope %s does not allow agent %s.', v_attempt.scope, v_target),
            hint = 'Hand over to another one, or go on.';
    elsif greatest(cardinality(_handed_on(v_attempt.task_id)), (select count(*) from handoffs h where h.task_id = v_attempt.task_id and h.attempt_id <> p_attempt)) >= c_most then
        raise exception using
            errcode = 'TY004',
            message = format('This work has been handed over %s times already.', c_most),
            hint = 'Finish it, or ask a human.';
    end if;
    select h.id into v_id from handoffs h where h.task_id = v_attempt.task_id and h.attempt_id = p_attempt;
    if v_id is not null then
        return v_id; -- asked again: the first packet counts
    end if;
    insert into handoffs (task_id, attempt_id, source, target, reason, context_summary, summary_by, pending_actions, artifacts, created_at)
    values (
        v_attempt.task_id, p_attempt, v_attempt.agent, v_target, p_packet ->> 'reason', nullif(btrim(p_packet ->> 'context_summary'), ''),
        case when btrim(p_packet ->> 'context_summary') <> '' then 'agent' end,
        coalesce(_texts(p_packet -> 'pending_actions'), '{}'), coalesce(_texts(p_packet -> 'artifacts'), '{}'), _now()
    )
    returning id into v_id;
    perform _log(v_attempt.task_id, p_attempt, 'handoff_asked', jsonb_build_object('handoff', v_id, 'target', v_target, 'reason', p_packet ->> 'reason'));
    perform pg_notify('taskyard_runner_' || v_attempt.runner_id, 'handoff');
    return v_id;
end
$$;
comment on function handoff_task(bigint, jsonb) is
'An agent asks that another go on: {target, reason: specialization|timeout|escalation|limit, context_summary, pending_actions, artifacts}, the last three optional. Returns the handoff''s id; the new task is created when the attempt ends. Errors: TY001, TY002, TY004, TY005, TY006.';

create or replace function export_handoff(p_id bigint) returns jsonb
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_handoff handoffs;
    v_task tasks;
begin
    perform _require_role('taskyard_viewer', 'read handoffs');
    select * into v_handoff from handoffs where id = p_id;
    select * into v_task from tasks where id = v_handoff.task_id;
    if v_task.id is null or not _in_reach(v_task.scope) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no handoff %s.', p_id),
            hint = 'See: select id, task_id, target from handoffs;';
    end if;
    return jsonb_build_object(
        'kind', 'taskyard.handoff', 'task', v_handoff.task_id, 'created_at', v_handoff.created_at, 'prompt', _first_prompt(v_handoff.task_id),
        'packet', _packet(v_handoff)
    );
end
$$;
comment on function export_handoff(bigint) is
'A handoff as a document that import_handoff() takes: {kind, task, created_at, prompt, packet}. Errors: TY002, TY006.';

create or replace function import_handoff(p_document jsonb, p_scope text default 'default') returns bigint
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_wrong text := _wrong_packet(p_document -> 'packet');
begin
    perform _require_role('taskyard_submitter', 'import handoffs');
    if p_document ->> 'kind' is distinct from 'taskyard.handoff' or coalesce(btrim(p_document ->> 'prompt'), '') = '' or v_wrong is not null then
        raise exception using
            errcode = 'TY001',
            message = format('This document is no handoff: %s.', coalesce(v_wrong, 'its kind is another, or it has no prompt')),
            hint = 'Its kind is taskyard.handoff; export_handoff(id) makes one.';
    end if;
    return submit_task(
        concat_ws(E'\n\n', _packet_text(p_document -> 'packet', null), E'The task:\n' || (p_document ->> 'prompt')),
        p_agent => p_document -> 'packet' ->> 'target', p_scope => p_scope
    );
end
$$;
comment on function import_handoff(jsonb, text) is
'Creates a task that goes on with an exported handoff, from this database or another; returns its id. Errors: TY001, TY002, TY006.';
grant execute on function handoff_task(bigint, jsonb), export_handoff(bigint), import_handoff(jsonb, text)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _wrong_packet(p_packet jsonb) returns text
language sql stable
as $$
    select case
        when jsonb_typeof(p_packet) is distinct from 'object' then 'it is no JSON object'
        when exists (select from jsonb_object_keys(p_packet) k where k not in ('source', 'target', 'reason', 'context_summary', 'pending_actions', 'artifacts'))
            then 'it has more than target, reason, context_summary, pending_actions and artifacts'
        when jsonb_typeof(p_packet -> 'target') is distinct from 'string' then 'target names an agent'
        when p_packet ->> 'reason' is null or p_packet ->> 'reason' not in ('specialization', 'timeout', 'escalation', 'limit')
            then 'reason is specialization, timeout, escalation or limit'
        when coalesce(jsonb_typeof(p_packet -> 'context_summary'), 'null') not in ('string', 'null') or length(p_packet ->> 'context_summary') > 20000
            then 'context_summary is a text of at most 20,000 characters'
        when not taskyard._text_list(p_packet -> 'pending_actions') then 'pending_actions is a list of at most 100 texts'
        when not taskyard._text_list(p_packet -> 'artifacts') then 'artifacts is a list of at most 100 texts'
    end
$$;
comment on function _wrong_packet(jsonb) is 'What is wrong with a handoff packet; null: nothing.';

create or replace function _text_list(p_list jsonb) returns boolean
language sql stable
as $$
    select case coalesce(jsonb_typeof(p_list), 'null')
        when 'null' then true
        when 'array' then jsonb_array_length(p_list) <= 100 and not exists (
            select from jsonb_array_elements(p_list) x where jsonb_typeof(x) <> 'string' or length(x #>> '{}') > 2000
        )
        else false
    end
$$;
comment on function _text_list(jsonb) is 'Whether it is a list of at most 100 texts of at most 2,000 characters, or nothing.';

create or replace function _packet(p_handoff handoffs) returns jsonb
language sql stable
as $$
    select jsonb_build_object(
        'source', p_handoff.source, 'target', p_handoff.target, 'reason', p_handoff.reason, 'context_summary', p_handoff.context_summary,
        'pending_actions', to_jsonb(p_handoff.pending_actions), 'artifacts', to_jsonb(p_handoff.artifacts)
    )
$$;
comment on function _packet(handoffs) is 'A handoff as agents and documents tell it.';

create or replace function _packet_text(p_packet jsonb, p_task bigint) returns text
language sql stable
as $$
    select concat_ws(
        E'\n',
        format('You take over from %s (reason: %s)%s.', coalesce(p_packet ->> 'source', 'another agent'), p_packet ->> 'reason', ', who worked on task ' || p_task),
        E'What was done and found:\n' || nullif(p_packet ->> 'context_summary', ''),
        E'Still to do:\n' || (select string_agg('- ' || x, E'\n') from unnest(taskyard._texts(p_packet -> 'pending_actions')) x),
        'Look at these artifacts: ' || (select string_agg(x, ', ') from unnest(taskyard._texts(p_packet -> 'artifacts')) x)
    )
$$;
comment on function _packet_text(jsonb, bigint) is 'A handoff packet for the next agent''s prompt.';

create or replace function _handed_on(p_task bigint) returns bigint[]
language sql stable
as $$
    with recursive chain (task, depth) as (
        select h.task_id, 1 from taskyard.handoffs h where h.to_task = p_task
        union
        select h.task_id, c.depth + 1 from chain c join taskyard.handoffs h on h.to_task = c.task
    )
    select coalesce(array_agg(task order by depth), '{}') from chain
$$;
comment on function _handed_on(bigint) is 'The tasks that the work of this one has come from by handoffs, the last first.';

create or replace function _successors(p_task bigint) returns bigint[]
language sql stable
as $$
    with recursive chain (task, depth) as (
        select p_task, 1
        union
        select h.to_task, c.depth + 1 from chain c join taskyard.handoffs h on h.task_id = c.task
        join taskyard.waits w on w.task_id = h.task_id and w.attempt_id = h.attempt_id
        where h.to_task is not null
    )
    select array_agg(task order by depth) from chain
$$;
comment on function _successors(bigint) is 'A task and those that its work was handed over to since, the last of them at the end.';

create or replace function _first_prompt(p_task bigint) returns text
language sql stable
as $$
    select t.prompt from taskyard.tasks t
    where t.id = coalesce((select x.chain[cardinality(x.chain)] from (select taskyard._handed_on(p_task)) x (chain)), p_task)
$$;
comment on function _first_prompt(bigint) is 'What was asked for in the first place, before any handoff.';

create or replace function _pending_handoff(p_attempt attempts) returns handoffs
language sql stable
as $$
    select h.* from taskyard.handoffs h
    where h.task_id = p_attempt.task_id and h.attempt_id = p_attempt.id and h.to_task is null
$$;
comment on function _pending_handoff(attempts) is 'What an attempt hands over when it ends; null: nothing.';

create or replace function _hand_over(p_attempt attempts, p_task tasks, p_handoff handoffs) returns text
language plpgsql volatile
as $$
declare
    v_new bigint;
    v_summary bigint;
    v_host text := (select r.host from runners r where r.id = p_attempt.runner_id);
begin
    perform set_config('taskyard.on_behalf_of', format('task %s', p_task.id), true);
    -- Where the leaving agent wrote no summary the orchestrator model is asked to, if one is up; else a rule does it at the claim.
    if p_handoff.context_summary is null and _orchestrator_offered(p_task.scope) then
        insert into tasks (prompt, agent, scope, priority, max_attempts, on_limit, created_by)
        values (
            format(E'The task:\n%s\n\n%s', left(_first_prompt(p_task.id), 4000), _work_so_far(p_attempt)), 'summary', p_task.scope,
            least(greatest(p_task.priority, p_task.lent_priority) + 1, 1000), 1, 'wait', format('task %s', p_task.id)
        )
        returning id into v_summary;
    end if;
    insert into tasks (
        prompt, agent, scope, priority, payload, workspace, repository, base, push_to, verify, requires, max_attempts, timeout,
        output_schema, parent_id, handoff_id, stays_on, depends_on, on_dependency_failure, created_by
    )
    values (
        _first_prompt(p_task.id), p_handoff.target, p_task.scope, greatest(p_task.priority, p_task.lent_priority), p_task.payload,
        p_task.workspace, p_task.repository, p_task.base, p_task.push_to, coalesce(p_task.verify, p_attempt.verify), p_task.requires, p_task.max_attempts, p_task.timeout,
        p_task.output_schema, p_task.id, p_handoff.id, nullif(v_host, ''), array_remove(array[v_summary], null), 'run', format('task %s', p_task.id)
    )
    returning id into v_new;
    perform set_config('taskyard.on_behalf_of', '', true);
    update handoffs set to_task = v_new, summary_task = v_summary where id = p_handoff.id;
    insert into waits as w (task_id, attempt_id, tasks, for_mail, until, asked_at, over_at)
    values (p_task.id, p_attempt.id, array[v_new], false, _now() + interval '100 years', _now(), null)
    on conflict (task_id) do update
    set attempt_id = excluded.attempt_id, tasks = excluded.tasks, for_mail = false, until = _now() + interval '100 years', asked_at = excluded.asked_at, over_at = null;
    delete from task_dependencies where task_id = p_task.id;
    insert into task_dependencies (depends_on, task_id) values (v_new, p_task.id);
    perform _log(p_task.id, p_attempt.id, 'handed_over', jsonb_build_object('handoff', p_handoff.id, 'task', v_new, 'target', p_handoff.target));
    return null;
exception when others then
    -- What was allowed when it was asked for is not any more (a narrowed scope, an agent that is gone): the task itself goes on.
    if sqlstate !~ '^TY' then
        raise;
    end if;
    return format('It was not handed over to %s: %s', p_handoff.target, sqlerrm);
end
$$;
comment on function _hand_over(attempts, tasks, handoffs) is 'Creates the task that goes on with a packet, and has the old one wait for it; returns why not, in a sentence, where that is refused.';

create or replace function _orchestrator_offered(p_scope text) returns boolean
language sql stable
as $$
    select exists (
        select from taskyard.runners r
        cross join taskyard.agents a
        join taskyard.effective_scopes e on e.name = p_scope
        cross join lateral taskyard._offers(r.id, a.route, null, null, 'switch', e.allowed_providers)
        where r.gone_at is null and not r.draining and r.sandbox_trouble is null and a.name = 'summary' and a.paused_at is null and taskyard._may_use(p_scope, 'summary')
    )
$$;
comment on function _orchestrator_offered(text) is 'Whether some runner could ask the orchestrator model right now, for a task of this scope.';

create or replace function _summaries_overdue() returns integer
language plpgsql volatile
as $$
declare
    v_task bigint;
    v_count integer := 0;
begin
    -- A handover waits a minute for its summary; then a rule has to do.
    for v_task in
        select t.id
        from lanes l
        join ready_tasks q on q.lane_id = l.id
        join tasks t on t.id = q.task_id
        where l.agent = 'summary' and t.created_at < _now() - interval '1 minute'
            and exists (select from handoffs h join tasks n on n.id = h.to_task and n.status = 'blocked' where h.summary_task = t.id)
        limit 100
        for no key update of t skip locked
    loop
        update tasks set status = 'cancelled', error = 'The orchestrator model had no time for it.', cancel_reason = 'The orchestrator model had no time for it.' where id = v_task;
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$$;
comment on function _summaries_overdue() is 'Gives up summaries that no model has had time for; returns how many.';

create or replace function _take_over(p_claim claim) returns claim
language plpgsql volatile
as $$
declare
    v_claim claim := p_claim;
    v_handoff handoffs;
    v_attempt attempts;
    v_chain bigint[] := _handed_on(p_claim.task_id);
    v_said text;
begin
    select * into v_handoff from handoffs where to_task = p_claim.task_id;
    if not found then
        return v_claim;
    end if;
    v_claim.files_of := v_chain[cardinality(v_chain)];
    if v_handoff.context_summary is null then
        select nullif(btrim(coalesce(t.result ->> 'summary', case when jsonb_typeof(t.result) = 'string' then t.result #>> '{}' end)), '') into v_said
        from tasks t where t.id = v_handoff.summary_task and t.status = 'completed';
        select * into v_attempt from attempts where id = v_handoff.attempt_id;
        v_handoff.context_summary := left(coalesce(v_said, _work_so_far(v_attempt)), 20000);
        v_handoff.summary_by := case when v_said is null then 'rule' else 'model' end;
        update handoffs set context_summary = v_handoff.context_summary, summary_by = v_handoff.summary_by where id = v_handoff.id;
    end if;
    v_claim.note := concat_ws(
        E'\n\n', _packet_text(_packet(v_handoff), v_handoff.task_id), _mail_for_note(v_handoff.task_id, p_claim.attempt_id, p_claim.attempt_id), v_claim.note
    );
    return v_claim;
end
$$;
comment on function _take_over(claim) is 'Adds to the claim of a task that was handed over its packet and the place of its files; the summary is completed by then.';
