create or replace function append_transcript(p_attempt bigint, p_events jsonb) returns integer
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_canary boolean;
    v_count integer;
begin
    perform _require_runner('write transcripts');
    perform _require_own_attempt(p_attempt);
    -- Shared with the row that ends the attempt: nothing is appended after its end.
    select canary into v_canary from attempts where id = p_attempt and finished_at is null for key share;
    if not found then
        perform _lost(p_attempt);
    end if;
    insert into transcript (attempt_id, seq, at, kind, body, data)
    select p_attempt, (e ->> 'seq')::integer, coalesce((e ->> 'at')::timestamptz, clock_timestamp()), e ->> 'kind', coalesce(e ->> 'body', ''), nullif(e -> 'data', 'null')
    from jsonb_array_elements(p_events) e
    on conflict do nothing;
    get diagnostics v_count = row_count;
    -- The agent speaks, so its provider answers: no need to hold the others back until a task of hours is done.
    if v_canary and exists (
        select from jsonb_array_elements(p_events) e where e ->> 'kind' in ('text', 'thinking', 'tool_call')
    ) then
        perform _reopen(p_attempt);
    end if;
    return v_count;
end
$$;
comment on function append_transcript(bigint, jsonb) is
'Adds events [{seq, at, kind, body, data}] to an attempt''s transcript and returns how many were new; sending a batch twice does no harm. Errors: TY005, TY006.';
grant execute on function append_transcript(bigint, jsonb) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
