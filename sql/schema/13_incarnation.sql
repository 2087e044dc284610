-- Which server this database is in, so that it notices when it has become another one.
create table incarnation (
    only_row boolean primary key default true,
    system_identifier bigint,
    database oid,
    timeline text,
    restored_at timestamptz,
    constraint incarnation_has_one_row check (only_row)
);
insert into incarnation default values;
comment on table incarnation is 'The server, database and timeline in which attempts were handed out. Where they are others, this is a restored backup or a copy, and no attempt of before is accepted.';
comment on column incarnation.restored_at is 'When that was last noticed, or said by after_restore().';
