create or replace function register_runner(
    p_name text,
    p_slots integer default 1,
    p_labels text[] default '{}',
    p_providers jsonb default '[{"provider": "command"}]',
    p_version text default '',
    p_protocol integer default 4,
    p_lease interval default interval '60 seconds',
    p_host text default '',
    p_sandbox jsonb default '{"level": "strict"}'
) returns bigint
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    c_protocol constant integer := 4;
    c_oldest_protocol constant integer := 4; -- those before prove nothing
    v_old runners;
    v_id bigint;
begin
    perform _require_runner('register a runner');
    if p_protocol < c_oldest_protocol then
        raise exception using
            errcode = 'TY009',
            message = format('Runner version %s is too old for this database.', p_version),
            hint = 'Upgrade taskyard on that host.',
            detail = format('It speaks protocol %s; the database needs %s or newer.', p_protocol, c_oldest_protocol);
    elsif p_protocol > c_protocol then
        raise exception using
            errcode = 'TY009',
            message = format('Runner version %s is newer than this database.', p_version),
            hint = 'Run: taskyard install',
            detail = format('It speaks protocol %s; the database knows up to %s.', p_protocol, c_protocol);
    end if;
    if p_name is null or p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.@:-]{0,99}$' then
        raise exception using
            errcode = 'TY001',
            message = 'The runner''s name is not usable.',
            hint = 'Use up to 100 letters, digits and _ . @ : -';
    end if;
    if p_slots is null or p_slots not between 1 and 1000 then
        raise exception using
            errcode = 'TY001',
            message = format('A runner cannot have %s slots.', coalesce(p_slots::text, 'null')),
            hint = 'Use 1 to 1000.';
    end if;
    if p_lease is null or p_lease not between interval '2 seconds' and interval '1 day' then
        raise exception using
            errcode = 'TY001',
            message = format('A lease of %s is out of range.', p_lease),
            hint = 'Use 2 seconds to 1 day.';
    end if;
    if coalesce(p_sandbox ->> 'level', '') not in ('strict', 'container', 'none') then
        raise exception using
            errcode = 'TY001',
            message = format('There is no sandbox level "%s".', left(p_sandbox ->> 'level', 100)),
            hint = 'Levels are strict, container and none.';
    end if;

    perform _ensure_partitions();
    perform pg_advisory_xact_lock(742106, hashtext(p_name));
    select * into v_old from runners where name = p_name and gone_at is null;
    if found then
        if _runner_alive(v_old) then
            raise exception using
                errcode = 'TY008',
                message = format('A runner named %s is running already.', p_name),
                hint = 'Give this one another name: taskyard runner --name ...',
                detail = format('Last seen %s ago.', date_trunc('second', _now() - v_old.last_seen));
        end if;
        perform _give_up_runner(v_old.id, 'another runner took its name');
    end if;
    insert into runners (name, labels, host, slots, version, lease, login, registered_at, last_seen, sandbox, sandbox_trouble)
    values (
        p_name, coalesce(p_labels, '{}'), left(coalesce(p_host, ''), 200), p_slots, coalesce(p_version, ''), p_lease, _caller(), _now(), _now(),
        p_sandbox ->> 'level', left(p_sandbox ->> 'trouble', 2000)
    )
    returning id into v_id;
    perform _note_offers(v_id, p_providers);
    return v_id;
end
$$;
comment on function register_runner(text, integer, text[], jsonb, text, integer, interval, text, jsonb) is
'Makes a runner known and returns its id. providers: [{provider, account, state, models, loaded, version, detail}]; host: where sessions of agents can be resumed; sandbox: {level: strict | container | none, trouble: why it cannot be set up, then nothing is claimed}. Errors: TY001, TY002, TY006, TY008 (the name is in use), TY009 (versions too far apart).';
grant execute on function register_runner(text, integer, text[], jsonb, text, integer, interval, text, jsonb) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function report_sandbox(p_runner bigint, p_trouble text) returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('report on a sandbox');
    perform _require_own_runner(login) from runners where id = p_runner;
    update runners set sandbox_trouble = left(p_trouble, 2000) where id = p_runner and gone_at is null;
