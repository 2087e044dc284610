"""A clock that a test owns: every rule about time reads taskyard._now(), so replacing that one function is enough."""

from datetime import datetime, timedelta

import psycopg
from psycopg.rows import DictRow

from .conftest import Yard, value


class Clock:
    """Time as one connection's session sees it."""

    def __init__(self, yard: Yard, connection: psycopg.Connection[DictRow]) -> None:
        with yard.connect(superuser=True) as owner:
            owner.execute(
                "create or replace function taskyard._now() returns timestamptz language sql stable as"
                " $$ select coalesce(nullif(current_setting('taskyard.test_now', true), '')::timestamptz, now()) $$"
            )
        self._connection = connection
        self.now: datetime = value(connection, "select now()")
        self.set(self.now)

    def set(self, now: datetime) -> None:
        self.now = now
        self._connection.execute("select set_config('taskyard.test_now', %s, false)", (now.isoformat(),))

    def advance(self, by: timedelta) -> None:
        self.set(self.now + by)
