-- From events to the outbox. The queue push is bound to the topics that some target wants, and to none where there is no target: then
-- events cost nothing. Whoever fetches what is to be sent (next_pushes) first turns what is in the queue into rows of pushes, in the
-- same transaction: an event is one row per target, whatever breaks.

do $$
begin
    if not _pgmq_has('q_push') then
        perform pgmq.create('push');
    end if;
end
$$;

create or replace function _bind_pushes() returns void
language plpgsql volatile
as $$
declare
    v_topic text;
    v_wanted text[] := array(
        select distinct case e when 'question' then 'question.#' else 'task.' || e || '.#' end
        from push_targets t cross join lateral unnest(t.events) e
        where t.enabled
    );
begin
    if not _pgmq_has('topic_bindings') then
        if cardinality(v_wanted) > 0 then
            raise warning 'This pgmq has no topics (they came with 1.11): only digests are sent.';
        end if;
        return;
    end if;
    if not _own_queue('push') then
        return; -- somebody else's, made before this was installed
    end if;
    for v_topic in select b.pattern from pgmq.topic_bindings b where b.queue_name = 'push' and b.pattern <> all(v_wanted) loop
        perform pgmq.unbind_topic(v_topic, 'push');
    end loop;
    foreach v_topic in array v_wanted loop
        perform pgmq.bind_topic(v_topic, 'push');
    end loop;
end
$$;
comment on function _bind_pushes() is 'Binds the queue push to the topics that the targets want.';

create or replace function _push_targets_after_write() returns trigger
language plpgsql
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _bind_pushes();
    return null;
end
$$;
comment on function _push_targets_after_write() is 'Targets came or went: binds the queue push anew.';
create or replace trigger push_targets_after_write
after insert or delete or update of events, enabled on push_targets
for each statement execute function _push_targets_after_write();

create or replace function _publish_question() returns trigger
language plpgsql
as $$
declare
    v_queue text;
begin
    if not _topics_bound() then
        return null;
    end if;
    for v_queue in
        select distinct b.queue_name
        from pgmq.topic_bindings b
        join pg_catalog.pg_class c on c.relname = 'q_' || lower(b.queue_name)
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where replace(_event_topic(new.kind, new.scope), 'task.', 'question.') ~ b.compiled_regex
            and n.nspname = 'pgmq' and has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
        order by b.queue_name
    loop
        begin
            perform pgmq.send(v_queue, jsonb_build_object(
                'approval', new.id, 'kind', new.kind, 'scope', new.scope, 'task', new.task_id, 'at', new.asked_at, 'operation', 'question'
            ));
        exception when others then
            raise warning 'pgmq queue % got no event: %', v_queue, sqlerrm;
        end;
    end loop;
    return null;
end
$$;
comment on function _publish_question() is 'Sends {approval, kind, scope, task, at, operation} to the queues that are bound to question.<kind>.<scope>.';
create or replace trigger approvals_publish after insert on approvals for each row execute function _publish_question();

create or replace function _take_push_events() returns void
language plpgsql volatile
as $$
declare
    r record;
begin
    if not _own_queue('push') then
        return;
    end if;
    for r in select * from pgmq.read('push', 30, 200) order by msg_id loop
        insert into pushes (target, kind, key, task_id, approval_id, created_at, next_try_at)
        select t.name, x.kind, x.key, x.task_id, x.approval_id, _now(), _now()
        from (
            select
                case when r.message ? 'approval' then 'question' else r.message ->> 'status' end as kind,
                case
                    when r.message ? 'approval' then 'question ' || (r.message ->> 'approval')
                    else format('task %s %s %s', r.message ->> 'id', r.message ->> 'status', r.message ->> 'at')
                end as key,
                coalesce(r.message ->> 'task', r.message ->> 'id')::bigint as task_id,
                (r.message ->> 'approval')::bigint as approval_id,
                r.message ->> 'scope' as scope
        ) x
        join effective_scopes s on s.name = x.scope
        join push_targets t on t.scope = any(s.path) and t.enabled and x.kind = any(t.events)
        where
            x.kind = 'question'
            or (
                -- Children are their parents' business; and a flood goes into the digest.
                exists (select from tasks k where k.id = x.task_id and k.parent_id is null)
                and (
                    select count(*) from pushes p
                    where p.target = t.name and p.kind in ('failed', 'completed') and p.created_at > _now() - interval '1 hour'
                ) < t.max_per_hour
            )
        on conflict do nothing;
        perform pgmq.delete('push', r.msg_id);
    end loop;
end
$$;
comment on function _take_push_events() is 'Turns events into rows of pushes, one for each target that wants them.';

create or replace function _digests() returns void
language plpgsql volatile
as $$
declare
    c_every constant interval := interval '1 hour';
    v_target push_targets;
    v_counts jsonb;
begin
    for v_target in select * from push_targets where enabled and digest and digested_at <= _now() - c_every order by name for update skip locked loop
        select jsonb_strip_nulls(jsonb_build_object(
            'completed', nullif(count(*) filter (where t.status = 'completed'), 0),
            'failed', nullif(count(*) filter (where t.status = 'failed'), 0),
            'cancelled', nullif(count(*) filter (where t.status = 'cancelled'), 0)
        )) into v_counts
        from tasks t
        join effective_scopes s on s.name = t.scope
        where v_target.scope = any(s.path) and t.finished_at >= v_target.digested_at and t.finished_at < _now();
        if v_counts <> '{}' then
            v_counts := v_counts || jsonb_strip_nulls(jsonb_build_object(
                'waiting', (
                    select nullif(count(*), 0) from approvals a join effective_scopes s on s.name = a.scope
                    where v_target.scope = any(s.path) and a.decision is null
                ),
                'usd', (
                    select nullif(round(sum(a.cost_usd), 2), 0) from attempts a join effective_scopes s on s.name = a.scope
                    where v_target.scope = any(s.path) and a.finished_at >= v_target.digested_at and a.finished_at < _now()
                )
            ));
            insert into pushes (target, kind, key, counts, created_at, next_try_at)
            values (v_target.name, 'digest', 'digest ' || _now(), v_counts, _now(), _now())
            on conflict do nothing;
        end if;
        update push_targets set digested_at = _now() where name = v_target.name;
    end loop;
end
$$;
comment on function _digests() is 'Once an hour and target, what ended and what waits, as numbers; nothing where nothing ended.';

create or replace function _sweep_pushes() returns void
language plpgsql volatile
as $$
begin
    delete from pushes where created_at < _now() - interval '30 days';
    -- Where nobody fetches, the queue does not grow: the digest will tell.
    if _own_queue('push') then
        delete from pgmq.q_push where enqueued_at < clock_timestamp() - interval '1 day';
    end if;
end
$$;
comment on function _sweep_pushes() is 'Forgets what is old: rows of pushes after 30 days, events that nobody fetched after one.';
