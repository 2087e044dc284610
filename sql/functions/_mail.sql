-- Mail: a pgmq queue for each task that was ever written to, mail_<id>, made for the first message. What was read stays in it, hidden, so
-- that it can be told again to an attempt whose session does not know of it; the mailbox goes a day after its task has ended.
-- Whoever sends or reads holds the row of the task: then tasks.has_mail always says whether something is unread, and whoever
-- completes the task sees it.

create or replace function _mailbox(p_task bigint) returns text
language sql immutable
as $$ select 'mail_' || p_task $$;
comment on function _mailbox(bigint) is 'The name of a task''s pgmq queue.';

create or replace function send_message(p_attempt bigint, p_task bigint, p_text text) returns bigint
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    c_most constant integer := 60;
    c_most_to_one constant integer := 200;
    v_attempt attempts;
    v_task tasks;
    v_id bigint;
begin
    perform _require_runner('send messages');
    perform _require_own_attempt(p_attempt);
    -- The attempt's row is not locked: who holds the rows of two tasks' attempts and tasks could wait for each other, as where a
    -- runner is given up with all its attempts at once.
    select * into v_attempt from attempts where id = p_attempt and finished_at is null;
    if not found then
        perform _lost(p_attempt);
    end if;
    perform _check_message(p_text);
    perform pg_advisory_xact_lock(742113, hashint8(p_attempt)); -- else two at once would both be the sixtieth
    if (
        select count(*) from task_events e
        where e.task_id = v_attempt.task_id and e.attempt_id = p_attempt and e.kind = 'message_sent' and e.at > clock_timestamp() - interval '1 minute'
    ) >= c_most then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s has sent %s messages within a minute.', v_attempt.task_id, c_most),
            hint = 'Say more in fewer messages, or go on and tell the rest later.';
    end if;
    -- Each message may wake an agent who answers it: two that thank each other have to come to an end.
    if (
        select count(*) from task_events e
        where e.task_id = v_attempt.task_id and e.kind = 'message_sent' and e.detail ->> 'to' = p_task::text
    ) >= c_most_to_one then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s has sent %s messages to task %s.', v_attempt.task_id, c_most_to_one, p_task),
            hint = 'That is all it may: end with a result, or ask_human().';
    end if;
    if not _may_write_to(v_attempt, p_task) then
        raise exception using
            errcode = 'TY006',
            message = format('Task %s may not write to task %s.', v_attempt.task_id, coalesce(p_task::text, 'null')),
            hint = 'It may write to its children, parents and siblings, and to tasks of its scope or below.';
    end if;
    select * into v_task from tasks where id = p_task for no key update;
    v_id := _deliver(v_task, format('task %s', v_attempt.task_id), p_text);
    perform _log(v_attempt.task_id, p_attempt, 'message_sent', jsonb_build_object('to', p_task, 'message', v_id));
    return v_id;
end
$$;
comment on function send_message(bigint, bigint, text) is
'An agent writes to another task: of its family, of its scope or of one below. At most 100,000 bytes, 60 messages a minute, 200 in all to one task, 1,000 unread in a mailbox. Returns the message''s id. Errors: TY001, TY004, TY005, TY006, TY009.';

create or replace function read_messages(p_attempt bigint, p_max integer default 20) returns jsonb
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    c_characters constant integer := 200000;
    v_attempt attempts;
begin
    perform _require_runner('read messages');
    perform _require_own_attempt(p_attempt);
    if p_max is null or p_max not between 1 and 100 then
        raise exception using
            errcode = 'TY001',
            message = format('Cannot read %s messages at once.', coalesce(p_max::text, 'null')),
            hint = 'Ask for 1 to 100.';
    end if;
    v_attempt := _live_attempt(p_attempt);
    return _take_mail(v_attempt.task_id, p_attempt, p_max, c_characters);
end
$$;
comment on function read_messages(bigint, integer) is
'What others wrote to the attempt''s task and nobody has read, oldest first: [{id, from, text, at}]; from is "task 17" or a login. Reading takes them out of the mailbox. At most so many, and no more than 200,000 characters at once. Errors: TY001, TY005, TY006.';
grant execute on function send_message(bigint, bigint, text), read_messages(bigint, integer)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _check_message(p_text text) returns void
language plpgsql stable
as $$
begin
    if p_text is null or p_text !~ '[^[:space:]]' or octet_length(p_text) > 100000 then
        raise exception using
            errcode = 'TY001',
            message = 'A message has 1 to 100,000 bytes.',
            hint = 'Put more than that into files, and name them.';
    end if;
