create or replace function report_session(p_attempt bigint, p_session_id text, p_usage jsonb default null) returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_attempt attempts;
begin
    perform _require_runner('report sessions');
    perform _require_own_attempt(p_attempt);
    select * into v_attempt from attempts where id = p_attempt and finished_at is null for no key update;
    if not found then
        perform _lost(p_attempt);
    end if;
    perform _note_usage(v_attempt, p_session_id, p_usage);
end
$$;
comment on function report_session(bigint, text, jsonb) is
'Notes the session of a running attempt, so that a later one can resume it, and what it has used so far: {input_tokens, cached_tokens, output_tokens, turns, cost_usd, model}. Errors: TY005, TY006.';
grant execute on function report_session(bigint, text, jsonb) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _note_usage(p_attempt attempts, p_session_id text, p_usage jsonb) returns void
language plpgsql volatile
as $$
declare
    v_turns integer := (p_usage ->> 'turns')::integer;
    v_model text := coalesce(p_usage ->> 'model', p_attempt.model);
    v_cost numeric := (p_usage ->> 'cost_usd')::numeric;
    v_estimate numeric;
    v_budgeted text[] := (select e.budgeted from effective_scopes e where e.name = p_attempt.scope);
begin
    if v_budgeted is not null then
        perform _spending(v_budgeted);
    end if;
    -- The first request was counted when it was claimed.
    if v_turns > greatest(coalesce(p_attempt.turns, 1), 1) then
        perform _count_requests(p_attempt.provider, p_attempt.account, v_turns - greatest(coalesce(p_attempt.turns, 1), 1));
    end if;
    if v_cost is null and (p_attempt.cost_usd is null or p_attempt.cost_estimated) then
        select (
            ((p_usage ->> 'input_tokens')::numeric - coalesce((p_usage ->> 'cached_tokens')::numeric, 0)) * p.input_usd
            + coalesce((p_usage ->> 'cached_tokens')::numeric, 0) * coalesce(p.cached_usd, p.input_usd)
            + (p_usage ->> 'output_tokens')::numeric * p.output_usd
        ) / 1000000
        into v_estimate
        from prices p where p.provider = p_attempt.provider and p.model = v_model;
    end if;
    update attempts
    set session_id = coalesce(p_session_id, session_id),
        input_tokens = coalesce((p_usage ->> 'input_tokens')::bigint, input_tokens),
        cached_tokens = coalesce((p_usage ->> 'cached_tokens')::bigint, cached_tokens),
        output_tokens = coalesce((p_usage ->> 'output_tokens')::bigint, output_tokens),
        turns = coalesce(v_turns, turns),
        cost_usd = coalesce(v_cost, v_estimate, cost_usd),
        cost_estimated = case when v_cost is not null then false when v_estimate is not null then true else cost_estimated end,
        model = v_model
    where id = p_attempt.id;
end
$$;
comment on function _note_usage(attempts, text, jsonb) is 'Writes the session and the usage so far into an attempt; what is not told stays as it was.';
