create or replace function offer_providers(p_runner bigint, p_providers jsonb) returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('offer providers');
    if not exists (select from runners where id = p_runner and gone_at is null) then
        raise exception using
            errcode = 'TY007',
            message = format('Runner %s is not registered any more.', p_runner),
            hint = 'Call register_runner() again.';
    end if;
    perform _require_own_runner(login) from runners where id = p_runner;
    perform _note_offers(p_runner, p_providers);
    perform _wake_runners();
end
$$;
comment on function offer_providers(bigint, jsonb) is
'Changes what a runner can run: [{provider, account, state, models, loaded, version, detail}], only those that changed. A login that the provider refused stays out of use until resume_provider(). Errors: TY006, TY007.';
grant execute on function offer_providers(bigint, jsonb) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _note_offers(p_runner bigint, p_providers jsonb) returns void
language plpgsql volatile
as $$
declare
    v_unknown text;
begin
    select string_agg(x ->> 'provider', ', ') into v_unknown
    from jsonb_array_elements(p_providers) x
    where not exists (select from providers p where p.name = x ->> 'provider');
    if v_unknown is not null then
        raise exception using
            errcode = 'TY002',
            message = format('There is no provider %s.', v_unknown),
            hint = 'An administrator adds it: insert into providers (name, adapter) values (...);';
    end if;
    if exists (
        select from jsonb_array_elements(p_providers) x
        where x ->> 'provider' is null or x ->> 'state' not in ('ready', 'unauthenticated', 'missing')
    ) then
        raise exception using
            errcode = 'TY001',
            message = 'An offer has no provider, or a state that there is not.',
            hint = 'States are ready, unauthenticated and missing.';
    end if;
    insert into runner_providers as rp (runner_id, provider, account, state, models, loaded, loaded_since, version, detail)
    select distinct on (x ->> 'provider') p_runner, x ->> 'provider', coalesce(x ->> 'account', ''), coalesce(x ->> 'state', 'ready'),
        _texts(x -> 'models'), _texts(x -> 'loaded'), _now(), x ->> 'version', left(x ->> 'detail', 500)
    from jsonb_array_elements(p_providers) x
    on conflict (runner_id, provider) do update
    set account = excluded.account, models = excluded.models, loaded = excluded.loaded, version = excluded.version,
        loaded_since = case when excluded.loaded is distinct from rp.loaded then excluded.loaded_since else rp.loaded_since end,
        -- The file with the login is still there after a refusal; only another login, or a human, changes that.
        state = case when rp.refused_at is not null and excluded.account = rp.account then rp.state else excluded.state end,
        detail = case when rp.refused_at is not null and excluded.account = rp.account then rp.detail else excluded.detail end,
        refused_at = case when excluded.account = rp.account then rp.refused_at end;
end
$$;
comment on function _note_offers(bigint, jsonb) is 'Writes what a runner offers. Raises TY001 and TY002.';

create or replace function _texts(p_list jsonb) returns text[]
language sql immutable
as $$ select case when jsonb_typeof(p_list) = 'array' then array(select jsonb_array_elements_text(p_list)) end $$;
comment on function _texts(jsonb) is 'A JSON list as an array of text; null for anything else.';