end
$$;
comment on function _check_message(text) is 'Raises TY001 for a message that is empty or too long.';

create or replace function _may_write_to(p_attempt attempts, p_task bigint) returns boolean
language sql stable
as $$
    select exists (
        select from taskyard.tasks t
        join taskyard.tasks own on own.id = p_attempt.task_id
        join taskyard.effective_scopes e on e.name = t.scope
        where t.id = p_task and t.id <> own.id
            and (
                p_attempt.scope = any(e.path)
                or t.parent_id = own.parent_id
                or t.id = any(taskyard._ancestors(own.id))
                or own.id = any(taskyard._ancestors(t.id))
            )
    )
$$;
comment on function _may_write_to(attempts, bigint) is 'Whether an attempt''s agent may write to a task: another one of its family, of its scope or of one below.';

create or replace function _deliver(p_task tasks, p_from text, p_text text) returns bigint
language plpgsql volatile
as $$
declare
    c_unread constant integer := 1000;
    v_queue text := _mailbox(p_task.id);
    v_unread bigint;
    v_id bigint;
    v_chain bigint[];
    v_last tasks;
begin
    if p_task.status = 'waiting' then
        v_chain := _successors(p_task.id);
        if cardinality(v_chain) > 1 then
            -- Whoever took over has the work now.
            select * into v_last from tasks where id = v_chain[cardinality(v_chain)] for no key update;
            return _deliver(v_last, p_from, p_text);
        end if;
    end if;
    if p_task.status in ('completed', 'failed', 'cancelled') then
        raise exception using
            errcode = 'TY004',
            message = format('Task %s is %s already.', p_task.id, p_task.status),
            hint = 'Nobody is there to read it; insert another task.';
    end if;
    if not _own_queue(v_queue) then
        perform _make_mailbox(p_task.id);
    end if;
    select m.queue_visible_length into v_unread from pgmq.metrics(v_queue) m;
    if v_unread >= c_unread then
        raise exception using
            errcode = 'TY004',
            message = format('The mailbox of task %s is full.', p_task.id),
            hint = format('It holds %s messages that its agent has not read yet; write again when it has.', v_unread);
    end if;
    -- Visible from the beginning of the transaction, which is how metrics() counts.
    select s.id into v_id
    from pgmq.send(v_queue, jsonb_build_object('from', p_from, 'text', p_text, 'at', _now()), now()) s (id);
    update tasks set has_mail = true where id = p_task.id and not has_mail;
    if p_task.status = 'running' then
        perform pg_notify('taskyard_runner_' || a.runner_id, 'message') from attempts a where a.id = p_task.attempt_id;
    elsif p_task.status = 'waiting' then
        perform _wake_if_ready(array[p_task.id]);
    end if;
    return v_id;
end
$$;
comment on function _deliver(tasks, text, text) is 'Puts a message into the mailbox of a task whose row the caller has locked. Raises TY004, TY009.';

create or replace function _make_mailbox(p_task bigint) returns void
language plpgsql volatile
as $$
begin
    perform pgmq.create(_mailbox(p_task));
exception when insufficient_privilege then
    raise exception using
        errcode = 'TY009',
        message = format('Taskyard cannot make the mailbox of task %s.', p_task),
        hint = 'It needs pgmq 1.6 or newer, and its rights on the schema pgmq: alter extension pgmq update;  taskyard install',
        detail = sqlerrm;
end
$$;
comment on function _make_mailbox(bigint) is 'Makes a task''s queue. Raises TY009 where pgmq does not let us: before 1.6 an extension''s queues could be made by its owner alone.';

create or replace function _take_mail(p_task bigint, p_attempt bigint, p_most integer, p_characters integer) returns jsonb
language plpgsql volatile
as $$
declare
    c_hidden constant integer := 10 * 365 * 86400; -- seconds: longer than the mailbox is kept
    v_queue text := _mailbox(p_task);
    v_next record;
    v_mail jsonb := '[]'::jsonb;
    v_ids bigint[] := array[]::bigint[];
    v_characters integer := 0;
    v_more boolean := false;
