create or replace function _mail_for_note(p_task bigint, p_attempt bigint) returns text
language sql stable
as $$ select null::text where p_task = p_attempt $$;
comment on function _mail_for_note(bigint, bigint) is 'Placeholder while the mailboxes are being built.';
