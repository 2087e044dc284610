"""Tasks that must wait, in front of those that may run.

Half of them wait for a provider that is cooling down, half for room in their scope; all have a higher priority.
"""

from contextlib import ExitStack

from ..bench import Bench, Found
from ..contenders import PER_STATEMENT, Taskyard, register
from ..queue import Queue
from ..report import Table, at_most, rate, ratio
from ..rounds import interleave
from ..server import Database

FEW = 2
ROOM = 4  # attempts that the full scope may run, and runs


def measure_ineligible(bench: Bench) -> Found:
    many = bench.pick(1_000_000, 60_000)
    rows: list[list[str]] = []
    costs: dict[int, float] = {}
    with ExitStack() as stack:
        queues: dict[int, Queue] = {}
        for blocked in (0, FEW, many):
            database, [queue] = stack.enter_context(bench.queues(Taskyard()))
            if blocked:
                bench.say(f"loading {blocked:,} tasks that may not run")
                _crowd(database, blocked, queue.variables["runner"])
            queue.fill(bench.pick(50_000, 20_000))
            database.settle()
            queues[blocked] = queue
        for clients in bench.pick([8], [4]):
            rates = interleave(
                bench.pick(3, 1),
                {f"{n:,}": lambda q=queue, c=clients: q.cycle(c, bench.pick(2, 1)) for n, queue in queues.items()},
                bench.say,
            )
            costs[clients] = rates.ratio("0", f"{many:,}")
            measured = [rate(rates.median(f"{blocked:,}")) for blocked in queues]
            rows.append([str(clients), *measured, ratio(rates.ratio("0", f"{FEW:,}")), ratio(costs[clients])])
    table = Table(
        "Claim and complete, jobs/s, behind so many queued tasks of higher priority that may not run: half of a"
        " provider that is cooling down, half of a scope at its max_concurrency. Cost is the time per job with them"
        f" over that without; that of {FEW} is the price of choosing a lane at all, the rest that of their number.",
        ["clients", *(f"behind {blocked:,}" for blocked in queues), f"cost of {FEW}", f"cost of {many:,}"],
        rows,
    )
    return [table], [
        at_most(f"cost of {many:,} tasks that may not run, {clients} clients", cost, 1.5)
        for clients, cost in costs.items()
    ]


def _crowd(database: Database, count: int, runner: int) -> None:
    with database.connect_superuser() as connection:
        connection.execute("set search_path = taskyard")
        connection.execute("insert into providers (name, adapter) values ('cooling', 'command')")
        connection.execute("insert into agents (name, route, command) values ('cooled', '{cooling}', '{true}')")
        connection.execute("insert into scopes (name, parent, max_concurrency) values ('full', 'default', %s)", (ROOM,))
        # The runner offers the provider, so only its limit holds the tasks back.
        connection.execute("insert into runner_providers (runner_id, provider) values (%s, 'cooling')", (runner,))
        connection.execute(
            "insert into provider_limits (provider, window_name, state, until)"
            " values ('cooling', 'bench', 'hot', now() + interval '1 day')"
        )
    with database.connect() as connection:
        connection.execute(
            "insert into tasks (prompt, agent, scope, priority)"
            " select 'hold', 'shell', 'full', 10 from generate_series(1, %s::integer)",
            (ROOM,),
        )
        held = connection.execute(
            "select count(*) from claim_task(%s::bigint, %s::integer)", (register(connection), ROOM)
        ).fetchone()
        assert held == (ROOM,)
        for agent, scope in (("cooled", "default"), ("shell", "full")):
            for begin in range(0, count // 2, PER_STATEMENT):
                connection.execute(
                    "insert into tasks (prompt, agent, scope, priority)"
                    " select 'wait', %s::text, %s::text, 10 from generate_series(1, %s::integer)",
                    (agent, scope, min(PER_STATEMENT, count // 2 - begin)),
                )
