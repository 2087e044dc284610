"""How many updates of a claim and complete cycle stay in place."""

from ..bench import Bench, Found
from ..contenders import Taskyard
from ..report import Table, share
from ..statistics import updates

CLIENTS = 8
MEANING = {
    "tasks": "the claim's update is in place, the completion's enters the index on finished_at: 50 % is the most",
    "attempts": "the end takes it off the index of live attempts: 0 % is all there can be; heartbeats are in place",
    "runners": "claims and completions do not touch it; only heartbeats do",
}


def measure_hot(bench: Bench) -> Found:
    jobs = bench.pick(40_000, 2_400)
    with bench.queues(Taskyard()) as (database, [queue]):
        queue.fill(jobs * 2)
        database.settle()
        before = updates(database, *MEANING)
        queue.cycle_some(CLIENTS, jobs)
        after = updates(database, *MEANING, at_least=before["tasks"].all + 2 * jobs)
    made = {name: after[name].since(before[name]) for name in MEANING}
    table = Table(
        f"Updates made by {jobs:,} claims and completions at {CLIENTS} clients. In place (HOT): the new version went"
        " to the same page and no index was written.",
        ["table", "updates per job", "in place", "what it means"],
        [
            [name, f"{made[name].all / jobs:.2f}", share(made[name].hot, made[name].all), MEANING[name]]
            for name in MEANING
        ],
    )
    return [table], []
