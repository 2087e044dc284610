-- Notifying commits serialise in PostgreSQL (a statement trigger that notifies costs two thirds of the rate), so a commit
-- that nobody waits for does not notify. Runners poll all the same: a notification is a hint.

create or replace function _wake_runners() returns void
language plpgsql volatile
as $$
begin
    -- Idle runners hold this lock shared while they sleep (see sleep_begin); getting it alone proves that none does.
    -- Advisory locks live in shared memory: no row is written or read to find out.
    if pg_try_advisory_lock(742102, 0) then
        perform pg_advisory_unlock(742102, 0);
    else
        perform pg_notify('task_ready', '');
    end if;
end
$$;
comment on function _wake_runners() is 'Wakes idle runners, if there are any.';

create or replace function _announce(p_operation text, p_ids bigint[], p_status text) returns void
language plpgsql volatile
as $$
declare
    v_second bigint := date_part('epoch', clock_timestamp())::bigint;
    v_told bigint := nullif(current_setting('taskyard.told', true), '')::bigint; -- the second, times 100, plus how many were sent in it
    v_busy boolean := v_told / 100 = v_second and v_told % 100 >= (case p_operation when 'insert' then 20 else 5 end);
    v_done text;
begin
    -- Looking takes 10 microseconds, remembering a fifth of one: a busy session looks once a second.
    if v_busy is not true then
        v_done := set_config('taskyard.topics', case when _topics_bound() then 'on' else '' end, false);
    end if;
    if current_setting('taskyard.topics', true) = 'on' then
        perform _publish(p_operation, p_ids);
    end if;
    -- So many a second and session go out at once. A busier session only remembers that there was more and says so when it comes
    -- to rest: notifying commits wait for each other, and a queue at full speed is not to be slowed by those who watch it.
    if v_busy then
        if coalesce(current_setting('taskyard.held', true), '') = '' then
            v_done := set_config('taskyard.held', p_ids[1]::text, false);
        end if;
        return;
    end if;
    v_done := set_config('taskyard.told', (case when v_told / 100 = v_second then v_told + 1 else v_second * 100 + 1 end)::text, false);
    perform _tell_held();
    if cardinality(p_ids) = 1 then
        perform pg_notify('task_updates', format('{"operation":"%s","id":%s,"status":"%s"}', p_operation, p_ids[1], p_status));
    else
        perform pg_notify('task_updates', format(
            '{"operation":"%s","id":%s,"status":"%s","ids":[%s]}', p_operation, p_ids[1], p_status, array_to_string(p_ids[1:300], ',')
        ));
    end if;
end
$$;
comment on function _announce(text, bigint[], text) is
'Tells of a change of status: an event to every queue bound to its topic (_publish), and NOTIFY task_updates with {operation, id, status} and, for several tasks at once, ids (the first 300).';

create or replace function _tell_held() returns void
language plpgsql volatile
as $$
declare
    v_held text := current_setting('taskyard.held', true);
begin
    if v_held <> '' then
        perform set_config('taskyard.held', '', false);
        perform pg_notify('task_updates', format('{"operation":"refresh","id":%s,"status":null}', v_held));
    end if;
end
$$;
comment on function _tell_held() is 'Says that more changed than was announced: {operation: refresh, id: the first of them}. Read the table.';
