"""Runners, providers, limits, scopes, budgets, and what was spent."""

from collections.abc import Iterable

from .link import Link
from .models import Budget, Day, Fleet, Limit, Provider, Runner, Scope


async def fleet(link: Link) -> Fleet:
    """Who runs what, and who may not for a while. Raises Away, Refused."""
    now = await link.value("select taskyard._now() as now")
    runners = await link.all(
        """
        select r.name, r.host, r.slots, r.labels, r.last_seen, r.draining, coalesce(r.sandbox, '') as sandbox,
            r.sandbox_trouble as trouble,
            (select count(*)::integer from taskyard.attempts a where a.runner_id = r.id and a.outcome is null) as busy,
            array(
                select rp.provider || case
                    when rp.until > taskyard._now() then ' (out of reach)'
                    when rp.state = 'ready' then ''
                    when rp.state = 'missing' then ' (missing)'
                    else ' (no login)'
                end
                from taskyard.runner_providers rp
                where rp.runner_id = r.id and rp.state <> 'missing'
                order by rp.provider
            ) as providers
        from taskyard.runners r
        where r.gone_at is null
        order by r.name
        """
    )
    providers = await link.all(
        """
        select p.name, p.adapter,
            case when p.paused_at is null then null else coalesce(nullif(p.paused_reason, ''), 'paused') end as paused,
            coalesce(o.ready, '{}') as ready, coalesce(o.troubled, '{}') as troubled,
            (
                select count(*)::integer from taskyard.attempts a where a.provider = p.name and a.outcome is null
            ) as running
        from taskyard.providers p
        left join lateral (
            select array_agg(r.name order by r.name) filter (where rp.state = 'ready') as ready,
                array_agg(r.name || ': ' || coalesce(rp.detail, rp.state) order by r.name)
                    filter (where rp.state = 'unauthenticated') as troubled
            from taskyard.runner_providers rp join taskyard.runners r on r.id = rp.runner_id
            where rp.provider = p.name and r.gone_at is null
        ) o on true
        order by coalesce(cardinality(o.ready), 0) = 0, p.name
        """
    )
    limits = await link.all(
        """
        select l.provider, l.account, concat_ws(' ', nullif(l.model, ''), nullif(l.window_name, '')) as what,
            l.used_percent::float as used, coalesce(l.until, l.resets_at) as until, l.level > 0 as guess,
            l.until is not null as hot, coalesce(l.canary_until > taskyard._now(), false) as tried
        from taskyard.provider_limits l
        where l.until is not null or l.resets_at is null or l.resets_at > taskyard._now()
        order by l.until desc nulls last, l.provider, l.account, what
        """
    )
    return Fleet(
        now,
        [Runner(**row) for row in runners],
        [Provider(**row) for row in providers],
        [Limit(**row) for row in limits],
    )


async def scopes(link: Link) -> list[Scope]:
    """The tree of scopes, each parent before its children, with budgets. Raises Away, Refused."""
    rows = await link.all(
        """
        select e.name, e.path, e.permissions, e.allowed_paths as paths, e.allowed_agents as agents,
            e.allowed_providers as providers, e.network_allow as hosts, s.max_concurrency as most, e.paused,
            (
                select count(*)::integer from taskyard.attempts a join taskyard.effective_scopes b on b.name = a.scope
                where a.outcome is null and e.name = any(b.path)
            ) as busy
        from taskyard.effective_scopes e join taskyard.scopes s on s.name = e.name
        order by e.path
        """
    )
    budgets = await link.all(
        "select u.scope, u.measure, u.period, u.amount, u.used from taskyard._budgets_in_reach() u order by 1, 2, 3"
    )
    return [Scope(**row, budgets=_of(row["name"], budgets)) for row in rows]


async def spent_by_day(link: Link, days: int = 30) -> list[Day]:
    """Dollars, tokens and endings of each day and provider, in UTC days, oldest first. Raises Away, Refused."""
    rows = await link.all(
        """
        select date_trunc('day', a.finished_at at time zone 'UTC') at time zone 'UTC' as start, a.provider,
            coalesce(sum(a.cost_usd), 0)::float as cost,
            coalesce(sum(coalesce(a.input_tokens, 0) + coalesce(a.output_tokens, 0)), 0)::bigint as tokens,
            count(*) filter (where a.outcome = 'completed') as completed,
            count(*) filter (where a.counted) as failed
        from taskyard.attempts a
        where a.finished_at > taskyard._now() - %s * interval '1 day'
        group by 1, 2
        order by 1, 2
        """,
        days,
    )
    return [Day(**row) for row in rows]


async def ended_by_hour(link: Link, hours: int = 24) -> list[Day]:
    """The endings of each of the last hours, oldest first, hours without any left out. Raises Away, Refused."""
    rows = await link.all(
        """
        select date_trunc('hour', t.finished_at) as start, '' as provider, 0::float as cost, 0::bigint as tokens,
            count(*) filter (where t.status = 'completed') as completed,
            count(*) filter (where t.status = 'failed') as failed
        from taskyard.tasks t
        where t.finished_at > date_trunc('hour', taskyard._now()) - %s * interval '1 hour'
        group by 1
        order by 1
        """,
        hours - 1,
    )
    return [Day(**row) for row in rows]


def _of(scope: str, budgets: Iterable[dict[str, object]]) -> list[Budget]:
    return [Budget(**row) for row in budgets if row["scope"] == scope]  # type: ignore[arg-type]
