create table artifacts (
    attempt_id bigint not null,
    path text not null,
    kind text not null default 'file',
    task_id bigint not null,
    scope text not null,
    size bigint not null,
    sha256 text not null,
    content bytea,
    created_at timestamptz not null default now(),
    constraint artifacts_pkey primary key (attempt_id, path),
    constraint artifacts_kind_is_known check (kind in ('file', 'diff', 'log', 'commit')),
    constraint artifacts_size_is_not_negative check (size >= 0),
    constraint artifacts_sha256_is_one check (sha256 ~ '^[0-9a-f]{64}$')
);
create index artifacts_task on artifacts (task_id);
comment on table artifacts is 'What attempts left: every file in the directory that the agent finds in TASKYARD_ARTIFACTS.';
comment on column artifacts.path is 'Relative, with slashes.';
comment on column artifacts.content is 'The file itself; null where it is larger than 4 MB. As text: convert_from(content, ''UTF8'').';

create table approvals (
    id bigint generated always as identity primary key,
    task_id bigint references tasks (id) on delete cascade,
    attempt_id bigint,
    scope text not null references scopes (name) on update cascade on delete cascade,
    kind text not null,
    question text not null,
    permissions text[] not null default '{}',
    paths text[] not null default '{}',
    hosts text[] not null default '{}',
    measure text,
    period text,
    asked_at timestamptz not null,
    deadline timestamptz,
    decision text,
    answer text,
    decided_by text,
    decided_at timestamptz,
    bound text,
    constraint approvals_kind_is_known check (kind in ('permission', 'question', 'budget')),
    constraint approvals_decision_is_known check (decision in ('approved', 'denied', 'answered', 'expired', 'withdrawn')),
    constraint approvals_decided_together check ((decision is null) = (decided_at is null)),
    constraint approvals_are_of_a_task_or_a_budget check ((kind = 'budget') = (task_id is null))
);
create index approvals_task on approvals (task_id);
create index approvals_scope on approvals (scope);
create index approvals_pending on approvals (deadline) where decision is null;
comment on table approvals is 'Questions for a human, and what was decided. The open ones are in the view inbox; approve(id), deny(id, why) and answer(id, text) decide.';
comment on column approvals.kind is 'permission (for this task alone), question, or budget (used up: approve adds as much again for this period).';
comment on column approvals.permissions is 'What is asked for: of read, write, execute, network.';
comment on column approvals.paths is 'Directories that the task asks to see.';
comment on column approvals.hosts is 'Hosts that the task asks to reach.';
comment on column approvals.deadline is 'Past it, silence means no.';
comment on column approvals.decision is 'approved, denied, answered, expired (nobody decided in time), or withdrawn (its task ended); null: open.';
comment on column approvals.bound is 'The scope in whose name it was approved: the task never gets more than that scope allows. Null: an administrator''s word, which knows no bound.';
