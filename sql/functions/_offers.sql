-- What of a route a runner can use now: the one place that knows what limits, caps, logins and patience mean for a claim.

create or replace function _entry_model(p_entry text) returns text
language sql immutable
as $$ select nullif(substr(p_entry, strpos(p_entry || ':', ':') + 1), '') $$;
comment on function _entry_model(text) is 'The model of a route entry "provider:model", which may hold colons itself; null where it names none.';

create or replace function _offers(p_runner bigint, p_route text[], p_pin text, p_model text, p_on_limit text, p_allowed text[])
returns table (provider text, account text, model text, canary boolean, capped boolean, preferred boolean)
language sql stable
as $$
    select rp.provider, rp.account, e.model, held.probe is true, cap.capped is true,
        coalesce(e.model = any(rp.loaded) and rp.loaded_since > taskyard._now() - interval '10 minutes', false)
    from (
        select split_part(r.entry, ':', 1) as provider, coalesce(p_model, taskyard._entry_model(r.entry)) as model, r.preference
        from unnest(case when p_pin is null then p_route else array[p_pin] end) with ordinality r (entry, preference)
    ) e
    join taskyard.runner_providers rp
        on rp.runner_id = p_runner and rp.provider = e.provider and rp.state = 'ready'
        and (rp.until is null or rp.until <= taskyard._now())
        and (rp.models is null or e.model is null or e.model = any(rp.models))
    join taskyard.providers p on p.name = rp.provider and p.paused_at is null
    left join lateral (
        -- Past its until, a limit lets one canary through and holds everybody else until that has an answer, or its lease ends.
        select bool_or(pl.until > taskyard._now() or pl.canary_until > taskyard._now()) as hot, true as probe
        from taskyard.provider_limits pl
        where pl.provider = e.provider and pl.account in ('', rp.account) and (pl.model = '' or e.model is null or pl.model = e.model)
            and pl.until is not null
        having count(*) > 0
    ) held on true
    left join lateral (
        select bool_or(taskyard._cap_used(c.id, c.period, rp.account) >= c.max_requests) as spent, true as capped
        from taskyard.provider_caps c
        where c.provider = e.provider and c.account in ('', rp.account)
        having count(*) > 0
    ) cap on true
    where (p_allowed is null or rp.provider = any(p_allowed))
        and held.hot is not true
        and cap.spent is not true
        and (
            p_on_limit = 'switch'
            or not exists (
                select from unnest(p_route) with ordinality b (entry, preference)
                where b.preference < e.preference and p_pin is null
                    and (p_allowed is null or split_part(b.entry, ':', 1) = any(p_allowed))
                    and taskyard._worth_waiting(split_part(b.entry, ':', 1), coalesce(p_model, taskyard._entry_model(b.entry)), p_on_limit)
            )
        )
    order by e.preference
$$;
comment on function _offers(bigint, text[], text, text, text, text[]) is
'What of a route this runner can use right now, best first: offered, allowed by the scope, logged in, reachable, not paused, not cooling down, within your caps, and not behind an entry that on_limit waits for. canary: it would be the first try after a limit. preferred: that local model is loaded. Inlined into its callers, so it pins no search_path.';

create or replace function _worth_waiting(p_provider text, p_model text, p_on_limit text) returns boolean
language sql stable
as $$
    select exists (
        select from taskyard.provider_limits pl
        join taskyard.providers p on p.name = pl.provider and p.paused_at is null
        where pl.provider = p_provider and (pl.model = '' or p_model is null or pl.model = p_model)
            and (pl.until > taskyard._now() or pl.canary_until > taskyard._now())
            and (p_on_limit = 'wait' or pl.until <= pl.hot_since + substr(p_on_limit, 14)::interval)
            -- Somebody could use it afterwards.
            and exists (
                select from taskyard.runner_providers rp
                join taskyard.runners r on r.id = rp.runner_id and r.gone_at is null
                where rp.provider = pl.provider and rp.state = 'ready' and pl.account in ('', rp.account)
            )
    )
