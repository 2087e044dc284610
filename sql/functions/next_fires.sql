-- When a cron line or an interval comes round. Local time has holes and doubles: a time that the clock jumps over comes at the end
-- of the hole, unless the line names every hour; one that the clock shows twice comes twice. croniter does the same.

create or replace function next_fires(p_cron text, p_timezone text default null, p_after timestamptz default now(), p_count integer default 5)
returns setof timestamptz
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_timezone text;
    v_fields _cron;
    v_at timestamptz := p_after;
begin
    perform _require_role('taskyard_viewer', 'look at schedules');
    v_timezone := _told_timezone(p_timezone);
    v_fields := _told_cron(p_cron);
    for _ in 1..least(coalesce(p_count, 5), 10000) loop
        v_at := _next_cron(v_fields, v_timezone, v_at);
        exit when v_at is null;
        return next v_at;
    end loop;
end
$$;
comment on function next_fires(text, text, timestamptz, integer) is
'The next times of a cron line in a time zone (null: that of the session), after an instant: select next_fires(''30 2 * * mon-fri'', ''Europe/Berlin''). Errors: TY001, TY006.';
grant execute on function next_fires(text, text, timestamptz, integer) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _told_timezone(p_timezone text) returns text
language plpgsql stable
as $$
declare
    v_name text;
begin
    select z.name into v_name from pg_catalog.pg_timezone_names z where lower(z.name) = lower(coalesce(p_timezone, current_setting('TimeZone')));
    if v_name is null then
        raise exception using
            errcode = 'TY001',
            message = format('There is no time zone "%s".', left(coalesce(p_timezone, current_setting('TimeZone')), 100)),
            hint = 'A name like Europe/Berlin or UTC; select name from pg_timezone_names; lists them.';
    end if;
    return v_name;
end
$$;
comment on function _told_timezone(text) is 'The name of a time zone as the server spells it. Raises TY001.';

create or replace function _cron_field(p_field text, p_what text, p_low integer, p_high integer, p_names text[] default '{}') returns integer[]
language plpgsql stable
as $$
declare
    v_part text;
    v_told text[];
    v_from integer;
    v_to integer;
    v_step integer;
    v_all integer[] := '{}'::integer[];
begin
    if p_field = '' or p_field ~ '^,|,,|,$' then
        raise exception using errcode = 'TY001', message = format('"%s" is no %s of a cron line.', left(p_field, 50), p_what),
        hint = 'Lists look like this: 1,15,30';
    end if;
    foreach v_part in array string_to_array(lower(p_field), ',') loop
        v_told := regexp_match(v_part, '^(?:(\*)|(\d{1,4}|[a-z]{3})(?:-(\d{1,4}|[a-z]{3}))?)(?:/(\d{1,4}))?$');
        if v_told is null then
            raise exception using
                errcode = 'TY001',
                message = format('"%s" is no %s of a cron line.', left(v_part, 50), p_what),
                hint = 'Known are *, 5, 1-5, */10, 2-20/3 and lists of these, and names of months and weekdays of three letters.';
        end if;
        v_step := coalesce(v_told[4]::integer, 1);
        if v_told[1] is not null then
            v_from := p_low;
            v_to := p_high;
        else
            v_from := coalesce(array_position(p_names, v_told[2]) - 1 + p_low, case when v_told[2] ~ '^\d' then v_told[2]::integer end);
            v_to := case
                when v_told[3] is null then case when v_told[4] is null then v_from else p_high end
                else coalesce(array_position(p_names, v_told[3]) - 1 + p_low, case when v_told[3] ~ '^\d' then v_told[3]::integer end)
            end;
        end if;
        -- Sunday is 0 and 7.
        if p_what = 'weekday' and v_from = 7 and v_told[3] is null and v_told[4] is null then
            v_from := 0;
            v_to := 0;
        end if;
        if v_from is null or v_to is null or v_from < p_low or v_to < p_low or v_from > p_high
            or (v_to > p_high and not (p_what = 'weekday' and v_to = 7)) or v_step < 1 or v_step > p_high then
            raise exception using
                errcode = 'TY001',
                message = format('"%s" is no %s of a cron line.', left(v_part, 50), p_what),
                hint = format('From %s to %s%s; a step is at least 1.', p_low, p_high, case when p_names <> '{}' then format(', or %s', array_to_string(p_names, ', ')) else '' end);
        end if;
        if v_from <= v_to then
            v_all := v_all || array(select g from generate_series(v_from, v_to, v_step) g);
        else
            -- Over the end: 22-4 is 22, 23, 0, ... 4.
            v_all := v_all || array(
                select (g - p_low) % (p_high - p_low + 1) + p_low from generate_series(v_from, v_to + p_high - p_low + 1, v_step) g
            );
        end if;
    end loop;
    return array(select distinct case when p_what = 'weekday' then a % 7 else a end from unnest(v_all) a order by 1);
