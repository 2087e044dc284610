create or replace function add_artifact(
    p_attempt bigint,
    p_path text,
    p_size bigint,
    p_sha256 text,
    p_content bytea default null,
    p_kind text default 'file'
) returns void
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_attempt attempts;
begin
    perform _require_runner('add artifacts');
    perform _require_own_attempt(p_attempt);
    select * into v_attempt from attempts where id = p_attempt and finished_at is null for key share;
    if not found then
        perform _lost(p_attempt);
    end if;
    if p_path is null or p_path !~ '^[^/]+(/[^/]+)*$' or p_path ~ '(^|/)[.]{1,2}(/|$)' or p_path ~ '[[:cntrl:]]' or octet_length(p_path) > 4095 then
        raise exception using
            errcode = 'TY001',
            message = 'The artifact''s path is not usable.',
            hint = 'Relative, with slashes, without . and ..';
    end if;
    if p_kind is null or p_kind not in ('file', 'diff', 'log', 'commit') or p_size is null or p_size < 0 or coalesce(p_sha256, '') !~ '^[0-9a-f]{64}$' then
        raise exception using
            errcode = 'TY001',
            message = format('The artifact %s is not described in full.', left(p_path, 100)),
            hint = 'kind is file, diff, log or commit; size is in bytes; sha256 has 64 hexadecimal digits.';
    end if;
    if p_content is not null and (octet_length(p_content) > 4194304 or octet_length(p_content) <> p_size or encode(sha256(p_content), 'hex') <> p_sha256) then
        raise exception using
            errcode = 'TY001',
            message = format('The content of artifact %s does not fit its size or checksum, or is larger than 4 MB.', left(p_path, 100)),
            hint = 'Larger files are noted without their content.';
    end if;
    if (select count(*) from artifacts where attempt_id = p_attempt and path <> p_path) >= 200 then
        raise exception using
            errcode = 'TY004',
            message = 'An attempt leaves 200 artifacts at most.',
            hint = 'Pack them into one file.';
    end if;
    insert into artifacts (attempt_id, path, kind, task_id, scope, size, sha256, content, created_at)
    values (p_attempt, p_path, p_kind, v_attempt.task_id, v_attempt.scope, p_size, p_sha256, p_content, _now())
    on conflict (attempt_id, path) do update
    set kind = excluded.kind, size = excluded.size, sha256 = excluded.sha256, content = excluded.content, created_at = excluded.created_at;
end
$$;
comment on function add_artifact(bigint, text, bigint, text, bytea, text) is
'Keeps a file that an attempt left; a second one of the same path replaces it. Without content where it is larger than 4 MB. Errors: TY001, TY004, TY005, TY006.';
grant execute on function add_artifact(bigint, text, bigint, text, bytea, text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