end
$$;
comment on function report_sandbox(bigint, text) is 'Says why a runner''s sandbox cannot be set up, so that it gets nothing, or null once it can. Errors: TY006.';
grant execute on function report_sandbox(bigint, text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function hold_runner_lock(p_runner bigint) returns boolean
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('hold a runner''s lock');
    if not exists (select from runners where id = p_runner and gone_at is null) then
        return false;
    end if;
    perform _require_own_runner(login) from runners where id = p_runner;
    if not pg_try_advisory_lock(742100, hashint8(p_runner)) then
        return false;
    end if;
    update runners set locked = true, lock_missed_at = null where id = p_runner;
    return true;
end
$$;
comment on function hold_runner_lock(bigint) is
'Takes the session lock whose loss tells tick() that the runner''s process or host is gone. Only on a direct connection, never through a transaction pooler. False: not registered any more, or the server has not noticed yet that the old connection is dead (try again).';
grant execute on function hold_runner_lock(bigint) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _runner_alive(p_runner runners) returns boolean
language plpgsql volatile
as $$
begin
    if p_runner.last_seen < _now() - p_runner.lease then
        return false;
    end if;
    return not p_runner.locked or not _runner_lock_free(p_runner.id);
end
$$;
comment on function _runner_alive(runners) is 'Unknown is not dead: false only for a free lock or a heartbeat older than the lease.';

create or replace function _runner_lock_free(p_runner bigint) returns boolean
language plpgsql volatile
as $$
begin
    if pg_try_advisory_lock_shared(742100, hashint8(p_runner)) then
        perform pg_advisory_unlock_shared(742100, hashint8(p_runner));
        return true;
    end if;
    return false;
end
$$;
comment on function _runner_lock_free(bigint) is 'Whether nobody holds the runner''s session lock.';

create or replace function _give_up_runner(p_runner bigint, p_why text) returns integer
language plpgsql volatile
as $$
declare
    v_attempt bigint;
    v_count integer := 0;
begin
    update runners set gone_at = _now(), gone_reason = p_why where id = p_runner and gone_at is null;
    for v_attempt in select id from attempts where runner_id = p_runner and outcome is null order by id loop
        v_count := v_count + _take_back(v_attempt, p_why)::integer;
    end loop;
    return v_count;
end
$$;
comment on function _give_up_runner(bigint, text) is 'Declares a runner gone and takes its tasks back; returns how many.';

create or replace function _take_back(p_attempt bigint, p_why text) returns boolean
language plpgsql volatile
as $$
declare
    v_attempt attempts;
begin
    update attempts set outcome = 'crashed', finished_at = _now(), counted = false, evidence = p_why
    where id = p_attempt and finished_at is null
    returning * into v_attempt;
    if not found then
        return false;
    end if;
    perform _charge(array[p_attempt]);
    perform _end_badly(v_attempt, null, format('Attempt %s was lost: %s.', v_attempt.number, p_why), null);
    perform _log(v_attempt.task_id, p_attempt, 'taken_back', jsonb_build_object('why', p_why));
    return true;
end
$$;
comment on function _take_back(bigint, text) is 'Ends an attempt whose worker is lost; from then on its id opens nothing.';

create or replace function retire_runner(p_runner bigint) returns integer
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('retire a runner');
    perform _require_own_runner(login) from runners where id = p_runner;
    return _give_up_runner(p_runner, 'the runner left');
end
$$;
comment on function retire_runner(bigint) is 'A runner leaves; returns how many attempts it still had, which are taken back.';
grant execute on function retire_runner(bigint) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function drain_runner(p_name text, p_draining boolean default true) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('drain a runner');
    perform _require_own_runner(login) from runners where name = p_name and gone_at is null;
    update runners set draining = p_draining where name = p_name and gone_at is null;
    if not found then
        raise exception using
            errcode = 'TY002',
            message = format('There is no runner %s.', left(p_name, 100)),
            hint = 'See: select * from fleet;';
    end if;
    if not p_draining then
        perform _wake_runners();
    end if;
    perform _log(null, null, case when p_draining then 'runner_drained' else 'runner_undrained' end, jsonb_build_object('runner', p_name));
    return format('%s %s', p_name, case when p_draining then 'finishes what it has and claims nothing more' else 'claims again' end);
end
$$;
comment on function drain_runner(text, boolean) is 'Stops a runner from claiming (or lets it claim again); what it runs goes on. Errors: TY002, TY006.';
grant execute on function drain_runner(text, boolean) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
