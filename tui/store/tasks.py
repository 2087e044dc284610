"""Lists of tasks, and the line at the top."""

from typing import Any, LiteralString

from .link import Link
from .models import Choices, Filter, Row, Summary, Template

PAGE = 100  # rows fetched at once
FAMILY = 5000  # rows of a tree that are shown
WIDTH = 300  # characters of a prompt in a list

# Newest first by the primary key: the order stays as it is while tasks change their status.
CONDITION: LiteralString = """
    (%(statuses)s::taskyard.task_status[] is null or t.status = any(%(statuses)s::taskyard.task_status[]))
    and (%(agent)s::text is null or t.agent = %(agent)s)
    and (%(scope)s::text is null or t.scope = %(scope)s or t.scope like %(below)s)
    and (%(text)s::text is null or t.prompt ilike %(text)s or t.id::text = %(word)s)
"""

COLUMNS: LiteralString = """
    t.id, t.status, t.agent, t.scope, t.priority, left(t.prompt, 300) as prompt, left(t.error, 300) as error, a.doing,
    case
        when t.status = 'running' then t.started_at
        when t.status = 'scheduled' then t.run_at
        else coalesce(t.finished_at, t.created_at)
    end as since,
    exists (select from taskyard.approvals q where q.task_id = t.id and q.decision is null) as asks,
    (select count(*)::integer from taskyard.tasks c where c.parent_id = t.id) as children
"""


async def count(link: Link, wanted: Filter) -> int:
    """How many tasks a filter leaves. Raises Away, Refused."""
    return await link.value(f"select count(*) from taskyard.tasks t where {CONDITION}", _parameters(wanted))


async def page(link: Link, wanted: Filter, offset: int, limit: int = PAGE) -> list[Row]:
    """Some rows of a list, newest first. Raises Away, Refused."""
    rows = await link.all(
        f"""
        with page as materialized (
            select t.id from taskyard.tasks t where {CONDITION} order by t.id desc limit %(limit)s offset %(offset)s
        )
        select {COLUMNS}
        from page join taskyard.tasks t on t.id = page.id left join taskyard.attempts a on a.id = t.attempt_id
        order by t.id desc
        """,
        {**_parameters(wanted), "limit": limit, "offset": offset},
    )
    return [Row(**row) for row in rows]


async def family(link: Link, task: int) -> list[Row]:
    """The whole tree that a task belongs to, each parent before its children. Raises Away, Refused."""
    rows = await link.all(
        f"""
        with recursive upwards as (
            select t.id, t.parent_id from taskyard.tasks t where t.id = %(task)s
            union
            select t.id, t.parent_id from upwards u join taskyard.tasks t on t.id = u.parent_id
        ), downwards as (
            select u.id, 0 as depth, array[u.id] as path
            from upwards u
            where not exists (select from taskyard.tasks p where p.id = u.parent_id)
            union all
            select t.id, d.depth + 1, d.path || t.id
            from downwards d join taskyard.tasks t on t.parent_id = d.id
            where d.depth < 100
        ), shown as materialized (
            select d.id, d.depth, d.path from downwards d order by d.path limit %(most)s
        )
        select {COLUMNS}, s.depth
        from shown s join taskyard.tasks t on t.id = s.id left join taskyard.attempts a on a.id = t.attempt_id
        order by s.path
        """,
        {"task": task, "most": FAMILY},
    )
    return [Row(**row) for row in rows]


async def summary(link: Link) -> Summary:
    """The line at the top. Raises Away, Refused."""
    row = await link.one(
        """
        select
            taskyard._now() as now,
            (
                select coalesce(jsonb_object_agg(c.status, c.n), '{}')
                from (select t.status::text, count(*) as n from taskyard.tasks t group by t.status) c
            ) as counts,
            (select count(*) from taskyard.inbox) as questions,
            (
                select coalesce(jsonb_agg(jsonb_build_array(l.provider, l.back) order by l.back), '[]')
                from (
                    select p.provider, extract(epoch from max(p.until) - taskyard._now())::bigint as back
                    from taskyard.provider_limits p where p.until > taskyard._now() group by p.provider
                ) l
            ) as hot,
            coalesce((
                select sum(a.cost_usd) from taskyard.attempts a
                where a.finished_at >= date_trunc('day', taskyard._now() at time zone 'UTC') at time zone 'UTC'
            ), 0) as spent,
            (select count(*) from taskyard.runners r where r.gone_at is null) as runners,
            (
                select count(*) from taskyard.runners r
                where r.gone_at is null and r.last_seen < taskyard._now() - interval '15 seconds'
            ) as silent
        """
    )
    assert row is not None
    row["hot"] = [(name, seconds) for name, seconds in row["hot"]]
    return Summary(**row)


async def choices(link: Link) -> Choices:
    """What a new task may name. Raises Away, Refused."""
    agents = await link.all(
        "select a.name, coalesce(a.description, '') as description from taskyard.agents a order by a.name"
    )
    scopes = await link.all("select e.name from taskyard.effective_scopes e order by e.path")
    templates = await link.all("select t.name, t.task, t.variables from taskyard.templates t order by t.name")
    return Choices(
        [(row["name"], row["description"]) for row in agents],
        [row["name"] for row in scopes],
        {row["name"]: Template(row["task"], row["variables"]) for row in templates},
    )


def _parameters(wanted: Filter) -> dict[str, Any]:
    text = wanted.text.strip()
    return {
        "statuses": list(wanted.statuses) or None,
        "agent": wanted.agent,
        "scope": wanted.scope,
        "below": None if wanted.scope is None else _escaped(wanted.scope) + "/%",
        "text": f"%{_escaped(text)}%" if text else None,
        "word": text.removeprefix("#"),
    }


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
