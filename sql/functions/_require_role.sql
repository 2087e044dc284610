create or replace function _require_role(p_role text, p_doing text) returns void
language plpgsql stable
as $$
begin
    if not pg_has_role(_caller()::name, p_role, 'usage') then
        raise exception using
            errcode = 'TY006',
            message = format('%s may not %s.', _caller(), p_doing),
            hint = format('An administrator can allow it: grant %s to %I;', p_role, _caller());
    end if;
end
$$;
comment on function _require_role(text, text) is 'Raises TY006 unless the caller has the role.';

-- What a runner does begins here, but for claim_task() and complete_task(), which ask themselves, and for what only reads.
create or replace function _require_runner(p_doing text) returns void
language plpgsql volatile
as $$
begin
    perform _require_role('taskyard_runner', p_doing);
    if coalesce(current_setting('taskyard.same_yard', true), '') <> 'yes' then
        perform _same_yard();
    end if;
end
$$;
comment on function _require_runner(text) is 'Raises TY006 unless the caller is a runner; notices a restored database.';
