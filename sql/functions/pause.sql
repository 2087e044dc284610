create or replace function pause_scope(p_name text, p_why text default null) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_submitter', 'pause scopes');
    perform _require_scope(p_name);
    update scopes set paused_at = coalesce(paused_at, _now()), paused_by = _caller(), paused_reason = p_why where name = p_name;
    perform _log(null, null, 'scope_paused', jsonb_build_object('scope', p_name, 'why', p_why));
    return format('scope %s is paused; what runs goes on', p_name);
end
$$;
comment on function pause_scope(text, text) is 'Nothing of this scope and those below it is claimed until resume_scope(). Errors: TY002, TY006.';

create or replace function resume_scope(p_name text) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_submitter', 'resume scopes');
    perform _require_scope(p_name);
    update scopes set paused_at = null, paused_by = null, paused_reason = null where name = p_name;
    perform _wake_runners();
    perform _log(null, null, 'scope_resumed', jsonb_build_object('scope', p_name));
    return format('scope %s runs again', p_name);
end
$$;
comment on function resume_scope(text) is 'Ends pause_scope(). Errors: TY002, TY006.';

create or replace function pause_provider(p_name text, p_why text default null) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_submitter', 'pause providers');
    perform _require_whole_yard('pause providers');
    update providers set paused_at = coalesce(paused_at, _now()), paused_by = _caller(), paused_reason = p_why where name = p_name;
    if not found then
        raise exception using
            errcode = 'TY002',
            message = format('There is no provider "%s".', left(p_name, 100)),
            hint = 'See: select name from providers;';
    end if;
    perform _log(null, null, 'provider_paused', jsonb_build_object('provider', p_name, 'why', p_why));
    return format('provider %s is paused; what runs goes on', p_name);
end
$$;
comment on function pause_provider(text, text) is 'Nothing is claimed for this provider until resume_provider(); other entries of a route are used. Errors: TY002, TY006.';

create or replace function resume_provider(p_name text) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_submitter', 'resume providers');
    perform _require_whole_yard('resume providers');
    update providers set paused_at = null, paused_by = null, paused_reason = null where name = p_name;
    if not found then
        raise exception using
            errcode = 'TY002',
            message = format('There is no provider "%s".', left(p_name, 100)),
            hint = 'See: select name from providers;';
    end if;
    update runner_providers set state = 'ready', refused_at = null, detail = null where provider = p_name and refused_at is not null;
    perform _wake_runners();
    perform _log(null, null, 'provider_resumed', jsonb_build_object('provider', p_name));
    return format('provider %s is used again', p_name);
end
$$;
comment on function resume_provider(text) is 'Ends pause_provider(), and lets logins that were refused be tried again. Errors: TY002, TY006.';

grant execute on function pause_scope(text, text), resume_scope(text), pause_provider(text, text), resume_provider(text)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
