create or replace function _ensure_partitions() returns void
language plpgsql volatile
as $$
declare
    v_week timestamptz;
    v_name text;
begin
    -- This week and the next: few partitions, made just ahead. Real time, not _now(): attempt ids are real time.
    foreach v_week in array array[date_trunc('week', now(), 'UTC'), date_trunc('week', now() + interval '7 days', 'UTC')] loop
        v_name := to_char(v_week at time zone 'UTC', 'YYYYMMDD');
        if to_regclass('taskyard.transcript_' || v_name) is null then
            execute format(
                'create table taskyard.%I partition of taskyard.transcript for values from (%s) to (%s)',
                'transcript_' || v_name, _attempt_id(v_week, 0), _attempt_id(v_week + interval '7 days', 0)
            );
        end if;
        if to_regclass('taskyard.task_events_' || v_name) is null then
            execute format(
                'create table taskyard.%I partition of taskyard.task_events for values from (%L) to (%L)',
                'task_events_' || v_name, v_week, v_week + interval '7 days'
            );
        end if;
    end loop;
end
$$;
comment on function _ensure_partitions() is 'Makes the weekly partitions of transcript and task_events that will be needed soon.';
