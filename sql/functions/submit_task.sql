create or replace function submit_task(
    p_prompt text,
    p_agent text default 'default',
    p_scope text default 'default',
    p_priority integer default 0,
    p_run_at timestamptz default null,
    p_depends_on bigint[] default '{}',
    p_payload jsonb default null,
    p_workspace text default null,
    p_requires text[] default '{}',
    p_provider text default null,
    p_model text default null,
    p_dedupe_key text default null,
    p_max_attempts integer default null,
    p_timeout interval default null,
    p_parent_id bigint default null,
    p_on_dependency_failure text default 'fail',
    p_on_limit text default 'switch',
    p_verify text default null,
    p_output_schema jsonb default null,
    p_repository text default null,
    p_base text default null,
    p_push_to text default null
) returns bigint
language plpgsql volatile
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_id bigint;
begin
    perform _require_role('taskyard_submitter', 'submit tasks');
    insert into tasks (
        prompt, agent, scope, priority, run_at, depends_on, payload, workspace, requires, provider, model, dedupe_key,
        max_attempts, timeout, parent_id, on_dependency_failure, on_limit, verify, output_schema,
        repository, base, push_to
    )
    values (
        p_prompt, p_agent, p_scope, p_priority, p_run_at, p_depends_on, p_payload, p_workspace, p_requires, p_provider,
        p_model, p_dedupe_key, p_max_attempts, p_timeout, p_parent_id, p_on_dependency_failure, p_on_limit, p_verify,
        p_output_schema, p_repository, p_base, p_push_to
    )
    on conflict (dedupe_key) where dedupe_key is not null do nothing
    returning id into v_id;
    if v_id is null then
        select id into v_id from tasks where dedupe_key = p_dedupe_key;
        if v_id is null then
            raise exception using
                errcode = 'TY004',
                message = 'This dedupe_key is taken.',
                hint = 'By a task in a scope that is not yours: use another key.';
        end if;
    end if;
    return v_id;
end
$$;
comment on function submit_task(
    text, text, text, integer, timestamptz, bigint[], jsonb, text, text[], text, text, text, integer, interval, bigint, text, text, text, jsonb,
    text, text, text
) is 'Inserts a task and returns its id; with a dedupe_key that is taken, the id of the task that has it. Errors: TY001, TY002, TY006.';
grant execute on function submit_task(
    text, text, text, integer, timestamptz, bigint[], jsonb, text, text[], text, text, text, integer, interval, bigint, text, text, text, jsonb,
    text, text, text
) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
grant execute on function _caller(), _require_role(text, text) to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;
