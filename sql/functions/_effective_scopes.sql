-- What holds in a scope: the intersection along the path to the root. A child never exceeds its parent, also when that is
-- narrowed, moved or paused later: whatever is written to scopes or budgets, the scopes concerned and all below them are worked
-- out anew, so that the order of edits means nothing.

create or replace function _covers_path(p_above text, p_below text) returns boolean
language sql immutable
as $$ select p_below = p_above or starts_with(p_below, p_above || '/') $$;
comment on function _covers_path(text, text) is 'Whether one path is the other or lies below it, component by component: /p covers /p/src and not /pq.';

create or replace function _covers_host(p_above text, p_below text) returns boolean
language sql immutable
as $$ select p_below = p_above or (p_above like '*.%' and right(p_below, length(p_above) - 1) = substr(p_above, 2)) $$;
comment on function _covers_host(text, text) is 'Whether a host pattern admits all that the other does: *.example.com covers a.example.com and *.a.example.com, but not example.com.';

create or replace function _paths_and(p_above text[], p_below text[]) returns text[]
language sql immutable
as $$
    select case when p_above is null and p_below is null then null else (
        with met as (
            select distinct case when p_above is null or taskyard._covers_path(a, b) then b else a end as path
            from unnest(coalesce(p_above, p_below)) a
            cross join unnest(coalesce(p_below, p_above)) b
            where taskyard._covers_path(a, b) or taskyard._covers_path(b, a)
        )
        select coalesce(array_agg(met.path order by met.path), '{}')
        from met
        where not exists (select from met wider where wider.path <> met.path and taskyard._covers_path(wider.path, met.path))
    ) end
$$;
comment on function _paths_and(text[], text[]) is 'Paths that lie in both lists: of two that meet, the longer; those below another left out. Null: any path.';

create or replace function _hosts_and(p_above text[], p_below text[]) returns text[]
language sql immutable
as $$
    select case when p_above is null and p_below is null then null else (
        with met as (
            select distinct case when taskyard._covers_host(a, b) then b else a end as host
            from unnest(coalesce(p_above, p_below)) a
            cross join unnest(coalesce(p_below, p_above)) b
            where taskyard._covers_host(a, b) or taskyard._covers_host(b, a)
        )
        select coalesce(array_agg(met.host order by met.host), '{}')
        from met
        where not exists (select from met wider where wider.host <> met.host and taskyard._covers_host(wider.host, met.host))
    ) end
$$;
comment on function _hosts_and(text[], text[]) is 'Host patterns that both lists admit: of two that meet, the narrower. Null: any public host.';

create or replace function _names_and(p_above text[], p_below text[]) returns text[]
language sql immutable
as $$
    select case
        when p_above is null and p_below is null then null
        else array(
            select distinct n from unnest(coalesce(p_above, p_below)) n
            where n = any(coalesce(p_below, p_above))
            order by n
        )
    end
$$;
comment on function _names_and(text[], text[]) is 'Names that are in both lists. Null: any name.';

create or replace function _narrower(p_old effective_scopes, p_new effective_scopes) returns boolean
language sql immutable
as $$
    select not p_old.permissions <@ p_new.permissions
        or (p_new.allowed_paths is not null and (p_old.allowed_paths is null or exists (
            select from unnest(p_old.allowed_paths) o
            where not exists (select from unnest(p_new.allowed_paths) n where taskyard._covers_path(n, o))
        )))
        or (p_new.network_allow is not null and (p_old.network_allow is null or exists (
            select from unnest(p_old.network_allow) o
            where not exists (select from unnest(p_new.network_allow) n where taskyard._covers_host(n, o))
        )))
$$;
comment on function _narrower(effective_scopes, effective_scopes) is 'Whether what the sandbox grants has become less.';

create or replace function _effective(p_name text) returns effective_scopes
language sql stable
as $$
    select (
        s.name,
        coalesce(up.path, '{}') || s.name,
        s.weight,
        coalesce(up.paused, case when s.paused_at is not null then s.name end),
        array(
            select f.flag
            from unnest(
                '{read,write,execute,network,create_child}'::text[],
                array[s.may_read, s.may_write, s.may_execute, s.may_network, s.may_create_child]
            ) with ordinality f (flag, own, place)
            where coalesce(f.own, true) and (up.name is null or f.flag = any(up.permissions))
            order by f.place
        ),
        taskyard._paths_and(up.allowed_paths, s.allowed_paths),
        taskyard._hosts_and(up.network_allow, s.network_allow),
        taskyard._names_and(up.allowed_agents, s.allowed_agents),
        taskyard._names_and(up.allowed_providers, s.allowed_providers),
        least(up.max_concurrency, s.max_concurrency),
        least(up.max_depth, s.max_depth),
        least(up.max_children, s.max_children),
        case when s.max_concurrency is null then up.limited else coalesce(up.limited, '{}') || s.name end,
        case when exists (select from taskyard.budgets b where b.scope = s.name) then coalesce(up.budgeted, '{}') || s.name else up.budgeted end,
        coalesce(up.confined, false) or coalesce(false in (s.may_read, s.may_write, s.may_execute, s.may_network), false)
        or s.allowed_paths is not null or s.network_allow is not null,
        0, 0,
        least(up.max_spawns_per_minute, s.max_spawns_per_minute)
    )::taskyard.effective_scopes
    from taskyard.scopes s
    left join taskyard.effective_scopes up on up.name = s.parent
    where s.name = p_name
