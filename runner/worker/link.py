"""The runner's way to its database: calls that go through however long the server is away.

Two connections: `hand` for the verbs, `ear` for notifications and the session lock. Behind a transaction pooler there
is only the hand, without prepared statements.
"""

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

import psycopg

from .. import verbs
from ..connection import connect_async, unreachable
from ..postgres import Cluster, PostgresError

log = logging.getLogger("taskyard.runner")

P = ParamSpec("P")
T = TypeVar("T")

CALL_TIMEOUT = 60.0  # seconds; a server that says nothing for so long is treated as gone
LONGEST_WAIT = 2.0  # seconds between attempts to connect
TRY_AGAIN = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
)

# A server that became a standby refuses to write, and another one does not.
AWAY = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction)


class Link:
    """Connections of one runner. `on_notify(channel)` is called for each notification, `name` the application's."""

    def __init__(
        self,
        dsn: str,
        pooler: bool,
        cluster: Cluster | None,
        on_notify: Callable[[str], None],
        name: str = "taskyard runner",
    ) -> None:
        self._name = name
        self._dsn = dsn
        self._pooler = pooler
        self._cluster = cluster
        self._on_notify = on_notify
        self._hand: verbs.Connection | None = None
        self._turn = asyncio.Lock()
        self._met = False
        self._waiting = False
        self.sleeping = False  # whether the hand's session holds the sleepers' lock
        self.where: tuple[str, int, str] = ("", 0, "")  # host, port and database, once connected

    async def call(
        self,
        verb: Callable[Concatenate[verbs.Connection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call a verb; where the connection breaks, connect again and repeat, for as long as it takes.

        Verbs bear repetition: all carry an attempt or a runner id, and what took effect already is refused or empty.
        Raises psycopg.Error for what the database refuses.
        """
        while True:
            async with self._turn:
                hand = await self._connected()
                try:
                    async with asyncio.timeout(CALL_TIMEOUT):
                        return await verb(hand, *args, **kwargs)
                except TRY_AGAIN:
                    pass
                except (*AWAY, TimeoutError) as error:
                    if verbs.is_refusal(error) if isinstance(error, psycopg.Error) else False:
                        raise
                    log.warning("the database is away (%s); going on without it", _reason(error))
                    await self._drop()
                except asyncio.CancelledError:
                    await self._drop()  # a reply may be under way
                    raise
            await asyncio.sleep(random.uniform(0.05, 0.2))

    async def _connected(self) -> verbs.Connection:
        wait = 0.1
        while self._hand is None or self._hand.closed:
            await self._drop()
            try:
                self._hand = await connect_async(self._dsn, self._name, prepare=not self._pooler)
                self._met = True
                self.where = (self._hand.info.host, self._hand.info.port, self._hand.info.dbname)
            except psycopg.OperationalError as error:
                if not self._met:
                    self._first_failure(error)
                await self._revive()
                await asyncio.sleep(random.uniform(wait / 2, wait))
                wait = min(wait * 2, LONGEST_WAIT)
        return self._hand

    def _first_failure(self, error: psycopg.OperationalError) -> None:
        """A server that is away may come back; a wrong password stays wrong. Later, both may be passing troubles."""
        told = unreachable(self._dsn, error)
        if re.search(r"authentication failed|no password supplied|does not exist|no pg_hba.conf entry", str(error)):
            raise told from error
        if not self._waiting:
            self._waiting = True
            log.warning("%s; waiting for it", told.message)

    async def _revive(self) -> None:
        """Start the embedded server again if it crashed; one that was stopped stays stopped."""
        if self._cluster is None or not (self._cluster.data / "postmaster.pid").exists():
            return
        with contextlib.suppress(PostgresError):
            if await asyncio.to_thread(self._cluster.start):
                log.warning("the embedded server had crashed and was started again")

    async def _drop(self) -> None:
        hand, self._hand = self._hand, None
        if self.sleeping:
            # Nobody knows any more that this runner sleeps, so nobody would wake it.
            self.sleeping = False
            self._on_notify("task_ready")
        if hand is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(hand.close()), 1)

    async def sleep_begin(self) -> bool:
        """Declare that this runner waits for notifications. False behind a pooler, or where it has declared so."""
        if self._pooler or self.sleeping:
            return False
        await self.call(verbs.sleep_begin)
        self.sleeping = True
        return True

    async def sleep_end(self) -> None:
        if self.sleeping:
            await self.call(verbs.sleep_end)
            self.sleeping = False

    async def hear(self, runner: int) -> None:
        """Hold the session lock and pass notifications on, for ever."""
        while True:
            ear: verbs.Connection | None = None
            try:
                ear = await connect_async(self._dsn, "taskyard runner (listening)")
                await verbs.listen(ear, runner)
                if not await verbs.hold_runner_lock(ear, runner):
                    await asyncio.sleep(0.5)  # the server has yet to notice that our old connection is dead
                    continue
                self._on_notify("task_ready")
                async for notification in ear.notifies():
                    self._on_notify(notification.channel)
            except AWAY:
                await asyncio.sleep(random.uniform(0.2, 1.0))
            finally:
                if ear is not None:
                    with contextlib.suppress(Exception):
                        await ear.close()

    async def close(self) -> None:
        await self._drop()


def _reason(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
