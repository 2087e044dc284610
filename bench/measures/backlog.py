"""Does a long queue make a claim dearer? Three databases side by side, so that the sizes take turns too."""

from contextlib import ExitStack

from ..bench import Bench, Found
from ..contenders import Pgmq, Raw, Taskyard
from ..queue import Queue
from ..report import Table, at_most, rate, ratio
from ..rounds import interleave

CLIENTS = 4
NAMES = ("raw", "taskyard", "pgmq")


def measure_backlog(bench: Bench) -> Found:
    sizes = bench.pick([10_000, 100_000, 1_000_000], [2_000, 50_000])
    per_round = bench.pick(4_000, 600)
    queues: dict[str, tuple[Queue, int]] = {}
    with ExitStack() as stack:
        for size in sizes:
            bench.say(f"loading {size:,} jobs into each queue")
            database, made = stack.enter_context(bench.queues(Raw(), Taskyard(), Pgmq()))
            for queue in made:
                queue.fill(size)
                queues[f"{queue.name} {size:,}"] = queue, size
            database.settle()

        def one_round(name: str) -> float:
            queue, size = queues[name]
            queue.fill(size)
            return queue.cycle_some(CLIENTS, per_round)

        rates = interleave(bench.pick(3, 1), {name: lambda n=name: one_round(n) for name in queues}, bench.say)
    cost = {name: rates.ratio(f"{name} {sizes[0]:,}", f"{name} {sizes[-1]:,}") for name in NAMES}
    table = Table(
        f"Claim and complete at {CLIENTS} clients, jobs/s by the number of queued jobs; cost is the time per job with"
        " the longest queue over that with the shortest.",
        ["queue", *(f"{size:,} queued" for size in sizes), "cost"],
        [[name, *(rate(rates.median(f"{name} {size:,}")) for size in sizes), ratio(cost[name])] for name in NAMES],
    )
    return [table], [at_most(f"cost of a claim with {sizes[-1]:,} queued over {sizes[0]:,}", cost["taskyard"], 1.3)]