$$;
comment on function _effective(text) is 'What holds in a scope, from its own row and what holds in its parent.';

create or replace function _renew_scopes(p_changed text[]) returns void
language plpgsql volatile
as $$
declare
    v_level text[];
    v_name text;
    v_old effective_scopes;
    v_new effective_scopes;
begin
    -- One edit at a time: else a child added here and a parent narrowed there would not see each other. It takes a snapshot after the
    -- lock to see what the last holder did, so a transaction that keeps its first one is refused.
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using
            errcode = 'TY010',
            message = 'Scopes and budgets are edited in read committed transactions only.',
            hint = 'set default_transaction_isolation = ''read committed'';';
    end if;
    perform pg_advisory_xact_lock(742111, 0);
    -- A circle hangs from no root: nothing that is narrowed above would reach it.
    if exists (
        with recursive up (name, above) as (
            select s.name, s.parent from scopes s where s.name = any(p_changed)
            union
            select up.name, s.parent from up join scopes s on s.name = up.above where s.parent is not null
        )
        select from up where up.name = up.above
    ) then
        raise exception using
            errcode = 'TY003',
            message = 'These scopes would be each other''s parents.',
            hint = 'Every scope leads up to default.';
    end if;
    -- From the uppermost changed ones down, level by level.
    with recursive up (name, above) as (
        select s.name, s.parent from scopes s where s.name = any(p_changed)
        union
        select up.name, s.parent from up join scopes s on s.name = up.above
    )
    select array_agg(c.name) into v_level
    from scopes c
    where c.name = any(p_changed) and not exists (select from up where up.name = c.name and up.above = any(p_changed));
    while v_level is not null loop
        foreach v_name in array v_level loop
            v_new := _effective(v_name);
            select * into v_old from effective_scopes where name = v_name;
            if v_old.name is null then
                v_new.version := nextval('scope_versions');
                v_new.narrowed_at := 0; -- nothing has run in it, or what did began before there was a sandbox and goes on
                insert into effective_scopes select v_new.*;
            else
                v_new.version := v_old.version;
                v_new.narrowed_at := v_old.narrowed_at;
                if v_new is distinct from v_old then
                    v_new.version := nextval('scope_versions');
                    if _narrower(v_old, v_new) then
                        v_new.narrowed_at := v_new.version;
                    end if;
                    update effective_scopes
                    set path = v_new.path, weight = v_new.weight, paused = v_new.paused, permissions = v_new.permissions,
                        allowed_paths = v_new.allowed_paths, network_allow = v_new.network_allow, allowed_agents = v_new.allowed_agents,
                        allowed_providers = v_new.allowed_providers, max_concurrency = v_new.max_concurrency,
                        max_depth = v_new.max_depth, max_children = v_new.max_children, limited = v_new.limited,
                        budgeted = v_new.budgeted, confined = v_new.confined, version = v_new.version, narrowed_at = v_new.narrowed_at,
                        max_spawns_per_minute = v_new.max_spawns_per_minute
                    where name = v_name;
                end if;
            end if;
        end loop;
        select array_agg(s.name order by s.name) into v_level from scopes s where s.parent = any(v_level);
    end loop;
end
$$;
comment on function _renew_scopes(text[]) is 'Works out what holds in these scopes and in all below them. Raises TY003 for a circle, TY010.';

create or replace function _clean_paths(p_paths text[]) returns text[]
language plpgsql immutable
as $$
declare
    v_path text;
    v_clean text[] := case when p_paths is not null then array[]::text[] end;
begin
    foreach v_path in array coalesce(p_paths, '{}') loop
        v_path := rtrim(v_path, '/');
        if v_path is null or v_path !~ '^(/[^/]+)+$' or v_path ~ '/[.]{1,2}(/|$)' or v_path ~ '[[:cntrl:]]' or octet_length(v_path) > 4000 then
            raise exception using
                errcode = 'TY001',
                message = format('"%s" is not the path of a directory.', left(v_path, 100)),
                hint = 'Name it from the root, without . and .., for example /srv/project';
        end if;
        v_clean := v_clean || v_path;
    end loop;
    return v_clean;
end
$$;
comment on function _clean_paths(text[]) is 'Paths without a slash at their end. Raises TY001 for what is none.';

