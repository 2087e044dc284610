-- Schedules: what a row of schedules means is worked out when it is written, and tick() fires those whose time has come. One
-- transaction takes the row, creates the task and moves next_at on, so that a time fires once, whoever ticks and whatever dies.

create or replace function _check_schedule() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        new.created_by := _caller();
        new.created_at := _now();
        new.last_at := null;
        new.last_task_id := null;
        new.last_note := null;
        if new.scope = 'default' and not _in_reach('default') then
            new.scope := coalesce(_home_scope(), 'default');
        end if;
    elsif (new.name, new.cron, new.every, new.at, new.timezone, new.scope, new.template, new.variables, new.task, new.missed, new.overlap, new.enabled)
        is distinct from (old.name, old.cron, old.every, old.at, old.timezone, old.scope, old.template, old.variables, old.task, old.missed, old.overlap, old.enabled) then
        -- Whoever writes what it does answers for it from then on.
        new.created_by := _caller();
    else
        return new; -- fired
    end if;
    perform _require_scope(new.scope);
    if num_nonnulls(new.cron, new.every) = 2 or num_nonnulls(new.cron, new.at) = 2 or num_nonnulls(new.cron, new.every, new.at) = 0 then
        raise exception using
            errcode = 'TY001',
            message = format('Schedule %s needs a cron line, or an interval (every), or a time (at).', new.name),
            hint = 'For example cron = ''0 9 * * mon-fri'', or every = ''6 hours''. With every, at is the first time.';
    end if;
    if new.every < interval '1 minute' then
        raise exception using
            errcode = 'TY001',
            message = 'Nothing comes more often than once a minute.',
            hint = 'For a task that goes on and on, let it spawn_task() its successor.';
    end if;
    if not isfinite(new.at) then
        raise exception using errcode = 'TY001', message = 'at is an instant.', hint = 'For example now() + interval ''2 hours''.';
    end if;
    if new.template is not null and not exists (
        select from templates t where t.name = new.template and (t.task ->> 'scope' is null or _in_reach(t.task ->> 'scope'))
    ) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no template "%s".', left(new.template, 100)),
            hint = 'See: select name, description from templates;';
    end if;
    new.timezone := _told_timezone(new.timezone);
    perform _told_task(_scheduled_task(new, _now()));
    if tg_op = 'INSERT' or (new.cron, new.every, new.at, new.timezone, new.enabled) is distinct from (old.cron, old.every, old.at, old.timezone, old.enabled) then
        new.next_at := case
            when not new.enabled then null
            when new.cron is null and new.every is null then case when new.last_at >= new.at then null else new.at end
            else _next_fire(new, _now())
        end;
    end if;
    return new;
end
$$;
comment on function _check_schedule() is 'Refuses a schedule that says nothing or too much, and works out when it fires next. Raises TY001, TY002.';
create or replace trigger schedules_check before insert or update on schedules for each row execute function _check_schedule();

create or replace function _scheduled_task(p_schedule schedules, p_at timestamptz) returns jsonb
language plpgsql stable
as $$
declare
    v_template templates;
    v_own jsonb;
    v_task jsonb;
begin
    v_own := jsonb_build_object(
        'schedule', p_schedule.name,
        'date', to_char(p_at at time zone p_schedule.timezone, 'YYYY-MM-DD'),
        'time', to_char(p_at at time zone p_schedule.timezone, 'HH24:MI')
    );
    if jsonb_typeof(p_schedule.variables) is distinct from 'object' or jsonb_typeof(p_schedule.task) is distinct from 'object' then
        raise exception using
            errcode = 'TY001',
            message = 'Variables and task are JSON objects.',
            hint = 'For example task = ''{"prompt": "...", "agent": "claude"}''.';
    elsif p_schedule.task ?| '{dedupe_key,run_at,scope,depends_on}' then
        raise exception using
            errcode = 'TY001',
            message = 'A schedule says itself when and where its tasks run: its task has no dedupe_key, run_at, scope or depends_on.',
            hint = 'Leave them out, and set the column scope.';
    end if;
    if p_schedule.template is not null then
        select * into v_template from templates t where t.name = p_schedule.template;
        v_task := _filled(v_template, (
            select coalesce(jsonb_object_agg(o.key, o.value), '{}') from jsonb_each(v_own) o where o.key = any(v_template.variables)
        ) || p_schedule.variables);
    end if;
    v_task := coalesce(v_task, '{}') || _filled_texts(p_schedule.task, v_own || p_schedule.variables);
    if coalesce(v_task ->> 'prompt', '') = '' then
        raise exception using
            errcode = 'TY001',
            message = format('Schedule %s has no prompt.', p_schedule.name),
            hint = 'Set template, or task = ''{"prompt": "..."}''.';
    end if;
    return v_task || jsonb_build_object('scope', p_schedule.scope);
