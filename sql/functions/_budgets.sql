-- Budgets: what ended attempts of a subtree have used (usage_daily, usage_charges), and what running ones have so far (attempts).
--
-- A claim under a budget counts while it holds the budget's lock alone; whoever adds to the spending holds it shared until commit. So a
-- claim sees all that was spent before it, and nothing is claimed once that is too much. Endings do not wait for each other.

create or replace function _period_start(p_period text) returns date
language sql stable
as $$
    select case p_period
        when 'day' then (taskyard._now() at time zone 'UTC')::date
        when 'month' then date_trunc('month', taskyard._now() at time zone 'UTC')::date
        else '-infinity'::date
    end
$$;
comment on function _period_start(text) is 'The first UTC day of the current period of a budget.';

create or replace function _period_end(p_period text) returns timestamptz
language sql stable
as $$
    select case p_period
        when 'day' then (taskyard._period_start('day') + 1)::timestamp at time zone 'UTC'
        when 'month' then (taskyard._period_start('month')::timestamp + interval '1 month') at time zone 'UTC'
        else 'infinity'::timestamptz
    end
$$;
comment on function _period_end(text) is 'When the current period of a budget ends.';

create or replace function _budgets_spent(p_scopes text[])
returns table (scope text, measure text, period text, amount numeric, used numeric)
language sql stable
as $$
    with live as (
        select s.scope, sum(coalesce(a.input_tokens, 0) + coalesce(a.output_tokens, 0)) as tokens,
            sum(coalesce(a.cost_usd, 0)) as usd, sum(extract(epoch from taskyard._now() - a.started_at)) as seconds
        from taskyard.attempts a
        join taskyard.effective_scopes e on e.name = a.scope
        cross join lateral unnest(e.budgeted) s (scope)
        where a.outcome is null and (p_scopes is null or e.budgeted && p_scopes)
        group by s.scope
    )
    select b.scope, b.measure, b.period, b.amount + case when b.extra_until > taskyard._now() then b.extra else 0 end,
        coalesce((
            select sum(case b.measure when 'tokens' then u.tokens when 'usd' then u.cost_usd else u.seconds end)
            from (
                select d.day, d.tokens, d.cost_usd, d.seconds from taskyard.usage_daily d where d.scope = b.scope
                union all
                select c.day, c.tokens, c.cost_usd, c.seconds from taskyard.usage_charges c where c.scope = b.scope
            ) u
            where u.day >= taskyard._period_start(b.period)
        ), 0) + coalesce(case b.measure when 'tokens' then live.tokens when 'usd' then live.usd else live.seconds end, 0)
    from taskyard.budgets b
    left join live on live.scope = b.scope
    where p_scopes is null or b.scope = any(p_scopes)
$$;
comment on function _budgets_spent(text[]) is 'The budgets of these scopes (null: all): what they allow in the current period, and what was used of it, running attempts included.';

create or replace function _over_budget(p_scopes text[]) returns boolean
language sql stable
as $$ select exists (select from taskyard._budgets_spent(p_scopes) u where u.used >= u.amount) $$;
comment on function _over_budget(text[]) is 'Whether some budget of these scopes is used up.';

create or replace function _spending(p_scopes text[]) returns void
language plpgsql volatile
as $$
declare
    v_scope text;
begin
    foreach v_scope in array p_scopes loop
        perform pg_advisory_xact_lock_shared(742110, hashtext(v_scope));
    end loop;
end
$$;
comment on function _spending(text[]) is 'Orders spending against claims: what is written after this is seen by every later claim in these scopes.';

create or replace function _charge(p_attempts bigint[]) returns void
language plpgsql volatile
as $$
declare
    v_scopes text[];
begin
    select array_agg(distinct s.scope order by s.scope) into v_scopes
    from attempts a
    join effective_scopes e on e.name = a.scope
    cross join lateral unnest(e.budgeted) s (scope)
    where a.id = any(p_attempts);
    if v_scopes is null then
        return;
    end if;
    perform _spending(v_scopes);
    insert into usage_charges (scope, day, tokens, cost_usd, seconds)
    select s.scope, (a.finished_at at time zone 'UTC')::date, coalesce(a.input_tokens, 0) + coalesce(a.output_tokens, 0),
        coalesce(a.cost_usd, 0), extract(epoch from a.finished_at - a.started_at)
    from attempts a
    join effective_scopes e on e.name = a.scope
    cross join lateral unnest(e.budgeted) s (scope)
    where a.id = any(p_attempts);
end
$$;
comment on function _charge(bigint[]) is 'Charges ended attempts to every budget above them.';

create or replace function _fold_charges() returns void
language plpgsql volatile
as $$
begin
    with gone as (
        delete from usage_charges returning scope, day, tokens, cost_usd, seconds
    )
    insert into usage_daily as u (scope, day, tokens, cost_usd, seconds, attempts)
    select scope, day, sum(tokens), sum(cost_usd), sum(seconds), count(*) from gone group by scope, day
    on conflict (scope, day) do update
    set tokens = u.tokens + excluded.tokens, cost_usd = u.cost_usd + excluded.cost_usd, seconds = u.seconds + excluded.seconds,
        attempts = u.attempts + excluded.attempts;
end
$$;
comment on function _fold_charges() is 'Adds charges up. Only tick() does, one at a time.';

create or replace function _watch_budgets() returns integer
language plpgsql volatile
as $$
declare
    b record; -- one of the query below
    v_what text;
    v_done integer := 0;
