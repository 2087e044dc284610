create or replace function submit_template(p_name text, p_variables jsonb default '{}', p_task jsonb default '{}') returns bigint
language plpgsql volatile
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_task jsonb;
    v_told tasks;
begin
    perform _require_role('taskyard_submitter', 'submit tasks');
    v_task := filled_template(p_name, p_variables, p_task);
    v_told := jsonb_populate_record(null::tasks, jsonb_strip_nulls(v_task - 'payload' - 'output_schema'));
    return submit_task(
        v_told.prompt, coalesce(v_told.agent, 'default'), coalesce(v_told.scope, 'default'), coalesce(v_told.priority, 0), v_told.run_at,
        coalesce(v_told.depends_on, '{}'), nullif(v_task -> 'payload', 'null'), v_told.workspace, coalesce(v_told.requires, '{}'),
        v_told.provider, v_told.model, v_told.dedupe_key, v_told.max_attempts, v_told.timeout, null,
        coalesce(v_told.on_dependency_failure, 'fail'), coalesce(v_told.on_limit, 'switch'), v_told.verify,
        nullif(v_task -> 'output_schema', 'null'), v_told.repository, v_told.base, v_told.push_to
    );
end
$$;
comment on function submit_template(text, jsonb, jsonb) is
'Inserts a task from a template and returns its id: variables fill {{name}} in its texts, p_task overrules its columns. Errors: TY001, TY002, TY006.';

create or replace function filled_template(p_name text, p_variables jsonb default '{}', p_task jsonb default '{}') returns jsonb
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_template templates;
begin
    perform _require_role('taskyard_submitter', 'submit tasks');
    select * into v_template from templates t where t.name = p_name;
    if not found or not (v_template.task ->> 'scope' is null or _in_reach(v_template.task ->> 'scope')) then
        raise exception using
            errcode = 'TY002',
            message = format('There is no template "%s".', left(coalesce(p_name, ''), 100)),
            hint = 'See: select name, description from templates;';
    elsif jsonb_typeof(p_variables) is distinct from 'object' then
        raise exception using
            errcode = 'TY001',
            message = 'Variables are a JSON object.',
            hint = 'For example: {"branch": "main"}';
    end if;
    perform _told_task(p_task);
    return _filled(v_template, p_variables) || p_task;
end
$$;
comment on function filled_template(text, jsonb, jsonb) is 'The task that submit_template() would insert, as JSON. Errors: TY001, TY002, TY006.';
grant execute on function submit_template(text, jsonb, jsonb), filled_template(text, jsonb, jsonb)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _filled(p_template templates, p_variables jsonb) returns jsonb
language plpgsql stable
as $$
declare
    v_missing text;
begin
    select string_agg(w, ', ') into v_missing from unnest(p_template.variables) w where not p_variables ? w;
    if v_missing is not null then
        raise exception using
            errcode = 'TY001',
            message = format('Template %s wants a value for %s.', p_template.name, v_missing),
            hint = format('Give all of them: %s', (select jsonb_object_agg(w, '...') from unnest(p_template.variables) w));
    end if;
    select string_agg(k, ', ') into v_missing from jsonb_object_keys(p_variables) k where k <> all(p_template.variables);
    if v_missing is not null then
        raise exception using
            errcode = 'TY001',
            message = format('Template %s has no variable %s.', p_template.name, left(v_missing, 200)),
            hint = format('It has: %s.', coalesce(nullif(array_to_string(p_template.variables, ', '), ''), 'none'));
    end if;
    return _filled_texts(p_template.task, p_variables);
end
$$;
comment on function _filled(templates, jsonb) is 'The task of a template, filled. Raises TY001 where a variable is missing or unknown.';

create or replace function _filled_texts(p_task jsonb, p_variables jsonb) returns jsonb
language plpgsql stable
as $$
declare
    v_task jsonb;
    v_key text;
    v_text text;
begin
    v_task := p_task;
    for v_key, v_text in select e.key, e.value #>> '{}' from jsonb_each(p_task) e where jsonb_typeof(e.value) = 'string' loop
        -- In one pass: what a value says is never taken for a variable.
        v_task := jsonb_set(v_task, array[v_key], to_jsonb(coalesce((
            select string_agg(
                case when p.part ~ '^\{\{ *\w+ *\}\}$' then coalesce(p_variables ->> btrim(p.part, '{} '), p.part) else p.part end, '' order by p.place
            )
            from (
                select m[1] as part, place from regexp_matches(v_text, '(\{\{ *\w+ *\}\}|(?:(?!\{\{ *\w+ *\}\}).)+)', 'g') with ordinality x (m, place)
            ) p
        ), '')));
    end loop;
    return v_task;
end
$$;
comment on function _filled_texts(jsonb, jsonb) is 'The texts of a task with {{name}} filled in; what is no variable stays.';

create or replace function _variables(p_task jsonb) returns text[]
language sql stable
as $$
    select array(
        select distinct m[1]
        from jsonb_each(p_task) e
        cross join lateral regexp_matches(e.value #>> '{}', '\{\{ *(\w+) *\}\}', 'g') m
        where jsonb_typeof(e.value) = 'string'
        order by 1
    )
$$;
comment on function _variables(jsonb) is 'The names of the variables in the texts of a task, sorted.';

create or replace function _check_template() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _told_task(new.task);
    new.variables := _variables(new.task);
    if tg_op = 'INSERT' and new.created_by = '' then
        new.created_by := _caller();
    end if;
    return new;
end
$$;
comment on function _check_template() is 'Finds the variables of a template, and refuses one that no task can be made of. Raises TY001.';
create or replace trigger templates_check before insert or update on templates for each row execute function _check_template();
