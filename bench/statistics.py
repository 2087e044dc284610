"""PostgreSQL's own count of updates, and how many of them stayed on their page without touching an index (HOT)."""

import time
from dataclasses import dataclass

from .errors import BenchError
from .server import Database

QUERY = """
select relname::text, n_tup_upd, n_tup_hot_upd from pg_stat_user_tables
where schemaname = 'taskyard' and relname = any(%s)
"""


@dataclass(frozen=True)
class Updates:
    """Rows updated, and how many of them in place."""

    all: int
    hot: int

    def since(self, before: "Updates") -> "Updates":
        return Updates(self.all - before.all, self.hot - before.hot)


def updates(database: Database, *tables: str, at_least: int = 0) -> dict[str, Updates]:
    """Updates per table so far. Sessions report with a delay: waits until the first table shows `at_least`."""
    deadline = time.monotonic() + 15
    with database.connect_superuser() as connection:
        while True:
            found = {
                str(name): Updates(int(str(n)), int(str(hot)))
                for name, n, hot in connection.execute(QUERY, (list(tables),))
            }
            if found[tables[0]].all >= at_least:
                return found
            if time.monotonic() > deadline:
                raise BenchError(
                    f"The statistics show {found[tables[0]].all} updates of {tables[0]} instead of {at_least}."
                )
            time.sleep(0.2)
