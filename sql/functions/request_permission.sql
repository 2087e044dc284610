-- Questions to a human. Asking does not stop anything by itself: the runner is told (directive wait), ends the tool politely, and
-- reports the outcome waiting; so the session is whole when it is resumed, and no slot is held meanwhile. Should the runner die in
-- between, the task waits all the same: no task with an open question is queued.

create or replace function request_permission(
    p_attempt bigint,
    p_permissions text[] default '{}',
    p_paths text[] default '{}',
    p_hosts text[] default '{}',
    p_why text default null,
    p_within interval default interval '1 day'
) returns bigint
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_attempt attempts;
    v_paths text[];
    v_hosts text[];
begin
    perform _require_runner('ask for permissions');
    perform _require_own_attempt(p_attempt);
    v_attempt := _asking(p_attempt, p_within);
    v_paths := coalesce(_clean_paths(p_paths), '{}');
    v_hosts := coalesce(_clean_hosts(p_hosts), '{}');
    if p_permissions is null or not p_permissions <@ '{read,write,execute,network}'
        or cardinality(p_permissions) + cardinality(v_paths) + cardinality(v_hosts) = 0
        or greatest(cardinality(v_paths), cardinality(v_hosts)) > 20 then
        raise exception using
            errcode = 'TY001',
            message = 'The request does not say which permission it is for.',
            hint = 'Ask for some of read, write, execute and network, for paths or for hosts; at most 20 of each.';
    end if;
    if cardinality(v_hosts) > 0 and 'network' <> all(p_permissions) then
        p_permissions := p_permissions || 'network'::text; -- to these hosts alone, see _with_grants
    end if;
    return _ask(v_attempt, 'permission', concat_ws(
        ' ', 'May it ' || concat_ws(
            ', ', nullif(array_to_string(array_remove(p_permissions, case when cardinality(v_hosts) > 0 then 'network' end), ', '), ''), 'see ' || nullif(array_to_string(v_paths, ', '), ''),
            'reach ' || nullif(array_to_string(v_hosts, ', '), '')
        ) || '?', nullif(left(btrim(p_why), 2000), '')
    ), p_permissions, v_paths, v_hosts, p_within);
end
$$;
comment on function request_permission(bigint, text[], text[], text[], text, interval) is
'An agent asks for more than its scope allows, for its task alone; returns the id that approve() and deny() take. The task waits without a slot, and silence past the deadline means no. Errors: TY001, TY005, TY006.';

create or replace function ask_human(p_attempt bigint, p_question text, p_within interval default interval '1 day') returns bigint
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_attempt attempts;
begin
    perform _require_runner('ask questions');
    perform _require_own_attempt(p_attempt);
    v_attempt := _asking(p_attempt, p_within);
    if p_question is null or btrim(p_question) = '' or octet_length(p_question) > 20000 then
        raise exception using
            errcode = 'TY001',
            message = 'A question has 1 to 20,000 bytes.',
            hint = 'Ask in a few sentences.';
    end if;
    return _ask(v_attempt, 'question', p_question, '{}', '{}', '{}', p_within);
end
$$;
comment on function ask_human(bigint, text, interval) is
'An agent asks something; returns the id that answer() takes. The task waits without a slot; silence past the deadline means that it has to decide by itself. Errors: TY001, TY005, TY006.';
grant execute on function request_permission(bigint, text[], text[], text[], text, interval), ask_human(bigint, text, interval)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _asking(p_attempt bigint, p_within interval) returns attempts
language plpgsql volatile
as $$
declare
    v_attempt attempts;
begin
    select * into v_attempt from attempts where id = p_attempt and finished_at is null for no key update;
    if not found then
        perform _lost(p_attempt);
    end if;
    if p_within is null or p_within < interval '1 second' or p_within > interval '30 days' then
        raise exception using
            errcode = 'TY001',
            message = format('A deadline in %s is out of range.', coalesce(p_within::text, 'null')),
            hint = 'Use 1 second to 30 days.';
    end if;
    if (select count(*) from approvals a where a.task_id = v_attempt.task_id) >= 100 then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s has asked 100 times already.', v_attempt.task_id),
            hint = 'It has to go on with what it knows and may do.';
    end if;
    return v_attempt;
end
$$;
comment on function _asking(bigint, interval) is 'The attempt, locked, if it is live and may ask. Raises TY001, TY004, TY005.';

create or replace function _ask(
    p_attempt attempts, p_kind text, p_question text, p_permissions text[], p_paths text[], p_hosts text[], p_within interval
) returns bigint
language plpgsql volatile
as $$
declare
    v_id bigint;
begin
    insert into approvals (task_id, attempt_id, scope, kind, question, permissions, paths, hosts, asked_at, deadline)
    values (p_attempt.task_id, p_attempt.id, p_attempt.scope, p_kind, p_question, p_permissions, p_paths, p_hosts, _now(), _now() + p_within)
    returning id into v_id;
    perform _log(p_attempt.task_id, p_attempt.id, p_kind || '_asked', jsonb_build_object('approval', v_id, 'why', p_question));
    perform pg_notify('taskyard_runner_' || p_attempt.runner_id, 'wait');
    return v_id;
end
$$;
comment on function _ask(attempts, text, text, text[], text[], text[], interval) is 'Files a question and has the runner stop the attempt.';
