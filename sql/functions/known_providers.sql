create or replace function known_providers() returns table (name text, adapter text, settings jsonb)
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_runner', 'ask what providers there are');
    return query select p.name, p.adapter, p.settings from providers p order by p.name;
end
$$;
comment on function known_providers() is 'The ways to run work; a runner offers those whose adapter and tool it has.';
grant execute on function known_providers() to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