create or replace function _clean_hosts(p_hosts text[]) returns text[]
language plpgsql immutable
as $$
declare
    v_host text;
    v_clean text[] := case when p_hosts is not null then array[]::text[] end;
begin
    foreach v_host in array coalesce(p_hosts, '{}') loop
        v_host := lower(rtrim(v_host, '.'));
        -- A name, and no address: what a name leads to is looked at when it is used.
        if v_host is null or v_host !~ '^([*][.])?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?[.])+[a-z][a-z0-9-]*[a-z0-9]$' or length(v_host) > 253 then
            raise exception using
                errcode = 'TY001',
                message = format('"%s" is not the name of a host.', left(v_host, 100)),
                hint = 'For example api.example.com, or *.example.com for all below it; no address, port or path.';
        end if;
        v_clean := v_clean || v_host;
    end loop;
    return v_clean;
end
$$;
comment on function _clean_hosts(text[]) is 'Host patterns in lower case. Raises TY001 for what is none.';

create or replace function _scopes_before_write() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    new.allowed_paths := _clean_paths(new.allowed_paths);
    new.network_allow := _clean_hosts(new.network_allow);
    if array_position(new.allowed_agents, null) is not null or array_position(new.allowed_providers, null) is not null then
        raise exception using
            errcode = 'TY001',
            message = format('A list of scope %s holds a null.', new.name),
            hint = 'Name agents and providers that exist; a list that is null as a whole inherits.';
    end if;
    return new;
end
$$;
comment on function _scopes_before_write() is 'Checks the lists of a scope.';

create or replace function _scopes_after_write() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _renew_scopes((select array_agg(name) from changed));
    return null;
end
$$;
comment on function _scopes_after_write() is 'Keeps effective_scopes.';

create or replace trigger scopes_before_write before insert or update on scopes
for each row execute function _scopes_before_write();

create or replace trigger scopes_after_insert after insert on scopes
referencing new table as changed
for each statement execute function _scopes_after_write();

create or replace trigger scopes_after_update after update on scopes
referencing new table as changed
for each statement execute function _scopes_after_write();

create or replace function effective_scope(p_name text) returns effective_scopes
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_scope effective_scopes;
begin
    perform _require_role('taskyard_viewer', 'look at scopes');
    select * into v_scope from effective_scopes where name = p_name;
    if v_scope.name is null or not _in_reach(p_name) then
        perform _no_scope(p_name);
    end if;
    return v_scope;
end
$$;
comment on function effective_scope(text) is 'What holds in a scope, with everything above it: select * from effective_scope(''default''); Errors: TY002, TY006.';

create or replace function _no_scope(p_name text) returns void
language plpgsql stable
as $$
begin
    raise exception using
        errcode = 'TY002',
        message = format('There is no scope "%s".', left(p_name, 100)),
        hint = 'See: select * from scope_tree;';
end
$$;
comment on function _no_scope(text) is 'Raises TY002.';

create or replace function scope_allows(p_scope text, p_what text, p_object text default null) returns boolean
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_scope effective_scopes;
begin
    perform _require_role('taskyard_viewer', 'look at scopes');
    v_scope := effective_scope(p_scope);
    if p_what in ('read', 'write') then
        return p_what = any(v_scope.permissions) and 'read' = any(v_scope.permissions) and (
            p_object is null or v_scope.allowed_paths is null
            or exists (select from unnest(v_scope.allowed_paths) p where _covers_path(p, rtrim(p_object, '/')))
        ) and coalesce(p_object !~ '(^|/)[.]{1,2}(/|$)', true);
    elsif p_what = 'network' then
        return 'network' = any(v_scope.permissions) and (
            p_object is null or v_scope.network_allow is null
            or exists (select from unnest(v_scope.network_allow) h where _covers_host(h, lower(p_object)))
        );
    elsif p_what in ('execute', 'create_child') then
        return p_what = any(v_scope.permissions);
    elsif p_what = 'agent' then
        return v_scope.allowed_agents is null or p_object = any(v_scope.allowed_agents);
    elsif p_what = 'provider' then
        return v_scope.allowed_providers is null or p_object = any(v_scope.allowed_providers);
    end if;
    raise exception using
        errcode = 'TY001',
        message = format('There is no permission "%s".', left(coalesce(p_what, 'null'), 100)),
        hint = 'Ask for read, write (of a path), network (to a host), execute, create_child, agent or provider.';
end
$$;
comment on function scope_allows(text, text, text) is 'Whether tasks of a scope may do something: scope_allows(''home'', ''write'', ''/srv/x''), (''home'', ''network'', ''example.com''), (''home'', ''execute''), (''home'', ''agent'', ''claude''). Errors: TY001, TY002, TY006.';
grant execute on function effective_scope(text), scope_allows(text, text, text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

-- After an upgrade, and whenever the rules above have changed.
do $$
begin
    perform taskyard._renew_scopes(array(select name from taskyard.scopes));
end
$$;
