-- Events: each change of a task's status goes to the pgmq queues that are bound to its topic, task.<status>.<scope>, in the transaction
-- that made it. Whoever has to know of every change reads such a queue; NOTIFY is only a hint.
-- What is wrong with a subscriber's queue costs the subscriber its events, never the yard a claim or an ending.

create or replace function _pgmq_has(p_table text) returns boolean
language sql stable
as $$
    -- From the catalog: whoever names a table that is gone, or a schema that is closed to it, gets an error and no answer. An
    -- extension that was dropped and created again is both, and older versions of pgmq have no topics.
    select exists (
        select from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'pgmq' and c.relname = p_table
            and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
    )
$$;
comment on function _pgmq_has(text) is 'Whether pgmq has this table and lets us read it.';

create or replace function _own_queue(p_queue text) returns boolean
language sql stable
as $$
    select exists (
        select from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'pgmq' and c.relname = 'q_' || p_queue and c.relowner = 'taskyard_owner'::regrole and has_schema_privilege(n.oid, 'usage')
    )
$$;
comment on function _own_queue(text) is 'Whether there is a pgmq queue of this name that is Taskyard''s own.';

create or replace function _topics_bound() returns boolean
language plpgsql stable
as $$
begin
    if not _pgmq_has('topic_bindings') then
        return false;
    end if;
    return exists (select from pgmq.topic_bindings);
end
$$;
comment on function _topics_bound() is 'Whether any queue is bound to any topic.';

create or replace function _event_topic(p_status text, p_scope text) returns text
language sql immutable
as $$ select 'task.' || p_status || '.' || rtrim(regexp_replace(p_scope, '[./]+', '.', 'g'), '.') $$;
comment on function _event_topic(text, text) is 'The routing key of an event: the scope''s slashes are dots, since pgmq allows no others between words and no two in a row.';

create or replace function _publish(p_operation text, p_ids bigint[]) returns void
language plpgsql volatile
as $$
declare
    v_status task_status;
    v_scope text;
    v_queue text;
begin
    for v_status, v_scope in select t.status, t.scope from tasks t where t.id = any(p_ids) group by t.status, t.scope order by t.scope, t.status loop
        for v_queue in
            select distinct b.queue_name
            from pgmq.topic_bindings b
            join pg_catalog.pg_class c on c.relname = 'q_' || lower(b.queue_name)
            join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where _event_topic(v_status::text, v_scope) ~ b.compiled_regex
                and n.nspname = 'pgmq' and has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
            order by b.queue_name
        loop
            begin
                perform pgmq.send_batch(v_queue, array(
                    select jsonb_build_object(
                        'id', t.id, 'status', t.status, 'scope', t.scope, 'agent', t.agent, 'parent_id', t.parent_id, 'at', _now(), 'operation', p_operation
                    )
                    from tasks t
                    where t.id = any(p_ids) and t.status = v_status and t.scope = v_scope
                    order by t.id
                ));
            exception when others then
                raise warning 'pgmq queue % got no event: %', v_queue, sqlerrm;
            end;
        end loop;
    end loop;
end
$$;
comment on function _publish(text, bigint[]) is
'Sends {id, status, scope, agent, parent_id, at, operation} of these tasks, as they are now, once to each queue that is bound to their topic.';
