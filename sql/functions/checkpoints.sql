-- State that an agent saves for itself or its successor, by attempt and version.

create or replace function save_checkpoint(p_attempt bigint, p_state jsonb) returns integer
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_attempt attempts;
    v_version integer;
begin
    perform _require_runner('save checkpoints');
    perform _require_own_attempt(p_attempt);
    select * into v_attempt from attempts where id = p_attempt and finished_at is null for no key update;
    if not found then
        perform _lost(p_attempt);
    end if;
    v_version := _keep_checkpoint(v_attempt.task_id, p_attempt, p_state);
    update attempts set progress = round((p_state ->> 'progress')::numeric, 6)::real, doing = left(p_state ->> 'status', 500), progress_at = _now() where id = p_attempt;
    return v_version;
end
$$;
comment on function save_checkpoint(bigint, jsonb) is
'An agent saves {status, progress 0..1, data, conversation} of at most 4 MB; returns the version, counted from 1 in each attempt. The last 20 of a task are kept. Errors: TY001, TY005, TY006.';

create or replace function load_checkpoint(p_attempt bigint) returns jsonb
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
    perform _require_runner('load checkpoints');
    perform _require_own_attempt(p_attempt);
    return _last_checkpoint((_live_attempt(p_attempt)).task_id);
end
$$;
comment on function load_checkpoint(bigint) is
'The last checkpoint of the attempt''s task, whoever saved it: {status, progress, data, conversation, attempt, version, created_at}; of the task that handed over to it where it has none; null: there is none. Errors: TY005, TY006.';

create or replace function export_checkpoint(p_task bigint) returns jsonb
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_task tasks;
    v_state jsonb;
begin
    perform _require_role('taskyard_viewer', 'read checkpoints');
    select * into v_task from tasks where id = p_task;
    perform _require_task(v_task, p_task);
    v_state := _last_checkpoint(p_task);
    if v_state is null then
        raise exception using
            errcode = 'TY002',
            message = format('Task %s has no checkpoint.', p_task),
            hint = 'Its agent saves one with save_checkpoint.';
    end if;
    return jsonb_build_object(
        'kind', 'taskyard.checkpoint', 'task', p_task, 'attempt', v_state -> 'attempt', 'version', v_state -> 'version', 'created_at', v_state -> 'created_at',
        'state', v_state - '{attempt,version,created_at,task}'::text[]
    );
end
$$;
comment on function export_checkpoint(bigint) is
'A task''s last checkpoint as a document that import_checkpoint() takes: {kind, task, attempt, version, created_at, state}. Errors: TY002, TY006.';

create or replace function import_checkpoint(p_task bigint, p_document jsonb) returns integer
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_task tasks;
    v_version integer;
begin
    perform _require_role('taskyard_submitter', 'import checkpoints');
    select * into v_task from tasks where id = p_task for no key update;
    perform _require_task(v_task, p_task);
    if v_task.status in ('running', 'completed') then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s is %s.', p_task, v_task.status),
            hint = 'Import into a task that has yet to start, or that failed.';
    elsif p_document ->> 'kind' is distinct from 'taskyard.checkpoint' then
        raise exception using
            errcode = 'TY001',
            message = 'This document is no checkpoint.',
            hint = 'Its kind is taskyard.checkpoint; export_checkpoint(task) makes one.';
    end if;
    v_version := _keep_checkpoint(p_task, 0, p_document -> 'state');
    if v_task.status not in ('failed', 'cancelled') then
        perform _deliver(v_task, _caller(), 'A checkpoint was imported for this task: load_checkpoint tells it.');
    end if;
    perform _log(p_task, null, 'checkpoint_imported', jsonb_build_object('from', p_document -> 'task', 'version', v_version));
    return v_version;
end
$$;
comment on function import_checkpoint(bigint, jsonb) is
'Gives a task that does not run the state of an exported checkpoint to go on from; returns its version. Errors: TY001, TY002, TY004, TY006.';
grant execute on function save_checkpoint(bigint, jsonb), load_checkpoint(bigint), export_checkpoint(bigint), import_checkpoint(bigint, jsonb)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _keep_checkpoint(p_task bigint, p_attempt bigint, p_state jsonb) returns integer
language plpgsql volatile
as $$
declare
    v_wrong text := _wrong_state(p_state);
    v_version integer;
begin
    if v_wrong is not null then
        raise exception using
            errcode = 'TY001',
            message = format('The checkpoint is not usable: %s.', v_wrong),
            hint = 'For example: {"status": "tests pass, docs missing", "progress": 0.7, "data": {}, "conversation": []}';
    end if;
    insert into checkpoints (task_id, attempt_id, version, status, progress, data, conversation, created_at)
    select p_task, p_attempt, coalesce(max(c.version), 0) + 1, btrim(p_state ->> 'status'), round((p_state ->> 'progress')::numeric, 6)::real,
        coalesce(p_state -> 'data', '{}'), coalesce(p_state -> 'conversation', '[]'), clock_timestamp()
    from checkpoints c where c.task_id = p_task and c.attempt_id = p_attempt
    returning version into v_version;
    delete from checkpoints c
    where c.task_id = p_task and (c.attempt_id, c.version) not in (
        select x.attempt_id, x.version from checkpoints x where x.task_id = p_task order by x.created_at desc, x.version desc limit 20
    );
    return v_version;
end
$$;
comment on function _keep_checkpoint(bigint, bigint, jsonb) is 'Checks and stores a checkpoint; returns its version.';

create or replace function _wrong_state(p_state jsonb) returns text
language sql stable
as $$
    select case
        when jsonb_typeof(p_state) is distinct from 'object' then 'it is no JSON object'
        when exists (select from jsonb_object_keys(p_state) k where k not in ('status', 'progress', 'data', 'conversation'))
            then 'it has more than status, progress, data and conversation'
        when jsonb_typeof(p_state -> 'status') is distinct from 'string' or length(btrim(p_state ->> 'status')) not between 1 and 1000
            then 'status is a text of 1 to 1,000 characters'
        when jsonb_typeof(p_state -> 'progress') is distinct from 'number' then 'progress is a number from 0 to 1'
        when (p_state ->> 'progress')::numeric not between 0 and 1 then 'progress is a number from 0 to 1'
        when coalesce(jsonb_typeof(p_state -> 'data'), 'object') <> 'object' then 'data is an object'
        when coalesce(jsonb_typeof(p_state -> 'conversation'), 'array') <> 'array' then 'conversation is a list'
        when pg_column_size(p_state) > 4194304 then 'it is larger than 4 MB'
    end
$$;
comment on function _wrong_state(jsonb) is 'What is wrong with an agent''s state; null: nothing.';

create or replace function _last_checkpoint(p_task bigint) returns jsonb
language plpgsql stable
as $$
declare
    v_task bigint := p_task;
    v_found jsonb;
begin
    while v_found is null and v_task is not null loop
        select jsonb_build_object(
            'status', c.status, 'progress', c.progress, 'data', c.data, 'conversation', c.conversation, 'task', c.task_id,
            'attempt', c.attempt_id, 'version', c.version, 'created_at', c.created_at
        )
        into v_found
        from checkpoints c where c.task_id = v_task
        order by c.created_at desc, c.version desc limit 1;
        select h.task_id into v_task from handoffs h where h.to_task = v_task;
    end loop;
    return v_found;
end
$$;
comment on function _last_checkpoint(bigint) is 'The last checkpoint of a task, or of those that handed over to it.';
