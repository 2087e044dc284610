create or replace function _scopes_after_write() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    if pg_trigger_depth() > 1 then
        return null; -- our own update below
    end if;
    -- A circle hangs from no root: nothing that is narrowed above would reach it.
    if exists (
        with recursive tree (name) as (
            select s.name from scopes s where s.parent is null
            union all
            select s.name from tree join scopes s on s.parent = tree.name
        )
        select from scopes s where not exists (select from tree where tree.name = s.name)
    ) then
        raise exception using
            errcode = 'TY003',
            message = 'These scopes would be each other''s parents.',
            hint = 'Every scope leads up to default.';
    end if;
    with recursive tree (name, permissions) as (
        select s.name, array_remove(array[
            case when coalesce(s.may_read, true) then 'read' end, case when coalesce(s.may_write, true) then 'write' end,
            case when coalesce(s.may_execute, true) then 'execute' end, case when coalesce(s.may_network, true) then 'network' end,
            case when coalesce(s.may_create_child, true) then 'create_child' end
        ], null)
        from scopes s where s.parent is null
        union all
        select s.name, array(
            select p.flag from unnest(tree.permissions) with ordinality p (flag, place)
            where case p.flag
                when 'read' then coalesce(s.may_read, true) when 'write' then coalesce(s.may_write, true)
                when 'execute' then coalesce(s.may_execute, true) when 'network' then coalesce(s.may_network, true)
                else coalesce(s.may_create_child, true) end
            order by p.place
        )
        from tree join scopes s on s.parent = tree.name
    )
    update scopes s set permissions = tree.permissions
    from tree
    where s.name = tree.name and s.permissions <> tree.permissions;
    return null;
end
$$;
comment on function _scopes_after_write() is 'Keeps scopes.permissions: the flags of a scope and of all above it, so that a claim need not walk the tree.';

create or replace trigger scopes_after_write after insert or update on scopes
for each statement execute function _scopes_after_write();
