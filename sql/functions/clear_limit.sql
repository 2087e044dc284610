create or replace function clear_limit(p_provider text, p_account text default null) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    perform _require_role('taskyard_submitter', 'clear limits');
    perform _require_whole_yard('clear limits');
    if not exists (select from providers where name = p_provider) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no provider "%s".', left(p_provider, 100)),
            hint = 'See: select name from providers;';
    end if;
    update provider_limits
    set state = 'open', until = null, hot_since = null, level = 0, canary_attempt = null, canary_until = null,
        used_percent = null, resets_at = null
    where provider = p_provider and (p_account is null or account in ('', p_account)) and until is not null;
    get diagnostics v_count = row_count;
    update runner_providers set until = null, strikes = 0 where provider = p_provider and until is not null;
    perform _wake_runners();
    perform _log(null, null, 'limit_cleared', jsonb_build_object('provider', p_provider, 'account', p_account));
    return format('provider %s: %s cleared', p_provider, case v_count when 1 then '1 limit' else v_count || ' limits' end);
end
$$;
comment on function clear_limit(text, text) is
'Ends the cooldown of a provider, or of one of its accounts, at once: credits were bought, say. Errors: TY002, TY006.';
grant execute on function clear_limit(text, text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
