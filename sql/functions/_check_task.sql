-- What a row of tasks may say. Each refusal is one sentence for a phone, with a hint.

create or replace function _check_task(p_task tasks) returns void
language plpgsql stable
as $$
declare
    v_missing text;
begin
    if p_task.prompt is null or p_task.prompt !~ E'[^[:space:]\u00a0\u200b\u2060\ufeff]' then
        raise exception using
            errcode = 'TY001',
            message = 'A task needs a prompt.',
            hint = 'Say what is to be done: insert into tasks (prompt) values (''...'');';
    end if;
    if octet_length(p_task.prompt) > 4194304 then
        raise exception using
            errcode = 'TY001',
            message = format('The prompt is %s long; the most is 4 MB.', pg_size_pretty(octet_length(p_task.prompt)::bigint)),
            hint = 'Put large material into files of the workspace and name them in the prompt.';
    end if;
    if p_task.priority is null or p_task.priority not between -1000 and 1000 then
        raise exception using
            errcode = 'TY001',
            message = format('Priority %s is out of range.', coalesce(p_task.priority::text, 'null')),
            hint = 'Use -1000 to 1000; higher runs first, 0 is usual.';
    end if;
    if p_task.timeout <= interval '0' or p_task.timeout > interval '30 days' then
        raise exception using
            errcode = 'TY001',
            message = format('A time-out of %s is out of range.', p_task.timeout),
            hint = 'Use more than nothing and at most 30 days, say interval ''10 minutes''.';
    end if;
    if p_task.max_attempts not between 1 and 100 then
        raise exception using
            errcode = 'TY001',
            message = format('max_attempts of %s is out of range.', p_task.max_attempts),
            hint = 'Use 1 to 100.';
    end if;
    if p_task.on_dependency_failure is null or p_task.on_dependency_failure not in ('fail', 'run') then
        raise exception using
            errcode = 'TY001',
            message = format('on_dependency_failure cannot be "%s".', left(p_task.on_dependency_failure, 100)),
            hint = 'Use fail or run.';
    end if;
    if p_task.on_limit is null or p_task.on_limit !~ '^(switch|wait|switch after .+)$' then
        raise exception using
            errcode = 'TY001',
            message = format('on_limit cannot be "%s".', left(p_task.on_limit, 100)),
            hint = 'Use switch, wait, or: switch after 2 hours';
    elsif p_task.on_limit like 'switch after %' then
        begin
            if substr(p_task.on_limit, 14)::interval <= interval '0' then
                raise exception using
                    errcode = 'TY001',
                    message = format('on_limit "%s" does not name a time ahead.', left(p_task.on_limit, 100)),
                    hint = 'For example: switch after 2 hours';
            end if;
        exception when invalid_datetime_format or datetime_field_overflow or interval_field_overflow then
            raise exception using
                errcode = 'TY001',
                message = format('on_limit "%s" does not name an interval.', left(p_task.on_limit, 100)),
                hint = 'For example: switch after 2 hours';
        end;
    end if;
    if octet_length(p_task.workspace) > 4096 or btrim(p_task.workspace) = '' then
        raise exception using
            errcode = 'TY001',
            message = 'The workspace is not a usable path.',
            hint = 'Name a directory on the runner''s host, or leave it null for a scratch directory.';
    end if;
    if num_nonnulls(p_task.repository, p_task.workspace) > 1 or (p_task.repository is null and num_nonnulls(p_task.base, p_task.push_to) > 0) then
        raise exception using
            errcode = 'TY001',
            message = 'A task works in a repository, or in a workspace, or in neither.',
            hint = 'Name one of them; base and push_to belong to a repository.';
    end if;
    if p_task.repository !~ '^/' or octet_length(p_task.repository) > 4096
        or greatest(octet_length(p_task.base), octet_length(p_task.push_to)) > 250 or p_task.base !~ '^[^-[:space:][:cntrl:]~^:?*[\\]+$' or p_task.push_to !~ '^[A-Za-z0-9][A-Za-z0-9_./-]*$' then
        raise exception using
            errcode = 'TY001',
            message = 'The repository, its base or the remote to push to cannot be used.',
            hint = 'For example: repository ''/srv/app'', base ''main'', push_to ''origin''.';
    end if;
    if octet_length(p_task.dedupe_key) > 500 then
        raise exception using
            errcode = 'TY001',
            message = 'The dedupe_key is longer than 500 bytes.',
            hint = 'Use a hash of it.';
    end if;
    if p_task.requires is null or cardinality(p_task.requires) > 20 or array_position(p_task.requires, null) is not null then
        raise exception using
            errcode = 'TY001',
            message = 'requires is not a list of at most 20 labels.',
            hint = 'For example: ''{gpu,docker}''';
    end if;
    if jsonb_typeof(p_task.output_schema) <> 'object' then
        raise exception using
            errcode = 'TY001',
            message = 'The output_schema is not a JSON object.',
            hint = 'For example: ''{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}''';
    end if;
    if octet_length(p_task.payload::text) > 4194304 then
        raise exception using
            errcode = 'TY001',
            message = 'The payload is larger than 4 MB.',
            hint = 'Put large material into files of the workspace.';
    end if;
    if p_task.parent_id is not null and not exists (select from tasks t where t.id = p_task.parent_id) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no task %s to be the parent.', p_task.parent_id),
            hint = 'Insert the parent first, or leave parent_id out.';
    end if;
    if cardinality(p_task.depends_on) > 0 then
        if cardinality(p_task.depends_on) > 1000 then
            raise exception using
                errcode = 'TY001',
                message = format('depends_on names %s tasks; the most is 1,000.', cardinality(p_task.depends_on)),
                hint = 'Join them in steps: tasks that depend on up to 1,000 each.';
        end if;
        if (case when array_ndims(p_task.depends_on) > 1 then true else array_position(p_task.depends_on, null) is not null end) then
            raise exception using
                errcode = 'TY001',
                message = 'depends_on is not a list of ids.',
                hint = 'Name ids of existing tasks.';
        end if;
        if p_task.id = any(p_task.depends_on) then
            raise exception using
                errcode = 'TY003',
                message = format('Task %s cannot depend on itself.', p_task.id),
                hint = 'Remove its own id from depends_on.';
        end if;
        select string_agg(d::text, ', ') into v_missing
        from (
            select d from unnest(p_task.depends_on) d
            where not exists (select from tasks t where t.id = d) limit 10
        ) m;
        if v_missing is not null then
            raise exception using
                errcode = 'TY002',
                message = format('There is no task %s to depend on.', v_missing),
                hint = 'Insert the dependencies first and use the ids that they got.';
        end if;
    end if;
