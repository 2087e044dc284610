"""All of one task."""

from typing import LiteralString

from .link import Link
from .models import Artifact, Attempt, Checkpoint, Detail, Entry, Handoff, Proof, Question

PAGE = 500  # transcript rows fetched at once; a row is at most some 16 kB
SHOWN = 400_000  # bytes of an artifact that are fetched

QUESTIONS: LiteralString = """
    select a.id, a.kind, a.task_id as task, a.scope, a.question,
        a.permissions || a.paths || a.hosts as wanted, a.deadline - taskyard._now() as left,
        left(t.prompt, 2000) as prompt, t.agent
    from taskyard.approvals a left join taskyard.tasks t on t.id = a.task_id
"""


async def detail(link: Link, task: int) -> Detail | None:
    """A task with its attempts and what they left; None where there is none. Raises Away, Refused."""
    columns = await link.one(
        """
        select t.id, t.prompt, t.agent, t.scope, t.status::text, t.priority, t.run_at,
            t.parent_id, t.depends_on, t.payload, t.workspace, t.repository, t.base, t.push_to, t.verify, t.requires,
            t.provider, t.model, t.on_limit,
            t.max_attempts, t.timeout, t.result, t.error, t.created_by, t.created_at, t.started_at, t.finished_at,
            t.attempt_id, t.attempt_count, t.failure_count, t.routed_by, t.handoff_id, taskyard._now() as now
        from taskyard.tasks t where t.id = %s
        """,
        task,
    )
    if columns is None:
        return None
    explained = await link.all("select taskyard.explain_task(%s) as line", task)
    children = await link.all(
        "select t.status::text, count(*) as n from taskyard.tasks t where t.parent_id = %s group by t.status", task
    )
    return Detail(
        columns,
        [row["line"] for row in explained],
        await _attempts(link, task),
        await _proofs(link, task),
        await _handoffs(link, task),
        await _checkpoint(link, task),
        await _artifacts(link, task),
        [Question(**row) for row in await link.all(QUESTIONS + "where a.task_id = %s and a.decision is null", task)],
        {row["status"]: row["n"] for row in children},
    )


async def transcript(link: Link, attempt: int, after: int = 0, limit: int = PAGE) -> list[Entry]:
    """Up to `limit` rows of an attempt's transcript with seq > after, in order. Raises Away, Refused."""
    rows = await link.all(
        """
        select x.seq, x.at, x.kind, x.body, x.data from taskyard.transcript x
        where x.attempt_id = %s and x.seq > %s order by x.seq limit %s
        """,
        attempt,
        after,
        limit,
    )
    return [Entry(**row) for row in rows]


async def before_tail(link: Link, attempt: int, count: int) -> int:
    """The seq before the last `count` rows of a transcript; 0 where there are no more. Raises Away, Refused."""
    found = await link.value(
        "select x.seq from taskyard.transcript x where x.attempt_id = %s order by x.seq desc offset %s limit 1",
        attempt,
        count,
    )
    return found or 0


async def inbox(link: Link) -> list[Question]:
    """Open questions, the most urgent first. Raises Away, Refused."""
    rows = await link.all(
        QUESTIONS
        + """
        where a.decision is null and coalesce(t.status not in ('completed', 'failed', 'cancelled'), true)
        order by a.deadline nulls last, a.id limit 500
        """
    )
    return [Question(**row) for row in rows]


async def _attempts(link: Link, task: int) -> list[Attempt]:
    rows = await link.all(
        """
        select a.id, a.number, r.name as runner, a.provider, a.model, a.outcome::text, a.exit_code, a.evidence,
            a.input_tokens, a.output_tokens, a.cost_usd as cost, a.turns, a.sandbox, a.branch, a.commit_id as commit,
            a.progress, a.doing, a.started_at, a.finished_at
        from taskyard.attempts a left join taskyard.runners r on r.id = a.runner_id
        where a.task_id = %s
        order by a.number, a.id
        """,
        task,
    )
    return [Attempt(**row) for row in rows]


async def _proofs(link: Link, task: int) -> list[Proof]:
    rows = await link.all(
        """
        select a.number, v.command, v.passed, v.exit_code, v.output_tail as output, v.duration, v.commit_id as commit
        from taskyard.verifications v join taskyard.attempts a on a.id = v.attempt_id
        where v.task_id = %s
        order by a.number
        """,
        task,
    )
    return [Proof(**row) for row in rows]


async def _handoffs(link: Link, task: int) -> list[Handoff]:
    rows = await link.all(
        """
        select h.source, h.target, h.reason, h.context_summary as summary, h.summary_by, h.pending_actions as pending,
            h.artifacts, h.task_id as from_task, h.to_task, h.created_at as at
        from taskyard.handoffs h
        where h.task_id = %s or h.to_task = %s
        order by h.id
        """,
        task,
        task,
    )
    return [Handoff(**row) for row in rows]


async def _checkpoint(link: Link, task: int) -> Checkpoint | None:
    row = await link.one(
        """
        select coalesce(a.number, 0) as attempt, c.version, c.status, c.progress, c.data, c.created_at as at
        from taskyard.checkpoints c left join taskyard.attempts a on a.id = c.attempt_id
        where c.task_id = %s
        order by c.created_at desc, c.version desc
        limit 1
        """,
        task,
    )
    return None if row is None else Checkpoint(**row)


async def _artifacts(link: Link, task: int) -> list[Artifact]:
    rows = await link.all(
        """
        select x.attempt_id as attempt, x.path, x.kind, x.size from taskyard.artifacts x
        where x.task_id = %s
        order by x.attempt_id, x.path limit 500
        """,
        task,
    )
    return [Artifact(**row) for row in rows]


async def content(link: Link, artifact: Artifact) -> str | None:
    """What is in an artifact, as text; None where it is kept elsewhere. Raises Away, Refused."""
    kept = await link.value(
        "select substring(x.content for %s) from taskyard.artifacts x where x.attempt_id = %s and x.path = %s",
        SHOWN,
        artifact.attempt,
        artifact.path,
    )
    return None if kept is None else bytes(kept).decode(errors="replace")
