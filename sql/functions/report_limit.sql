create or replace function report_limit(p_attempt bigint, p_windows jsonb) returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_attempt attempts;
begin
    perform _require_runner('report limits');
    perform _require_own_attempt(p_attempt);
    select * into v_attempt from attempts where id = p_attempt and finished_at is null for key share;
    if not found then
        perform _lost(p_attempt);
    end if;
    insert into provider_limits as l (provider, account, model, window_name, used_percent, resets_at, observed_at)
    select v_attempt.provider, v_attempt.account, coalesce(w ->> 'model', ''), w ->> 'name', _percent(w),
        (w ->> 'resets_at')::timestamptz, _now()
    from jsonb_array_elements(p_windows) w
    on conflict (provider, account, model, window_name) do update
    set used_percent = excluded.used_percent, resets_at = coalesce(excluded.resets_at, l.resets_at), observed_at = excluded.observed_at
    where l.until is null;
end
$$;
comment on function report_limit(bigint, jsonb) is
'Notes how far the limit windows of the attempt''s account are used, as a running tool tells: [{name, used_percent, resets_at, model}]. Holds nothing back: a refusal comes with complete_task(). Errors: TY005, TY006.';
grant execute on function report_limit(bigint, jsonb) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
