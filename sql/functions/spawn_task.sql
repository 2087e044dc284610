-- Children: an agent asks for more hands. A child may do no more than its parent (_check_scope), waits its turn like any other task, and
-- what an agent repeats, because a call's answer was lost or its session forgot, is not done twice.

create or replace function spawn_task(p_attempt bigint, p_task jsonb) returns jsonb
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_attempt attempts;
    v_parent tasks;
    v_agent text := coalesce(p_task ->> 'agent', 'default');
    v_scope text;
    v_most integer;
    v_in_minute integer;
    v_key text;
    v_child bigint;
    v_status text;
begin
    perform _require_runner('create children');
    perform _require_own_attempt(p_attempt);
    v_attempt := _live_attempt(p_attempt);
    select * into v_parent from tasks where id = v_attempt.task_id for share; -- a cancellation in the same moment sees the child, or is seen
    if v_parent.cancel_requested_at is not null then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s is being cancelled.', v_parent.id),
            hint = 'Stop now: it gets no more children.';
    end if;
    v_scope := coalesce(p_task ->> 'scope', v_parent.scope);
    if p_task ? 'dedupe_key' then
        raise exception using
            errcode = 'TY001',
            message = 'Children have no dedupe_key of their own.',
            hint = 'Leave it out: the same prompt for the same agent gives the child that is there already.';
    end if;
    v_key := format('child of %s: %s', v_parent.id, md5(concat_ws(
        E'\x01', p_task ->> 'prompt', v_agent, v_scope, coalesce(p_task ->> 'provider', '-'), coalesce(p_task ->> 'model', '-'), coalesce(p_task ->> 'payload', '-')
    )));
    -- One spawn of a task at a time; the row is also where they are counted.
    insert into child_counts as c (task_id, children, minute, in_minute)
    values (v_parent.id, 0, date_trunc('minute', _now()), 1)
    on conflict (task_id) do update
    set minute = excluded.minute, in_minute = case when c.minute = excluded.minute then c.in_minute + 1 else 1 end
    returning in_minute into v_in_minute;
    select id, status into v_child, v_status from tasks where dedupe_key = v_key and parent_id = v_parent.id;
    if v_child is not null then
        update child_counts set in_minute = in_minute - 1 where task_id = v_parent.id;
        return jsonb_build_object('task', v_child, 'status', v_status, 'existed', true);
    end if;
    select e.max_spawns_per_minute into v_most from effective_scopes e where e.name = v_parent.scope;
    if v_in_minute > v_most then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s has created %s children within this minute, as many as scope %s allows.', v_parent.id, v_most, v_parent.scope),
            hint = 'Wait for those that are there, or do the rest yourself. An administrator can change scopes.max_spawns_per_minute.';
    end if;
    perform _check_repetition(v_parent, p_task ->> 'prompt', v_agent, v_scope);
    perform _check_child(v_attempt, v_parent, _told_task(p_task), v_scope);
    v_child := _task_from_json(p_task || jsonb_build_object('dedupe_key', v_key, 'scope', v_scope, 'agent', v_agent), v_parent, format('task %s', v_parent.id));
    select status into v_status from tasks where id = v_child;
    return jsonb_build_object('task', v_child, 'status', v_status, 'existed', false);
end
$$;
comment on function spawn_task(bigint, jsonb) is
'An agent creates a child of its task: {prompt, agent, scope, priority, payload, depends_on, workspace, repository, base, push_to, verify, requires, provider, model, on_limit, on_dependency_failure, max_attempts, timeout, run_at, output_schema}, all but prompt optional. Returns {task, status, existed}; existed: the same prompt, agent and scope was asked for before. Errors: TY001, TY002, TY004, TY005, TY006.';
grant execute on function spawn_task(bigint, jsonb) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _live_attempt(p_attempt bigint) returns attempts
language plpgsql volatile
as $$
declare
    v_attempt attempts;
begin
    -- Shared: it does not end while its word is carried out, and its heartbeat waits for no more than that.
    select * into v_attempt from attempts where id = p_attempt and finished_at is null for share;
    if not found then
        perform _lost(p_attempt);
    end if;
    return v_attempt;
end
$$;
comment on function _live_attempt(bigint) is 'The attempt, kept from ending until commit. Raises TY005.';

