-- What happens to a row of tasks when it is written by anyone: plain SQL, an ORM, or our own verbs.
-- Updates that change attempt_id are left out by the triggers' WHEN clauses: those are claims and endings, whose verbs do what
-- little is needed themselves (an empty row trigger costs a fifth of the rate). The clause is this short because PostgreSQL
-- reads its stored form anew for every statement.

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
    v_history boolean := false;
    v_caller text := coalesce(nullif(current_setting('role'), 'none'), session_user);
    v_for text := nullif(current_setting('taskyard.on_behalf_of', true), '');
begin
    -- A verb that writes for somebody else has looked at what concerns others itself. Anybody can say whom he writes for; only a verb
    -- can also write it into the column.
    if tg_op <> 'INSERT' or new.created_by is distinct from v_for then
        v_for := null;
    end if;
    if v_for is null and not pg_has_role(v_caller, 'taskyard_admin', 'usage') and pg_has_role(v_caller, 'taskyard_submitter', 'usage') then
        if tg_op = 'INSERT' and new.scope = 'default' and not _in_reach('default') then
            new.scope := coalesce(_home_scope(), 'default');
        end if;
        if tg_op = 'INSERT' or (new.scope, new.depends_on) is distinct from (old.scope, old.depends_on) then
            perform _check_reach(new);
        end if;
    end if;
    if tg_op = 'INSERT' then
        if new.status <> 'queued' or new.attempt_id is not null or new.finished_at is not null then
            -- What ended elsewhere, before it came here; see import-sqlite.
            v_history := new.status >= 'completed' and new.attempt_id is null
                and coalesce(current_setting('taskyard.importing', true), '') = 'on' and pg_has_role(v_caller, 'taskyard_admin', 'usage');
            if not v_history then
                raise exception using
                    errcode = 'TY004',
                    message = format('A new task cannot be %s.', new.status),
                    hint = 'Leave the status out: the yard works it out from run_at and depends_on.';
            end if;
        end if;
        new.created_by := coalesce(v_for, v_caller);
        if (new.dedupe_key like 'child of %' or new.dedupe_key like 'schedule %') and v_for is null then
            raise exception using
                errcode = 'TY001',
                message = 'Keys that begin with "child of " or "schedule " are the yard''s own.',
                hint = 'Choose another dedupe_key.';
        end if;
        if not v_history then
            new.created_at := _now();
            new.started_at := null;
            new.result := null;
            new.error := null;
        end if;
        new.routed_by := null;
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
            new.run_at, new.workspace, new.repository, new.base, new.push_to, new.verify, new.requires, new.provider, new.model, new.on_limit,
            new.dedupe_key, new.max_attempts, new.timeout, new.output_schema)
            is distinct from
            (old.prompt, old.agent, old.scope, old.priority, old.depends_on, old.on_dependency_failure, old.payload,
                old.run_at, old.workspace, old.repository, old.base, old.push_to, old.verify, old.requires, old.provider, old.model, old.on_limit,
                old.dedupe_key, old.max_attempts, old.timeout, old.output_schema);
        if v_edited and old.status in ('running', 'completed') and old.status = new.status then
            raise exception using
                errcode = 'TY004',
                message = format('Task %s is %s and cannot be edited.', old.id, old.status),
                hint = case old.status when 'running' then 'cancel_task() it first, or insert another one.' else 'Insert another one.' end;
        end if;
        if old.status = 'waiting' and new.status in ('queued', 'scheduled', 'blocked') and _waits(old.id) then
            raise exception using
                errcode = 'TY004',
                message = format('Task %s waits for somebody.', old.id),
                hint = format('See: select * from inbox;  select explain_task(%s);', old.id);
        end if;
        if new.status is distinct from old.status and not _may_become(old, new) then
            raise exception using
                errcode = 'TY004',
                message = format('Task %s is %s and cannot become %s.', old.id, old.status, new.status),
                hint = 'Use cancel_task(id) or retry_task(id); a runner''s claim does the rest.';
        end if;
    end if;

    if v_edited and new.agent = 'auto' and (tg_op = 'INSERT' or old.agent <> 'auto') then
        select coalesce(r.agent, 'auto'), r.routed_by into new.agent, new.routed_by from _route_by_rules(new) r;
    end if;
    if v_edited then
        perform _check_task(new);
        -- Most tasks name nothing that a scope could object to: that is one look, and no call.
        if new.workspace is not null or new.repository is not null or new.parent_id is not null or exists (
            select from effective_scopes e
            where e.name = new.scope and (e.allowed_agents is not null or e.allowed_providers is not null)
        ) then
            perform _check_scope(new, tg_op = 'INSERT');
        end if;
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
        if v_edited or (old.status, old.lent_priority, old.stays_on) is distinct from (new.status, new.lent_priority, new.stays_on) then
            if new.status = 'queued' and new.stays_on is not null then
                new.stays_until := _now() + interval '2 minutes';
            end if;
            new.lane_id := _lane_for(new, new.attempt_count > 0 or new.handoff_id is not null);
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
    if exists (select from inserted where parent_id is not null and handoff_id is null) then
        insert into child_counts as c (task_id, children, minute, in_minute)
        select i.parent_id, count(*), '-infinity', 0 from inserted i where i.parent_id is not null and i.handoff_id is null group by i.parent_id order by i.parent_id
        on conflict (task_id) do update set children = c.children + excluded.children;
        perform _check_children(c.task_id, c.children, (select count(*)::integer from inserted i where i.parent_id = c.task_id))
        from child_counts c where c.task_id in (select i.parent_id from inserted i);
    end if;
    insert into scheduled_tasks (run_at, task_id) select run_at, id from inserted where status = 'scheduled';
    insert into task_dependencies (depends_on, task_id)
    select d.id, i.id from inserted i cross join lateral unnest(_unfinished(i)) d (id) where i.status = 'blocked';
    select array_agg(id) into v_ids from inserted;
    if v_ids is not null then
        perform _announce('insert', v_ids, (select status::text from inserted limit 1));
    end if;
    return null;
end
$$;
comment on function _tasks_after_insert() is 'Files new tasks where they wait, once per statement.';

create or replace function _check_children(p_task bigint, p_children integer, p_new integer) returns void
language plpgsql stable
as $$
declare
    v_scope effective_scopes;
begin
    select e.* into v_scope from tasks t join effective_scopes e on e.name = t.scope where t.id = p_task;
    if p_children > v_scope.max_children then
        raise exception using
            errcode = 'TY006',
            message = format('Task %s has %s children already, as many as scope %s allows.', p_task, p_children - p_new, v_scope.name),
            hint = 'An administrator can change scopes.max_children.',
            detail = format('The most is %s.', v_scope.max_children);
    end if;
end
$$;
comment on function _check_children(bigint, integer, integer) is 'Raises TY006 where a task has more children than its scope allows; p_new of them are being added.';

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
    elsif old.status = 'waiting' and new.status <> 'waiting' then
        -- Whatever it waited for: it does not any more.
        delete from task_dependencies where task_id = old.id;
        update waits set over_at = _now() where task_id = old.id and over_at is null;
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
    delete from artifacts where task_id = old.id;
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