end
$$;
comment on function _cron_field(text, text, integer, integer, text[]) is 'The numbers that a field of a cron line means, sorted. Raises TY001.';

create or replace function _told_cron(p_cron text) returns _cron
language plpgsql stable
as $$
declare
    c_months constant text[] := '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'::text[];
    c_days constant text[] := '{sun,mon,tue,wed,thu,fri,sat}'::text[];
    v_line text := lower(btrim(coalesce(p_cron, ''), E' \t\n'));
    v_fields text[];
    v_cron _cron;
begin
    v_line := case v_line
        when '@hourly' then '0 * * * *'
        when '@daily' then '0 0 * * *'
        when '@midnight' then '0 0 * * *'
        when '@weekly' then '0 0 * * 0'
        when '@monthly' then '0 0 1 * *'
        when '@yearly' then '0 0 1 1 *'
        when '@annually' then '0 0 1 1 *'
        else v_line
    end;
    v_fields := regexp_split_to_array(v_line, '\s+');
    if cardinality(v_fields) <> 5 then
        raise exception using
            errcode = 'TY001',
            message = format('"%s" is no cron line.', left(coalesce(p_cron, ''), 100)),
            hint = 'Five fields: minute, hour, day of the month, month, weekday. For example 30 2 * * mon-fri; or @hourly, @daily, @weekly, @monthly, @yearly.';
    end if;
    v_cron.minutes := _cron_field(v_fields[1], 'minute', 0, 59);
    v_cron.hours := _cron_field(v_fields[2], 'hour', 0, 23);
    v_cron.days := _cron_field(v_fields[3], 'day', 1, 31);
    v_cron.months := _cron_field(v_fields[4], 'month', 1, 12, c_months);
    v_cron.weekdays := _cron_field(v_fields[5], 'weekday', 0, 6, c_days);
    if cardinality(v_cron.weekdays) = 7 and not exists (
        select from unnest(v_cron.days) d, unnest(v_cron.months) m where d <= case when m = 2 then 29 when m in (4, 6, 9, 11) then 30 else 31 end
    ) then
        raise exception using
            errcode = 'TY001',
            message = format('"%s" is a day that never comes.', left(p_cron, 100)),
            hint = 'Look at the day and the month.';
    end if;
    return v_cron;
end
$$;
comment on function _told_cron(text) is 'A cron line, read. Raises TY001.';

create or replace function _next_cron(p_cron _cron, p_timezone text, p_after timestamptz) returns timestamptz
language plpgsql stable
as $$
declare
    c_years constant integer := 9; -- 29 February is at most eight years away
    v_day date := (p_after at time zone p_timezone)::date - 1;
    v_last date := v_day + 366 * c_years;
    v_any_day boolean := cardinality(p_cron.days) = 31;
    v_any_weekday boolean := cardinality(p_cron.weekdays) = 7;
    v_midnight timestamptz;
    v_end timestamptz;
    v_found timestamptz;
    v_next timestamptz;
