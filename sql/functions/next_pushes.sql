create or replace function next_pushes(p_limit integer default 10) returns setof push
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    c_lease constant interval := interval '1 minute'; -- longer than any sending takes
    v_push pushes;
    v_target push_targets;
    v_stale text;
    v_out push;
begin
    perform _require_role('taskyard_admin', 'send notifications');
    perform _take_push_events();
    perform _digests();
    for v_push in
        select * from pushes p where p.next_try_at <= _now() order by p.next_try_at, p.id limit least(greatest(p_limit, 1), 100) for update skip locked
    loop
        select * into v_target from push_targets where name = v_push.target;
        v_stale := case
            when v_push.created_at < _now() - interval '1 day' then 'given up after a day'
            when not v_target.enabled then 'its target is disabled'
            when v_push.kind = 'question' and not exists (select from approvals a where a.id = v_push.approval_id and a.decision is null)
                then 'decided before it was sent'
        end;
        if v_stale is not null then
            update pushes set next_try_at = null, last_error = concat_ws('; ', v_stale, last_error) where id = v_push.id;
            continue;
        end if;
        update pushes set tries = tries + 1, next_try_at = _now() + c_lease where id = v_push.id;
        v_out := null;
        v_out.id := v_push.id;
        v_out.try := v_push.tries + 1;
        v_out.target := v_target.name;
        v_out.target_kind := v_target.kind;
        v_out.url := v_target.url;
        v_out.token_env := v_target.token_env;
        v_out.body := _push_body(v_push, v_target);
        return next v_out;
    end loop;
end
$$;
comment on function next_pushes(integer) is
'What is to be sent now, each reserved for a minute: send it, then report_push(). What is not reported comes again. Errors: TY006.';

create or replace function report_push(p_id bigint, p_try integer, p_receipt text, p_error text default null, p_retry_after interval default null)
returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_push pushes;
begin
    perform _require_role('taskyard_admin', 'send notifications');
    select * into v_push from pushes where id = p_id for update;
    if v_push.id is null or v_push.delivered_at is not null then
        return 'nothing changed';
    elsif p_error is null then
        -- Whichever try it was: the other side has it.
        update pushes
        set delivered_at = _now(), receipt = left(p_receipt, 500), next_try_at = null, last_error = null
        where id = p_id;
        return 'delivered';
    elsif v_push.tries <> p_try or v_push.next_try_at is null then
        return 'nothing changed';
    end if;
    update pushes
    set
        last_error = left(p_error, 1000),
        next_try_at = _now() + greatest(
            least(interval '10 seconds' * power(2, least(tries - 1, 20)), interval '30 minutes') * (0.75 + random() / 2), least(coalesce(p_retry_after, interval '0'), interval '6 hours')
        )
    where id = p_id;
    return 'again';
end
$$;
comment on function report_push(bigint, integer, text, text, interval) is
'What came of sending: a receipt, or an error and after how long the other side wants to be asked again. Failures are repeated after 10 seconds, doubling up to half an hour, for a day. Returns delivered, again, or nothing changed. Errors: TY006.';

create or replace function push_answers() returns table (target text, url text, token_env text, since text)
language plpgsql stable
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
begin
    perform _require_role('taskyard_admin', 'send notifications');
    return query
    select t.name, t.answers_url, t.token_env, t.answers_since
    from push_targets t
    where t.enabled and t.answers_url is not null and exists (
        select from pushes p join approvals a on a.id = p.approval_id and a.decision is null and a.kind = 'permission'
        where p.target = t.name and p.tries > 0
    );
end
$$;
comment on function push_answers() is 'The topics where buttons may be pressed now, and the last message of each that was read. Errors: TY006.';

create or replace function press_button(p_target text, p_message text, p_since text) returns text
language plpgsql volatile
security definer
set search_path = taskyard, pg_catalog, pg_temp
as $$
declare
    v_words text[] := string_to_array(left(p_message, 200), ' ');
    v_target push_targets;
    v_push pushes;
    v_approval approvals;
begin
    perform _require_role('taskyard_admin', 'send notifications');
    update push_targets set answers_since = p_since where name = p_target returning * into v_target;
    if cardinality(v_words) <> 3 or v_words[1] <> all('{approve,deny}') or v_words[2] !~ '^\d{1,18}$' then
        return 'ignored: not from a button';
    end if;
    select * into v_push from pushes where id = v_words[2]::bigint and target = p_target;
    if v_push.id is null or v_words[3] is distinct from _push_signature(v_push.id) then
        return 'ignored: not from a button';
    end if;
    perform from tasks where id = v_push.task_id for no key update; -- the task first, as everybody does
    select * into v_approval from approvals where id = v_push.approval_id and decision is null for no key update;
    if v_approval.id is null or v_approval.kind <> 'permission' or v_approval.deadline <= _now() then
        return format('ignored: question %s is decided', v_push.approval_id);
    end if;
    perform _decide(
        v_approval, case v_words[1] when 'approve' then 'approved' else 'denied' end, null,
        case v_words[1] when 'approve' then v_target.scope end
    );
    update approvals set decided_by = 'push target ' || p_target where id = v_approval.id;
    return format('%s: question %s', case v_words[1] when 'approve' then 'approved' else 'denied' end, v_approval.id);