end
$$;
comment on function _scheduled_task(schedules, timestamptz) is 'The task that a schedule creates for a time, as JSON, without its dedupe_key. Raises TY001.';

create or replace function _next_fire(p_schedule schedules, p_after timestamptz) returns timestamptz
language plpgsql stable
as $$
declare
    v_first timestamptz := coalesce(p_schedule.at, p_schedule.created_at);
    v_local timestamp := v_first at time zone p_schedule.timezone;
    v_at timestamptz;
    v_n bigint;
begin
    if p_schedule.cron is not null then
        return _next_cron(_told_cron(p_schedule.cron), p_schedule.timezone, p_after);
    elsif p_schedule.every is null then
        return case when p_schedule.at > p_after then p_schedule.at end;
    elsif p_after < v_first then
        return v_first;
    end if;
    -- From the first time on in whole intervals, so that a month that began on the 31st comes back to the 31st.
    v_n := greatest(floor(date_part('epoch', p_after - v_first) / date_part('epoch', p_schedule.every) * 0.98) - 1, 0);
    loop
        v_n := v_n + 1;
        if date_trunc('day', p_schedule.every) = interval '0' then
            v_n := greatest(v_n, floor(date_part('epoch', p_after - v_first) / date_part('epoch', p_schedule.every))::bigint);
            v_at := v_first + p_schedule.every * v_n;
        else
            v_at := (v_local + p_schedule.every * v_n) at time zone p_schedule.timezone;
        end if;
        exit when v_at > p_after;
    end loop;
    return v_at;
end
$$;
comment on function _next_fire(schedules, timestamptz) is 'When a schedule comes next, after an instant; null: never.';

create or replace function _may_still(p_login text, p_scope text) returns boolean
language sql stable
as $$
    select exists (
        select from pg_catalog.pg_roles r
        where r.rolname = p_login
            and (
                pg_has_role(r.oid, 'taskyard_admin', 'usage')
                or (
                    pg_has_role(r.oid, 'taskyard_submitter', 'usage')
                    and exists (
                        select from taskyard.effective_scopes e
                        join taskyard.scope_grants g on g.scope = any(e.path)
                        join pg_catalog.pg_roles l on l.rolname = g.login
                        where e.name = p_scope and pg_has_role(r.oid, l.oid, 'usage')
                    )
                )
            )
    )
$$;
comment on function _may_still(text, text) is 'Whether a login still exists and may submit tasks in a scope.';

create or replace function _due(p_schedule schedules, p_most integer) returns timestamptz[]
language plpgsql stable
as $$
declare
    v_at timestamptz := p_schedule.next_at;
    v_from timestamptz;
    v_all timestamptz[] := '{}'::timestamptz[];
begin
    if p_schedule.missed <> 'all' and v_at < _now() - interval '1 hour' and num_nonnulls(p_schedule.cron, p_schedule.every) > 0 then
        -- Only the last one matters: a year of minutes is not walked through.
        foreach v_from in array array[_now() - interval '1 hour', _now() - interval '2 days', _now() - interval '70 days'] loop
            if v_from > v_at and _next_fire(p_schedule, v_from) <= _now() then
                v_at := _next_fire(p_schedule, v_from);
                exit;
            end if;
        end loop;
    end if;
    while v_at <= _now() loop
        v_all := v_all || v_at;
        exit when p_schedule.missed = 'all' and cardinality(v_all) = p_most;
        v_at := _next_fire(p_schedule, v_at);
    end loop;
    return v_all;
end
$$;
comment on function _due(schedules, integer) is 'The times of a schedule that have come, oldest first: of all that were missed at most so many; else at least the last.';

