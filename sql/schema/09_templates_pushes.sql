-- Templates of tasks, and the outbox of notifications.
create table templates (
    name text primary key,
    description text,
    task jsonb not null,
    variables text[] not null default '{}',
    created_by text not null default '',
    created_at timestamptz not null default now(),
    constraint templates_name_is_simple check (name ~ '^[[:alnum:]_][[:alnum:]_./-]{0,62}$'),
    constraint templates_task_is_an_object check (jsonb_typeof(task) = 'object')
);
comment on table templates is 'Tasks to begin from: select submit_template(''review'', ''{"branch": "main"}''). The form of taskyard tui offers them.';
comment on column templates.task is 'Columns of the table tasks; {{name}} in a text is a variable, which submit_template() fills in.';
comment on column templates.variables is 'The names of its variables; found by itself.';

create table push_targets (
    name text primary key,
    kind text not null,
    url text not null,
    scope text not null default 'default' references scopes (name) on update cascade on delete cascade,
    events text[] not null default '{question,failed}',
    digest boolean not null default true,
    show_text boolean not null default false,
    answers_url text,
    token_env text,
    max_per_hour integer not null default 30,
    enabled boolean not null default true,
    digested_at timestamptz not null default now(),
    answers_since text,
    constraint push_targets_name_is_simple check (name ~ '^[[:alnum:]_][[:alnum:]_.-]{0,62}$'),
    constraint push_targets_kind_is_known check (kind in ('ntfy', 'webhook')),
    constraint push_targets_url_is_one check (url ~ '^https?://[^/[:space:]@]+(/[^[:space:]]*)?$' and (kind = 'webhook' or url ~ '^https?://[^/]+/[^/?#]+(/[^/?#]+)*$')),
    constraint push_targets_answers_url_is_one check (answers_url is null or (kind = 'ntfy' and answers_url ~ '^https?://[^/[:space:]@]+/[^/?#[:space:]]+(/[^/?#[:space:]]+)*$')),
    constraint push_targets_events_are_known check (events <@ '{question,failed,completed}'::text[]),
    constraint push_targets_token_env_is_a_name check (token_env ~ '^[A-Za-z_][A-Za-z0-9_]*$'),
    constraint push_targets_max_per_hour_in_range check (max_per_hour between 1 and 10000)
);
create index push_targets_scope on push_targets (scope);
comment on table push_targets is 'Where news goes: a topic of an ntfy server, or any address that takes JSON by POST. taskyard notify brings it there.';
comment on column push_targets.url is 'ntfy: the address of the topic. Without a password; see token_env.';
comment on column push_targets.scope is 'Only what happens in this scope and below it.';
comment on column push_targets.events is 'Of question (somebody has to decide), failed and completed (tasks without a parent).';
comment on column push_targets.digest is 'Once an hour what ended and what waits, in numbers; nothing where nothing happened.';
comment on column push_targets.show_text is 'Whether prompts, questions, results and errors may be sent. Else only ids, scopes and counts leave the database.';
comment on column push_targets.answers_url is 'ntfy: another topic, which the buttons Approve and Deny post to. Null: no buttons. Whoever can read the first topic can press them; they allow no more than this target''s scope allows.';
comment on column push_targets.token_env is 'The variable of the environment of taskyard notify that holds the access token.';
comment on column push_targets.max_per_hour is 'More tasks than this are counted in the digest only. Questions always come.';
comment on column push_targets.answers_since is 'The last message of the answers that was read.';

create table pushes (
    id bigint generated always as identity primary key,
    target text not null references push_targets (name) on update cascade on delete cascade,
    kind text not null,
    key text not null,
    task_id bigint,
    approval_id bigint,
    counts jsonb,
    created_at timestamptz not null,
    tries integer not null default 0,
    next_try_at timestamptz,
    delivered_at timestamptz,
    receipt text,
    last_error text,
    constraint pushes_once unique (target, key),
    constraint pushes_kind_is_known check (kind in ('question', 'failed', 'completed', 'digest')),
    constraint pushes_tries_is_not_negative check (tries >= 0)
);
create index pushes_due on pushes (next_try_at) where next_try_at is not null;
create index pushes_recent on pushes (target, created_at);
comment on table pushes is 'What is to be sent and what was: delivered at least once, and marked so only when the other side had said yes. Kept for 30 days.';
comment on column pushes.tries is 'How often it was sent; also what a report has to name, so that a late one changes nothing.';
comment on column pushes.next_try_at is 'When it is sent (again); null: delivered, or given up after a day, or overtaken (last_error says which).';
comment on column pushes.receipt is 'What the other side called it, or its status.';

create table push_secret (
    secret text not null default gen_random_uuid()::text || gen_random_uuid()::text
);
comment on table push_secret is 'What the buttons of pushes are signed with. One row, which nobody but the yard reads.';

create type push as (
    id bigint,
    try integer,
    target text,
    target_kind text,
    url text,
    token_env text,
    body jsonb
);
comment on type push is 'Something to send, as next_pushes() gives it out.';
