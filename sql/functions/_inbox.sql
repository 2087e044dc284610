-- The pgmq queue inbox: whatever client, in whatever language, sends {"prompt": ...} to it has a task by the next tick. A trigger notes
-- who sent it, and the task is made as if that login had inserted it.
-- What cannot become a task goes to rejected_submissions with the reason; nothing in the queue can keep what is behind it waiting.

create or replace function _sign_submission() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    if octet_length(new.message::text) > 10485760 then
        raise exception using
            errcode = 'TY001',
            message = 'This submission is larger than 10 MB.',
            hint = 'Put large material into files of the workspace and name them in the prompt.';
    end if;
    new.headers := coalesce(case when jsonb_typeof(new.headers) = 'object' then new.headers end, '{}') || jsonb_build_object('taskyard_login', _caller());
    return new;
end
$$;
comment on function _sign_submission() is 'Notes in the headers of a message of the queue inbox who sent it.';

do $$
begin
    if not _pgmq_has('q_inbox') then
        perform pgmq.create('inbox');
    end if;
    -- A queue of that name that somebody else made stays theirs.
    if _own_queue('inbox') then
        create or replace trigger taskyard_signs before insert on pgmq.q_inbox for each row execute function _sign_submission();
        -- All that pgmq.send() needs: it returns the new id, and nobody reads more than ids.
        grant insert (vt, message, headers), select (msg_id) on pgmq.q_inbox to taskyard_submitter, taskyard_admin;
    end if;
exception when insufficient_privilege or undefined_column then
    raise notice 'No tasks from the pgmq queue inbox: %', sqlerrm; -- pgmq before 1.6
end
$$;

create or replace function _take_submissions() returns integer
language plpgsql volatile
set lock_timeout = '200ms' -- somebody may be about to insert the same dedupe_key, and take his time
as $$
declare
    c_most constant integer := 100;
    c_tries constant integer := 5;
    c_again constant integer := 30; -- seconds
    v_until timestamptz := clock_timestamp() + interval '2 seconds';
    v_count integer := 0;
    v_hint text;
    r record;
begin
    if not _own_queue('inbox') then
        return 0;
    end if;
    for r in select * from pgmq.read('inbox', c_again, c_most) order by msg_id loop
        exit when clock_timestamp() > v_until;
        begin
            perform _submit_for(r.headers ->> 'taskyard_login', r.message);
            perform pgmq.delete('inbox', r.msg_id);
        exception when others then
            -- Classes 40, 53 and 55: somebody was in the way.
            continue when sqlstate ~ '^(40|53|55)' and r.read_ct < c_tries;
            get stacked diagnostics v_hint = pg_exception_hint;
            perform _reject(r.msg_id, r.headers ->> 'taskyard_login', r.message, concat_ws(' ', sqlerrm, nullif(v_hint, '')));
        end;
        v_count := v_count + 1;
    end loop;
    return v_count;
end
$$;
comment on function _take_submissions() is 'Makes tasks of what was sent to the queue inbox; returns how many messages it has seen to.';

create or replace function _submit_for(p_login text, p_task jsonb) returns bigint
language plpgsql volatile
as $$
declare
    v_told tasks := _told_task(p_task);
    v_scope text := coalesce(v_told.scope, 'default');
    v_scopes text[];
    v_hidden text;
begin
    if not exists (select from pg_catalog.pg_roles where rolname = p_login) then
        raise exception using
            errcode = 'TY006',
            message = format('There is no login %s.', coalesce(p_login, 'that sent this')),
            hint = 'Send it again as one that there is.';
    elsif not pg_has_role(p_login::name, 'taskyard_submitter', 'usage') then
        raise exception using
            errcode = 'TY006',
            message = format('%s may not submit tasks.', p_login),
            hint = format('An administrator can allow it: grant taskyard_submitter to %I;', p_login);
    elsif v_told.dedupe_key like 'child of %' or v_told.dedupe_key like 'schedule %' then
        raise exception using
            errcode = 'TY001',
            message = 'Keys that begin with "child of " or "schedule " are the yard''s own.',
            hint = 'Choose another dedupe_key.';
    end if;
    v_scopes := _scopes_of(p_login);
    if v_scopes is null then
        return _task_from_json(p_task, null, p_login);
    end if;
    if v_scope = 'default' and v_scope <> all(v_scopes) then
        v_scope := coalesce((
            select g.scope from scope_grants g join pg_catalog.pg_roles r on r.rolname = g.login
            where pg_has_role(p_login::name, r.oid, 'usage')
            order by g.login <> p_login, g.granted_at, g.scope
            limit 1
        ), v_scope);
    end if;
    if v_scope <> all(v_scopes) then
        raise exception using
            errcode = 'TY006',
            message = format('%s does not work in scope %s.', p_login, left(v_scope, 100)),
            hint = format('An administrator can allow it: select grant_scope(%L, %L);', p_login, left(v_scope, 100));
    end if;
    -- Told as _check_task tells what does not exist.
    select string_agg(t.id::text, ', ') into v_hidden from tasks t where t.id = any(v_told.depends_on) and t.scope <> all(v_scopes);
    if v_hidden is not null then
        raise exception using
            errcode = 'TY002',
            message = format('There is no task %s to depend on.', v_hidden),
            hint = 'Insert the dependencies first and use the ids that they got.';
    end if;
    return _task_from_json(p_task || jsonb_build_object('scope', v_scope), null, p_login);
end
$$;
comment on function _submit_for(text, jsonb) is 'Inserts a task in the name of a login, as far as that one reaches. Raises TY001, TY002, TY004, TY006.';

create or replace function _scopes_of(p_login text) returns text[]
language sql stable
as $$
    select case
        when pg_has_role(p_login::name, 'taskyard_admin', 'usage') or not taskyard._bound(p_login) then null
        else array(
            select e.name from taskyard.effective_scopes e
            where e.path && array(
                select g.scope from taskyard.scope_grants g join pg_catalog.pg_roles r on r.rolname = g.login
                where pg_has_role(p_login::name, r.oid, 'usage')
            )
        )
    end
$$;
comment on function _scopes_of(text) is 'The scopes granted to a login, and all below them; null: it is bound to none.';

create or replace function _reject(p_id bigint, p_login text, p_message jsonb, p_why text) returns void
language plpgsql volatile
as $$
begin
    -- Ids begin again where the queue was dropped and made anew.
    insert into rejected_submissions as s (msg_id, rejected_at, login, message, error)
    values (p_id, _now(), p_login, case when octet_length(p_message::text) <= 100000 then p_message end, left(p_why, 2000))
    on conflict (msg_id) do update
    set rejected_at = excluded.rejected_at, login = excluded.login, message = excluded.message, error = excluded.error;
    perform pgmq.archive('inbox', p_id);
    delete from rejected_submissions where rejected_at < _now() - interval '30 days';
    delete from pgmq.a_inbox where archived_at < now() - interval '30 days';
end
$$;
comment on function _reject(bigint, text, jsonb, text) is 'Puts a message of the queue inbox aside, with the reason, for 30 days.';