begin
    while v_day <= v_last loop
        if date_part('month', v_day) <> all(p_cron.months) then
            v_day := (date_trunc('month', v_day) + interval '1 month')::date;
            continue;
        end if;
        -- Vixie's rule: where both are restricted, either will do.
        if (case
            when v_any_day then date_part('dow', v_day) = any(p_cron.weekdays)
            when v_any_weekday then date_part('day', v_day) = any(p_cron.days)
            else date_part('day', v_day) = any(p_cron.days) or date_part('dow', v_day) = any(p_cron.weekdays)
        end) then
            v_midnight := v_day::timestamp at time zone p_timezone;
            v_end := (v_day + 1)::timestamp at time zone p_timezone;
            if (v_midnight at time zone p_timezone) = v_day and (v_end at time zone p_timezone) = v_day + 1
                and v_end - v_midnight = interval '1 day' and _offset_at(v_midnight - interval '1 hour', p_timezone) = _offset_at(v_end + interval '1 hour', p_timezone) then
                v_next := _first_of_day(p_cron, v_day, p_timezone, p_after);
            else
                v_next := _first_of_odd_day(p_cron, v_day, p_timezone, p_after);
            end if;
            if v_found is not null then
                return least(v_found, v_next);
            elsif v_next is not null then
                -- A clock that goes back over midnight shows the end of this day after the beginning of the next.
                if v_end - v_midnight = interval '1 day' then
                    return v_next;
                end if;
                v_found := v_next;
            end if;
        elsif v_found is not null then
            return v_found;
        end if;
        v_day := v_day + 1;
    end loop;
    return v_found;
end
$$;
comment on function _next_cron(_cron, text, timestamptz) is 'The first time of a cron line after an instant; null: none in nine years.';

create or replace function _offset_at(p_at timestamptz, p_timezone text) returns interval
language sql stable
as $$ select (p_at at time zone p_timezone) - (p_at at time zone 'UTC') $$;
comment on function _offset_at(timestamptz, text) is 'By how much the clocks of a time zone are ahead of UTC at an instant.';

create or replace function _first_of_day(p_cron _cron, p_day date, p_timezone text, p_after timestamptz) returns timestamptz
language plpgsql stable
as $$
declare
    v_local timestamp := p_after at time zone p_timezone;
    v_hour integer;
    v_minute integer;
begin
    foreach v_hour in array p_cron.hours loop
        continue when p_day + make_interval(hours => v_hour + 1) <= v_local;
        foreach v_minute in array p_cron.minutes loop
            if p_day + make_interval(hours => v_hour, mins => v_minute) > v_local then
                return (p_day + make_interval(hours => v_hour, mins => v_minute)) at time zone p_timezone;
            end if;
        end loop;
    end loop;
    return null;
end
$$;
comment on function _first_of_day(_cron, date, text, timestamptz) is 'The first time on a day without a change of the clocks, after an instant; null: none.';

create or replace function _first_of_odd_day(p_cron _cron, p_day date, p_timezone text, p_after timestamptz) returns timestamptz
language sql stable
as $$
    with walls as (
        select p_day + make_interval(hours => h, mins => m) as wall from unnest(p_cron.hours) h cross join unnest(p_cron.minutes) m
    ),
    offsets as (
        -- The offsets before and after whatever changes on this day.
        select distinct _offset_at((p_day + g)::timestamp at time zone 'UTC', p_timezone) as ahead from generate_series(-1, 2) g
    ),
    told as (
        select w.wall, (w.wall - o.ahead) at time zone 'UTC' as at, ((w.wall - o.ahead) at time zone 'UTC') at time zone p_timezone = w.wall as shown
        from walls w cross join offsets o
    ),
    fires as (
        select t.at from told t where t.shown
        union
        select _end_of_hole(t.wall, p_timezone) from told t where cardinality(p_cron.hours) < 24 group by t.wall having not bool_or(t.shown)
    )
    select min(f.at) from fires f where f.at > p_after
$$;
comment on function _first_of_odd_day(_cron, date, text, timestamptz) is 'The first time on a day on which the clocks change, after an instant; null: none.';

create or replace function _end_of_hole(p_wall timestamp, p_timezone text) returns timestamptz
language plpgsql stable
as $$
declare
    -- The clock of the time zone is before p_wall at the one and behind it at the other; both are moved together.
    v_before timestamptz := (p_wall - interval '26 hours') at time zone 'UTC';
    v_behind timestamptz := (p_wall + interval '26 hours') at time zone 'UTC';
    v_middle timestamptz;
begin
    while v_behind - v_before > interval '1 second' loop
        v_middle := date_trunc('second', v_before + (v_behind - v_before) / 2);
        if v_middle <= v_before then
            exit;
        elsif v_middle at time zone p_timezone < p_wall then
            v_before := v_middle;
        else
            v_behind := v_middle;
        end if;
    end loop;
    return v_behind;
end
$$;
comment on function _end_of_hole(timestamp, text) is 'The instant at which the clocks jump over a local time.';
