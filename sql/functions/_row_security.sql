-- Row-level security: who is bound to some scopes (see _reach.sql) neither sees nor writes anything of the others, in whatever
-- words it asks. Verbs run as the owner, whom these policies do not concern, and look at the scope themselves.
-- The functions are asked once per query (a subselect is an init plan), not once per row.

do $$
declare
    v_table text;
    v_rule text;
begin
    for v_table, v_rule in
        select * from (values
            ('tasks', 'scope = any((select _my_scopes())::text[])'),
            ('attempts', 'scope = any((select _my_scopes())::text[])'),
            ('artifacts', 'scope = any((select _my_scopes())::text[])'),
            ('approvals', 'scope = any((select _my_scopes())::text[])'),
            ('lanes', 'scope = any((select _my_scopes())::text[])'),
            ('scopes', 'name = any((select _my_scopes())::text[])'),
            ('effective_scopes', 'name = any((select _my_scopes())::text[])'),
            ('budgets', 'scope = any((select _my_scopes())::text[])'),
            ('usage_daily', 'scope = any((select _my_scopes())::text[])'),
            ('usage_charges', 'scope = any((select _my_scopes())::text[])'),
            ('scope_grants', 'scope = any((select _my_scopes())::text[])'),
            ('routing_rules', 'scope is null or scope = any((select _my_scopes())::text[])'),
            ('provider_limits', 'false'),
            ('runner_providers', 'false'),
            ('transcript', 'exists (select from attempts a where a.id = attempt_id)'),
            ('task_events', 'exists (select from tasks t where t.id = task_id)'),
            ('ready_tasks', 'exists (select from tasks t where t.id = task_id)'),
            ('scheduled_tasks', 'exists (select from tasks t where t.id = task_id)'),
            ('waits', 'exists (select from tasks t where t.id = task_id)'),
            ('child_counts', 'exists (select from tasks t where t.id = task_id)'),
            ('checkpoints', 'exists (select from tasks t where t.id = task_id)'),
            ('handoffs', 'exists (select from tasks t where t.id = task_id)'),
            ('verifications', 'exists (select from tasks t where t.id = task_id)'),
            ('rejected_submissions', 'login = (select _caller())'),
            ('templates', $r$coalesce(task ->> 'scope', '') = any((select _my_scopes())::text[] || ''::text)$r$),
            ('schedules', 'scope = any((select _my_scopes())::text[])'),
            ('counters', 'false'),
            ('counted', 'false'),
            ('archived_tasks', 'scope = any((select _my_scopes())::text[])'),
            ('push_targets', 'scope = any((select _my_scopes())::text[])'),
            ('pushes', 'exists (select from push_targets t where t.name = target)'),
            ('task_dependencies', 'exists (select from tasks t where t.id = task_id)'),
            ('workspace_holders', 'exists (select from tasks t where t.id = task_id)'),
            ('workspace_waits', 'exists (select from tasks t where t.id = task_id)')
        ) r (name, rule)
    loop
        execute format('alter table taskyard.%I enable row level security', v_table);
        execute format('drop policy if exists in_reach on taskyard.%I', v_table);
        execute format('create policy in_reach on taskyard.%I for select using ((select _sees_all()) or %s)', v_table, v_rule);
    end loop;
    -- Writing: administrators everywhere, submitters the tasks of their scopes (the row trigger refuses others with a sentence).
    foreach v_table in array array['scopes', 'budgets', 'routing_rules', 'provider_limits', 'attempts', 'transcript', 'task_events', 'artifacts', 'checkpoints', 'handoffs', 'verifications', 'rejected_submissions', 'templates', 'push_targets', 'pushes', 'schedules', 'archived_tasks'] loop
        execute format('drop policy if exists administration on taskyard.%I', v_table);
        execute format('create policy administration on taskyard.%I to taskyard_admin using (true) with check (true)', v_table);
    end loop;
end
$$;

drop policy if exists written_in_reach on tasks;
create policy written_in_reach on tasks for insert with check ((select _sees_all()) or scope = any((select _my_scopes())::text[]));
drop policy if exists edited_in_reach on tasks;
create policy edited_in_reach on tasks for update
using ((select _sees_all()) or scope = any((select _my_scopes())::text[]))
with check ((select _sees_all()) or scope = any((select _my_scopes())::text[]));
drop policy if exists deleted_by_administrators on tasks;
create policy deleted_by_administrators on tasks for delete to taskyard_admin using (true);

-- Schedules are written by who works in their scope, too; the row trigger refuses others with a sentence.
drop policy if exists written_in_reach on schedules;
create policy written_in_reach on schedules to taskyard_submitter
using ((select _sees_all()) or scope = any((select _my_scopes())::text[]))
with check ((select _sees_all()) or scope = any((select _my_scopes())::text[]));
