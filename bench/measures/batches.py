"""Claim 50 and complete 50, against one at a time in the same rounds."""

from ..bench import Bench, Found
from ..contenders import BATCH, Taskyard
from ..report import Table, at_least, rate, ratio
from ..rounds import interleave


def measure_batches(bench: Bench) -> Found:
    seconds = bench.pick(2, 1)
    rows: list[list[str]] = []
    times = 0.0
    with bench.queues(Taskyard()) as (database, [queue]):
        queue.fill(bench.pick(200_000, 30_000))
        database.settle()
        for clients in bench.pick([1, 4, 8], [8]):
            bench.say(f"{clients} clients")
            rates = interleave(
                bench.pick(3, 1),
                {
                    "one": lambda c=clients: queue.cycle(c, seconds),
                    "batch": lambda c=clients: queue.work(Taskyard.batch, c, seconds, BATCH),
                },
                bench.say,
            )
            times = rates.ratio("batch", "one")
            rows.append([str(clients), rate(rates.median("one")), rate(rates.median("batch")), ratio(times)])
    table = Table(
        "Jobs per second claimed and completed with claim_task(runner, 50) and complete_tasks(array), and how many"
        " times the rate of one at a time.",
        ["clients", "one at a time, jobs/s", "batches of 50, jobs/s", "multiple"],
        rows,
    )
    return [table], [at_least("batches of 50 at 8 clients, multiple of one at a time", times, 4)]