end
$$;
comment on function _check_task(tasks) is 'Refuses a task that nobody could run, with a sentence for a phone.';

create or replace function _check_scope(p_task tasks, p_new boolean) returns void
language plpgsql volatile
as $$
declare
    v_scope effective_scopes;
    v_parent effective_scopes;
    v_depth integer;
begin
    select * into v_scope from effective_scopes where name = p_task.scope;
    if not found then
        return; -- _check_references says so
    end if;
    -- Before anything is told of that scope.
    select e.* into v_parent from tasks t join effective_scopes e on e.name = t.scope where t.id = p_task.parent_id;
    if v_parent.name <> all(v_scope.path) then
        raise exception using
            errcode = 'TY006',
            message = format('Scope %s does not lie below %s, the scope of the parent task.', v_scope.name, v_parent.name),
            hint = 'A child may do no more than its parent: give it the same scope, or one below.';
    end if;
    if p_task.agent <> all(v_scope.allowed_agents) then
        raise exception using
            errcode = 'TY006',
            message = format('Scope %s does not allow agent %s.', v_scope.name, left(p_task.agent, 100)),
            hint = case when cardinality(v_scope.allowed_agents) = 0 then 'It allows none.' else format('It allows: %s.', array_to_string(v_scope.allowed_agents, ', ')) end;
    end if;
    if p_task.provider <> all(v_scope.allowed_providers) then
        raise exception using
            errcode = 'TY006',
            message = format('Scope %s does not allow provider %s.', v_scope.name, left(p_task.provider, 100)),
            hint = case when cardinality(v_scope.allowed_providers) = 0 then 'It allows none.' else format('It allows: %s.', array_to_string(v_scope.allowed_providers, ', ')) end;
    end if;
    if coalesce(p_task.workspace, p_task.repository) is not null then
        if 'read' <> all(v_scope.permissions) then
            raise exception using
                errcode = 'TY006',
                message = format('Tasks of scope %s may not read files, so they have no workspace.', v_scope.name),
                hint = 'Leave it out: then the task gets an empty directory.';
        end if;
        if not exists (select from unnest(v_scope.allowed_paths) p where _covers_path(p, rtrim(coalesce(p_task.workspace, p_task.repository), '/')))
            and v_scope.allowed_paths is not null or coalesce(p_task.workspace, p_task.repository) ~ '(^|/)[.]{1,2}(/|$)' then
            raise exception using
                errcode = 'TY006',
                message = format('%s %s is not among the paths of scope %s.', case when p_task.workspace is null then 'The repository' else 'The workspace' end, left(coalesce(p_task.workspace, p_task.repository), 200), v_scope.name),
                hint = case
                    when v_scope.allowed_paths is null then 'Name it without . and ..'
                    when cardinality(v_scope.allowed_paths) = 0 then 'It allows none: leave the workspace out.'
                    else format('It allows: %s.', array_to_string(v_scope.allowed_paths, ', '))
                    end;
        end if;
    end if;
    if p_task.parent_id is null then
        return;
    elsif p_task.handoff_id is not null then
        -- No child, but the same work in other hands.
        if p_new and not exists (select from handoffs h where h.id = p_task.handoff_id and h.task_id = p_task.parent_id and h.to_task is null) then
            raise exception using
                errcode = 'TY004',
                message = 'Only handoff_task() makes a task that takes over.',
                hint = 'Leave handoff_id out.';
        end if;
        return;
    end if;
    if p_new and 'create_child' <> all(v_parent.permissions) then
        raise exception using
            errcode = 'TY006',
            message = format('Tasks of scope %s may not have children.', v_parent.name),
            hint = 'Leave parent_id out, or use depends_on.';
    end if;
    if not p_new then
        return;
    end if;
    if v_scope.max_depth is not null then
        with recursive up (id, depth) as (
            select p_task.parent_id, 1
            union all
            -- Who takes over stands where the one before stood.
            select t.parent_id, up.depth + (t.handoff_id is null)::integer from up join tasks t on t.id = up.id where t.parent_id is not null and up.depth <= v_scope.max_depth
        )
        select max(depth) into v_depth from up;
        if v_depth > v_scope.max_depth then
            raise exception using
                errcode = 'TY006',
                message = format('Tasks of scope %s may lie %s deep at most.', v_scope.name, v_scope.max_depth),
                hint = 'An administrator can change scopes.max_depth.';
        end if;
    end if;
