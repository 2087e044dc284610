-- A database that was restored from a backup, or copied, believes that attempts of then are still running. Their workers may
-- have gone on elsewhere, or reported to the database that was lost; whatever they still say is not to be trusted.

create or replace function _same_yard() returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    -- A standby that was promoted has another timeline too, and there attempts go on: it is behind by seconds, a backup by more.
    c_failover constant interval := interval '1 minute';
    v_system bigint := _system_identifier();
    v_database oid := (select d.oid from pg_catalog.pg_database d where d.datname = current_database());
    v_timeline text := case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_lsn()), 8) end;
    v_kept incarnation;
begin
    if v_timeline is null then
        return; -- a standby: whatever is to be written is refused anyway
    end if;
    select * into v_kept from incarnation;
    if (v_kept.system_identifier, v_kept.database, v_kept.timeline) is distinct from (v_system, v_database, v_timeline) then
        select * into v_kept from incarnation for update; -- the others wait until one has seen to it
        if (v_kept.system_identifier, v_kept.database) is distinct from (v_system, v_database)
            or v_kept.timeline <> v_timeline and exists (select from ticker where ticked_at < _now() - c_failover and isfinite(ticked_at)) then
            if v_kept.database is not null then
                perform _fence_all('the database was restored from a backup, or copied');
            end if;
        end if;
        update incarnation set system_identifier = v_system, database = v_database, timeline = v_timeline;
    end if;
    perform set_config('taskyard.same_yard', 'yes', false); -- a session cannot outlive it
end
$$;
comment on function _same_yard() is 'Notices that this is another server or database than the one in which attempts were handed out, and takes them all back. Once in a session.';

create or replace function _system_identifier() returns bigint
language plpgsql stable
as $$
begin
    return (select c.system_identifier from pg_catalog.pg_control_system() c);
exception when insufficient_privilege then
    return 0; -- some providers hide it; the database and its timeline have to do
end
$$;
comment on function _system_identifier() is 'The number that initdb gave this server.';

create or replace function _fence_all(p_why text) returns integer
language plpgsql volatile
as $$
declare
    v_runner bigint;
    v_count integer := 0;
begin
    for v_runner in select id from runners where gone_at is null order by id loop
        v_count := v_count + _give_up_runner(v_runner, p_why);
    end loop;
    for v_runner in select distinct runner_id from attempts where finished_at is null loop
        v_count := v_count + _give_up_runner(v_runner, p_why);
    end loop;
    update incarnation set restored_at = _now();
    return v_count;
end
$$;
comment on function _fence_all(text) is 'Takes back every attempt of every runner; returns how many. Runners that are still there register anew.';

create or replace function after_restore() returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    perform _require_role('taskyard_admin', 'take all attempts back');
    v_count := _fence_all('an administrator said that the database was restored');
    perform _same_yard();
    return format('%s running %s taken back and will run again; runners register anew.', v_count, case v_count when 1 then 'attempt was' else 'attempts were' end);
end
$$;
comment on function after_restore() is
'Takes back every running attempt, whose id opens nothing from then on. To be called after a restore to a point in time, before runners are let in; a restored dump is noticed without it. Errors: TY006.';
grant execute on function after_restore() to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
