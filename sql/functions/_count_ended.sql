-- Counting what ended: once a minute over the attempts that began since the last time, which are a range of the primary key, and those
-- that had not been counted then. An index by the time of the end, or a row for each end, would cost every completion.

create or replace function _count_ended() returns void
language plpgsql volatile
set enable_seqscan = off
as $$
declare
    -- A transaction that ends an attempt is over by then; its time is that of its beginning.
    c_settled constant interval := interval '30 seconds';
    -- Ids are microseconds: a claim that was not yet committed is found if its transaction was open for less than this.
    c_slack constant bigint := 300000000;
    v_counted counted;
    v_until timestamptz := _now() - c_settled;
begin
    select * into v_counted from counted for update;
    if v_counted.until >= v_until then
        return;
    end if;
    insert into counters as c (name, labels, value)
    select s.name, s.labels, sum(s.value)
    from attempts a
    cross join lateral (
        values
        ('attempts', jsonb_build_object('scope', a.scope, 'agent', a.agent, 'provider', a.provider, 'outcome', a.outcome), 1::numeric),
        ('lost_attempts', '{}', case when a.outcome = 'crashed' and not a.counted then 1 end),
        ('attempt_seconds', jsonb_build_object('scope', a.scope, 'agent', a.agent, 'provider', a.provider), date_part('epoch', a.finished_at - a.started_at)::numeric),
        ('tokens', jsonb_build_object('provider', a.provider, 'direction', 'input'), a.input_tokens::numeric),
        ('tokens', jsonb_build_object('provider', a.provider, 'direction', 'output'), a.output_tokens::numeric),
        ('cost_dollars', jsonb_build_object('scope', a.scope, 'provider', a.provider), a.cost_usd)
    ) s (name, labels, value)
    where (a.id > v_counted.newest - c_slack or a.id = any(v_counted.pending))
        and a.finished_at > v_counted.until and a.finished_at <= v_until and s.value is not null
    group by s.name, s.labels
    on conflict (name, labels) do update set value = c.value + excluded.value;
    update counted
    set until = v_until,
        newest = coalesce((select max(a.id) from attempts a), v_counted.newest),
        pending = array(
            select a.id from attempts a
            where (a.id > v_counted.newest - c_slack or a.id = any(v_counted.pending)) and (a.finished_at is null or a.finished_at > v_until)
        );
end
$$;
comment on function _count_ended() is 'Adds the attempts that ended since the last time to the counters.';
