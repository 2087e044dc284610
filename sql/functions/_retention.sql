-- What is kept how long. tick() calls these; nothing here waits for anybody: what is in use goes another time.

create or replace function _retain_tasks() returns integer
language plpgsql volatile
set enable_seqscan = off
as $$
declare
    c_at_once constant integer := 500;
    c_pause constant interval := interval '10 seconds';
    v_rule retention;
    v_found bigint[];
    v_last timestamptz;
    v_count bigint;
    v_gone bigint[];
    v_done integer := 0;
begin
    for v_rule in select * from retention r where r.what in ('completed', 'failed', 'cancelled') and r.keep is not null loop
        -- From where it stopped: what stays (it has an unfinished parent, say) is looked at once a day.
        if v_rule.looked_on < (_now() at time zone 'UTC')::date then
            v_rule.looked_at := '-infinity';
        end if;
        continue when v_rule.looked_at >= _now() - v_rule.keep - c_pause;
        select array_agg(x.id) filter (where x.status = v_rule.what::task_status), max(x.finished_at), count(*) into v_found, v_last, v_count
        from (
            select t.id, t.status, t.finished_at from tasks t
            where t.finished_at >= v_rule.looked_at and t.finished_at < _now() - v_rule.keep
            order by t.finished_at, t.id
            limit c_at_once
        ) x;
        v_gone := null;
        if v_found is not null then
            v_gone := _put_away(v_found, v_rule.archive);
            v_done := v_done + coalesce(cardinality(v_gone), 0);
        end if;
        update retention r
        set looked_on = (_now() at time zone 'UTC')::date,
            looked_at = case
                when v_count < c_at_once then _now() - v_rule.keep
                -- All of one instant, and all stay: what else ended in it is looked at tomorrow.
                when v_last = v_rule.looked_at and v_gone is null then v_last + interval '1 microsecond'
                else v_last
            end
        where r.what = v_rule.what;
    end loop;
    return v_done;
end
$$;
comment on function _retain_tasks() is 'Archives or deletes tasks that ended long enough ago, some hundreds at a time; returns how many.';

create or replace function _put_away(p_tasks bigint[], p_archive boolean) returns bigint[]
language plpgsql volatile
set enable_seqscan = off
as $$
declare
    v_tasks bigint[];
begin
    v_tasks := array(
        select t.id from tasks t
        where t.id = any(p_tasks)
            and not exists (select from tasks p where p.id = t.parent_id and p.finished_at is null)
            and not exists (select from tasks c where c.parent_id = t.id and c.finished_at is null)
        for update skip locked
    );
    if p_archive then
        insert into archived_tasks (
            archived_at, id, prompt, agent, scope, status, priority, parent_id, payload, result, error, created_by, created_at, started_at, finished_at, attempts
        )
        select
            now(), t.id, t.prompt, t.agent, t.scope, t.status, t.priority, t.parent_id, t.payload, t.result, t.error, t.created_by, t.created_at,
            t.started_at, t.finished_at, coalesce(a.told, '[]')
        from tasks t
        left join lateral (
            select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                'number', a.number, 'provider', a.provider, 'model', a.model, 'outcome', a.outcome, 'started_at', a.started_at,
                'finished_at', a.finished_at, 'input_tokens', a.input_tokens, 'output_tokens', a.output_tokens, 'cost_usd', a.cost_usd
            )) order by a.number) as told
            from attempts a where a.task_id = t.id
        ) a on true
        where t.id = any(v_tasks);
    end if;
    delete from tasks t where t.id = any(v_tasks);
    return nullif(v_tasks, '{}');
end
$$;
comment on function _put_away(bigint[], boolean) is 'Deletes tasks that are over, archived first if that is wanted; those with an unfinished parent or child stay. Returns which.';

create or replace function _drop_partitions() returns integer
language plpgsql volatile
set lock_timeout = '50ms' -- somebody may be reading it for hours, and whoever writes would wait behind us
as $$
declare
    v_table text;
    v_before timestamptz;
    v_end timestamptz;
    v_part text;
    v_bound text;
    v_dropped integer := 0;
begin
    for v_table, v_before in
        select case r.what when 'archive' then 'archived_tasks' when 'events' then 'task_events' else r.what end, now() - r.keep
        from retention r
        where r.what in ('archive', 'transcript', 'events') and r.keep is not null
    loop
        for v_part, v_bound in
            select c.relname, (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''?([^'')]+)'))[1]
            from pg_catalog.pg_inherits i join pg_catalog.pg_class c on c.oid = i.inhrelid
            where i.inhparent = format('taskyard.%I', v_table)::regclass
            order by c.relname
        loop
            v_end := case when v_table = 'transcript' then _attempt_time(v_bound::bigint) else v_bound::timestamptz end;
            exit when v_end > v_before;
            begin
                execute format('drop table taskyard.%I', v_part);
                v_dropped := v_dropped + 1;
            exception when lock_not_available then
                null; -- in a minute
            end;
        end loop;
    end loop;
    return v_dropped;
end
$$;
comment on function _drop_partitions() is 'Drops partitions of transcript, task_events and archived_tasks whose time is over, unless they are being read; returns how many.';

create or replace function _attempt_time(p_attempt bigint) returns timestamptz
language sql immutable
as $$ select to_timestamp((p_attempt / 1000 + 1767225600000) / 1000.0) $$;
comment on function _attempt_time(bigint) is 'When the attempt with this id was claimed; the other way round than _attempt_id().';
