"""A yard that nobody looked at for weeks."""

from psycopg import Connection
from psycopg.rows import DictRow

from .conftest import Yard, column, value


def test_after_weeks_without_a_runner_verbs_and_runners_find_their_partitions(
    yard: Yard, db: Connection[DictRow]
) -> None:
    task = value(db, "select submit_task('x', 'shell')")
    superuser = yard.connect(superuser=True)
    for partition in column(
        superuser,
        "select inhrelid::regclass::text from pg_inherits where inhparent in ('taskyard.transcript'::regclass, 'taskyard.task_events'::regclass)",
    ):
        superuser.execute(f"drop table {partition}")  # type: ignore[arg-type]
    assert value(db, "select cancel_task(%s, 'too late')", task) == "cancelled"
    assert column(db, "select kind from task_events") == ["cancelled"]
    runner = value(db, "select register_runner('r')")
    value(db, "select submit_task('y', 'shell')")
    attempt = value(db, "select attempt_id from claim_task(%s)", runner)
    assert value(db, 'select append_transcript(%s, \'[{"seq": 1, "kind": "output", "body": "hello"}]\')', attempt) == 1
