"""A contender's queue in one database, which knows how much is left in it, so that no round runs dry."""

from .contenders import BATCH, PER_STATEMENT, Contender
from .pgbench import WARM_UP, Round, run
from .server import Database, Server

GUESS = 8_000.0  # jobs a second, until a round has shown a higher rate


class Queue:
    """`queued` counts the jobs that can be claimed."""

    def __init__(self, server: Server, database: Database, contender: Contender) -> None:
        self.server = server
        self.database = database
        self.contender = contender
        self.queued = 0
        self._fastest = {1: GUESS, BATCH: 2.5 * GUESS}
        with database.connect() as connection:
            self.variables = contender.prepare(connection)

    @property
    def name(self) -> str:
        return self.contender.name

    def fill(self, count: int) -> None:
        """Load until `count` jobs are queued. After a large load the caller settles the database."""
        if count <= self.queued:
            return
        with self.database.connect() as connection:
            while self.queued < count:
                portion = min(PER_STATEMENT, count - self.queued)
                self.contender.load(connection, portion)
                self.queued += portion

    def insert(self, clients: int, seconds: int) -> float:
        """Jobs inserted per second, one per transaction."""
        done = run(self.server, self.database, self.contender.insert, clients, self.variables, seconds=seconds)
        self.queued += done.transactions
        return done.rate

    def cycle(self, clients: int, seconds: int) -> float:
        """Jobs claimed and completed per second, one at a time."""
        return self.work(self.contender.cycle, clients, seconds)

    def work(self, script: str, clients: int, seconds: int, jobs: int = 1) -> float:
        """Jobs per second of a script that takes `jobs` per run, in a round of `seconds`; refills the queue before."""
        self.fill(int(self._fastest[jobs] * 1.5 * (seconds + WARM_UP)) + jobs * clients)
        done = run(self.server, self.database, script, clients, self.variables, seconds=seconds)
        return self._taken(done, jobs)

    def cycle_some(self, clients: int, count: int) -> float:
        """Like cycle(), for `count` jobs instead of a time: a small queue stays about as long as it is."""
        done = run(self.server, self.database, self.contender.cycle, clients, self.variables, transactions=count)
        return self._taken(done, 1)

    def _taken(self, done: Round, jobs: int) -> float:
        self.queued -= done.transactions * jobs
        rate = done.rate * jobs
        self._fastest[jobs] = max(rate, self._fastest[jobs])
        return rate
