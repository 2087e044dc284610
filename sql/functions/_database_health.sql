-- What an operator should know of the database itself, in 40 columns; nothing to see is the good news. Sessions of others are shown
-- to members of pg_read_all_stats only: the owner of the yard looks, for everybody.

create or replace function _database_health(p_patience double precision default 1) returns table (sort integer, what text, who text, since interval, amount text)
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    return query
    with sessions as materialized (
        select a.pid, coalesce(nullif(a.application_name, ''), a.usename, '?') as who, a.state, a.xact_start, a.state_change, a.query_start, a.backend_xmin
        from pg_catalog.pg_stat_activity a
        where a.datname = current_database() and a.pid <> pg_backend_pid()
    ),
    found (sort, what, who, since, amount) as (
        select 1, 'no tick', 'any runner', _now() - k.ticked_at, 'none is up?' from ticker k where k.ticked_at between '1970-01-01' and _now() - interval '1 minute'
        union all
        select 2, 'lock wait', s.who || ' ' || s.pid, now() - s.query_start, 'on ' || array_to_string(pg_blocking_pids(s.pid), ' ')
        from sessions s
        where s.query_start < now() - interval '10 seconds' * p_patience and exists (select from pg_catalog.pg_locks l where l.pid = s.pid and not l.granted)
        union all
        select 3, 'old snapshot', s.who || ' ' || s.pid, now() - s.xact_start, s.state
        from sessions s where s.backend_xmin is not null and s.xact_start < now() - interval '10 minutes' * p_patience
        union all
        select 4, 'idle in tx', s.who || ' ' || s.pid, now() - s.state_change, ''
        from sessions s where s.state like 'idle in transaction%' and s.backend_xmin is null and s.state_change < now() - interval '5 minutes' * p_patience
        union all
        select 5, 'prepared tx', p.gid, now() - p.prepared, p.owner::text from pg_catalog.pg_prepared_xacts p where p.database = current_database() and p.prepared < now() - interval '5 minutes' * p_patience
        union all
        select 6, 'idle slot', r.slot_name::text, null, 'keeps old rows'
        from pg_catalog.pg_replication_slots r where not r.active and (r.database is null or r.database = current_database())
        union all
        select 7, 'dead rows', t.relname::text, now() - greatest(t.last_vacuum, t.last_autovacuum), _short(t.n_dead_tup) || ' of ' || _short(t.n_live_tup + t.n_dead_tup)
        from pg_catalog.pg_stat_user_tables t
        where t.schemaname in ('taskyard', 'pgmq') and t.n_dead_tup > 50000 and t.n_dead_tup > t.n_live_tup * 0.3
        union all
        select 8, 'wraparound', d.datname::text, null, round(age(d.datfrozenxid) / 2e7) || '% used' from pg_catalog.pg_database d where d.datname = current_database() and age(d.datfrozenxid) > 1000000000
        union all
        select 9, 'no autovacuum', '', null, '' where current_setting('autovacuum') = 'off'
        union all
        select 10, 'half blind', 'sessions', null, 'see the comment' where not pg_has_role('pg_read_all_stats', 'usage')
    )
    select f.sort, f.what, f.who, f.since, f.amount from found f;
end
$$;
comment on function _database_health(double precision) is 'What database_health shows, in full; with less patience than 1, earlier.';
grant execute on function _database_health(double precision) to taskyard_viewer, taskyard_admin;
