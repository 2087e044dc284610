"""A claim that is checked against what limits, logins and networks allow at that moment, as the tables say it."""

from collections import Counter

from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import column, rows

# Logins of a runner that may not simply be used now, and why.
HELD_BACK = """
    select rp.provider, rp.account, case
        when rp.state <> 'ready' then 'the login was refused'
        when rp.until > _now() then 'out of reach'
        when bool_or(l.until > _now()) then 'hot'
        when bool_or(l.canary_until > _now()) then 'being tried'
        else 'to be tried' end as why
    from runner_providers rp
    left join provider_limits l on l.provider = rp.provider and l.account in ('', rp.account) and l.until is not null
    where rp.runner_id = %s and (l.until is not null or rp.state <> 'ready' or rp.until > _now())
    group by rp.provider, rp.account, rp.state, rp.until"""


def claim_watched(db: Connection[DictRow], runner: int, n: int) -> list[int]:
    """Claim up to n tasks and return the attempts; fails where a login that is held back was used.

    After a limit one attempt goes, marked as the canary, and none beside it. On one connection, so nothing comes between.
    """
    held_back = rows(db, HELD_BACK, runner)
    claimed = rows(db, "select attempt_id, provider, account from claim_task(%s, %s)", runner, n)
    assert len(claimed) <= n
    tokens = [row["attempt_id"] for row in claimed]
    used = Counter((row["provider"], row["account"]) for row in claimed)
    canaries = set(column(db, "select id from attempts where canary and id = any(%s)", tokens))
    tried: set[tuple[str, str]] = set()
    for login in held_back:
        offer = login["provider"], login["account"]
        if login["why"] == "to be tried":
            tried.add(offer)
            assert used[offer] <= 1, (offer, "one canary at a time")
        else:
            assert not used[offer], (offer, login["why"])
    for row in claimed:
        assert (row["attempt_id"] in canaries) == ((row["provider"], row["account"]) in tried), row
    return tokens
