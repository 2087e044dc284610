-- What happens to a row of tasks when it is written by anyone: plain SQL, an ORM, or our own verbs.
-- Updates that change attempt_id are left out by the triggers' WHEN clauses: those are claims and endings, whose verbs do what
-- little is needed themselves (an empty row trigger costs a fifth of the rate). The clause is this short because PostgreSQL
-- reads its stored form anew for every statement.

create or replace function _lane_for(p_task tasks, p_returned boolean) returns integer
language plpgsql volatile
as $$
declare
    v_lane integer;
begin
    select l.id into v_lane
    from lanes l
    where l.scope = p_task.scope and l.agent = p_task.agent and l.priority = p_task.priority
        and l.returned = p_returned
        and l.provider is not distinct from p_task.provider
        and l.model is not distinct from p_task.model
        and l.requires = p_task.requires
        and l.exclusive = (p_task.workspace is not null)
    order by l.id
    limit 1;
    if v_lane is null then
        perform _check_references(p_task);
        insert into lanes (priority, returned, scope, agent, requires, provider, model, exclusive)
        values (
            p_task.priority, p_returned, p_task.scope, p_task.agent, p_task.requires, p_task.provider, p_task.model,
            p_task.workspace is not null
        )
        returning id into v_lane;
    end if;
    return v_lane;
end
$$;
comment on function _lane_for(tasks, boolean) is 'The lane that a task is filed under, made if it is new.';

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
            hint = format('Known scopes: %s.', (select string_agg(name, ', ' order by name) from (select name from scopes order by name limit 20) s));
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

create or replace function _open_lanes(p_lanes integer[]) returns void
language plpgsql volatile
as $$
begin
    insert into open_lanes (lane_id, priority, spin)
    select l.id, l.priority, l.spin
    from lanes l
    where l.id = any(p_lanes)
        and not exists (select from open_lanes o where o.lane_id = l.id);
end
$$;
comment on function _open_lanes(integer[]) is 'Makes lanes visible to claims; called after rows were put into ready_tasks.';

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
        if array_position(p_task.depends_on, null) is not null then
            raise exception using
                errcode = 'TY001',
                message = 'depends_on holds a null.',
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

create or replace function _unfinished(p_task tasks) returns bigint[]
language sql stable
as $$
    select coalesce(array_agg(d.id order by d.id), '{}')
    from tasks d
    where d.id = any(p_task.depends_on)
        and d.status <> 'completed'
        and not (p_task.on_dependency_failure = 'run' and d.status in ('failed', 'cancelled'))
$$;
comment on function _unfinished(tasks) is 'Which dependencies still hold a task back; a failed one does, until its failure has been passed on.';

create or replace function _tasks_before_write() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_edited boolean := tg_op = 'INSERT';
begin
    if tg_op = 'INSERT' then
        if new.status <> 'queued' or new.attempt_id is not null or new.finished_at is not null then
            raise exception using
                errcode = 'TY004',
                message = format('A new task cannot be %s.', new.status),
                hint = 'Leave the status out: the yard works it out from run_at and depends_on.';
        end if;
        new.created_by := _caller();
        new.created_at := _now();
        new.started_at := null;
        new.result := null;
        new.error := null;
        new.attempt_count := 0;
        new.failure_count := 0;
        new.failed_dependency := null;
        new.cancel_requested_at := null;
        new.cancel_reason := null;
        if new.depends_on is null then
            new.depends_on := '{}';
        end if;
    else
        if new.id is distinct from old.id or new.created_by is distinct from old.created_by
            or new.created_at is distinct from old.created_at then
            raise exception using
                errcode = 'TY004',
                message = 'The id and the origin of a task never change.',
                hint = 'Insert another task instead.';
        end if;
        v_edited := (new.prompt, new.agent, new.scope, new.priority, new.depends_on, new.on_dependency_failure, new.payload,
            new.run_at, new.workspace, new.verify, new.requires, new.provider, new.model, new.on_limit, new.dedupe_key, new.max_attempts, new.timeout)
            is distinct from
            (old.prompt, old.agent, old.scope, old.priority, old.depends_on, old.on_dependency_failure, old.payload,
                old.run_at, old.workspace, old.verify, old.requires, old.provider, old.model, old.on_limit, old.dedupe_key, old.max_attempts, old.timeout);
        if v_edited and old.status in ('running', 'completed') and old.status = new.status then
            raise exception using
                errcode = 'TY004',
                message = format('Task %s is %s and cannot be edited.', old.id, old.status),
                hint = case old.status when 'running' then 'cancel_task() it first, or insert another one.' else 'Insert another one.' end;
        end if;
        if new.status is distinct from old.status and not _may_become(old, new) then
            raise exception using
                errcode = 'TY004',
                message = format('Task %s is %s and cannot become %s.', old.id, old.status, new.status),
                hint = 'Use cancel_task(id) or retry_task(id); a runner''s claim does the rest.';
        end if;
    end if;

    if v_edited then
        perform _check_task(new);
        if tg_op = 'UPDATE' and new.depends_on is distinct from old.depends_on then
            perform _check_cycle(new);
        end if;
    end if;

    -- A waiting place follows from the row: blocked, else scheduled, else queued.
    if new.status in ('blocked', 'scheduled', 'queued') then
        new.finished_at := null;
        if cardinality(new.depends_on) > 0 and cardinality(_unfinished(new)) > 0 then
            new.status := 'blocked';
        elsif new.run_at > _now() then
            new.status := 'scheduled';
        else
            new.status := 'queued';
        end if;
        if v_edited or old.status is distinct from new.status then
            new.lane_id := _lane_for(new, new.attempt_count > 0);
            if new.status = 'queued' then
                new.queue_position := nextval('queue_positions');
            end if;
        end if;
    elsif new.status in ('completed', 'failed', 'cancelled') then
        new.finished_at := coalesce(new.finished_at, _now());
    end if;
    return new;