begin
    perform _fold_charges();
    for b in
        select u.*, g.warned_at, g.exceeded_at, g.stops_running, _period_start(u.period)::timestamp at time zone 'UTC' as since
        from _budgets_spent(null) u
        join budgets g on g.scope = u.scope and g.measure = u.measure and g.period = u.period
        where u.used >= u.amount * 0.8
    loop
        v_what := _budget_text(b.measure, b.period, b.amount);
        if b.warned_at is null or b.warned_at < b.since then
            update budgets set warned_at = _now() where scope = b.scope and measure = b.measure and period = b.period;
            perform _log(null, null, 'budget_warning', jsonb_build_object(
                'scope', b.scope, 'budget', v_what, 'used', round(b.used, 4), 'why', format('%s%% of %s are used', _percent_used(b.used, b.amount), v_what)
            ));
        end if;
        if b.used >= b.amount and not exists (
            select from approvals a
            where a.kind = 'budget' and a.scope = b.scope and a.measure = b.measure and a.period = b.period
                and (a.decision is null or (a.decision in ('denied', 'expired') and a.asked_at >= b.since))
        ) then
            update budgets set exceeded_at = _now() where scope = b.scope and measure = b.measure and period = b.period;
            insert into approvals (scope, kind, question, measure, period, asked_at, deadline)
            values (
                b.scope, 'budget', format('Scope %s has used %s of %s. As much again?', b.scope, _amount(b.measure, b.used), v_what),
                b.measure, b.period, _now(), nullif(_period_end(b.period), 'infinity')
            );
            perform _log(null, null, 'budget_exceeded', jsonb_build_object(
                'scope', b.scope, 'budget', v_what, 'used', round(b.used, 4), 'why', format('%s is used up', v_what)
            ));
            v_done := v_done + 1;
        end if;
        if b.used >= b.amount and b.stops_running then
            perform pg_notify('taskyard_runner_' || r.runner_id, 'release')
            from (
                select distinct a.runner_id from attempts a join effective_scopes e on e.name = a.scope
                where a.outcome is null and e.path @> array[b.scope]
            ) r;
        end if;
    end loop;
    return v_done;
end
$$;
comment on function _watch_budgets() is 'Warns at four fifths, and asks a human when all is used; returns how many it asked about.';

create or replace function _amount(p_measure text, p_amount numeric) returns text
language sql immutable
as $$
    select case p_measure
        when 'usd' then '$' || to_char(p_amount, 'FM999999999990.00')
        when 'tokens' then taskyard._short(p_amount::bigint) || ' tokens'
        else taskyard._ago(make_interval(secs => least(p_amount, 1e12)::float8))
    end
$$;
comment on function _amount(text, numeric) is 'So much of a measure, for a screen: $4.20, 12k tokens, 3h.';

create or replace function _budget_text(p_measure text, p_period text, p_amount numeric) returns text
language sql immutable
as $$ select taskyard._amount(p_measure, p_amount) || case p_period when 'total' then ' in all' else ' a ' || p_period end $$;
comment on function _budget_text(text, text, numeric) is 'A budget in words: $5.00 a day.';

create or replace function _percent_used(p_used numeric, p_amount numeric) returns integer
language sql immutable
as $$ select case when p_amount = 0 then 100 else least(round(100 * p_used / p_amount), 99999)::integer end $$;
comment on function _percent_used(numeric, numeric) is 'Whole percents; more than 100 is what ran on when the budget was used up.';

create or replace function _budgets_after_write() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_scope text;
begin
    for v_scope in select distinct c.scope from changed c order by 1 loop
        perform pg_advisory_xact_lock(742110, hashtext(v_scope));
        if tg_op = 'INSERT' and not exists (select from effective_scopes e where e.name = v_scope and v_scope = any(e.budgeted)) then
            -- The first budget of this scope: it counts what is on record.
            delete from usage_daily where scope = v_scope;
            delete from usage_charges where scope = v_scope;
            insert into usage_daily (scope, day, tokens, cost_usd, seconds, attempts)
            select v_scope, (a.finished_at at time zone 'UTC')::date, coalesce(sum(coalesce(a.input_tokens, 0) + coalesce(a.output_tokens, 0)), 0),
                coalesce(sum(a.cost_usd), 0), sum(extract(epoch from a.finished_at - a.started_at)), count(*)
            from attempts a
            join effective_scopes e on e.name = a.scope
            where e.path @> array[v_scope] and a.finished_at is not null
            group by (a.finished_at at time zone 'UTC')::date;
        end if;
        perform _renew_scopes(array[v_scope]);
    end loop;
    perform _wake_runners();
    return null;
end
$$;
comment on function _budgets_after_write() is 'Tells the scopes below that they have a budget, or none any more.';

create or replace trigger budgets_after_insert after insert on budgets
referencing new table as changed
for each statement execute function _budgets_after_write();

create or replace trigger budgets_after_update after update on budgets
referencing new table as changed
for each statement when (pg_trigger_depth() = 0) execute function _budgets_after_write();

create or replace trigger budgets_after_delete after delete on budgets
referencing old table as changed
for each statement execute function _budgets_after_write();

create or replace function _budgets_in_reach() returns table (scope text, measure text, period text, amount numeric, used numeric)
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    -- A budget above one's own scopes counts what others spend: only those in reach are told.
    return query select u.* from _budgets_spent(null) u where _sees_all() or u.scope = any(_my_scopes());
end
$$;
comment on function _budgets_in_reach() is 'The budgets of the scopes that the caller sees, and what was used of them.';
grant execute on function _budgets_in_reach() to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