begin
    perform 1 from tasks t where t.id = p_task for no key update;
    if not _own_queue(v_queue) then
        return v_mail;
    end if;
    loop
        -- Seen, and not hidden yet: whether there is a next one, and how long it is.
        select m.msg_id, m.message into v_next from pgmq.read(v_queue, 0, 1) m;
        exit when not found;
        v_characters := v_characters + length(v_next.message ->> 'text');
        v_more := cardinality(v_ids) >= p_most or (cardinality(v_ids) > 0 and v_characters > p_characters);
        exit when v_more;
        perform pgmq.set_vt(v_queue, v_next.msg_id, c_hidden);
        v_ids := v_ids || v_next.msg_id;
        v_mail := v_mail || (v_next.message || jsonb_build_object('id', v_next.msg_id));
    end loop;
    if cardinality(v_ids) > 0 then
        perform _log(p_task, p_attempt, 'mail_read', jsonb_build_object('messages', to_jsonb(v_ids)));
    end if;
    update tasks set has_mail = v_more where id = p_task and has_mail <> v_more;
    return v_mail;
end
$$;
comment on function _take_mail(bigint, bigint, integer, integer) is
'The oldest unread messages of a task, at most so many and, but for the first, so many characters; from now on they are read by this attempt.';

create or replace function _mail_for_note(p_task bigint, p_attempt bigint, p_since bigint default null) returns text
language plpgsql volatile
as $$
declare
    c_characters constant integer := 20000;
    v_queue text := _mailbox(p_task);
    v_since bigint := p_since;
    v_message bigint;
    v_note text;
begin
    if not _own_queue(v_queue) then
        return null;
    end if;
    if v_since is null then
        select max(a.id) into v_since from attempts a where a.task_id = p_task and a.id < p_attempt;
    end if;
    -- An attempt that was lost may have died between reading and telling.
    for v_message in
        select distinct m.id::bigint
        from task_events e
        join attempts a on a.id = e.attempt_id
        cross join lateral jsonb_array_elements_text(e.detail -> 'messages') m (id)
        where e.task_id = p_task and e.kind = 'mail_read' and e.attempt_id < p_attempt
            and (e.attempt_id > v_since or (e.attempt_id = v_since and a.outcome = 'crashed'))
    loop
        perform pgmq.set_vt(v_queue, v_message, 0);
    end loop;
    select string_agg(format('Message from %s: %s', m.mail ->> 'from', m.mail ->> 'text'), E'\n\n' order by m.place) into v_note
    from jsonb_array_elements(_take_mail(p_task, p_attempt, 1000, c_characters)) with ordinality m (mail, place);
    if v_note is not null and (select t.has_mail from tasks t where t.id = p_task) then
        v_note := v_note || E'\n\n' || 'There is more mail: read_messages.';
    end if;
    return v_note;
end
$$;
comment on function _mail_for_note(bigint, bigint, bigint) is
'The unread mail of a task for an attempt that begins, as part of its note: some 20,000 characters, at least one message; null: none. What attempts after p_since read comes again, and what that one read if it was lost: p_since is the attempt whose session is resumed, 0 where none is; null: the last.';

create or replace function _drop_mailboxes() returns integer
language plpgsql volatile
set lock_timeout = '200ms' -- a dump holds the tables of all queues for as long as it takes
as $$
declare
    c_kept constant interval := interval '1 day';
    c_most constant integer := 50;
    v_count integer := 0;
    r record;
begin
    if not _pgmq_has('meta') then
        return 0;
    end if;
    for r in
        select m.queue_name, m.task_id, t.id is not null as known
        from (
            select x.queue_name, case when x.queue_name ~ '^mail_[0-9]{1,18}$' then substr(x.queue_name, 6)::bigint end as task_id from pgmq.meta x
        ) m
        left join tasks t on t.id = m.task_id
        where m.task_id is not null and (t.id is null or t.finished_at < _now() - c_kept) and _own_queue(m.queue_name)
        order by m.task_id
        limit c_most
    loop
        begin
            if r.known then
                -- As everybody: first the task, which may have been given another go meanwhile.
                continue when not exists (
                    select from tasks t where t.id = r.task_id and t.finished_at < _now() - c_kept for no key update skip locked
                );
                update tasks set has_mail = false where id = r.task_id and has_mail;
            end if;
            perform pgmq.drop_queue(r.queue_name);
            v_count := v_count + 1;
        exception when others then
            raise warning 'pgmq queue % was not dropped: %', r.queue_name, sqlerrm;
        end;
    end loop;
    return v_count;
end
$$;
comment on function _drop_mailboxes() is 'Drops mailboxes of tasks that ended a day ago or are gone, some at a time; returns how many.';
