create or replace function sleep_begin() returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('wait for tasks');
    perform pg_advisory_lock_shared(742102, 0);
end
$$;
comment on function sleep_begin() is
'A runner with a direct connection is about to wait for NOTIFY task_ready: from now on new tasks notify. Claim once more after calling it.';

create or replace function sleep_end() returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('wait for tasks');
    perform pg_advisory_unlock_shared(742102, 0);
end
$$;
comment on function sleep_end() is 'The runner is awake again.';
grant execute on function sleep_begin(), sleep_end() to taskyard_runner;
