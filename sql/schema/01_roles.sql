-- Roles are cluster-wide, so another database of this server may have made them already: create what is missing.
-- Run by the installing login itself; every later file runs as taskyard_owner, which owns all objects and cannot log in.
do $$
declare
    v_role text;
begin
    foreach v_role in array array[
        'taskyard_owner', 'taskyard_viewer', 'taskyard_submitter', 'taskyard_runner', 'taskyard_admin'
    ] loop
        if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
            begin
                execute format('create role %I nologin', v_role);
            exception
                when duplicate_object or unique_violation then
                    null; -- two databases of one server were installed at the same moment
            end;
        end if;
    end loop;
    -- The installer acts as the owner; from PostgreSQL 16 on, having created a role does not include that.
    if not pg_has_role(current_user, 'taskyard_owner', 'usage') then
        grant taskyard_owner to current_user;
    end if;
    if not pg_has_role(current_user, 'taskyard_admin', 'usage') then
        begin
            grant taskyard_admin to current_user;
        exception
            when insufficient_privilege then
                null; -- the roles are somebody else's; being a member of the owner is enough
        end;
    end if;
    if not pg_has_role('taskyard_submitter', 'taskyard_viewer', 'usage') then
        grant taskyard_viewer to taskyard_submitter;
    end if;
    if not pg_has_role('taskyard_admin', 'taskyard_submitter', 'usage') then
        grant taskyard_submitter to taskyard_admin;
    end if;
    if not pg_has_role('taskyard_admin', 'taskyard_runner', 'usage') then
        grant taskyard_runner to taskyard_admin;
    end if;
end
$$;
