-- A task that somebody worked on before: the same session goes on where that is possible, else the next agent gets a note.

create or replace function _pick_up(p_claim claim, p_runner bigint) returns claim
language plpgsql volatile
as $$
declare
    v_claim claim := p_claim;
    v_last attempts;
    v_worked attempts;
    v_spoke bigint;
begin
    select * into v_last from attempts a
    where a.task_id = p_claim.task_id and a.id <> p_claim.attempt_id and a.agent <> 'auto'
    order by a.id desc limit 1;
    -- Attempts that never got an answer (a limit at the first request) left nothing to pick up.
    select * into v_worked from attempts a
    where a.task_id = p_claim.task_id and a.id <> p_claim.attempt_id and a.agent <> 'auto'
        and (
            exists (select from transcript x where x.attempt_id = a.id and x.kind in ('text', 'thinking', 'tool_call'))
            -- Killed before its first words were stored: what it began is in its session all the same.
            or (a.session_id is not null and a.outcome in ('crashed', 'cancelled', 'timed_out', 'stalled'))
        )
    order by a.id desc limit 1;
    v_claim := _with_grants(v_claim);
    select a.branch into v_claim.branch from attempts a
    where a.task_id = any(p_claim.task_id || _handed_on(p_claim.task_id)) and a.branch is not null
    order by a.id desc limit 1;
    if v_worked.id is null then
        v_claim.note := _news(p_claim, 0);
        return _take_over(v_claim);
    end if;
    if v_worked.session_id is not null and v_worked.provider = p_claim.provider and v_worked.account = p_claim.account
        and _session_alive(v_worked) and (select host from runners where id = v_worked.runner_id) = (select host from runners where id = p_runner) then
        v_claim.session_id := v_worked.session_id;
        select jsonb_strip_nulls(jsonb_build_object(
            'input_tokens', sum(a.input_tokens), 'cached_tokens', sum(a.cached_tokens), 'output_tokens', sum(a.output_tokens),
            'turns', sum(a.turns), 'cost_usd', sum(a.cost_usd) filter (where not a.cost_estimated)
        ))
        into v_claim.session_usage
        from attempts a where a.task_id = p_claim.task_id and a.session_id = v_worked.session_id;
        -- What came for an attempt that was killed before it said a word comes again.
        select max(a.id) into v_spoke from attempts a
        where a.task_id = p_claim.task_id and a.id <> p_claim.attempt_id
            and exists (select from transcript x where x.attempt_id = a.id and x.kind in ('text', 'thinking', 'tool_call'));
        v_claim.note := coalesce(_news(p_claim, coalesce(v_spoke, 0)), format('You were interrupted: %s', _why_ended(v_last)));
        v_claim.files_of := (_take_over(v_claim)).files_of;
        return v_claim;
    end if;
    v_claim.note := concat_ws(
        E'\n', _handoff_note(p_claim, p_runner, v_worked, v_last), _news(p_claim, 0),
        'It saved a checkpoint: ' || left((_last_checkpoint(p_claim.task_id) - '{task,attempt}'::text[])::text, 4000)
    );
    return _take_over(v_claim);
end
$$;
comment on function _pick_up(claim, bigint) is 'Adds to a claim that is not the task''s first what humans allowed and answered, and the session to resume or a note on the work so far.';

create or replace function _news(p_claim claim, p_since bigint) returns text
language sql volatile
as $$
    select nullif(concat_ws(
        E'\n\n',
        taskyard._decisions(p_claim.task_id, p_since),
        taskyard._awaited(p_claim.task_id, p_since),
        taskyard._failed_proof(p_claim.task_id, p_since),
        taskyard._mail_for_note(p_claim.task_id, p_claim.attempt_id, p_since)
    ), '')
$$;
comment on function _news(claim, bigint) is 'What came for an agent while it did not run: decisions, results that it waited for, the check of its work, mail; null: nothing. The mail is taken out of the mailbox.';

create or replace function _session_alive(p_attempt attempts) returns boolean
language sql stable
as $$
    select p_attempt.outcome not in ('session_lost', 'context_overflow')
        and not exists (
            select from taskyard.attempts a
            where a.task_id = p_attempt.task_id and a.id > p_attempt.id and a.outcome = 'session_lost'
        )
$$;
comment on function _session_alive(attempts) is 'Whether the session of an ended attempt may still be resumed.';

create or replace function _why_ended(p_attempt attempts) returns text
language sql stable
as $$
    select coalesce(left(nullif(t.error, ''), 500), p.meaning)
    from taskyard.tasks t, taskyard.outcome_policies p
    where t.id = p_attempt.task_id and p.outcome = p_attempt.outcome::text
$$;
comment on function _why_ended(attempts) is 'Why the task''s last attempt ended, for its successor.';

create or replace function _handoff_note(p_claim claim, p_runner bigint, p_worked attempts, p_last attempts) returns text
language plpgsql stable
as $$
declare
    v_here boolean;
    v_host text;
begin
    select o.host = n.host, o.host into v_here, v_host
    from runners o, runners n where o.id = p_worked.runner_id and n.id = p_runner;
    return concat_ws(
        E'\n',
        format('Note: you take over. Attempt %s by %s worked on this task before you and ended: %s', p_worked.number, p_worked.provider, _why_ended(p_last)),
        case
            when p_claim.workspace is not null then 'What it did to files is in the working directory; look at that first.'
            when v_here then 'Its files are in the working directory; look at them first.'
            else format('Its files are on %s and not here; do over what is missing.', coalesce(nullif(v_host, ''), 'another host'))
        end,
        _work_so_far(p_worked)
    );
end
$$;
comment on function _handoff_note(claim, bigint, attempts, attempts) is 'What the agent before did, in at most some 6,000 characters, by rule from its transcript.';

create or replace function _work_so_far(p_attempt attempts) returns text
language plpgsql stable
as $$
declare
    c_said constant integer := 3000; -- characters
    c_steps constant integer := 15;
    v_commit text;
    v_said text;
    v_steps text;
begin
    select left(x.body, 300) into v_commit from transcript x
    where x.attempt_id = p_attempt.id and x.kind = 'note' and x.data ? 'commit'
    order by x.seq desc limit 1;
    select right(string_agg(s.body, E'\n' order by s.seq), c_said) into v_said
    from (
        select x.seq, x.body from transcript x where x.attempt_id = p_attempt.id and x.kind = 'text' order by x.seq desc limit 10
    ) s;
    select string_agg('- ' || s.body, E'\n' order by s.seq) into v_steps
    from (
        select x.seq, left(x.body, 200) as body from transcript x
        where x.attempt_id = p_attempt.id and x.kind = 'tool_call' order by x.seq desc limit c_steps
    ) s;
    return concat_ws(
        E'\n', v_commit, E'Its last steps:\n' || v_steps, E'What it said last:\n' || v_said
    );
end
$$;
comment on function _work_so_far(attempts) is 'An attempt''s commit, last steps and last words, by rule from its transcript.';
