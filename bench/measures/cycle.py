"""Insert one job per transaction, then claim and complete one at a time."""

from ..bench import Bench, Found
from ..contenders import Pgmq, Raw, Taskyard
from ..report import Table, at_least, rate, ratio
from ..rounds import Rates, interleave

COLUMNS = [
    "clients",
    "raw, jobs/s",
    "taskyard, jobs/s",
    "pgmq, jobs/s",
    "taskyard to raw",
    "pgmq to raw",
    "taskyard to pgmq",
]
JUDGED_AT = 8


def measure_cycle(bench: Bench) -> Found:
    seconds = bench.pick(2, 1)
    inserts: dict[int, Rates] = {}
    cycles: dict[int, Rates] = {}
    with bench.queues(Raw(), Taskyard(), Pgmq()) as (database, queues):
        for queue in queues:
            queue.fill(bench.pick(100_000, 15_000))
        database.settle()
        for clients in bench.pick([1, 4, 8, 16], [JUDGED_AT]):
            bench.say(f"insert, {clients} clients")
            inserts[clients] = interleave(
                bench.pick(3, 1), {q.name: lambda q=q, c=clients: q.insert(c, seconds) for q in queues}, bench.say
            )
            bench.say(f"claim and complete, {clients} clients")
            cycles[clients] = interleave(
                bench.pick(3, 2), {q.name: lambda q=q, c=clients: q.cycle(c, seconds) for q in queues}, bench.say
            )
    tables = [
        Table(
            "Claim and complete, two transactions per job: what a runner with a free slot does all day.",
            COLUMNS,
            _rows(cycles),
        ),
        Table(
            "Insert, one job per transaction. Taskyard checks the row, files it and wakes whoever sleeps; raw stores"
            " it.",
            COLUMNS,
            _rows(inserts),
        ),
    ]
    judged = cycles[JUDGED_AT]
    return tables, [
        at_least("claim and complete at 8 clients, ratio to raw", judged.ratio("taskyard", "raw"), 0.5),
        at_least("claim and complete at 8 clients, ratio to pgmq", judged.ratio("taskyard", "pgmq"), 1.0),
    ]


def _rows(measured: dict[int, Rates]) -> list[list[str]]:
    return [
        [
            str(clients),
            *(rate(rates.median(name)) for name in ("raw", "taskyard", "pgmq")),
            ratio(rates.ratio("taskyard", "raw")),
            ratio(rates.ratio("pgmq", "raw")),
            ratio(rates.ratio("taskyard", "pgmq")),
        ]
        for clients, rates in measured.items()
    ]
