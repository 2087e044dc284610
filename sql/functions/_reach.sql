-- Who sees what. A login of taskyard_submitter is bound to the scopes granted to it and all below them; so is a viewer who was
-- granted any. Administrators, and viewers without a grant, see all. Runners read no tables at all.

create or replace function _caller() returns text
language sql stable
as $$ select coalesce(nullif(current_setting('role'), 'none'), session_user) $$;
comment on function _caller() is 'Who is asking: the login, or the role it has set. Inside a SECURITY DEFINER function current_user is the owner.';

create or replace function _bound(p_role text) returns boolean
language sql stable
as $$
    -- Member, not usage: a login that does not inherit takes its group on with SET ROLE.
    select not pg_has_role(p_role, 'taskyard_admin', 'member') and (
        pg_has_role(p_role, 'taskyard_submitter', 'member')
        or exists (
            select from taskyard.scope_grants g
            join pg_catalog.pg_roles r on r.rolname = g.login
            where pg_has_role(p_role, r.oid, 'member')
        )
    )
$$;
comment on function _bound(text) is 'Whether a role sees only what it was granted.';

create or replace function _sees_all() returns boolean
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_caller text := _caller();
begin
    if pg_has_role(v_caller, 'taskyard_admin', 'usage') then
        return true;
    end if;
    -- Also the login itself: set role leads from a bound login to a group that is none.
    return pg_has_role(v_caller, 'taskyard_viewer', 'usage') and not _bound(v_caller) and not _bound(session_user::text);
end
$$;
comment on function _sees_all() is 'Whether the caller sees the tasks of all scopes.';

create or replace function _my_scopes() returns text[]
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_caller text := _caller();
begin
    return array(
        select e.name from effective_scopes e
        where e.path && array(
            select g.scope from scope_grants g join pg_catalog.pg_roles r on r.rolname = g.login
            where pg_has_role(v_caller, r.oid, 'usage')
        )
    );
end
$$;
comment on function _my_scopes() is 'The scopes granted to the caller, and all below them.';

create or replace function _in_reach(p_scope text) returns boolean
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    return _sees_all() or p_scope = any(_my_scopes());
end
$$;
comment on function _in_reach(text) is 'Whether the caller works in this scope.';

create or replace function _home_scope() returns text
language plpgsql stable
as $$
begin
    return (
        select g.scope from scope_grants g join pg_catalog.pg_roles r on r.rolname = g.login
        where pg_has_role(_caller(), r.oid, 'usage')
        order by g.login <> _caller(), g.granted_at, g.scope
        limit 1
    );
end
$$;
comment on function _home_scope() is 'The scope that was granted to the caller first; null: none.';

create or replace function _require_task(p_task tasks, p_id bigint) returns void
language plpgsql stable
as $$
begin
    -- Not there and not yours are told alike.
    if p_task.id is null or not _in_reach(p_task.scope) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no task %s.', p_id),
            hint = 'See: select * from queue;  select * from recently_done;';
    end if;
end
$$;
comment on function _require_task(tasks, bigint) is 'Raises TY002 unless there is such a task in a scope of the caller.';

create or replace function _require_scope(p_name text) returns void
language plpgsql stable
as $$
begin
    if not exists (select from scopes where name = p_name) or not _in_reach(p_name) then
        perform _no_scope(p_name);
    end if;
end
$$;
comment on function _require_scope(text) is 'Raises TY002 unless there is such a scope and the caller works in it.';

create or replace function _require_whole_yard(p_doing text) returns void
language plpgsql stable
as $$
begin
    if not _in_reach('default') then
        raise exception using
            errcode = 'TY006',
            message = format('%s may not %s.', _caller(), p_doing),
            hint = format('That concerns all scopes. An administrator can allow it: select grant_scope(%L, ''default'');', _caller());
    end if;
end
$$;
comment on function _require_whole_yard(text) is 'Raises TY006 for a caller who is bound to some scopes: what it is about to do would concern the others too.';

create or replace function _require_own_runner(p_login text) returns void
language plpgsql stable
as $$
begin
    if p_login <> _caller() and not pg_has_role(_caller(), 'taskyard_admin', 'usage') then
        raise exception using
            errcode = 'TY006',
            message = format('This runner is not one of %s.', _caller()),
            hint = 'A login speaks for the runners that it registered, and for their attempts.';
    end if;
end
$$;
comment on function _require_own_runner(text) is 'Raises TY006 where the caller is not the login that registered the runner.';

create or replace function _own_attempt(p_attempt bigint) returns boolean
language sql stable
as $$
    select pg_has_role(taskyard._caller(), 'taskyard_admin', 'usage') or exists (
        select from taskyard.attempts a join taskyard.runners r on r.id = a.runner_id
        where a.id = p_attempt and r.login = taskyard._caller()
    )
$$;
comment on function _own_attempt(bigint) is 'Whether the attempt is of a runner that the caller registered.';

create or replace function _require_own_attempt(p_attempt bigint) returns void
language plpgsql stable
as $$
begin
    perform _require_own_runner(r.login) from attempts a join runners r on r.id = a.runner_id where a.id = p_attempt;
end
$$;
comment on function _require_own_attempt(bigint) is 'Raises TY006 where the attempt is not of a runner that the caller registered.';
grant execute on function _sees_all(), _my_scopes(), _in_reach(text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
