-- The low-water mark of a lane: where its live rows begin. Deleted claim-index rows stay in the index until vacuum
-- may remove them, and while anyone holds an old snapshot (a dump, a forgotten transaction) it may not: every claim would walk
-- all of them (0.22 to 0.36 of the rate after three minutes in every queue measured).
-- The mark is kept per session in a custom setting, not in a row: a row would be rewritten by every claim and
-- suffer from the very same snapshot, and all sessions would wait for each other at it.
-- Positions only grow, except that a row may become visible late (a long transaction) or return (a claim that was
-- rolled back). Both are found when the lane seems empty, and by a sweep from the start every now and then.

create or replace function _mark_term() returns text
language sql stable
as $$ select floor((date_part('epoch', now()) + pg_backend_pid()) / 20)::text $$;
comment on function _mark_term() is 'A mark holds for a term of 20 seconds, then the session sweeps from the start; the terms of sessions are staggered.';

create or replace function _mark(p_lane integer) returns bigint
language sql stable
as $$
    select case
        when split_part(current_setting('taskyard.mark_' || p_lane, true), ':', 2)
            = _mark_term()
            then split_part(current_setting('taskyard.mark_' || p_lane, true), ':', 1)::bigint
        else 0
    end
$$;
comment on function _mark(integer) is 'Position from which this session looks for the lane''s next row; 0 where it has none or a sweep is due.';

create or replace function _set_mark(p_lane integer, p_position bigint) returns text
language sql volatile
as $$ select set_config('taskyard.mark_' || p_lane, p_position || ':' || _mark_term(), false) $$;
comment on function _set_mark(integer, bigint) is 'Remembers for this session that the lane has nothing below this position.';
