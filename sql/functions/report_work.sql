-- What runners and agents tell of work under way, and the proof at its end.

create or replace function report_work(p_attempt bigint, p_branch text, p_commit text) returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('report work');
    perform _require_own_attempt(p_attempt);
    if coalesce(p_commit, '') !~ '^[0-9a-f]{40,64}$' or coalesce(p_branch, '') = '' or octet_length(p_branch) > 500 then
        raise exception using
            errcode = 'TY001',
            message = 'Work is reported with a branch and a commit.',
            hint = 'The commit is its whole id in hexadecimal digits.';
    end if;
    update attempts set branch = p_branch, commit_id = p_commit where id = p_attempt and finished_at is null;
    if not found then
        perform _lost(p_attempt);
    end if;
end
$$;
comment on function report_work(bigint, text, text) is
'Notes the branch and the commit that hold an attempt''s work, in the repository of its task. Errors: TY001, TY005, TY006.';

create or replace function report_progress(p_attempt bigint, p_progress real default null, p_doing text default null) returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_runner('report progress');
    perform _require_own_attempt(p_attempt);
    if p_progress not between 0 and 1 or (p_progress is null and btrim(coalesce(p_doing, '')) = '') then
        raise exception using
            errcode = 'TY001',
            message = 'Progress is a number from 0 to 1, or a text.',
            hint = 'For example 0.4 and "tests run".';
    end if;
    update attempts
    set progress = coalesce(p_progress, progress), doing = coalesce(left(nullif(btrim(p_doing), ''), 500), doing), progress_at = _now()
    where id = p_attempt and finished_at is null;
    if not found then
        perform _lost(p_attempt);
    end if;
end
$$;
comment on function report_progress(bigint, real, text) is
'An agent says how far it is, from 0 to 1, and what it is doing (500 characters are kept). Errors: TY001, TY005, TY006.';

create or replace function report_verification(
    p_attempt bigint, p_passed boolean, p_exit_code integer, p_output_tail text, p_duration interval, p_commit text default null
) returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_attempt attempts;
begin
    perform _require_runner('report verifications');
    perform _require_own_attempt(p_attempt);
    v_attempt := _live_attempt(p_attempt);
    if v_attempt.verify is null or p_passed is null or p_duration is null or (p_passed and p_exit_code is distinct from 0) then
        raise exception using
            errcode = 'TY001',
            message = format('Attempt %s of task %s was not verified so.', v_attempt.number, v_attempt.task_id),
            hint = 'Only a claim with a verify command is, by that very command, and it passes with exit code 0.';
    end if;
    insert into verifications (attempt_id, task_id, command, passed, exit_code, output_tail, duration, commit_id, verified_at)
    values (p_attempt, v_attempt.task_id, v_attempt.verify, p_passed, p_exit_code, right(coalesce(p_output_tail, ''), 20000), p_duration, p_commit, _now())
    on conflict (attempt_id) do nothing;
end
$$;
comment on function report_verification(bigint, boolean, integer, text, interval, text) is
'Notes what the command said that proves the work; the first word counts. An attempt with such a command completes only after one that passed. Errors: TY001, TY005, TY006.';
grant execute on function report_work(bigint, text, text), report_progress(bigint, real, text),
report_verification(bigint, boolean, integer, text, interval, text)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _failed_proof(p_task bigint, p_since bigint) returns text
language sql stable
as $$
    select format(
        E'Your work was checked and did not pass.\nThe command: %s\nIts exit code: %s\nThe end of what it printed:\n%s\nMend the work (the command stays as it is), then end your turn: it will be run again.',
        v.command, coalesce(v.exit_code::text, 'none, it was stopped'), right(v.output_tail, 8000)
    )
    from (
        select x.* from taskyard.verifications x where x.task_id = p_task and x.attempt_id >= p_since order by x.attempt_id desc limit 1
    ) v
    where not v.passed
$$;
comment on function _failed_proof(bigint, bigint) is 'What the check of a task''s work said, in this attempt or later, for the agent; null where it passed or was not run.';
