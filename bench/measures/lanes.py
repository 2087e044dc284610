"""The same number of ready tasks, spread over ever more lanes."""

from contextlib import ExitStack
from typing import LiteralString

from ..bench import Bench, Found
from ..contenders import Taskyard, add_scopes
from ..queue import Queue
from ..report import Table, at_least, rate, ratio
from ..rounds import interleave

SCOPES: dict[int, LiteralString] = {10: "'s' || g %% 10", 100: "'s' || g %% 100", 1_000: "'s' || g %% 1000"}


def measure_lanes(bench: Bench) -> Found:
    ready = bench.pick(200_000, 16_000)
    rows: list[list[str]] = []
    ratios: dict[int, float] = {}
    with ExitStack() as stack:
        queues: dict[str, Queue] = {}
        for lanes in bench.pick([10, 100, 1_000], [10, 1_000]):
            bench.say(f"loading {ready:,} tasks in {lanes:,} lanes")
            database, [queue] = stack.enter_context(bench.queues(Taskyard(SCOPES[lanes])))
            with database.connect_superuser() as connection:
                add_scopes(connection, lanes)
            queue.fill(ready)
            database.settle()
            queues[f"{lanes:,}"] = queue
        for clients in [8]:
            rates = interleave(
                bench.pick(3, 1),
                {name: lambda q=queue, c=clients: q.cycle(c, bench.pick(2, 1)) for name, queue in queues.items()},
                bench.say,
            )
            ratios[clients] = rates.ratio("1,000", "10")
            rows.append([str(clients), *(rate(rates.median(name)) for name in queues), ratio(ratios[clients])])
    table = Table(
        f"Claim and complete, jobs/s, with {ready:,} ready tasks spread over so many lanes (one scope each), and the"
        " rate at 1,000 over that at 10.",
        ["clients", *(f"{name} lanes" for name in queues), "1,000 to 10"],
        rows,
    )
    return [table], [
        at_least(f"rate with 1,000 lanes over 10, {clients} clients", value, 1 / 3) for clients, value in ratios.items()
    ]
