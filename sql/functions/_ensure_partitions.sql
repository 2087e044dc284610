create or replace function _ensure_partitions() returns void
language plpgsql volatile
as $$
declare
    v_week timestamptz;
    v_month timestamptz;
    v_name text;
begin
    -- This week and the next: few partitions, made just ahead. Real time, not _now(): attempt ids are real time.
    foreach v_week in array array[date_trunc('week', now(), 'UTC'), date_trunc('week', now() + interval '7 days', 'UTC')] loop
        v_name := to_char(v_week at time zone 'UTC', 'YYYYMMDD');
        perform _ensure_partition('transcript', v_name, _attempt_id(v_week, 0)::text, _attempt_id(v_week + interval '7 days', 0)::text);
        perform _ensure_partition('task_events', v_name, v_week::text, (v_week + interval '7 days')::text);
    end loop;
    for v_month in
        select m at time zone 'UTC' from generate_series(date_trunc('month', now() at time zone 'UTC'), now() at time zone 'UTC' + interval '10 days', interval '1 month') m
    loop
        perform _ensure_partition(
            'archived_tasks', to_char(v_month at time zone 'UTC', 'YYYYMM'), v_month::text,
            ((v_month at time zone 'UTC' + interval '1 month') at time zone 'UTC')::text
        );
    end loop;
end
$$;
comment on function _ensure_partitions() is 'Makes the weekly partitions of transcript and task_events, and the monthly ones of archived_tasks, that will be needed soon.';

create or replace function _ensure_partition(p_table text, p_name text, p_from text, p_to text) returns void
language plpgsql volatile
as $$
declare
    v_name text := p_table || '_' || p_name;
begin
    if to_regclass('taskyard.' || v_name) is null then
        -- Attached, and not created as a partition: that would lock the whole table, and wait for a dump with all who write behind it.
        execute format('create table taskyard.%I (like taskyard.%I including defaults including constraints)', v_name, p_table);
        execute format('alter table taskyard.%I attach partition taskyard.%I for values from (%L) to (%L)', p_table, v_name, p_from, p_to);
    end if;
end
$$;
comment on function _ensure_partition(text, text, text, text) is 'Makes one partition for values from p_from to before p_to, unless it is there. Waits for no reader.';