create or replace function _check_repetition(p_parent tasks, p_prompt text, p_agent text, p_scope text) returns void
language plpgsql stable
as $$
declare
    v_same bigint;
begin
    with recursive up (id, parent_id, same) as (
        select p_parent.id, p_parent.parent_id, (p_parent.prompt, p_parent.agent, p_parent.scope) is not distinct from (p_prompt, p_agent, p_scope)
        union all
        select t.id, t.parent_id, (t.prompt, t.agent, t.scope) is not distinct from (p_prompt, p_agent, p_scope)
        from up join tasks t on t.id = up.parent_id
    )
    select id into v_same from up where same limit 1;
    if v_same is not null then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s, which this one comes from, has the same prompt for the same agent.', v_same),
            hint = 'That would go round in a circle: do the work yourself, or ask for a part of it.';
    end if;
end
$$;
comment on function _check_repetition(tasks, text, text, text) is 'Raises TY004 where a child would be asked for what one of its ancestors was asked for.';

create or replace function _told_task(p_task jsonb) returns tasks
language plpgsql stable
as $$
declare
    c_keys constant text[] := '{prompt,agent,scope,priority,payload,depends_on,on_dependency_failure,workspace,repository,base,push_to,verify,requires,provider,model,on_limit,max_attempts,timeout,run_at,output_schema,dedupe_key}'::text[];
    v_unknown text;
begin
    if jsonb_typeof(p_task) is distinct from 'object' then
        raise exception using
            errcode = 'TY001',
            message = 'A task is a JSON object.',
            hint = 'For example: {"prompt": "...", "agent": "claude"}';
    end if;
    select string_agg(k, ', ') into v_unknown from jsonb_object_keys(p_task) k where k <> all(c_keys);
    if v_unknown is not null then
        raise exception using
            errcode = 'TY001',
            message = format('A task has no %s.', left(v_unknown, 200)),
            hint = format('It has: %s.', array_to_string(c_keys, ', '));
    end if;
    begin
        return jsonb_populate_record(null::tasks, jsonb_strip_nulls(p_task - 'payload' - 'output_schema'));
    exception when data_exception then
        raise exception using
            errcode = 'TY001',
            message = format('The task cannot be read: %s.', sqlerrm),
            hint = 'Numbers, texts and lists as in the table tasks; timeout as "10 minutes".';
    end;
end
$$;
comment on function _told_task(jsonb) is 'What a JSON object says of a task, as a row; null where it says nothing. Raises TY001 for what is unknown or cannot be read.';

create or replace function _check_child(p_attempt attempts, p_parent tasks, p_task tasks, p_scope text) returns void
language plpgsql volatile
as $$
declare
    v_scope effective_scopes;
    v_key text;
    v_place text;
    v_own text;
begin
    -- A person may name any place and any command that the scope leaves open; an agent only what it has itself.
    select * into v_scope from effective_scopes where name = p_scope;
    foreach v_key in array '{workspace,repository}'::text[] loop
        v_place := rtrim(case v_key when 'workspace' then p_task.workspace else p_task.repository end, '/');
        v_own := case v_key when 'workspace' then p_parent.workspace else p_parent.repository end;
        if v_place is not null and not coalesce(_covers_path(rtrim(v_own, '/'), v_place), false)
            and not exists (select from unnest(v_scope.allowed_paths) p where _covers_path(p, v_place)) then
            raise exception using
                errcode = 'TY006',
                message = format('The %s %s is not among the places of task %s.', v_key, left(v_place, 200), p_parent.id),
                hint = 'A child works where its parent does, or in a path of its scope; without one it gets an empty directory.';
        end if;
    end loop;
    if p_task.verify is distinct from p_attempt.verify and p_task.verify is not null and 'execute' <> all(v_scope.permissions) then
        raise exception using
            errcode = 'TY006',
            message = format('Tasks of scope %s may not execute, so they prove nothing by a command.', p_scope),
            hint = 'Leave verify out.';
    end if;
    if p_task.push_to is distinct from p_parent.push_to and p_task.push_to is not null then
        raise exception using
            errcode = 'TY006',
            message = format('Task %s pushes nothing to %s itself.', p_parent.id, left(p_task.push_to, 100)),
            hint = 'Leave push_to out: the branch is in the repository.';
    end if;
    if p_task.priority > greatest(p_parent.priority, p_parent.lent_priority) then
        raise exception using
            errcode = 'TY006',
            message = format('A child of task %s has a priority of %s at most.', p_parent.id, greatest(p_parent.priority, p_parent.lent_priority)),
            hint = 'Leave the priority out: then it has its parent''s.';
    end if;
    if cardinality(p_task.depends_on) > 0 then
        perform _require_related(p_attempt, p_task.depends_on);
    end if;