end
$$;
comment on function press_button(text, text, text) is
'What came in on a topic for answers: a button''s message decides its question in the name of the target''s scope, once. Whatever else is there is ignored. Errors: TY006.';
grant execute on function next_pushes(integer), report_push(bigint, integer, text, text, interval), push_answers(), press_button(text, text, text)
to taskyard_viewer, taskyard_submitter, taskyard_runner, taskyard_admin;

create or replace function _push_signature(p_push bigint) returns text
language sql stable
as $$ select encode(sha256(convert_to(s.secret || ' ' || p_push, 'UTF8')), 'hex') from push_secret s $$;
comment on function _push_signature(bigint) is 'What the buttons of this push carry, and nobody else can know.';

create or replace function _push_body(p_push pushes, p_target push_targets) returns jsonb
language plpgsql stable
as $$
declare
    v_task tasks;
    v_approval approvals;
    v_title text;
    v_text text;
    v_tags text[];
    v_priority integer := 3;
    v_actions jsonb;
begin
    select * into v_task from tasks where id = p_push.task_id;
    select * into v_approval from approvals where id = p_push.approval_id;
    case p_push.kind
        when 'question' then
            v_title := case v_approval.kind
                when 'budget' then format('Budget used up in %s', v_approval.scope)
                when 'permission' then format('Task %s asks for permission', p_push.task_id)
                else format('Task %s asks something', p_push.task_id)
            end;
            v_text := case
                when p_target.show_text then left(v_approval.question, 1000)
                else format('Question %s, scope %s.', v_approval.id, v_approval.scope)
            end || coalesce(format(' No answer in %s means no.', _ago(v_approval.deadline - _now())), '');
            v_tags := '{question}';
            v_priority := 4;
            if v_approval.kind = 'permission' and p_target.answers_url is not null then
                v_actions := jsonb_build_array(
                    jsonb_build_object('action', 'http', 'label', 'Approve', 'method', 'POST', 'clear', true, 'url', p_target.answers_url,
                        'body', format('approve %s %s', p_push.id, _push_signature(p_push.id))),
                    jsonb_build_object('action', 'http', 'label', 'Deny', 'method', 'POST', 'clear', true, 'url', p_target.answers_url,
                        'body', format('deny %s %s', p_push.id, _push_signature(p_push.id)))
                );
            end if;
        when 'digest' then
            v_title := 'The last hour';
            select string_agg(
                case x.name when 'usd' then '$' || to_char((p_push.counts ->> 'usd')::numeric, 'FM999990.00') when 'waiting' then (p_push.counts ->> 'waiting') || ' wait for you'
                    else (p_push.counts ->> x.name) || ' ' || x.name end, ', ' order by x.place
            ) into v_text
            from unnest('{completed,failed,cancelled,waiting,usd}'::text[]) with ordinality x (name, place)
            where p_push.counts ? x.name;
            v_tags := '{bar_chart}';
            v_priority := 2;
        else
            v_title := format('Task %s %s', p_push.task_id, case p_push.kind when 'failed' then 'failed' else 'is done' end);
            v_text := case
                when p_target.show_text then concat_ws(E'\n', left(v_task.prompt, 200), left(coalesce(v_task.error, v_task.result #>> '{}'), 500))
                else format('Scope %s, agent %s.', v_task.scope, v_task.agent)
            end;
            v_tags := array[case p_push.kind when 'failed' then 'x' else 'white_check_mark' end];
    end case;
    if p_target.kind = 'ntfy' then
        return jsonb_strip_nulls(jsonb_build_object(
            'topic', regexp_replace(p_target.url, '^.*/', ''), 'title', v_title, 'message', v_text, 'tags', to_jsonb(v_tags), 'priority', v_priority, 'actions', v_actions
        ));
    end if;
    return jsonb_strip_nulls(jsonb_build_object(
        'id', p_push.id, 'kind', p_push.kind, 'title', v_title, 'text', v_text, 'task', p_push.task_id, 'approval', p_push.approval_id,
        'scope', coalesce(v_approval.scope, v_task.scope, p_target.scope), 'counts', p_push.counts, 'at', p_push.created_at
    ));
end
$$;
comment on function _push_body(pushes, push_targets) is 'What is posted: as ntfy reads it, or plain JSON. No prompt, question or result unless the target may show text.';
