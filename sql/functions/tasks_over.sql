create or replace function tasks_over(p_tasks bigint[]) returns bigint[]
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_runner', 'ask which tasks are over');
    return (
        select coalesce(array_agg(x.id), '{}')
        from unnest(p_tasks) x (id)
        where not exists (
            select from tasks t where t.id = x.id and (t.finished_at is null or t.finished_at > _now() - interval '1 day')
        )
    );
end
$$;
comment on function tasks_over(bigint[]) is 'Which of these tasks ended more than a day ago or are gone, so that a host need keep nothing for them. Errors: TY006.';
grant execute on function tasks_over(bigint[]) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