end
$$;
comment on function _tasks_before_write() is 'Checks and completes a task row; works out blocked, scheduled or queued.';

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

create or replace function _check_cycle(p_task tasks) returns void
language plpgsql stable
as $$
begin
    if exists (
        with recursive upstream (id) as (
            select unnest(p_task.depends_on)
            union
            select unnest(t.depends_on) from upstream u join tasks t on t.id = u.id
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

create or replace function _tasks_after_insert() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_lanes integer[];
    v_ids bigint[];
begin
    -- Set-based: 100,000 rows in one statement file their claim-index rows in one statement.
    with filed as (
        insert into ready_tasks (lane_id, position, task_id)
        select lane_id, queue_position, id from inserted where status = 'queued'
        returning lane_id
    )
    select array_agg(distinct lane_id) into v_lanes from filed;
    if v_lanes is not null then
        perform _open_lanes(v_lanes);
        perform _wake_runners();
    end if;
    insert into scheduled_tasks (run_at, task_id) select run_at, id from inserted where status = 'scheduled';
    insert into task_dependencies (depends_on, task_id)
    select d.id, i.id from inserted i cross join lateral unnest(_unfinished(i)) d (id) where i.status = 'blocked';
    select array_agg(id) into v_ids from (select id from inserted limit 300) i;
    if v_ids is not null then
        perform _announce('insert', v_ids, (select status::text from inserted limit 1));
    end if;
    return null;
end
$$;
comment on function _tasks_after_insert() is 'Files new tasks where they wait, once per statement.';

create or replace function _tasks_after_update() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
    -- Leave the old waiting place.
    if old.status = 'queued' and (new.status <> 'queued' or new.queue_position is distinct from old.queue_position) then
        delete from ready_tasks where lane_id = old.lane_id and position = old.queue_position;
        delete from workspace_waits where task_id = old.id;
        if old.workspace is not null and (new.status <> 'queued' or new.workspace is distinct from old.workspace) then
            perform _free_workspace(old.id, old.workspace); -- it may have stood for others of its lane
        end if;
    elsif old.status = 'scheduled' and (new.status <> 'scheduled' or new.run_at is distinct from old.run_at) then
        delete from scheduled_tasks where run_at = old.run_at and task_id = old.id;
    elsif old.status = 'blocked' and (new.status <> 'blocked' or new.depends_on is distinct from old.depends_on) then
        delete from task_dependencies where task_id = old.id;
    end if;

    -- Enter the new one.
    if new.status = 'queued' and (old.status <> 'queued' or new.queue_position is distinct from old.queue_position) then
        insert into ready_tasks (lane_id, position, task_id) values (new.lane_id, new.queue_position, new.id);
        perform _open_lanes(array[new.lane_id]);
        perform _wake_runners();
    elsif new.status = 'scheduled' and (old.status <> 'scheduled' or new.run_at is distinct from old.run_at) then
        insert into scheduled_tasks (run_at, task_id) values (new.run_at, new.id);
    elsif new.status = 'blocked' then
        -- Also where it stays blocked: a dependency that had ended may have been retried since.
        insert into task_dependencies (depends_on, task_id) select unnest(_unfinished(new)), new.id on conflict do nothing;
    end if;

    -- _settle_dependents itself marks the tasks below a failed one and goes on from them: no recursion here.
    if new.status in ('completed', 'failed', 'cancelled') and old.status <> new.status
        and new.failed_dependency is not distinct from old.failed_dependency then
        perform _settle_dependents(array[new.id]);
    end if;
    if new.status is distinct from old.status then
        perform _announce('update', array[new.id], new.status::text);
    end if;
    return null;
end
$$;
comment on function _tasks_after_update() is 'Moves a task from one waiting place to the next and passes its end on.';

create or replace function _tasks_before_delete() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
    if old.status = 'running' then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s is running and cannot be deleted.', old.id),
            hint = 'cancel_task() it first.';
    end if;
    if exists (select from task_dependencies where depends_on = old.id) then
        raise exception using
            errcode = 'TY004',
            message = format('Other tasks wait for task %s.', old.id),
            hint = 'cancel_task() it: then they are told.';
    end if;
    delete from ready_tasks where lane_id = old.lane_id and position = old.queue_position;
    delete from workspace_waits where task_id = old.id;
    delete from scheduled_tasks where run_at = old.run_at and task_id = old.id;
    delete from task_dependencies where task_id = old.id;
    delete from attempts where task_id = old.id;
    return old;
end
$$;
comment on function _tasks_before_delete() is 'Nothing that waits or runs is left pointing at a deleted task.';

create or replace trigger tasks_before_insert before insert on tasks
for each row execute function _tasks_before_write();

create or replace trigger tasks_after_insert after insert on tasks
referencing new table as inserted
for each statement execute function _tasks_after_insert();

create or replace trigger tasks_before_update before update on tasks
for each row when (old.attempt_id is not distinct from new.attempt_id) execute function _tasks_before_write();

create or replace trigger tasks_after_update after update on tasks
for each row when (old.attempt_id is not distinct from new.attempt_id) execute function _tasks_after_update();

create or replace trigger tasks_before_delete before delete on tasks
for each row execute function _tasks_before_delete();

drop trigger if exists tasks_dependencies_settle on tasks;
create constraint trigger tasks_dependencies_settle after insert or update on tasks
deferrable initially deferred
for each row when (new.status = 'blocked') execute function _tasks_dependencies_settle();