$$;
comment on function _worth_waiting(text, text, text) is
'Whether a task whose on_limit is wait, or "switch after <interval>", stays with this provider through its limit. With an interval: as long as the limit as a whole, from its first refusal to its end as known now, is no longer than that.';

create or replace function _cap_used(p_cap integer, p_period interval, p_account text) returns bigint
language sql stable
as $$
    select coalesce(sum(u.requests), 0)
    from taskyard.provider_cap_usage u
    where u.cap_id = p_cap and u.account = p_account and u.bucket > taskyard._now() - p_period * 1.05
$$;
comment on function _cap_used(integer, interval, text) is 'Requests of the account within the cap''s period; whole twentieths, so rather a little too many than one too few.';

create or replace function _cap_room(p_provider text, p_account text, p_waited boolean) returns integer
language plpgsql volatile
as $$
begin
    -- As in _room: counted under a lock that is held until commit; whoever holds one already only tries.
    if not p_waited then
        perform pg_advisory_xact_lock(742109, hashtext(p_provider || ' ' || p_account));
    elsif not pg_try_advisory_xact_lock(742109, hashtext(p_provider || ' ' || p_account)) then
        return 0;
    end if;
    return coalesce((
        select min(greatest(0, c.max_requests - _cap_used(c.id, c.period, p_account)))
        from provider_caps c
        where c.provider = p_provider and c.account in ('', p_account)
    ), 2147483647);
end
$$;
comment on function _cap_room(text, text, boolean) is 'How many more requests the caps of an account admit now; holds their lock until commit.';

create or replace function _count_requests(p_provider text, p_account text, p_requests integer) returns void
language plpgsql volatile
as $$
begin
    insert into provider_cap_usage as u (cap_id, account, bucket, requests)
    select c.id, p_account, date_bin(c.period / 20, _now(), '2026-01-01'), p_requests
    from provider_caps c
    where c.provider = p_provider and c.account in ('', p_account)
    on conflict (cap_id, account, bucket) do update set requests = u.requests + excluded.requests;
    delete from provider_cap_usage u
    using provider_caps c
    where c.id = u.cap_id and c.provider = p_provider and u.bucket < _now() - c.period * 2;
end
$$;
comment on function _count_requests(text, text, integer) is 'Counts requests against the caps of an account, if it has any.';

create or replace function _may_probe(p_provider text, p_account text, p_model text, p_waited boolean) returns boolean
language plpgsql volatile
as $$
begin
    if not p_waited then
        perform pg_advisory_xact_lock(742108, hashtext(p_provider));
    elsif not pg_try_advisory_xact_lock(742108, hashtext(p_provider)) then
        return false;
    end if;
    -- A statement of its own, after the lock: it sees the canary that the lock's last holder sent.
    return not exists (
        select from provider_limits pl
        where pl.provider = p_provider and pl.account in ('', p_account) and (pl.model = '' or p_model is null or pl.model = p_model)
            and (pl.until > _now() or pl.canary_until > _now())
    );
end
$$;
comment on function _may_probe(text, text, text, boolean) is 'Whether this claim may be the canary of an account; holds the provider''s lock until commit, so that there is only one.';

create or replace function _send_canary(p_attempt bigint, p_provider text, p_account text, p_model text) returns void
language plpgsql volatile
as $$
begin
    update provider_limits pl set canary_attempt = p_attempt, canary_until = _now() + interval '5 minutes'
    where pl.provider = p_provider and pl.account in ('', p_account) and (pl.model = '' or p_model is null or pl.model = p_model)
        and pl.until <= _now();
    update attempts set canary = true where id = p_attempt;
end
$$;
comment on function _send_canary(bigint, text, text, text) is 'Makes an attempt the canary of all limits it runs into, for five minutes; a hung one blocks nobody longer.';
