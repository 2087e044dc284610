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
