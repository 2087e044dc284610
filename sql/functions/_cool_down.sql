-- From refusals to cooldowns, and back.

create or replace function _cool_down(
    p_attempt attempts, p_policy outcome_policies, p_window jsonb
) returns void
language plpgsql volatile
as $$
declare
    v_account text := case p_policy.cools when 'account' then p_attempt.account else '' end;
    v_model text := coalesce(p_window ->> 'model', '');
    v_name text := coalesce(p_window ->> 'name', p_policy.outcome);
    v_resets_at timestamptz := (p_window ->> 'resets_at')::timestamptz;
    v_old provider_limits;
    v_level integer;
    v_wait interval;
begin
    if p_policy.cools = 'login' then
        perform _refuse_login(p_attempt);
        return;
    elsif p_policy.cools = 'runner' then
        update runner_providers
        set strikes = case when until > _now() - interval '30 minutes' then strikes + 1 else 1 end,
            detail = left(p_attempt.evidence, 500)
        where runner_id = p_attempt.runner_id and provider = p_attempt.provider and (until is null or until <= _now());
        update runner_providers
        set until = greatest(until, _now() + p_policy.cool_steps[least(greatest(strikes, 1), cardinality(p_policy.cool_steps))])
        where runner_id = p_attempt.runner_id and provider = p_attempt.provider;
        return;
    end if;

    insert into provider_limits (provider, account, model, window_name, observed_at)
    values (p_attempt.provider, v_account, v_model, v_name, _now())
    on conflict do nothing;
    select * into strict v_old from provider_limits
    where provider = p_attempt.provider and account = v_account and model = v_model and window_name = v_name
    for no key update;
    -- Attempts that were under way when the limit struck report it too; only a new strike after the cooldown raises the level.
    v_level := case when v_resets_at > _now() then 0 when v_old.until > _now() then v_old.level else v_old.level + 1 end;
    -- Vendors' clocks run a little apart: a moment later than they said, up to a minute for long waits.
    v_wait := case
        when v_resets_at > _now()
            then v_resets_at - _now() + interval '2 seconds' + random() * least(interval '1 minute', (v_resets_at - _now()) * 0.02)
        else p_policy.cool_steps[least(greatest(v_level, 1), cardinality(p_policy.cool_steps))]
    end;
    v_wait := least(greatest(v_wait, _shortest_cooldown()), interval '8 days');
    update provider_limits
    set resets_at = case when v_resets_at > _now() then v_resets_at when v_old.until > _now() then v_old.resets_at end,
        level = v_level, state = 'hot', hot_since = coalesce(v_old.hot_since, _now()),
        used_percent = coalesce(_percent(p_window), used_percent),
        evidence = left(p_attempt.evidence, 20000), observed_at = _now(), canary_attempt = null, canary_until = null,
        until = case when v_level > 0 and v_old.until > _now() then v_old.until else greatest(v_old.until, _now() + v_wait) end
    where provider = p_attempt.provider and account = v_account and model = v_model and window_name = v_name;
end
$$;
comment on function _cool_down(attempts, outcome_policies, jsonb) is
'No host claims for the account before until: the stated reset, else the steps of the policy, one further each time in a row; at most 8 days; never earlier than it was.';

create or replace function _percent(p_window jsonb) returns numeric
language sql immutable
as $$ select case when p_window ->> 'used_percent' is not null then least(greatest((p_window ->> 'used_percent')::numeric, 0), 999) end $$;
comment on function _percent(jsonb) is 'How far a window is used, within what anybody can mean.';

create or replace function _shortest_cooldown() returns interval
language sql immutable
as $$ select interval '1 minute' $$;
comment on function _shortest_cooldown() is 'No cooldown is shorter, whatever the provider said: a reset that lies in the past by its clock would otherwise be asked for again and again.';

create or replace function _refuse_login(p_attempt attempts) returns void
language plpgsql volatile
as $$
begin
    -- The same login on other hosts is refused there as well; one without a name is known on this host only.
    update runner_providers rp
    set state = 'unauthenticated', refused_at = _now(), detail = left(coalesce(p_attempt.evidence, 'the provider refused the login'), 500)
    from runners r
    where r.id = rp.runner_id and r.gone_at is null and rp.provider = p_attempt.provider and rp.account = p_attempt.account
        and (p_attempt.account <> '' or rp.runner_id = p_attempt.runner_id);
    perform _log(
        p_attempt.task_id, p_attempt.id, 'login_refused',
        jsonb_build_object('provider', p_attempt.provider, 'account', p_attempt.account, 'why', left(p_attempt.evidence, 500))
    );
end
$$;
comment on function _refuse_login(attempts) is 'Takes a login that the provider refused out of use until a human has seen to it; the task is not to blame.';

create or replace function _reopen(p_attempt bigint) returns void
language plpgsql volatile
as $$
begin
    -- Unless another refusal came meanwhile: attempts from before the limit may report late.
    update provider_limits
    set state = 'open', until = null, hot_since = null, level = 0, canary_attempt = null, canary_until = null,
        used_percent = null, resets_at = null
    where canary_attempt = p_attempt and until <= _now();
    if found then
        perform _wake_runners();
    end if;
end
$$;
comment on function _reopen(bigint) is 'The canary got an answer: its account is open again.';

create or replace function _canary_ended(p_attempt bigint) returns void
language plpgsql volatile
as $$
begin
    update provider_limits set canary_attempt = null, canary_until = null where canary_attempt = p_attempt;
    if found then
        perform _wake_runners();
    end if;
end
$$;
comment on function _canary_ended(bigint) is 'The canary ended without an answer of its provider: the next one may try.';
