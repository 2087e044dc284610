-- What is counted for monitoring.
create table counters (
    name text not null,
    labels jsonb not null,
    value numeric not null,
    constraint counters_pkey primary key (name, labels)
) with (fillfactor = 70);
comment on table counters is 'Sums over all attempts that ever ended, for the view metrics: tick() adds to them once a minute, and what retention deletes stays counted.';

create table counted (
    only_row boolean primary key default true,
    until timestamptz not null default '-infinity',
    newest bigint not null default 0,
    pending bigint[] not null default '{}',
    constraint counted_has_one_row check (only_row)
) with (fillfactor = 50);
insert into counted default values;
comment on table counted is 'Up to which end of attempts the counters go.';
comment on column counted.newest is 'The highest attempts.id then: what ended since is looked for among the younger ones and the pending.';
comment on column counted.pending is 'attempts.id of those that ran then, or had ended too shortly before to be counted.';
