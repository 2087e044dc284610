"""The connection behind the screens: one for questions, one that listens. It heals by itself, and says how it is.

Nothing here decides anything: a screen asks, draws, and asks again when something was heard.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import DictRow

from taskyard.runner.connection import connect_async, is_pooled_async, redacted

from .models import Change, Rights

Query = LiteralString | sql.Composed

PATIENCE = 10.0  # seconds that an answer may take
RETRY = (0.25, 0.5, 1.0, 2.0, 5.0)  # seconds between two tries to connect
LOOK = 2.0  # seconds between two looks at everything where nothing is heard
NAMED = 300  # ids that a notification names at most (see _announce)


class Away(Exception):
    """The database does not answer; the link tries by itself until it does."""


class Refused(Exception):
    """The database refused an action; `hint` names what to do."""

    def __init__(self, message: str, hint: str | None) -> None:
        super().__init__(message)
        self.hint = hint


class Link:
    """Questions to one database.

    `heard` is called for each change that the database tells of, `state` with None when the link is up, and with a
    sentence while it is not.
    """

    def __init__(self, dsn: str, heard: Callable[[Change], None], state: Callable[[str | None], None]) -> None:
        self._dsn = dsn
        self._heard = heard
        self._state = state
        self._asking: AsyncConnection[DictRow] | None = None
        self._lock = asyncio.Lock()
        self._broken = asyncio.Event()
        self.queries = 0
        self.rights = Rights("", submit=False, administer=False)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        tries = 0
        while True:
            try:
                await self._stay()
                tries = 0
            except (psycopg.Error, OSError, TimeoutError) as error:
                if isinstance(error, psycopg.Error) and self._was_up():
                    tries = 0
                self._state(_why(error, self._dsn))
            finally:
                await self._close()
            await asyncio.sleep(RETRY[min(tries, len(RETRY) - 1)])
            tries += 1

    async def all(self, query: Query, *parameters: Any) -> list[DictRow]:
        """The rows of a query. Raises Away, Refused."""
        return await self._ask(query, parameters, keep=True)

    async def rehearse(self, query: Query, *parameters: Any) -> list[DictRow]:
        """The rows that a query would give, while nothing of what it does stays. Raises Away, Refused."""
        return await self._ask(query, parameters, keep=False)

    async def _ask(self, query: Query, parameters: Sequence[Any], keep: bool) -> list[DictRow]:
        connection = self._asking
        if connection is None:
            raise Away
        async with self._lock:
            self.queries += 1
            try:
                async with asyncio.timeout(PATIENCE), _kept(connection, keep):
                    cursor = await connection.execute(query, _as_parameters(parameters))
                    return await cursor.fetchall() if cursor.description else []
            except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError, OSError) as error:
                self._broken.set()
                raise Away from error
            except psycopg.Error as error:
                raise Refused(error.diag.message_primary or str(error), error.diag.message_hint) from error

    async def one(self, query: Query, *parameters: Any) -> DictRow | None:
        """The first row of a query. Raises Away, Refused."""
        rows = await self.all(query, *parameters)
        return rows[0] if rows else None

    async def value(self, query: Query, *parameters: Any) -> Any:
        """The first column of the first row of a query; None where there is none. Raises Away, Refused."""
        row = await self.one(query, *parameters)
        return None if row is None else next(iter(row.values()))

    async def _stay(self) -> None:
        self._broken.clear()
        asking = await connect_async(self._dsn, "taskyard tui", prepare=False)
        listening = await connect_async(self._dsn, "taskyard tui, listening", prepare=False)
        try:
            self._asking = asking
            self.rights = await self._rights()
            listens = await _listens(listening)
            self._state(None)
            self._heard(Change(frozenset()))
            async with asyncio.TaskGroup() as group:
                hearing = group.create_task(self._hear(listening) if listens else self._look())
                await self._broken.wait()
                hearing.cancel()
        except* psycopg.Error as errors:
            raise errors.exceptions[0] from errors
        finally:
            self._asking = None
            await _closed(listening)
            await _closed(asking)
        raise TimeoutError

    async def _hear(self, connection: AsyncConnection[DictRow]) -> None:
        async for notify in connection.notifies():
            self._heard(change(notify.payload))
        self._broken.set()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self._heard(Change(frozenset()))

    async def _rights(self) -> Rights:
        row = await self.one(
            """
            select current_user as login, pg_has_role('taskyard_submitter', 'usage') as submit,
                pg_has_role('taskyard_admin', 'usage') as administer
            """
        )
        assert row is not None
        return Rights(row["login"], row["submit"], row["administer"])

    def _was_up(self) -> bool:
        return self._asking is not None

    async def _close(self) -> None:
        self._asking = None


async def _listens(connection: AsyncConnection[DictRow]) -> bool:
    """Begin to listen. False where nothing would be heard: behind a transaction pooler, and on a standby."""
    if await is_pooled_async(connection):
        return False
    try:
        await connection.execute("listen task_updates")
    except psycopg.errors.ReadOnlySqlTransaction:
        return False
    return True


def change(payload: str) -> Change:
    """What a notification tells: the tasks that it names, none where it cannot name them all."""
    try:
        said: Any = json.loads(payload)
        ids = frozenset(int(number) for number in said.get("ids", [said["id"]]))
        complete = said["operation"] != "refresh" and len(ids) < NAMED
    except (ValueError, KeyError, TypeError, AttributeError):
        return Change(frozenset())
    return Change(ids if complete else frozenset())


def _as_parameters(parameters: Sequence[Any]) -> Any:
    if len(parameters) == 1 and isinstance(parameters[0], dict):
        return parameters[0]  # pyright: ignore[reportUnknownVariableType]
    return parameters or None


@contextlib.asynccontextmanager
async def _kept(connection: AsyncConnection[DictRow], keep: bool) -> AsyncGenerator[None]:
    if keep:
        yield
        return
    async with connection.transaction(force_rollback=True):
        yield


async def _closed(connection: AsyncConnection[DictRow]) -> None:
    with contextlib.suppress(psycopg.Error, OSError, TimeoutError):
        async with asyncio.timeout(1):
            await connection.close()


def _why(error: BaseException, dsn: str) -> str:
    if isinstance(error, TimeoutError):
        return "The database does not answer."
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = lines[-1].rsplit("failed: ", 1)[-1] if lines else type(error).__name__
    return f"The database does not answer: {redacted(reason)}"
