create or replace function grant_scope(p_login text, p_scope text) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_admin', 'grant scopes');
    if not exists (select from pg_catalog.pg_roles where rolname = p_login) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no login "%s".', left(p_login, 100)),
            hint = format('Make it first: create role %I login password ''...''; grant taskyard_submitter to %I;', left(p_login, 63), left(p_login, 63));
    end if;
    perform _require_scope(p_scope);
    insert into scope_grants (login, scope, granted_by, granted_at) values (p_login, p_scope, _caller(), _now()) on conflict do nothing;
    perform _log(null, null, 'scope_granted', jsonb_build_object('login', p_login, 'scope', p_scope));
    return format('%s works in scope %s and all below it', p_login, p_scope);
end
$$;
comment on function grant_scope(text, text) is 'Lets a login see a scope and all below it, put tasks in and decide approvals there, as far as its role goes. Errors: TY002, TY006.';

create or replace function revoke_scope(p_login text, p_scope text) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_admin', 'revoke scopes');
    delete from scope_grants where login = p_login and scope = p_scope;
    if not found then
        raise exception using
            errcode = 'TY002',
            message = format('%s was not granted scope "%s".', left(p_login, 100), left(p_scope, 100)),
            hint = 'See: select * from scope_grants;';
    end if;
    perform _log(null, null, 'scope_revoked', jsonb_build_object('login', p_login, 'scope', p_scope));
    return format('%s does not work in scope %s any more', p_login, p_scope);
end
$$;
comment on function revoke_scope(text, text) is 'Ends grant_scope(). A submitter without any grant sees nothing. Errors: TY002, TY006.';
grant execute on function grant_scope(text, text), revoke_scope(text, text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