end
$$;
comment on function _check_child(attempts, tasks, tasks, text) is 'Refuses an agent what a person might ask for: other places, commands, remotes, a higher priority, tasks that it may not look at (TY002, TY006).';

create or replace function _task_from_json(p_task jsonb, p_parent tasks, p_created_by text) returns bigint
language plpgsql volatile
as $$
declare
    v_task tasks := _told_task(p_task);
    v_id bigint;
begin
    perform set_config('taskyard.on_behalf_of', coalesce(p_created_by, ''), true);
    insert into tasks (
        prompt, agent, scope, priority, run_at, depends_on, on_dependency_failure, payload, workspace, repository, base, push_to, verify,
        requires, provider, model, on_limit, dedupe_key, max_attempts, timeout, output_schema, parent_id, created_by
    )
    values (
        v_task.prompt, coalesce(v_task.agent, 'default'), coalesce(v_task.scope, p_parent.scope, 'default'),
        coalesce(v_task.priority, p_parent.priority, 0), v_task.run_at, coalesce(v_task.depends_on, '{}'),
        coalesce(v_task.on_dependency_failure, 'fail'), nullif(p_task -> 'payload', 'null'), v_task.workspace, v_task.repository,
        v_task.base, v_task.push_to, v_task.verify, coalesce(v_task.requires, '{}'), v_task.provider, v_task.model,
        coalesce(v_task.on_limit, 'switch'), v_task.dedupe_key, v_task.max_attempts, v_task.timeout,
        nullif(p_task -> 'output_schema', 'null'), p_parent.id, coalesce(p_created_by, '')
    )
    on conflict (dedupe_key) where dedupe_key is not null do nothing
    returning id into v_id;
    perform set_config('taskyard.on_behalf_of', '', true);
    if v_id is null then
        select id into v_id from tasks where dedupe_key = v_task.dedupe_key and scope = coalesce(v_task.scope, p_parent.scope, 'default');
        if v_id is null then
            raise exception using
                errcode = 'TY004',
                message = 'This dedupe_key is taken.',
                hint = 'By a task in another scope: use another key.';
        end if;
    end if;
    return v_id;
end
$$;
comment on function _task_from_json(jsonb, tasks, text) is 'Inserts a task told in JSON, as a child where there is a parent; returns its id. Raises TY001 for what is unknown or cannot be read.';

create or replace function read_result(p_attempt bigint, p_task bigint) returns jsonb
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
    perform _require_runner('read results');
    perform _require_own_attempt(p_attempt);
    if p_task is null then
        perform _no_task(null);
    end if;
    perform _require_related(_live_attempt(p_attempt), array[p_task]);
    return _result_of(p_task, null);
end
$$;
comment on function read_result(bigint, bigint) is
'What became of a task of the agent''s family, or of its scope or one below: {task, agent, status, result, error, branch, commit, artifacts: [{path, kind, size}]}. Errors: TY002, TY005, TY006.';

create or replace function list_artifacts(p_attempt bigint, p_task bigint default null) returns jsonb
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_attempt attempts;
    v_artifact record;
    v_text text;
    v_found jsonb := '[]'::jsonb;
begin
    perform _require_runner('list artifacts');
    perform _require_own_attempt(p_attempt);
    v_attempt := _live_attempt(p_attempt);
    if p_task is not null then
        perform _require_related(v_attempt, array[p_task]);
    end if;
    for v_artifact in
        select * from artifacts a where a.task_id = any(_successors(coalesce(p_task, v_attempt.task_id))) order by a.attempt_id, a.path limit 1000
    loop
        v_text := null;
        if v_artifact.size <= 20000 and length(v_found::text) < 500000 then
            begin
                v_text := convert_from(v_artifact.content, 'UTF8');
            exception when data_exception then
                null; -- no text
            end;
        end if;
        v_found := v_found || jsonb_build_object(
            'task', v_artifact.task_id, 'attempt', v_artifact.attempt_id, 'path', v_artifact.path, 'kind', v_artifact.kind, 'size', v_artifact.size,
            'sha256', v_artifact.sha256, 'text', v_text
        );
    end loop;
    return v_found;