end
$$;
comment on function _check_scope(tasks, boolean) is 'Refuses what the task''s scope does not allow (TY006); p_new: with the rules for children.';

create or replace function _check_reach(p_task tasks) returns void
language plpgsql stable
as $$
declare
    v_missing text;
begin
    if _in_reach('default') then
        return;
    end if;
    if p_task.scope <> all(_my_scopes()) then
        raise exception using
            errcode = 'TY006',
            message = format('%s does not work in scope %s.', _caller(), left(p_task.scope, 100)),
            hint = format('An administrator can allow it: select grant_scope(%L, %L);', _caller(), left(p_task.scope, 100));
    end if;
    -- Told as _check_task tells what does not exist.
    select string_agg(x.id::text, ', ') into v_missing
    from (
        select d as id from unnest(p_task.depends_on || p_task.parent_id) d
        where d is not null and not exists (select from tasks t where t.id = d and t.scope = any(_my_scopes())) limit 10
    ) x;
    if v_missing is not null then
        raise exception using
            errcode = 'TY002',
            message = format('There is no task %s to depend on.', v_missing),
            hint = 'Insert the dependencies first and use the ids that they got.';
    end if;
end
$$;
comment on function _check_reach(tasks) is 'Refuses what lies outside of the scopes that the caller works in.';

create or replace function _check_references(p_task tasks) returns void
language plpgsql stable
as $$
begin
    if not exists (select from agents where name = p_task.agent) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no agent "%s".', left(p_task.agent, 100)),
            hint = format('Known agents: %s.', (select string_agg(name, ', ' order by name) from (select name from agents order by name limit 20) a));
    end if;
    if not exists (select from scopes where name = p_task.scope) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no scope "%s".', left(p_task.scope, 100)),
            hint = format('Known scopes: %s.', (select string_agg(name, ', ' order by name) from (select name from scopes where _in_reach(name) order by name limit 20) s));
    end if;
    if p_task.provider is not null and not exists (select from providers where name = p_task.provider) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no provider "%s".', left(p_task.provider, 100)),
            hint = format('Known providers: %s.', (select string_agg(name, ', ' order by name) from providers));
    end if;
end
$$;
comment on function _check_references(tasks) is
'Refuses an agent, scope or provider that does not exist. Asked only where no lane has the combination: lanes have foreign keys.';

create or replace function _check_cycle(p_task tasks) returns void
language plpgsql volatile
as $$
begin
    perform pg_advisory_xact_lock(742112, 0); -- see wait_for
    if exists (
        with recursive upstream (id) as (
            select unnest(p_task.depends_on)
            union
            select x.id from upstream u
            cross join lateral (
                select unnest(t.depends_on) from tasks t where t.id = u.id
                union all
                select d.depends_on from task_dependencies d where d.task_id = u.id
            ) x (id)
        )
        select from upstream where id = p_task.id
    ) then
        raise exception using
            errcode = 'TY003',
            message = format('Task %s would wait for itself.', p_task.id),
            hint = 'One of its new dependencies depends on it already; leave that one out.';
    end if;
end
$$;
comment on function _check_cycle(tasks) is 'Raises TY003 where depends_on would close a circle. New tasks cannot: they name only older ones.';

create or replace function _may_become(p_old tasks, p_new tasks) returns boolean
language sql immutable
as $$
    select case p_old.status
        when 'queued' then p_new.status in ('blocked', 'scheduled', 'failed', 'cancelled')
        when 'scheduled' then p_new.status in ('blocked', 'queued', 'failed', 'cancelled')
        when 'blocked' then p_new.status in ('scheduled', 'queued', 'failed', 'cancelled')
        when 'waiting' then p_new.status in ('queued', 'scheduled', 'completed', 'failed', 'cancelled')
        when 'failed' then p_new.status in ('blocked', 'scheduled', 'queued')
        when 'cancelled' then p_new.status in ('blocked', 'scheduled', 'queued')
        else false
    end
$$;
comment on function _may_become(tasks, tasks) is 'The legal transitions but for those into and out of running, which only claims and endings make.';