create or replace function _fire_schedules() returns integer
language plpgsql volatile
as $$
declare
    c_late constant interval := interval '1 minute';
    c_at_once constant integer := 100;
    v_schedule schedules;
    v_due timestamptz[];
    v_last timestamptz;
    v_at timestamptz;
    v_task bigint;
    v_note text;
    v_fired integer := 0;
    v_before integer;
begin
    for v_schedule in
        select * from schedules s where s.next_at <= _now() order by s.next_at limit c_at_once for no key update skip locked
    loop
        v_note := null;
        v_last := null;
        v_before := v_fired;
        begin
            v_due := _due(v_schedule, c_at_once);
            v_last := v_due[cardinality(v_due)];
            if v_schedule.missed <> 'all' then
                v_due := v_due[cardinality(v_due):];
            end if;
            if v_schedule.missed = 'skip' and v_last < _now() - c_late then
                v_due := '{}'::timestamptz[];
                v_note := format('%s was missed: nobody was there.', to_char(v_last at time zone v_schedule.timezone, 'YYYY-MM-DD HH24:MI'));
            end if;
            foreach v_at in array v_due loop
                if not _may_still(v_schedule.created_by, v_schedule.scope) then
                    v_note := format('%s may not submit tasks in scope %s any more.', v_schedule.created_by, v_schedule.scope);
                    exit;
                end if;
                if v_schedule.overlap <> 'allow' and exists (select from tasks t where t.id = v_schedule.last_task_id and t.finished_at is null) then
                    if v_schedule.overlap = 'skip' then
                        v_note := format('%s was left out: task %s was not over.', to_char(v_at at time zone v_schedule.timezone, 'YYYY-MM-DD HH24:MI'), v_schedule.last_task_id);
                        continue;
                    end if;
                    perform _cancel(_family(v_schedule.last_task_id), format('replaced by the next one of schedule %s', v_schedule.name));
                    perform _log(v_schedule.last_task_id, null, 'cancelled', jsonb_build_object('why', 'replaced by the next one of schedule ' || v_schedule.name));
                end if;
                v_task := _task_from_json(
                    _scheduled_task(v_schedule, v_at)
                    || jsonb_build_object('dedupe_key', format('schedule %s at %s', v_schedule.name, to_char(v_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))),
                    null, format('schedule %s', v_schedule.name)
                );
                v_schedule.last_at := v_at;
                v_schedule.last_task_id := v_task;
                v_fired := v_fired + 1;
            end loop;
        exception when others then
            -- One that cannot be is told, and holds up no other; what it had done in this tick is undone with it.
            if sqlstate in ('40001', '40P01', '57014') then
                raise;
            end if;
            select * into v_schedule from schedules s where s.name = v_schedule.name;
            v_last := coalesce(v_last, _now());
            v_note := sqlerrm;
            v_fired := v_before;
        end;
        update schedules s
        set next_at = case when v_schedule.missed = 'all' then _next_fire(v_schedule, v_last) else _next_fire(v_schedule, greatest(v_last, _now())) end,
            last_at = v_schedule.last_at, last_task_id = v_schedule.last_task_id, last_note = v_note
        where s.name = v_schedule.name;
    end loop;
    return v_fired;
end
$$;
comment on function _fire_schedules() is 'Creates the tasks of schedules whose time has come; returns how many.';

create or replace function run_schedule(p_name text) returns bigint
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_schedule schedules;
    v_task bigint;
begin
    perform _require_role('taskyard_submitter', 'submit tasks');
    select * into v_schedule from schedules s where s.name = p_name for no key update;
    if not found or not _in_reach(v_schedule.scope) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no schedule "%s".', left(coalesce(p_name, ''), 100)),
            hint = 'See: select * from timetable;';
    end if;
    v_task := _task_from_json(_scheduled_task(v_schedule, _now()), null, _caller());
    update schedules s set last_task_id = v_task where s.name = p_name;
    return v_task;
end
$$;
comment on function run_schedule(text) is 'Creates the task of a schedule now, out of turn, and returns its id; the next time stays as it is. Errors: TY001, TY002, TY006.';
grant execute on function run_schedule(text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