end
$$;
comment on function list_artifacts(bigint, bigint) is
'The artifacts of a task that the agent may see, by default its own: [{task, attempt, path, kind, size, sha256, text}]; text where it is UTF-8 of at most 20,000 bytes. Errors: TY002, TY005, TY006.';
grant execute on function read_result(bigint, bigint), list_artifacts(bigint, bigint) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _result_of(p_task bigint, p_characters integer) returns jsonb
language plpgsql stable
as $$
declare
    v_task tasks;
    v_work attempts;
    v_result text;
    v_chain bigint[] := _successors(p_task);
begin
    select * into v_task from tasks where id = p_task;
    if not found then
        return jsonb_build_object('task', p_task, 'status', 'deleted');
    end if;
    select * into v_work from attempts a where a.task_id = any(v_chain) and a.branch is not null order by a.id desc limit 1;
    v_result := v_task.result #>> '{}';
    return jsonb_strip_nulls(jsonb_build_object(
        'task', v_task.id, 'agent', v_task.agent, 'status', v_task.status, 'error', left(v_task.error, 2000),
        'result', case
            when length(v_result) > p_characters then to_jsonb(left(v_result, p_characters) || '... (cut: read_result tells all)')
            else v_task.result
        end,
        'branch', v_work.branch, 'commit', v_work.commit_id,
        'artifacts', (
            select jsonb_agg(jsonb_build_object('path', a.path, 'kind', a.kind, 'size', a.size) order by a.path)
            from (select distinct on (x.path) x.path, x.kind, x.size from artifacts x where x.task_id = any(v_chain) order by x.path, x.attempt_id desc limit 50) a
        )
    ));
end
$$;
comment on function _result_of(bigint, integer) is 'A task''s end for an agent, its result cut to so many characters; null: whole.';

create or replace function _require_related(p_attempt attempts, p_tasks bigint[]) returns void
language plpgsql stable
as $$
declare
    v_own tasks;
    v_above bigint[];
    v_other tasks;
begin
    -- Who took over belongs to the family of the one that began.
    select * into v_own from tasks where id = coalesce((_handed_on(p_attempt.task_id))[cardinality(_handed_on(p_attempt.task_id))], p_attempt.task_id);
    for v_other in
        select t.* from unnest(p_tasks) x (id) join tasks t on t.id = x.id
        join effective_scopes e on e.name = t.scope
        where p_attempt.scope <> all(e.path) and t.parent_id is distinct from v_own.id
    loop
        -- Not in its scope or below: then of its family, upwards or beside it.
        v_above := coalesce(v_above, _ancestors(v_own.id));
        continue when v_other.id = any(v_above) or v_other.parent_id = v_own.parent_id;
        perform _no_task(v_other.id);
    end loop;
    if (select count(*) from tasks t where t.id = any(p_tasks)) < (select count(distinct x) from unnest(p_tasks) x) then
        perform _no_task((select x from unnest(p_tasks) x where not exists (select from tasks t where t.id = x) limit 1));
    end if;
end
$$;
comment on function _require_related(attempts, bigint[]) is 'Raises TY002 unless all these tasks are in the attempt''s scope or below, or of its task''s own family.';

create or replace function _no_task(p_id bigint) returns void
language plpgsql stable
as $$
begin
    raise exception using
        errcode = 'TY002',
        message = format('There is no task %s that this one may look at.', coalesce(p_id::text, 'null')),
        hint = 'It sees its children, parents and siblings, and what is in its scope or below.';
end
$$;
comment on function _no_task(bigint) is 'Raises TY002: not there and not allowed are told alike.';

create or replace function _ancestors(p_task bigint) returns bigint[]
language sql stable
as $$
    with recursive up (id, parent_id) as (
        select t.id, t.parent_id from taskyard.tasks t where t.id = p_task
        union
        select t.id, t.parent_id from up join taskyard.tasks t on t.id = up.parent_id
    )
    select array_agg(id) from up where id <> p_task
$$;
comment on function _ancestors(bigint) is 'The tasks above a task.';
